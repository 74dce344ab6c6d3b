"""The encodings of many runs as one argument: tables stacked on axis 0, and taken apart again."""

from collections.abc import Sequence

import jax
import numpy as np

from resonance_jax import rope


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
    return [jax.tree.map(lambda x, e=e: np.asarray(x)[e], stacked) for e in range(len(stacked.wavelength))]
