"""How many steps per second a training takes, without its evaluations and without compiling."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class StepClock:
    """Measures run-steps per second: `tick` after each call of a training, evaluations wrapped by `timed`.

    The first call compiles, so that only what follows it counts. runs: how many are trained at once.
    """

    def __init__(self, runs: int) -> None:
        self.runs, self.began, self.evaluating = runs, time.monotonic(), 0.0
        self.first: tuple[int, float] | None = None
        self.last = (0, self.began)

    def timed(self, evaluate: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        """The same evaluation, its time taken."""

        def evaluation(*given: Parameters.args, **named: Parameters.kwargs) -> Returned:
            began = time.monotonic()
            found = evaluate(*given, **named)
            self.evaluating += time.monotonic() - began
            return found

        return evaluation

    def tick(self, step: int) -> None:
        """Note that a step is done."""
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
