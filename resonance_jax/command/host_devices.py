"""The CPU's cores as devices."""

import os

from resonance_jax.parallel.cores import usable_cores


def use_every_core() -> None:
    """Make every CPU core a device, so that many runs are sharded over them.

    It has to be called before jax first looks at devices, and does nothing where accelerators are asked for
    (JAX_PLATFORMS) or the number of devices is stated already (XLA_FLAGS).
    """
    import jax

    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and "device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", usable_cores())
