"""The encodings that runs are trained under: what is stated and its table, or a bare table."""

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import reach
from resonance_jax.model.layer_types import by_name

Encoding = rope.Specs | rope.Tables
"""What is stated (a RopeSpec, or LayerSpecs) goes into the trained decoder; of bare tables nothing can be
stated later."""


def table(encoding: Encoding, length: int, config: DecoderConfig) -> rope.Tables:
    """The table to train under, for `length` positions, or the tables by layer type.

    Raises ValueError for what is neither stated nor a table, for another head size than config's, and for
    other layer types than config's.
    """
    stated = spec_of(encoding)
    if stated is not None and stated.head_dim != config.head_dim:
        raise ValueError(
            f"the encoding is for head_dim={stated.head_dim}, but a head of the decoder has "
            f"{config.head_dim} dims; make the RopeSpec with head_dim={config.head_dim}."
        )
    tables = encoding if stated is None else rope.frequencies(stated, length=length)
    each = tables.values() if isinstance(tables, dict) else [tables]
    if not all(isinstance(one, rope.Frequencies) for one in each):
        raise ValueError(
            f"an encoding is a rope.RopeSpec or the table of rope.frequencies(...), got {encoding!r}."
        )
    by_name(config.types, tables)
    return cast(rope.Tables, tables)


def spec_of(encoding: Encoding) -> rope.Specs | None:
    """What the trained decoder states as its encoding."""
    return encoding if isinstance(encoding, rope.RopeSpec | rope.LayerSpecs) else None


def context_length(encoding: Encoding, *lengths: int | None) -> int:
    """Positions that a decoder serves once it is trained: the most of `lengths` (None: not known) and of what
    its spec states."""
    spec = spec_of(encoding)
    return max(n for n in (*lengths, None if spec is None else reach(spec)) if n is not None)


def stack_frequencies(tables: Sequence[rope.Tables]) -> rope.Tables:
    """E encodings alike as one, with axis 0 = run.

    Raises ValueError where their rotary sizes differ, or the layer types that they are for.
    """
    types = {tuple(sorted(each)) if isinstance(each, dict) else () for each in tables}
    if len(types) != 1:
        raise ValueError(
            "runs of one program need tables of the same layer types, got "
            f"{' and '.join(', '.join(names) or 'one for all' for names in sorted(types))}."
        )
    sizes = {
        2 * np.shape(one.wavelength)[0]
        for each in tables
        for one in (each.values() if isinstance(each, dict) else [each])
    }
    if len(sizes) != 1:
        raise ValueError(
            f"runs of one program need encodings of one rotary size, got {sorted(sizes)}; "
            "train the others in a run of their own."
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *tables)


def count_of(stacked: rope.Tables) -> int:
    """E, of what stack_frequencies gave."""
    return jax.tree.leaves(stacked)[0].shape[0]


def unstack_frequencies(stacked: rope.Tables) -> list[rope.Tables]:
    """The E encodings that stack_frequencies put together."""
    return [jax.tree.map(lambda x, e=e: np.asarray(x)[e], stacked) for e in range(count_of(stacked))]
