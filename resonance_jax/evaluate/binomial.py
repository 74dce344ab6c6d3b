"""Intervals for shares of right answers."""

from collections.abc import Sequence

from resonance_jax.evaluate.bootstrap import Interval


def wilson(right: float, trials: int, z: float = 1.959963984540054) -> Interval:
    """The share right / trials with Wilson's 95 % score interval (Wilson 1927).

    `right` need not be whole, where answers earn partial credit. The interval is then that of all-or-nothing
    answers with the same share, which spread more: it is too wide rather than too narrow. Raises ValueError
    outside 0 <= right <= trials.
    """
    if trials < 1 or not 0 <= right <= trials:
        raise ValueError(f"expected 0 <= right <= trials and at least 1 trial, got {right} of {trials}.")
    share = right / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + (z / (2 * trials)) ** 2) ** 0.5
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mean(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent estimates, with its interval.

    The distances of the estimates to their limits are squared and added (MOVER, Zou and Donner 2008). Raises
    ValueError when there are no estimates.
    """
    if not parts:
        raise ValueError("expected at least one interval, got none.")
    value = sum(part.value for part in parts) / len(parts)
    below = sum((part.value - part.low) ** 2 for part in parts) ** 0.5 / len(parts)
    above = sum((part.high - part.value) ** 2 for part in parts) ** 0.5 / len(parts)
    return Interval(value, value - below, value + above)
