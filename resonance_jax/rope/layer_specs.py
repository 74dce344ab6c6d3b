"""The encodings of a model whose layers differ: a RopeSpec for each layer type that uses RoPE."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from resonance_jax.rope.phases import FULL
from resonance_jax.rope.schema import Given
from resonance_jax.rope.spec import RopeSpec


@dataclasses.dataclass(frozen=True, init=False)
class LayerSpecs(Mapping[str, RopeSpec]):
    """A RopeSpec for each layer type, by name: frozen, comparable, hashable.

    Another encoding, of a command or of rope.restate, is meant for the layers that see everything: a window
    never reaches positions that training did not, so those layers keep their own. `scaled` names them.

    Args:
        specs: by layer type, of one head size.
        scaled: the types that another encoding goes to; default: "full_attention", or all where no type has
            that name.

    Raises:
        ValueError: no specs, what is no RopeSpec, two head sizes, and a name in `scaled` that has no spec.
    """

    pairs: tuple[tuple[str, RopeSpec], ...]
    scaled: tuple[str, ...]

    def __init__(
        self, specs: Given[Mapping[str, RopeSpec]], scaled: Given[tuple[str, ...] | None] = None
    ) -> None:
        if not isinstance(specs, Mapping) or not specs:
            raise ValueError(f"expected a RopeSpec for each layer type by name, got {specs!r}.")
        for name, spec in specs.items():
            if not isinstance(name, str) or not isinstance(spec, RopeSpec):
                raise ValueError(f"the encoding of layer type {name!r} must be a RopeSpec, got {spec!r}.")
        sizes = {spec.head_dim for spec in specs.values()}
        if len(sizes) > 1:
            raise ValueError(f"the encodings of layer types must share a head size, got {sorted(sizes)}.")
        if scaled is None:
            scaled = (FULL,) if FULL in specs else tuple(specs)
        if not scaled or set(scaled) - set(specs):
            raise ValueError(f"scaled must name some of {', '.join(specs)}, got {scaled!r}.")
        object.__setattr__(self, "pairs", tuple(specs.items()))
        object.__setattr__(self, "scaled", tuple(scaled))

    def __getitem__(self, name: str) -> RopeSpec:
        return dict(self.pairs)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def main(self) -> RopeSpec:
        """The encoding of the layers that see everything."""
        return self[self.scaled[0]]

    @property
    def head_dim(self) -> int:
        """H."""
        return self.main.head_dim

    @property
    def train_length(self) -> int | None:
        """The main encoding's L, in positions."""
        return self.main.train_length

    @property
    def scale(self) -> float:
        """The main encoding's s."""
        return self.main.scale

    @property
    def method(self) -> str:
        """The main encoding's method."""
        return self.main.method

    @property
    def resonance(self) -> bool:
        """Whether the main encoding's wavelengths are whole positions."""
        return self.main.resonance

    @property
    def dynamic(self) -> bool:
        """Whether another length is another table, of any layer type."""
        return any(spec.dynamic for spec in self.values())

    @property
    def title(self) -> str:
        """The main encoding's name for people."""
        return self.main.title

    def told(self) -> str:
        """Which layers have which encoding, for people."""
        return ", ".join(f"{name}: {spec.title} (base {spec.base:g})" for name, spec in self.items())

    def map(self, fn: Callable[[RopeSpec], RopeSpec]) -> "LayerSpecs":
        """The same with fn of the encodings of the layers that see everything."""
        new = {name: fn(spec) if name in self.scaled else spec for name, spec in self.items()}
        return LayerSpecs(new, self.scaled)

    def to_dict(self) -> dict[str, Any]:
        """All settings for JSON; `specs_from_dict` reads them."""
        return {
            "layer_types": {name: spec.to_dict() for name, spec in self.items()},
            "scaled": list(self.scaled),
        }


Specs: TypeAlias = RopeSpec | LayerSpecs
"""The encoding of every layer, or one for each layer type."""


def main_spec(specs: Specs) -> RopeSpec:
    """The encoding of every layer, or of those that see everything."""
    return specs.main if isinstance(specs, LayerSpecs) else specs


def specs_from_dict(stated: Mapping[str, Any]) -> Specs:
    """The RopeSpec or LayerSpecs of which to_dict() gave this."""
    if "layer_types" not in stated:
        return RopeSpec(**stated)
    specs = {name: RopeSpec(**each) for name, each in stated["layer_types"].items()}
    return LayerSpecs(specs, tuple(stated["scaled"]))
