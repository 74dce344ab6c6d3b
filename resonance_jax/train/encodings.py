"""The encodings that runs are trained under: a RopeSpec and its table, or a bare table."""

from collections.abc import Sequence

import jax
import numpy as np

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import reach

Encoding = rope.RopeSpec | rope.Frequencies
"""A RopeSpec goes into the trained decoder; of a bare table of frequencies nothing can be stated later."""


def table(encoding: Encoding, length: int, config: DecoderConfig) -> rope.Frequencies:
    """The table to train under, for `length` positions.

    Raises ValueError for what is neither a RopeSpec nor one table, and for another head size than config's.
    """
    if isinstance(encoding, rope.RopeSpec):
        if encoding.head_dim != config.head_dim:
            raise ValueError(
                f"the encoding is for head_dim={encoding.head_dim}, but a head of the decoder has "
                f"{config.head_dim} dims; make the RopeSpec with head_dim={config.head_dim}."
            )
        return rope.frequencies(encoding, length=length)
    if not isinstance(encoding, rope.Frequencies):
        raise ValueError(
            f"an encoding is a rope.RopeSpec or the table of rope.frequencies(...), got {encoding!r}."
        )
    return encoding


def spec_of(encoding: Encoding) -> rope.RopeSpec | None:
    """What the trained decoder states as its encoding."""
    return encoding if isinstance(encoding, rope.RopeSpec) else None


def context_length(encoding: Encoding, *lengths: int | None) -> int:
    """Positions that a decoder serves once it is trained: the most of `lengths` (None: not known) and of what
    its spec states."""
    spec = spec_of(encoding)
    return max(n for n in (*lengths, None if spec is None else reach(spec)) if n is not None)


def stack_frequencies(tables: Sequence[rope.Frequencies]) -> rope.Frequencies:
    """E tables of one rotary size as one Frequencies with axis 0 = run. ValueError if the sizes differ."""
    sizes = {2 * np.shape(table.wavelength)[0] for table in tables}
    if len(sizes) != 1:
        raise ValueError(
            f"runs of one program need encodings of one rotary size, got {sorted(sizes)}; "
            "train the others in a run of their own."
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *tables)


def unstack_frequencies(stacked: rope.Frequencies) -> list[rope.Frequencies]:
    """The E tables that stack_frequencies put together."""
    return [jax.tree.map(lambda x, e=e: np.asarray(x)[e], stacked) for e in range(len(stacked.wavelength))]
