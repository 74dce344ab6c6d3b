"""RopeSpec: a RoPE encoding as its user states it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.schema import Given, Kind, Method, Option, Value, plain

_COMMON: dict[str, Kind] = {
    "method": "name",
    "head_dim": "whole",
    "base": "number",
    "scale": "number",
    "train_length": "whole",
    "resonance": "switch",
    "partial_rotary_factor": "number",
}
"""The settings that every RopeSpec has."""


MOST_POSITIONS = 2**31
"""Positions are 32-bit integers."""


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class RopeSpec:
    """A RoPE encoding as its user states it: frozen, comparable, hashable, and plain Python inside.

    Options of the method are keywords like any other, and attributes: `RopeSpec("yarn", scale=8.0,
    train_length=4096, beta_fast=16.0).beta_fast`. An option that isn't given has its default.
    `dataclasses.replace` takes them too. `options` holds the ones that differ from their defaults.

    Args:
        method: a name in rope.METHODS, whose record says which options the method takes.
        head_dim: H, the size of an attention head.
        base: b.
        scale: the paper's s; only for methods that take one (a dynamic method derives it from the length).
        train_length: the paper's L, in positions. Some methods need it; all may state it.
        resonance: whether every wavelength is rounded to whole positions.
        partial_rotary_factor: rotate the first R = factor * H dims of a head only. (`proportional` keeps
            R = H, and its later pairs never turn.)
        options: options of the method by name; the same as giving each as a keyword.

    Raises:
        ValueError: for what no rule can mean: an unknown method, an option that the method does not take, and
            values of the wrong kind or out of range.
    """

    method: str
    head_dim: int
    base: float
    scale: float
    train_length: int | None
    resonance: bool
    partial_rotary_factor: float
    options: tuple[tuple[str, Value], ...]

    def __init__(
        self,
        method: Given[str] = "default",
        head_dim: Given[int] = 128,
        base: Given[float] = 10_000.0,
        scale: Given[float] = 1.0,
        train_length: Given[int | None] = None,
        resonance: Given[bool] = False,
        partial_rotary_factor: Given[float] = 1.0,
        options: Mapping[str, object] | Iterable[tuple[str, object]] = (),
        **more: object,
    ) -> None:
        given = (method, head_dim, base, scale, train_length, resonance, partial_rotary_factor)
        for (name, kind), value in zip(_COMMON.items(), given, strict=True):
            object.__setattr__(self, name, plain(name, value, kind, optional=name == "train_length"))
        if self.method not in METHODS:
            raise ValueError(f"unknown RoPE method {method!r}; expected one of {', '.join(METHODS)}.")
        object.__setattr__(self, "options", _options(self, {**dict(options), **more}))
        _check(self)

    def __getattr__(self, name: str) -> Any:  # an option's own declaration says what its value is
        stated = dict(vars(self).get("options", ()))
        if name in stated:
            return stated[name]
        option = None if name.startswith("_") else _declared(name, vars(self).get("method"))
        if option is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return option.default

    def __repr__(self) -> str:
        return f"RopeSpec({', '.join(f'{name}={value!r}' for name, value in self.stated().items())})"

    @property
    def method_record(self) -> Method:
        """What rope.METHODS says about the method."""
        return METHODS[self.method]

    @property
    def rotary_dim(self) -> int:
        """R, the rotated dims of a head."""
        if self.method_record.rotates_whole_heads:
            return self.head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def dynamic(self) -> bool:
        """Whether another length is another table."""
        one_table = self.method_record.one_table
        return self.method_record.dynamic and not (one_table and one_table(**self.all_options()))

    @property
    def title(self) -> str:
        """The encoding's name for people, as the paper writes it: "Resonance YaRN"."""
        return ("Resonance " if self.resonance else "") + self.method_record.title

    def all_options(self) -> dict[str, Value]:
        """Every option that the method takes, by name, defaults included."""
        return {name: option.default for name, option in self.method_record.options.items()} | dict(
            self.options
        )

    def stated(self) -> dict[str, Value]:
        """The settings that say something: method, head size, base, and what differs from its default."""
        common = {name: getattr(self, name) for name in _COMMON}
        says = {
            name: value
            for name, value in common.items()
            if name in ("method", "head_dim", "base") or value != getattr(_PLAIN, name)
        }
        return says | dict(self.options)

    def to_dict(self) -> dict[str, Value]:
        """All settings in one flat dictionary for JSON; `RopeSpec(**spec.to_dict()) == spec`."""
        return {name: getattr(self, name) for name in _COMMON} | self.all_options()


def _declared(name: str, method: str | None) -> Option | None:
    """The option of a name: the method's own, else that of the first method that has one."""
    records = [METHODS[method]] if method in METHODS else []
    return next((each.options[name] for each in (*records, *METHODS.values()) if name in each.options), None)


def _options(spec: RopeSpec, given: Mapping[str, object]) -> tuple[tuple[str, Value], ...]:
    """The options that differ from their defaults, in the order in which the method declares them."""
    for name, value in given.items():
        if name not in spec.method_record.options:
            option = _declared(name, None)
            # A flat record may hold every option there is: another method's default says nothing.
            value = value if option is None else plain(name, value, option.kind, option.default is None)
            if option is None or value != option.default:
                raise ValueError(_not_taken(spec, name, value))
    read = {
        name: option.read(name, given[name])
        for name, option in spec.method_record.options.items()
        if name in given
    }
    return tuple(
        (name, value) for name, value in read.items() if value != spec.method_record.options[name].default
    )


def _not_taken(spec: RopeSpec, name: str, value: object) -> str:
    takes = ", ".join(sorted(spec.method_record.settings - {"length"})) or "no options"
    derived = name == "scale" and spec.method_record.dynamic
    hint = " (it derives its scale from the length)" if derived else ""
    return f"method {spec.method!r} does not take {name}={value!r}{hint}; it takes {takes}."


def _check(spec: RopeSpec) -> None:
    """Refuse settings that no rule can mean."""
    record = spec.method_record
    if spec.scale != 1 and not record.takes_scale:
        raise ValueError(_not_taken(spec, "scale", spec.scale))
    if spec.scale < 1:
        raise ValueError(f"scale must be at least 1 (it is the paper's s = L'/L), got {spec.scale}.")
    if spec.scale > 2**31:
        raise ValueError(f"scale must be at most 2^31, the most positions there are, got {spec.scale:g}.")
    if spec.base <= 1:
        raise ValueError(f"base must be greater than 1, got {spec.base}.")
    if spec.train_length is not None and spec.train_length < 1:
        raise ValueError(f"train_length must be at least 1 position, got {spec.train_length}.")
    if spec.scale * (spec.train_length or 1) > MOST_POSITIONS:
        raise ValueError(
            f"scale times train_length must be at most {MOST_POSITIONS:,} positions, got {spec.scale:g} "
            f"times {spec.train_length or 1}."
        )
    if spec.train_length is None and record.takes_train_length:
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
    if record.check is not None:
        record.check(pairs=spec.rotary_dim // 2, **spec.all_options())


_PLAIN = RopeSpec()
