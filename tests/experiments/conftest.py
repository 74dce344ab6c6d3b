"""Commands own their process, and set its precision of products; here they share one."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def own_precision():
    """What one study sets is gone before the next begins: results belong to it."""
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)
