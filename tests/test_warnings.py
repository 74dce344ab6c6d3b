"""Deprecations that concern us are errors in these tests (setup.cfg); those of other libraries are not."""

import warnings

import pytest


def say(message: str, module: str) -> None:
    """What jax does when `module` uses something that will go."""
    warnings.warn_explicit(message, DeprecationWarning, "file.py", 1, module=module)


@pytest.mark.parametrize(
    "module",
    ["resonance_jax.model.decoder", "experiments.finetune.plan", "configs.rope", "tests.x", __name__],
)
def test_our_use_of_what_will_go_is_an_error(module):
    with pytest.raises(DeprecationWarning):
        say("jax.something is deprecated", module)


@pytest.mark.parametrize("module", ["jax._src.distributed", "flax.nnx.module"])
def test_what_jax_and_flax_say_of_themselves_is_an_error(module):
    with pytest.raises(DeprecationWarning):
        say("something is deprecated", module)


@pytest.mark.parametrize("module", ["orbax.checkpoint.utils", "jaxtyping._import_hook", "transformers.cache"])
def test_another_librarys_own_use_is_not(module):
    say("jax.something is deprecated", module)


def test_only_the_pmap_adapter_may_use_pmap():
    say("jax.pmap is deprecated, use jax.shard_map", "resonance_jax.parallel.pmap")
    for message, module in [
        ("jax.pmap is deprecated, use jax.shard_map", "resonance_jax.evaluate.nll"),
        ("jax.devices is deprecated", "resonance_jax.parallel.pmap"),
    ]:
        with pytest.raises(DeprecationWarning):
            say(message, module)
