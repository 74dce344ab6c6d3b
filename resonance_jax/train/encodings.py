"""The encodings that runs are trained under: specs or bare tables, and the tables of many runs as one."""

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np

from resonance_jax import rope
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import reach
from resonance_jax.model.layer_types import by_name

Encoding = rope.Specs | rope.Tables
"""A spec (RopeSpec or LayerSpecs), which the trained decoder then states, or bare tables, of which it states
nothing."""


def table(encoding: Encoding, length: int, config: DecoderConfig) -> rope.Tables:
    """The table to train under, or the tables by layer type.

    Args:
        encoding: a spec or bare tables.
        length: positions that the table of a spec is made for.
        config: the decoder.

    Raises:
        ValueError: it is neither, or is for another head size or other layer types than config's.
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
    """The spec that the trained decoder states; None for bare tables."""
    return encoding if isinstance(encoding, rope.RopeSpec | rope.LayerSpecs) else None


def context_length(encoding: Encoding, *lengths: int | None) -> int:
    """How many positions a trained decoder serves: the most of `lengths` (None: not known) and of what its
    spec states."""
    spec = spec_of(encoding)
    return max(n for n in (*lengths, None if spec is None else reach(spec)) if n is not None)


def stack_frequencies(tables: Sequence[rope.Tables]) -> rope.Tables:
    """The tables of E runs stacked, with axis 0 = run.

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
    """E: how many runs stacked tables are for."""
    return jax.tree.leaves(stacked)[0].shape[0]


def unstack_frequencies(stacked: rope.Tables) -> list[rope.Tables]:
    """The tables of each run, as they were before stack_frequencies."""
    return [jax.tree.map(lambda x, e=e: np.asarray(x)[e], stacked) for e in range(count_of(stacked))]
