"""What a method says about itself: a Method record, its Options, and the RopeTypes that state it in configs.

RopeSpec, named, explain, restate, from_hf, to_hf and the experiments read these records. methods.py has one
for every method, each next to its rule.
"""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
from jaxtyping import Float64

Table = tuple[Float64[np.ndarray, "pairs"], float]
"""What a rule computes: frequencies in radians per position, and the attention factor A."""

Value = int | float | bool | str | tuple[float, ...] | None
"""A setting as a RopeSpec holds it, and as JSON keeps it."""

if TYPE_CHECKING:
    _T = TypeVar("_T")
    Given = Annotated[_T, "as the user gave it"]
else:

    class Given:
        """Given[T]: what should be a T, and is checked where it is used, so that whoever gives something
        else gets one sentence of ours. No runtime type checker looks at it; a static one does."""

        def __class_getitem__(cls, _: object) -> type:
            return object


Kind = Literal["number", "whole", "switch", "list", "name"]


def plain(name: str, value: object, kind: Kind, optional: bool = False) -> Value:
    """A setting as the plain Python value that JSON keeps; numpy's numbers and arrays become Python's.

    Args:
        name: what an error calls it.
        value: as the user gave it.
        kind: "number" (finite, float), "whole" (int), "switch" (bool), "list" (of numbers) or "name" (str).
        optional: whether None is a value too.

    Raises:
        ValueError: for a value of another kind.
    """
    if value is None and optional:
        return None
    if kind == "name":
        if isinstance(value, str):
            return value
        raise ValueError(f"{name} must be a name, got {value!r}.")
    if kind == "switch":
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    if kind == "list":
        if isinstance(value, (list, tuple, np.ndarray)):
            return tuple(_number(f"each of {name}", each) for each in value)
        raise ValueError(f"{name} must be a list of numbers, one per pair, got {value!r}.")
    return _whole(name, value) if kind == "whole" else _number(name, value)


def _number(name: str, value: object) -> float:
    """A finite real number as a float. Raises ValueError for anything else, truth values included."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    return float(value)


def _whole(name: str, value: object) -> int:
    """A whole number as an int (4096.0 is one). Raises ValueError for anything else."""
    real = _number(name, value)
    if real != int(real):
        raise ValueError(f"{name} must be a whole number, got {value}.")
    return int(real)


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting that single methods take.

    Attributes:
        default: its value where a RopeSpec gives none; where this is None, None is allowed.
        kind: what its value must be, as plain() reads it.
        valid: which values of that kind are allowed; all of them where it is None.
        expected: those values in words, after "must be" (for a name, after "expected").
        of_scale: whether a value belongs to one scale, so that restate() may not keep it for another.
    """

    default: Value
    kind: Kind = "number"
    valid: Callable[..., bool] | None = None
    expected: str = ""
    of_scale: bool = False

    def read(self, name: str, value: object) -> Value:
        """The value as a RopeSpec holds it. Raises ValueError for another kind and for what is not valid."""
        value = plain(name, value, self.kind, optional=self.default is None)
        if value is None or self.valid is None or self.valid(value):
            return value
        if self.kind == "name":
            raise ValueError(f"unknown {name} {value!r}; expected {self.expected}.")
        raise ValueError(f"{name} must be {self.expected}, got {value}.")


@dataclasses.dataclass(frozen=True)
class RopeType:
    """How a config.json states a method under one rope type, with the meaning that transformers gives it.

    Attributes:
        keys: the type's own keys, beside those of every type. Keys named as an option of the method state it.
        factor: the setting that the key `factor` states; None where it is passed over.
        without_factor: what a config without `factor` means: it is "refused", or the factor is "one", or the
            ratio of the two "lengths".
        least_one: whether a factor below 1 is read as 1.
        longest_is_trained: whether L is max_position_embeddings (not original_max_position_embeddings).
        always_written: options that to_hf writes even where they have their defaults.
        zero_is_unset: options for which transformers takes 0 as not given.
        only_together: options that have no effect without each other.
        refused: keys that no RopeSpec can say when they are true, and why.
    """

    keys: tuple[str, ...] = ("factor",)
    factor: str | None = "scale"
    without_factor: Literal["refused", "one", "lengths"] = "refused"
    least_one: bool = False
    longest_is_trained: bool = False
    always_written: tuple[str, ...] = ()
    zero_is_unset: tuple[str, ...] = ()
    only_together: tuple[str, ...] = ()
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Method:
    """One RoPE scaling method. Its name is its key in rope.METHODS.

    Attributes:
        rule: (rotary size R, base b, *, settings) -> Table. The settings are keyword arguments: any of
            `scale` (s), `train_length` (L), `length` (L', which makes the method dynamic) and
            `partial_rotary_factor`, and all of `options`. The first line of its docstring is for people.
        title: the method's name for people, as papers write it.
        options: the settings that are this method's own, by name.
        check: called as check(pairs=R/2, **options) with every option; raises ValueError for values that do
            not fit together.
        one_table: called as one_table(**options); whether a method that asks for a length gives the same
            table for all of them.
        aliases: other names that rope.named understands.
        hf_type: the rope type under which transformers computes the method; None where it has none.
        hf_adds: keys that to_hf adds to that type.
        read_from: the rope types that from_hf reads as this method.
        hf_habit: what transformers does with the method beside computing its table, where it is dynamic.
        hf_lengths: what transformers makes of a config whose max_position_embeddings, `{longest}`, is not its
            original length.
    """

    rule: Callable[..., Table]
    title: str
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    check: Callable[..., None] | None = None
    one_table: Callable[..., bool] | None = None
    aliases: tuple[str, ...] = ()
    hf_type: str | None = None
    hf_adds: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    read_from: Mapping[str, RopeType] = dataclasses.field(default_factory=dict)
    hf_habit: str = ""
    hf_lengths: str = ""

    @property
    def settings(self) -> frozenset[str]:
        """The names of the keyword arguments that the rule is called with."""
        parameters = inspect.signature(self.rule).parameters.values()
        own = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
        return frozenset(own | set(self.options))

    @property
    def takes_scale(self) -> bool:
        """Whether the method is given its scale; a dynamic one derives it from the length."""
        return "scale" in self.settings

    @property
    def takes_train_length(self) -> bool:
        """Whether the method can't do without the training length."""
        return "train_length" in self.settings

    @property
    def dynamic(self) -> bool:
        """Whether the method depends on the length in use (RopeSpec.dynamic also looks at the options)."""
        return "length" in self.settings

    @property
    def rotates_whole_heads(self) -> bool:
        """Whether the rule itself reads partial_rotary_factor, so that R is the head size."""
        return "partial_rotary_factor" in self.settings

    @property
    def summary(self) -> str:
        """One line for people: the first of the rule's docstring."""
        return (inspect.getdoc(self.rule) or f"{self.title}.").splitlines()[0]
