"""What --dtype auto is: the dtype that suits the device, said with its reason."""

import dataclasses
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class HasDtype(Protocol):
    """A config with the option --dtype."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def dtype(self) -> str: ...


Config = TypeVar("Config", bound=HasDtype)


def with_chosen_dtype(config: Config) -> Config:
    """A config whose dtype is a dtype: what suits the device takes the place of "auto", and is printed.

    A run folder and every identity are made from what is returned, so that a result belongs to the dtype that
    made it. Perplexities of two encodings can differ by less than bfloat16 rounds: commands that compare them
    have no "auto".
    """
    if config.dtype != "auto":
        return config
    from resonance_jax.model.suitable_dtype import suitable_dtype

    chosen = suitable_dtype()
    print(f"dtype: {chosen.name} (auto: {chosen.why})")
    return dataclasses.replace(config, dtype=chosen.name)
