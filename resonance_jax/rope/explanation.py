"""What an encoding means, for a person, and what transformers and the paper's released code make of it."""

import dataclasses
import textwrap
from typing import cast

import numpy as np

from resonance_jax.rope import release
from resonance_jax.rope.hf import Config, from_hf, hf_type, layer_dicts, rope_type_of, rope_types
from resonance_jax.rope.integer_wavelengths import critical_dimension, wavelengths
from resonance_jax.rope.layer_specs import LayerSpecs, Specs
from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.phases import Frequencies
from resonance_jax.rope.schema import Given, Value
from resonance_jax.rope.spec import RopeSpec
from resonance_jax.rope.tables import frequencies


def explain(
    spec_or_config: Given[Specs | Config], *, length: int | None = None, layer_type: str | None = None
) -> str:
    """A few lines for a person: what an encoding or a config.json says, in positions and pairs.

    Method, lengths, rotary size, critical dimension, wavelengths, attention factor; then what transformers
    and the paper's released code make of it, where they differ.

    Args:
        spec_or_config: an encoding, the LayerSpecs of several, or a parsed config.json.
        length: L', in positions, for methods that depend on it; default: the training length.
        layer_type: one of those that differ; default: all of them, one after the other. Of a config that
            lists layers without RoPE, these are named at the end.

    Raises:
        ValueError: as from_hf() and frequencies() do.
    """
    if isinstance(spec_or_config, RopeSpec):
        return _explain(spec_or_config, length, _transformers_given_spec(spec_or_config), {})
    if isinstance(spec_or_config, LayerSpecs):
        if layer_type is not None and layer_type not in spec_or_config:
            raise ValueError(f"unknown layer_type {layer_type!r}; there are {', '.join(spec_or_config)}.")
        named = [kind for kind in spec_or_config if layer_type in (None, kind)]
        return "\n\n".join(f"{kind}: {explain(spec_or_config[kind], length=length)}" for kind in named)
    layers = layer_dicts(spec_or_config)
    blocks = []
    for kind in layers if layer_type is None else [layer_type]:
        spec = from_hf(spec_or_config, kind)
        config = {**spec_or_config, **layers[kind][0]}
        block = _explain(spec, length, _transformers_given_config(spec, config), config)
        blocks.append(block if kind is None else f"{kind}: {block}")
    if still := _without_rope(spec_or_config):
        blocks.append(
            textwrap.fill(f"Layers without RoPE, counted from 0: {', '.join(map(str, still))}.", 100)
        )
    return "\n\n".join(blocks)


def _without_rope(config: Config) -> list[int]:
    """The layers that a config.json lists as not rotated (SmolLM3's no_rope_layers holds a 1 for RoPE)."""
    listed = config.get("no_rope_layers") or []
    return [i for i, has in enumerate(listed) if not has] if isinstance(listed, list) else []


def _explain(spec: RopeSpec, length: int | None, transformers: list[str], config: Config) -> str:
    if spec.dynamic and length is None:
        length = spec.train_length
    freqs = frequencies(spec, length)
    rounded = " Then every wavelength is rounded to whole positions." if spec.resonance else ""
    rows = {
        "method": spec.method_record.summary + rounded,
        "stated": ", ".join(f"{name}={_short(value)}" for name, value in spec.stated().items()) + ".",
        "lengths": _lengths(spec, length),
        "rotary size": _rotary(spec, freqs),
        "critical dim": _critical(spec, freqs),
        "wavelengths": _wavelengths(freqs),
        "attention": _attention(freqs),
        "transformers": " ".join(transformers + _phases(spec, freqs, length)),
        "paper's code": " ".join(release.notes(spec, config)),
    }
    return "\n".join([spec.title, *(_row(name, text) for name, text in rows.items())])


def _row(name: str, text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16)


def _short(value: Value) -> str:
    return f"{len(value)} numbers" if isinstance(value, tuple) else str(value)


def _lengths(spec: RopeSpec, length: int | None) -> str:
    if spec.train_length is None:
        return "the training length is not stated."
    trained = f"trained at {spec.train_length:,} positions"
    if spec.dynamic:
        return f"{trained}; the table depends on the length in use: what follows is for {length:,}."
    if spec.scale == 1:
        return f"{trained}."
    return f"{trained}, scaled {spec.scale:g}x to {int(spec.scale * spec.train_length):,}."


def _rotary(spec: RopeSpec, freqs: Frequencies) -> str:
    still = int((freqs.inv_freq64 == 0).sum())
    pairs = f"{spec.rotary_dim // 2} pairs" + (f" ({still} never turn)" if still else "")
    return f"{spec.rotary_dim} of {spec.head_dim} dims of a head: {pairs}, base {spec.base:,.10g}."


def _critical(spec: RopeSpec, freqs: Frequencies) -> str:
    if spec.train_length is None:
        return "unknown without a training length."
    pairs = critical_dimension(freqs, spec.train_length)
    meaning = (
        "on these, every unseen position has exactly the features of a seen one (Theorem 1)."
        if spec.resonance
        else "on these, unseen positions fall between the features of seen ones."
    )
    return f"{pairs} of {len(freqs.wavelength)} pairs turn within {spec.train_length:,} positions: {meaning}"


def _wavelengths(freqs: Frequencies) -> str:
    turning = wavelengths(freqs)[freqs.inv_freq64 > 0]
    if not turning.size:
        return "no pair turns."
    digits = ",.0f" if freqs.wavelength.any() else ",.2f"
    return f"{turning.min():{digits}} to {turning.max():{digits}} positions a turn."


def _attention(freqs: Frequencies) -> str:
    factor = float(freqs.attention_factor)
    if factor == 1:
        return "cos and sin as they are."
    return f"cos and sin times {factor:.6g}, so attention scores times {factor**2:.6g}."


def _phases(spec: RopeSpec, freqs: Frequencies, length: int | None) -> list[str]:
    """What transformers loses by multiplying float32 positions and frequencies, at the longest length."""
    longest = length or int(spec.scale * (spec.train_length or 0))
    if not longest:
        return []
    positions = np.arange(max(longest - 256, 0), longest)[:, None]
    product = positions.astype(np.float32) * freqs.inv_freq64.astype(np.float32)
    error = np.abs(np.cos(product.astype(np.float64)) - np.cos(positions * freqs.inv_freq64)).max()
    return [
        f"Its float32 phases are off by {error:.1e} in cos near position {longest:,}, ours by 1e-6 at most."
    ]


def _transformers_given_spec(spec: RopeSpec) -> list[str]:
    try:
        rope_type = hf_type(spec)
    except ValueError as error:
        return [str(error).replace("transformers has", "Has", 1)]
    return [f"The same under rope_type {rope_type!r} (to_hf).", *_habits(spec)]


def _transformers_given_config(spec: RopeSpec, config: Config) -> list[str]:
    rope_type = rope_type_of(config)
    if rope_type not in {record.hf_type for record in METHODS.values()}:
        return [f"Does not know the type {rope_type!r}: KeyError."]
    notes = ["The same."]
    if config.get("resonance_rope"):
        plain = dataclasses.replace(spec, resonance=False)
        # What save_hf writes has the whole wavelengths in its factors: the flag adds nothing to them.
        longest = cast(int | None, config.get("max_position_embeddings"))
        tables = [frequencies(each, longest).inv_freq64 for each in (plain, spec)]
        if spec.method == "longrope" and np.allclose(*tables, rtol=1e-9, atol=0):
            notes = ["The same: the factors hold the whole wavelengths already."]
        else:
            notes = [f"Ignores resonance_rope: {plain.title} as stated, nothing rounded."]
    original, longest = (config.get(f"{which}max_position_embeddings") for which in ("original_", ""))
    if original and longest and original != longest and spec.method_record.hf_lengths:
        notes.append(spec.method_record.hf_lengths.format(longest=longest))
    together = rope_types()[rope_type][1].only_together
    if len({bool(config.get(key)) for key in together}) > 1:
        notes.append(f"{' and '.join(together)} have no effect without each other.")
    return [*notes, *_habits(spec)]


def _habits(spec: RopeSpec) -> list[str]:
    """What transformers does beside computing the table."""
    habits = [spec.method_record.hf_habit] if spec.dynamic and spec.method_record.hf_habit else []
    if spec.rotary_dim < spec.head_dim:
        habits.append(
            "Its LLaMA and Mistral rotate whole heads; other models' classes honour partial_rotary_factor."
        )
    return habits
