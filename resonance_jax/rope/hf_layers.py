"""The encodings of a Hugging Face config whose layers differ: one RoPE dictionary for each layer type."""

from collections.abc import Mapping, Sequence

from resonance_jax.rope.hf import Config, from_hf, layer_dicts
from resonance_jax.rope.layer_specs import LayerSpecs, Specs


def specs_from_hf(config: Config, names: Sequence[str]) -> Specs:
    """The encoding that config.json states, or those of its layer types where they have their own.

    Both layouts are read: `rope_parameters` with a dictionary for each layer type (transformers 5), and
    `rope_local_base_freq` beside `rope_theta` (transformers 4's Gemma 3).

    Args:
        config: the parsed config.json.
        names: the layer types that use RoPE; encodings of others are passed over.

    Raises:
        ValueError: a layer type without an encoding, and as `from_hf` does.
    """
    stated = layer_dicts(config)
    if None in stated or not names:
        return from_hf(config, next(iter(stated)))
    missing = [name for name in names if name not in stated]
    if missing:
        raise ValueError(f"config.json states no RoPE for the layer type {missing[0]!r}.")
    return LayerSpecs({name: from_hf(config, name) for name in names})


def nested(keys: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """config.json's keys of several layer types: `rope_parameters`, with each type's dictionary inside.

    keys: by layer type, what to_hf or to_longrope gave. A resonant table says so in its own dictionary.
    """
    inner: dict[str, object] = {}
    for name, own in keys.items():
        parameters = own["rope_parameters"]
        assert isinstance(parameters, Mapping)
        flag = {"resonance_rope": True} if own.get("resonance_rope") else {}
        inner[name] = {**parameters, **flag}
    return {"rope_parameters": inner}
