"""The line with which a command says what it computes on, and how."""

from resonance_jax.command.precision import precision_of_products


def device_line(
    dtype: str, length: int, head_dim: int, kernel: str = "auto", devices: int | None = None
) -> str:
    """The devices, the dtype, the precision of products, the attention kernel and the version of jax.

    Args:
        dtype: of weights and activations.
        length: positions of the longest sequence, which the kernel is chosen by.
        head_dim: size of a head.
        kernel: the one that was asked for.
        devices: how many are used; default: all of this process's.
    """
    import jax

    from resonance_jax.model.kernel_choice import kernel_for

    count = jax.local_device_count() if devices is None else devices
    return (
        f"device: {count} x {jax.devices()[0].device_kind}, {dtype}, "
        f"{precision_of_products(dtype, jax.default_backend())} products, attention "
        f"{kernel_for(dtype, length, head_dim, kernel)}, jax {jax.__version__}"
    )
