"""How exactly this process multiplies matrices: decided and set here, for every command.

Left to itself JAX multiplies float32 numbers as one pass of bfloat16 on a TPU and as TF32 on a GPU, without a
word. A command that says float32 means it.
"""

from typing import get_args

from resonance_jax.settings.precision import Precision


def use_precision(asked: str, dtype: str = "float32", platform: str | None = None) -> None:
    """Set the precision of all products that do not state their own; to be called before any is traced.

    On a CPU "auto" sets nothing, because a CPU multiplies float32 numbers as they are, whatever is set. It
    also keeps what JAX_DEFAULT_MATMUL_PRECISION states.

    Args:
        asked: one of settings.precision.Precision. "auto" sets float32 where weights and activations are
            float32 or wider, and nothing where they have 16 bits: such products lose nothing in one pass.
        dtype: of weights and activations.
        platform: jax's name of the platform that the programs are for; default: this process's.

    Raises:
        ValueError: `asked` is another name.
    """
    import jax

    from resonance_jax.model.lowering import stated_precision

    names = get_args(Precision)
    if asked not in names:
        raise ValueError(f"--precision must be one of {', '.join(names)}, got {asked!r}.")
    if asked == "auto":
        wide = dtype in ("float32", "float64") and (platform or jax.default_backend()) != "cpu"
        if not wide or stated_precision():
            return
        asked = "float32"
    jax.config.update("jax_default_matmul_precision", asked)


def precision_of_products(dtype: str, platform: str) -> str:
    """How exactly numbers of a dtype are multiplied on a platform, by what is set now; for people."""
    from resonance_jax.model.lowering import default_precision, stated_precision

    return default_precision() if platform != "cpu" and stated_precision() else dtype
