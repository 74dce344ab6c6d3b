"""What a decoder's config.json says of its encoding and its lengths."""

from typing import Any

from resonance_jax import rope as encodings
from resonance_jax.interop.families import FAMILIES, family_of
from resonance_jax.model import Decoder
from resonance_jax.model.decoder import reach
from resonance_jax.model.layer_types import by_name


def encoding_keys(
    lm: Decoder,
    rope: encodings.Specs | None,
    freqs: encodings.Tables | None,
    length: int | None,
) -> dict[str, Any]:
    """The keys of config.json that state an encoding and the lengths; arguments as save_hf's."""
    spec = rope or lm.rope
    if spec is None:
        raise ValueError("this decoder states no encoding (lm.rope is None); name it: rope=RopeSpec(...).")
    if length is not None and (type(length) is not int or length < 1):
        raise ValueError(f"length is the longest sequence in positions, a positive integer, got {length!r}.")
    as_it_is = spec == lm.rope and freqs is None and length is None and lm.context_length is not None
    known = [n for n in (lm.context_length, reach(spec) if length is None else length) if n is not None]
    longest = lm.context_length if as_it_is else max(known, default=None)
    if not FAMILIES[family_of(lm.config)].by_type:
        alone = _alone(spec)
        if isinstance(freqs, dict):
            raise ValueError(
                "this family has one encoding for all layers, and tables by layer type are given."
            )
        return _stated(lm, alone, freqs, length, longest, as_it_is)
    types = lm.config.types
    specs: dict[str, encodings.RopeSpec] = by_name(types, spec)
    tables: dict[str, encodings.Frequencies] = {} if freqs is None else by_name(types, freqs)
    keys = {
        name: _stated(lm, own, tables.get(name), length, longest, as_it_is) for name, own in specs.items()
    }
    for name, own in keys.items():
        if own["rope_parameters"]["rope_type"] == "dynamic":
            raise ValueError(
                f"transformers takes max_position_embeddings for the training length of layer type {name!r}, "
                "which is dynamic; give length=, and another name for the encoding."
            )
    shared = {"max_position_embeddings": longest} if longest is not None else {}
    return encodings.nested(keys) | shared


def _alone(spec: encodings.Specs) -> encodings.RopeSpec:
    """The one encoding of all layers. Raises ValueError where layer types have different ones."""
    if isinstance(spec, encodings.LayerSpecs) and len(set(spec.values())) > 1:
        raise ValueError(f"this family has one encoding for all layers; got {spec.told()}.")
    return encodings.main_spec(spec)


def _stated(
    lm: Decoder,
    spec: encodings.RopeSpec,
    freqs: encodings.Frequencies | None,
    length: int | None,
    longest: int | None,
    as_it_is: bool,
) -> dict[str, Any]:
    """The keys of one encoding. longest: the positions that are served; as_it_is: whether nothing is new."""
    head_dim, pairs = lm.config.head_dim, spec.rotary_dim // 2 if freqs is None else len(freqs.wavelength)
    if spec.head_dim != head_dim or 2 * pairs != head_dim:
        raise ValueError(
            f"Hugging Face's models here rotate whole heads ({head_dim} dims here); "
            f"the encoding is for head_dim={spec.head_dim} and rotates {2 * pairs}."
        )
    keys = _named(spec) if freqs is None else None
    if keys is None:
        if freqs is None and spec.dynamic and length is None and not as_it_is:
            raise ValueError(
                f"the table of {spec.title} depends on the length in use, and transformers has no name for "
                "it; with length=, the longest sequence in positions, it is written as `longrope`."
            )
        keys = _as_longrope(spec, freqs, longest if length is None else length)
    if keys["rope_parameters"]["rope_type"] != "dynamic" and longest is not None:
        keys["max_position_embeddings"] = longest
    if spec.train_length not in (None, keys.get("max_position_embeddings")):
        keys["original_max_position_embeddings"] = spec.train_length
    return keys


def _named(spec: encodings.RopeSpec) -> dict[str, Any] | None:
    """The keys under the type that Hugging Face has for an encoding, None where it has none."""
    try:
        return encodings.to_hf(spec)
    except ValueError:
        return None


def _as_longrope(
    spec: encodings.RopeSpec, freqs: encodings.Frequencies | None, length: int | None
) -> dict[str, Any]:
    """The keys of a table, by default the spec's own for `length` positions."""
    name = spec.title if freqs is None else "a table"
    if spec.train_length is None or length is None:
        raise ValueError(
            f"transformers has no name for {name}, and as `longrope` it "
            f"needs two lengths: the spec's train_length (got {spec.train_length}) and length=, the longest "
            f"sequence (got {length})."
        )
    if freqs is None:
        freqs = encodings.frequencies(spec, length)
    length = max(length, spec.train_length)
    return encodings.to_longrope(freqs, base=spec.base, train_length=spec.train_length, length=length)
