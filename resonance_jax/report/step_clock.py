"""How many steps per second a training takes, without its evaluations and without compiling."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class StepClock:
    """Measures run-steps per second: how many steps, times the runs that are trained at once.

    Call `tick` after each call of a training, and wrap its evaluations by `timed`: their time is left out. So
    is the first call, which compiles.

    Args:
        runs: how many are trained at once.
    """

    def __init__(self, runs: int) -> None:
        self.runs, self.began, self.evaluating = runs, time.monotonic(), 0.0
        self.first: tuple[int, float] | None = None
        self.last = (0, self.began)

    def timed(self, evaluate: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        """The same evaluation, whose time is measured and left out of the rate."""

        def evaluation(*given: Parameters.args, **named: Parameters.kwargs) -> Returned:
            began = time.monotonic()
            found = evaluate(*given, **named)
            self.evaluating += time.monotonic() - began
            return found

        return evaluation

    def tick(self, step: int) -> None:
        """Note that `step` steps are done."""
        self.last = (step, time.monotonic() - self.evaluating)
        self.first = self.first or self.last

    def rate(self) -> float:
        """Run-steps per second since the first call."""
        (first, began), (last, ended) = self.first or self.last, self.last
        return self.runs * (last - first) / (ended - began) if ended > began else 0.0

    def figures(self) -> dict[str, float]:
        """The times in seconds and the rate, for a result file."""
        return {
            "wall_seconds": time.monotonic() - self.began,
            "evaluation_seconds": self.evaluating,
            "run_steps_per_second": self.rate(),
        }
