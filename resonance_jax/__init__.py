"""resonance-jax: how a RoPE language model reaches beyond its training length, in JAX.

    from resonance_jax import rope, model, data, train, evaluate, generate, interop, report

Each package's docstring says what it holds; they import downwards only, in the order
rope < parallel < model < train, generate, evaluate < interop < report (data stands beside).
"""

import importlib.metadata

__version__ = "0.1.0"


def _check_flax_and_jax() -> None:
    """pip does not know that old flax cannot be imported with new jax, so we say it in one sentence."""
    number = lambda name: tuple(
        int(x) for x in importlib.metadata.version(name).split(".")[:3] if x.isdigit()
    )
    if number("flax") <= (0, 12, 9) and number("jax") >= (0, 11, 1):
        raise ImportError(
            f"flax {importlib.metadata.version('flax')} does not work with jax "
            f"{importlib.metadata.version('jax')}; run: pip install --upgrade flax"
        )


_check_flax_and_jax()
