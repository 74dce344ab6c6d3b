"""What kind of attention each layer of the stack has, and how the stack is cut so that it can be scanned.

Models mix kinds: Gemma 3 has five layers with a sliding window and a base of their own to one full layer,
SmolLM3 leaves every fourth layer without RoPE. A kind has a name, and the name is what an encoding is given
for: one table for all layers, or a dictionary from names to tables.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from resonance_jax.rope.phases import FULL, SLIDING, Frequencies, Tables

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class LayerType:
    """One kind of layer.

    Args:
        name: what its table is given under, such as "full_attention" or "sliding_attention".
        window: how many keys a query sees; None: all that came before.
        rope: whether queries and keys are rotated at all.

    Raises:
        ValueError: a name that is no text, or a window that is not a positive whole number.
    """

    name: str = FULL
    window: int | None = None
    rope: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a layer type has a name, got {self.name!r}.")
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise ValueError(
                f"the window of layer type {self.name!r} must be a positive whole number or None, got "
                f"{self.window!r}."
            )


def of_every_layer(
    given: Sequence[LayerType] | None, n_layers: int, window: int | None
) -> tuple[LayerType, ...]:
    """The type of each of `n_layers` layers.

    Args:
        given: a pattern that repeats over the depth, or one per layer; None: every layer is the same.
        n_layers: how many layers there are.
        window: of every layer, where nothing is given.

    Raises:
        ValueError: no types or more than layers, a window beside them, and two types of one name.
    """
    if given is None:
        return (LayerType(FULL if window is None else SLIDING, window),) * n_layers
    if not 0 < len(given) <= n_layers or not all(isinstance(kind, LayerType) for kind in given):
        raise ValueError(
            f"layer_types must be 1 to {n_layers} LayerTypes, a pattern that repeats over the {n_layers} "
            f"layers, got {given!r}."
        )
    if window is not None:
        raise ValueError(f"window={window} is of every layer; beside layer_types each type states its own.")
    for kind in given:
        if other := next((each for each in given if each.name == kind.name and each != kind), None):
            raise ValueError(f"two layer types share the name {kind.name!r}: {kind} and {other}.")
    return tuple(given[i % len(given)] for i in range(n_layers))


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that one scan runs: `repeats` times the types of `pattern`, from layer `first` on."""

    first: int
    pattern: tuple[LayerType, ...]
    repeats: int

    @property
    def layers(self) -> int:
        """How many layers the group has."""
        return len(self.pattern) * self.repeats


def groups(types: Sequence[LayerType]) -> tuple[Group, ...]:
    """The stack cut into few scans, so that the program hardly grows with depth.

    A pattern that repeats from the first layer on is scanned as a whole, a rest shorter than it as runs of
    equal layers; a stack without a pattern is cut into runs of equal layers.
    """
    total = len(types)
    for period in range(1, total // 2 + 1):
        repeats = total // period
        if all(types[i] == types[i % period] for i in range(repeats * period)):
            whole = Group(0, tuple(types[:period]), repeats)
            return (whole, *_runs(types[whole.layers :], whole.layers))
    return _runs(types, 0)


def _runs(types: Sequence[LayerType], first: int) -> tuple[Group, ...]:
    found: list[Group] = []
    for number, kind in enumerate(types, first):
        if found and found[-1].pattern == (kind,):
            found[-1] = dataclasses.replace(found[-1], repeats=found[-1].repeats + 1)
        else:
            found.append(Group(number, (kind,), 1))
    return tuple(found)


def rotated(types: Sequence[LayerType]) -> tuple[str, ...]:
    """The names of the types that use RoPE, in the order of their first layers."""
    return tuple(dict.fromkeys(kind.name for kind in types if kind.rope))


def by_name(types: Sequence[LayerType], given: Value | Mapping[str, Value]) -> dict[str, Value]:
    """Assign tables, or what tables are made of, to the layer types that use RoPE: the value by type's name.

    Args:
        types: of the layers.
        given: one for all of them, or one for each name.

    Raises:
        ValueError: a name is missing or unknown.
    """
    names = rotated(types)
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    if set(given) != set(names):
        raise ValueError(
            f"encodings are given for the layer types {', '.join(map(repr, given)) or 'none'}, but those "
            f"that use RoPE are {', '.join(map(repr, names)) or 'none'}; give one for each, or one for all."
        )
    return {name: given[name] for name in names}


def tables(types: Sequence[LayerType], head_dim: int, freqs: Tables) -> dict[str, Frequencies]:
    """The table of each type that uses RoPE, by its name.

    Args:
        types: of the layers.
        head_dim: H.
        freqs: one table for all of them, or one for each name.

    Raises:
        ValueError: as `by_name`, for a stack of tables, and for one that rotates more dims than a head has.
    """
    named = by_name(types, freqs)
    for table in named.values() if isinstance(freqs, Mapping) else [freqs]:
        if table.step.ndim != 2:
            raise ValueError(
                f"expected one encoding (step [R/2, 2]), got {list(table.step.shape)}; "
                "vmap over stacked ones."
            )
        if (dims := 2 * table.step.shape[0]) > head_dim:
            raise ValueError(
                f"the encoding rotates {dims} dims, but a head has {head_dim}; "
                f"make the frequencies with head_dim={head_dim}."
            )
    return named
