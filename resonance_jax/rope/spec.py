"""RopeSpec, what the user says, and frequencies(), which makes a table of it."""

import dataclasses
import hashlib
import inspect
import math
import numbers
from typing import Any

import numpy as np

from resonance_jax.rope.integer_wavelengths import resonance
from resonance_jax.rope.methods import METHODS, dynamic_yarn, yarn
from resonance_jax.rope.phases import Frequencies, from_inv_freq, host

_TITLES = {
    "default": "RoPE",
    "linear": "Linear",
    "ntk": "NTK",
    "dynamic_ntk": "Dynamic NTK",
    "ntk_by_parts": "NTK-by-parts",
    "yarn": "YaRN",
    "dynamic_yarn": "Dynamic YaRN",
    "llama3": "Llama 3",
    "longrope": "LongRoPE",
    "proportional": "Proportional",
}


@dataclasses.dataclass(frozen=True)
class RopeSpec:
    """A RoPE encoding as its user states it. Raises ValueError for what no rule can mean.

    method: a name in rope.METHODS. head_dim: H. base: b. scale: the paper's s (static methods only: a
    dynamic one derives it from the length). train_length: the paper's L. resonance: round the wavelengths.
    partial_rotary_factor: rotate the first R = factor * H dims only (any method; `proportional` keeps R = H
    and stops the later pairs instead). The remaining options belong to single methods (rope.METHODS shows
    each rule's) and are refused by the others.
    """

    method: str = "default"
    head_dim: int = 128
    base: float = 10_000.0
    scale: float = 1.0
    train_length: int | None = None
    resonance: bool = False
    partial_rotary_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    extrapolation_factor: float = 1.0
    ramp: str = "dimension"
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    dynamic_factor: float = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(field.name, getattr(self, field.name)))
        _validate(self)

    @property
    def rotary_dim(self) -> int:
        """R, the rotated dims of a head."""
        if self.method == "proportional":
            return self.head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def dynamic(self) -> bool:
        """Whether another length is another table."""
        if self.method == "longrope":
            return self.short_factor != self.long_factor
        return "length" in _settings(self.method)

    @property
    def title(self) -> str:
        """The encoding's name for people, as the paper writes it: "Resonance YaRN"."""
        return ("Resonance " if self.resonance else "") + _TITLES[self.method]

    def stated(self) -> dict[str, Any]:
        """The fields that say something: the method and everything that differs from its default."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in ("method", "head_dim", "base") or getattr(self, field.name) != field.default
        }


def _settings(method: str) -> frozenset[str]:
    """The keyword settings that a rule takes, read from its signature."""
    names = set(inspect.signature(METHODS[method]).parameters)
    if METHODS[method] is dynamic_yarn:
        names |= set(inspect.signature(yarn).parameters) - {"scale"}
    return frozenset(names - {"dim", "base", "options"})


def parse_name(name: str) -> tuple[str, bool]:
    """(method, resonance) of an encoding's name. Raises ValueError for an unknown one."""
    plain = name.lower().replace("-", "_")
    resonance = plain.split("_")[0] == "resonance"
    method = plain.removeprefix("resonance").removeprefix("_")
    method = "default" if method in ("", "rope", "none") else method
    if method not in METHODS:
        known = ", ".join(["rope", *(m.replace("_", "-") for m in METHODS if m != "default")])
        raise ValueError(f"unknown encoding {name!r}; expected one of {known}, or resonance-<one of them>.")
    return method, resonance


def takes_scale(method: str) -> bool:
    """Whether a method is given its scale (a dynamic one derives it from the length)."""
    return "scale" in _settings(method)


def named(name: str, **settings) -> RopeSpec:
    """The encoding of a name such as "rope", "yarn", "resonance-yarn" or "resonance-dynamic-ntk".

    settings: fields of RopeSpec. One set of them serves many names: those that the method does not take, and
    those that are None, are left out. Raises ValueError for an unknown name.
    """
    method, resonance = parse_name(name)
    takes = _settings(method) | _COMMON | {"train_length"}
    chosen = {key: value for key, value in settings.items() if key in takes and value is not None}
    return RopeSpec(**(chosen | {"method": method, "resonance": resonance}))


_COMMON = {"method", "head_dim", "base", "resonance", "partial_rotary_factor"}
_WHOLE = ("head_dim", "train_length", "length")
_SWITCHES = ("resonance", "truncate")
_LISTS = ("short_factor", "long_factor")
_MAY_BE_NONE = ("train_length", "attention_factor", "mscale", "mscale_all_dim", *_LISTS)


def _plain(name: str, value: Any) -> Any:
    """A field's value as the plain Python type that JSON keeps (numpy's numbers and arrays become theirs)."""
    if value is None and name in _MAY_BE_NONE:
        return None
    if name in ("method", "ramp"):
        if isinstance(value, str):
            return value
        raise ValueError(f"{name} must be a name, got {value!r}.")
    if name in _SWITCHES:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    if name in _LISTS:
        if isinstance(value, (list, tuple, np.ndarray)):
            return tuple(float(_plain(f"each of {name}", number)) for number in value)
        raise ValueError(f"{name} must be a list of numbers, one a pair, got {value!r}.")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    if name in _WHOLE and value != int(value):
        raise ValueError(f"{name} must be a whole number, got {value}.")
    return int(value) if name in _WHOLE else float(value)


def _validate(spec: RopeSpec) -> None:
    if spec.method not in METHODS:
        raise ValueError(f"unknown RoPE method {spec.method!r}; expected one of {', '.join(METHODS)}.")
    takes = _settings(spec.method)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name == "train_length" or field.name in _COMMON | takes or value == field.default:
            continue
        allowed = ", ".join(sorted(takes - {"length"})) or "no options"
        hint = " (it derives its scale from the length)" if field.name == "scale" and spec.dynamic else ""
        raise ValueError(
            f"method {spec.method!r} does not take {field.name}={value!r}{hint}; it takes {allowed}."
        )
    if spec.scale < 1:
        raise ValueError(f"scale must be at least 1 (it is the paper's s = L'/L), got {spec.scale}.")
    if spec.base <= 1:
        raise ValueError(f"base must be greater than 1, got {spec.base}.")
    if spec.train_length is not None and spec.train_length < 1:
        raise ValueError(f"train_length must be at least 1 position, got {spec.train_length}.")
    if spec.train_length is None and "train_length" in takes:
        raise ValueError(
            f"method {spec.method!r} needs train_length, the length that the model was trained at."
        )
    if not 0 < spec.partial_rotary_factor <= 1:
        raise ValueError(f"partial_rotary_factor must be in (0, 1], got {spec.partial_rotary_factor}.")
    if spec.rotary_dim < 2 or spec.rotary_dim % 2:
        raise ValueError(
            f"the rotary size must be even and at least 2, got {spec.rotary_dim} "
            f"(head_dim={spec.head_dim}, partial_rotary_factor={spec.partial_rotary_factor})."
        )
    if spec.ramp not in ("dimension", "rotations"):
        raise ValueError(f'unknown ramp {spec.ramp!r}; expected "dimension" (the code\'s) or "rotations".')
    if not spec.beta_fast > spec.beta_slow > 0:
        raise ValueError(
            f"expected beta_fast > beta_slow > 0, got beta_fast={spec.beta_fast}, beta_slow={spec.beta_slow}."
        )
    if not spec.high_freq_factor > spec.low_freq_factor > 0:
        raise ValueError(
            f"expected high_freq_factor > low_freq_factor > 0, got high_freq_factor={spec.high_freq_factor}, "
            f"low_freq_factor={spec.low_freq_factor}."
        )
    if not 0 <= spec.extrapolation_factor <= 1:
        raise ValueError(f"extrapolation_factor must be in [0, 1], got {spec.extrapolation_factor}.")
    if spec.attention_factor is not None and spec.attention_factor <= 0:
        raise ValueError(f"attention_factor must be positive, got {spec.attention_factor}.")
    if (spec.mscale is None) != (spec.mscale_all_dim is None):
        raise ValueError("mscale and mscale_all_dim go together (their ratio is used); give both or neither.")
    if spec.mscale is not None and min(spec.mscale, spec.mscale_all_dim) <= 0:
        raise ValueError(
            f"mscale and mscale_all_dim must be positive, got {spec.mscale} and {spec.mscale_all_dim}."
        )
    if spec.dynamic_factor <= 0:
        raise ValueError(f"dynamic_factor must be positive, got {spec.dynamic_factor}.")
    if spec.method == "longrope":
        for name in ("short_factor", "long_factor"):
            value = getattr(spec, name)
            if value is None or len(value) != spec.rotary_dim // 2 or min(value) <= 0:
                got = "none" if value is None else f"{len(value)}"
                raise ValueError(
                    f"longrope needs {name}: {spec.rotary_dim // 2} positive numbers, one a pair; got {got}."
                )


def frequencies(spec: RopeSpec, length: int | None = None) -> Frequencies:
    """The table of an encoding, made on the host in float64.

    `length` is the paper's L', in positions: the longest sequence that the table is for. Dynamic methods
    need it (and nothing else remembers it: prompt plus what will be generated); static ones ignore it.
    Raises ValueError when it is needed and missing, or not a positive whole number.
    """
    takes = _settings(spec.method)
    length = None if length is None else _plain("length", length)
    if length is not None and length < 1:
        raise ValueError(f"length must be at least 1 position, got {length}.")
    if spec.dynamic and length is None:
        raise ValueError(
            f"method {spec.method!r} depends on the length in use; declare it: frequencies(spec, length=...)."
        )
    settings = {name: getattr(spec, name) for name in takes - {"length"}}
    if "length" in takes:
        settings["length"] = length
    table, attention_factor = METHODS[spec.method](spec.rotary_dim, float(spec.base), **settings)
    freqs = from_inv_freq(table, attention_factor)
    return resonance(freqs) if spec.resonance else freqs


def same(a: Frequencies, b: Frequencies) -> bool:
    """Whether two encodings are the same: frequencies to 1e-9 relative, integer wavelengths exactly,
    attention factors to 1e-7 relative (float64 powers differ by an ulp between processors)."""
    if np.shape(a.wavelength) != np.shape(b.wavelength):
        return False
    return bool(
        np.array_equal(host(a, "same")[1], host(b, "same")[1])
        and np.allclose(a.inv_freq64, b.inv_freq64, rtol=1e-9, atol=0)
        and np.allclose(a.attention_factor, b.attention_factor, rtol=1e-7, atol=0)
    )


def fingerprint(freqs: Frequencies) -> str:
    """A short label for people, e.g. in file names: frequencies to 9 digits and the attention factor, hashed.

    Use same() to decide whether two encodings agree.
    """
    text = " ".join(f"{x:.8e}" for x in [*freqs.inv_freq64, float(freqs.attention_factor)])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def to_record(freqs: Frequencies, spec: RopeSpec | None = None) -> dict[str, Any]:
    """An encoding as JSON: what checkpoints and results store, so that it can be told apart later."""
    _, wavelength, attention_factor = host(freqs, "to_record")
    return {
        "spec": None if spec is None else dataclasses.asdict(spec),
        "fingerprint": fingerprint(freqs),
        "inv_freq": freqs.inv_freq64.tolist(),
        "wavelength": wavelength.tolist(),
        "attention_factor": float(attention_factor),
    }


def from_record(record: dict[str, Any]) -> Frequencies:
    """The table that to_record() stored."""
    return from_inv_freq(
        np.asarray(record["inv_freq"]), record["attention_factor"], np.asarray(record["wavelength"])
    )
