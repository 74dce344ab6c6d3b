"""frequencies(), which makes the table of a RopeSpec, and how tables are compared, labelled and stored."""

import hashlib
from collections.abc import Mapping
from typing import Any, cast, overload

import numpy as np

from resonance_jax.rope.integer_wavelengths import resonance
from resonance_jax.rope.layer_specs import LayerSpecs, Specs
from resonance_jax.rope.phases import Frequencies, Tables, from_inv_freq, host
from resonance_jax.rope.schema import Given, plain
from resonance_jax.rope.spec import RopeSpec


@overload
def frequencies(spec: RopeSpec, length: Given[int | None] = None) -> Frequencies: ...
@overload
def frequencies(spec: Specs, length: Given[int | None] = None) -> Tables: ...
def frequencies(spec: Specs, length: Given[int | None] = None) -> Tables:
    """The table of an encoding, made on the host in float64; of LayerSpecs the tables by layer type.

    Args:
        spec: the encoding.
        length: the paper's L', in positions: the longest sequence that the table is for, prompt plus what
            will be generated. Dynamic methods need it (nothing else remembers it); static ones ignore it.

    Raises:
        ValueError: when the length is needed and missing, or not a positive whole number.
    """
    if isinstance(spec, LayerSpecs):
        return {name: frequencies(own, length) for name, own in spec.items()}
    length = cast(int | None, plain("length", length, "whole", optional=True))
    if length is not None and length < 1:
        raise ValueError(f"length must be at least 1 position, got {length}.")
    if spec.dynamic and length is None:
        raise ValueError(
            f"method {spec.method!r} depends on the length in use; declare it: frequencies(spec, length=...)."
        )
    settings = {
        name: length if name == "length" else getattr(spec, name) for name in spec.method_record.settings
    }
    table, attention_factor = spec.method_record.rule(spec.rotary_dim, spec.base, **settings)
    freqs = from_inv_freq(table, attention_factor)
    return resonance(freqs) if spec.resonance else freqs


def same(a: Tables, b: Tables) -> bool:
    """Whether two tables are the same encoding; tables by layer type are when each of them is.

    Frequencies must agree to 1e-9 relative, integer wavelengths exactly, and attention factors to 1e-7
    relative: float64 powers differ by an ulp between processors.
    """
    if isinstance(a, dict) or isinstance(b, dict):
        if not isinstance(a, dict) or not isinstance(b, dict) or a.keys() != b.keys():
            return False
        return all(same(a[name], b[name]) for name in a)
    if np.shape(a.wavelength) != np.shape(b.wavelength):
        return False
    return bool(
        np.array_equal(host(a, "same")[1], host(b, "same")[1])
        and np.allclose(a.inv_freq64, b.inv_freq64, rtol=1e-9, atol=0)
        and np.allclose(a.attention_factor, b.attention_factor, rtol=1e-7, atol=0)
    )


def fingerprint(freqs: Tables) -> str:
    """A short label for people, e.g. in file names: frequencies to 9 digits and the attention factor, hashed.

    Use same() to decide whether two encodings agree.
    """
    if isinstance(freqs, dict):
        text = " ".join(f"{name} {fingerprint(table)}" for name, table in sorted(freqs.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:10]
    text = " ".join(f"{x:.8e}" for x in [*freqs.inv_freq64, float(freqs.attention_factor)])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def to_record(freqs: Tables, spec: Specs | None = None) -> dict[str, object]:
    """An encoding as JSON: what checkpoints and results store, so that it can be told apart later.

    Args:
        freqs: the table, or the tables by layer type.
        spec: what it was made of, where that is known; stored flat, as its to_dict() gives it.
    """
    if isinstance(freqs, dict):
        return {
            "spec": None if spec is None else spec.to_dict(),
            "fingerprint": fingerprint(freqs),
            "layer_types": {name: to_record(table) for name, table in freqs.items()},
        }
    _, wavelength, attention_factor = host(freqs, "to_record")
    return {
        "spec": None if spec is None else spec.to_dict(),
        "fingerprint": fingerprint(freqs),
        "inv_freq": freqs.inv_freq64.tolist(),
        "wavelength": wavelength.tolist(),
        "attention_factor": float(attention_factor),
    }


def from_record(record: Mapping[str, Any]) -> Tables:
    """The table that to_record() stored, or the tables by layer type."""
    if "layer_types" in record:
        return {name: cast(Frequencies, from_record(own)) for name, own in record["layer_types"].items()}
    return from_inv_freq(
        np.asarray(record["inv_freq"]),
        record["attention_factor"],
        np.asarray(record["wavelength"]),
    )
