"""Intervals for shares of right answers."""

from resonance_jax.evaluate.bootstrap import Interval


def wilson(right: float, trials: int, z: float = 1.959963984540054) -> Interval:
    """The share right / trials with Wilson's 95 % score interval (Wilson 1927).

    right may hold fractions of a question (partial credit): the interval is then that of as good a share of
    all-or-nothing answers, wide enough. Raises ValueError outside 0 <= right <= trials.
    """
    if trials < 1 or not 0 <= right <= trials:
        raise ValueError(f"expected 0 <= right <= trials and at least 1 trial, got {right} of {trials}.")
    share = right / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + (z / (2 * trials)) ** 2) ** 0.5
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))
