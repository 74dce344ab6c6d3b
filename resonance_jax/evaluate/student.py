"""95 % intervals of a mean of few independent values: trainings by seed, or a handful of documents.

The bootstrap of few values is too narrow (of three it covers about three times in four); Student's t is not,
where the values are near normal.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from resonance_jax.evaluate.bootstrap import Interval

FEW = 10
"""Below so many independent values the bootstrap gives way to Student's t."""


def student_interval(values: Float64[np.ndarray, "n"] | Sequence[float]) -> Interval | None:
    """The mean with Student's 95 % interval; None for a single value, which has none.

    Raises ValueError for no value.
    """
    from scipy.special import stdtrit

    x = np.asarray(values, np.float64)
    if not len(x):
        raise ValueError("a mean needs at least one value.")
    if len(x) == 1:
        return None
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / len(x) ** 0.5)
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)
