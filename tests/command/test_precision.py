"""float32 means float32 on every platform, unless something else is asked for."""

import jax
import numpy as np
import pytest

from resonance_jax.command import device_line, use_precision
from resonance_jax.command.precision import precision_of_products
from resonance_jax.model.lowering import default_precision, stated_precision
from resonance_jax.parallel.compiled import products


@pytest.fixture(autouse=True)
def own_precision():
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


def asked_for() -> str:
    """What a product of float32 numbers asks the compiler for."""
    x = np.ones((4, 4), np.float32)
    (product,) = products(jax.jit(lambda x: x @ x).lower(x).as_text())
    return product.rpartition(", ")[2]


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_float32_is_highest_on_an_accelerator(platform):
    assert asked_for() == "DEFAULT"
    use_precision("auto", "float32", platform)
    assert asked_for() == "HIGHEST" and stated_precision() == {"precision of products": "float32"}
    assert precision_of_products("float32", platform) == "float32"


@pytest.mark.parametrize(("dtype", "platform"), [("float32", "cpu"), ("float32", None), ("bfloat16", "tpu")])
def test_nothing_is_set_where_nothing_would_be_lost(dtype, platform):
    """On a CPU programs and identities stay those of kept results."""
    use_precision("auto", dtype, platform)
    assert asked_for() == "DEFAULT" and default_precision() == "None" and stated_precision() == {}
    assert precision_of_products(dtype, platform or "cpu") == dtype


@pytest.mark.parametrize(
    ("asked", "product"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_what_is_asked_for_holds_everywhere(asked, product):
    use_precision(asked, "float32", "tpu")
    assert asked_for() == product and stated_precision() == {"precision of products": asked}
    assert precision_of_products("float32", "tpu") == asked
    use_precision("auto", "float32", "tpu")  # what is stated already, as by the environment, is kept
    assert default_precision() == asked


def test_a_cpu_multiplies_float32_numbers_as_they_are():
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    found = []
    for asked in ("bfloat16", "tensorfloat32", "float32"):
        use_precision(asked)
        found.append(np.asarray(jax.jit(lambda x: x @ x)(x)))
        assert precision_of_products("float32", "cpu") == "float32"
    assert (found[0] == found[1]).all() and (found[1] == found[2]).all()
    np.testing.assert_allclose(found[0], x.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="--precision must be one of auto, float32, tensorfloat32, bfloat16"):
        use_precision("highest")


def test_the_device_line_says_how_is_computed():
    line = device_line("float32", 4096, 64, devices=3)
    assert line.startswith("device: 3 x cpu, float32, float32 products, attention block_pairs, jax ")
    assert "attention xla, jax" in device_line("bfloat16", 64, 64)
