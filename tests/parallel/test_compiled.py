"""What is read from a program's source and from the compiler's refusals, and the names of slices."""

import jax
import numpy as np
import pytest

from resonance_jax.parallel import topology
from resonance_jax.parallel.compiled import products, refusal, stated
from resonance_jax.parallel.mesh import make_mesh

EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.16G) "
    "exceeds available HBM (15.75G)."
)
LATE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 38.80G "
    "of 31.25G hbm. Exceeded hbm capacity by 7.55G.\n\nTotal hbm usage >= 39.54G:"
)


def test_a_refusal_is_one_sentence_with_its_sizes():
    assert refusal(EARLY).startswith("Ran out of memory on HBM") and "15.75G" in refusal(EARLY)
    assert refusal(LATE) == "Ran out of memory in memory space hbm. Used 38.80G of 31.25G hbm."
    assert stated(refusal(EARLY)) == (int(16.16 * 2**30), int(15.75 * 2**30))
    assert stated(refusal(LATE)) == (int(38.80 * 2**30), int(31.25 * 2**30))
    assert stated("no size") == (None, None)


def test_products_by_type_and_precision():
    x, y = np.ones((4, 8), np.float32), jax.numpy.ones((8, 2), "bfloat16")
    both = lambda x, y: (x @ x.T, jax.numpy.matmul(x.astype(y.dtype), y, preferred_element_type="float32"))
    count = lambda: products(jax.jit(both).lower(x, y).as_text())
    assert count() == {"f32 x f32 -> f32, DEFAULT": 1, "bf16 x bf16 -> f32, DEFAULT": 1}
    jax.clear_caches()
    with jax.default_matmul_precision("highest"):
        assert count() == {"f32 x f32 -> f32, HIGHEST": 1, "bf16 x bf16 -> f32, HIGHEST": 1}


def test_a_product_that_states_no_precision_asks_for_the_default():
    """As MLIR prints one without the attribute, and as it prints one with it."""
    kinds = "(tensor<4x8xf32>, tensor<8x2xbf16>) -> tensor<4x2xf32>"
    plain = f"%2 = stablehlo.dot_general %0, %1, contracting_dims = [1] x [0] : {kinds} loc(#loc4)"
    stated = plain.replace(" : ", ", precision = [HIGH, HIGHEST] : ")
    assert products(plain) == {"f32 x bf16 -> f32, DEFAULT": 1}
    assert products(stated) == {"f32 x bf16 -> f32, HIGH and HIGHEST": 1}
    assert products(f"{plain}\n{stated}\n{plain}")["f32 x bf16 -> f32, DEFAULT"] == 2


@pytest.mark.parametrize("name", ["abacus:2x2", "v5p", "v5p:2", "v5p:0x2x2", "v5p:2x2x2x2", ""])
def test_no_such_slice(name):
    with pytest.raises(ValueError, match="there is no slice"):
        topology.chip_of(name)


def test_names_of_slices():
    assert topology.chip_of("v5p:2x2x2") == "v5p" and topology.chip_of("v6e:16x16") == "v6e"
    assert topology.per_slice(make_mesh(data=2, fsdp=4)) == 0


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology, "has_compiler", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'jax\[tpu\]'"):
        topology.without_a_tpu()
