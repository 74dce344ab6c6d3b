"""What a parity check found: every tensor that was compared, and the verdict."""

import dataclasses

FLOAT64 = 1e-9
"""The largest difference allowed in float64."""
FLOAT32 = {"logits": 2e-4, "loss": 5e-5, "gradient": 1e-3}
"""The largest difference allowed in float32: absolute for logits and the loss, of norms and relative for a
gradient. Another tensor is allowed the logits', times its own size."""
BINS = 64
"""Stretches of a sequence that errors are given for."""
PARTS = ("q", "k", "attention", "mlp", "residual")
"""The tensors of a layer, in the order of computation."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """One tensor as both programs compute it.

    Attributes:
        encoding: its title.
        length: positions of the sequence.
        dtype, precision: what was computed in, and how precise matrix products were ("-" where there are
            none).
        name: of the tensor.
        error: the largest difference; of a gradient, the relative difference of norms.
        size: the root mean square of PyTorch's tensor.
        tolerance: the error that is allowed, None where nothing is decided.
        wrong: whether the error is larger than that.
        by_position: the largest error in each of up to BINS stretches of the sequence, where the tensor has
            positions.
    """

    encoding: str
    length: int
    dtype: str
    precision: str
    name: str
    error: float
    size: float
    tolerance: float | None
    wrong: bool
    by_position: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Phases:
    """What float32 phases cost PyTorch at a length.

    Attributes:
        encoding: its title.
        length: positions of the sequence.
        source: who made PyTorch's frequencies.
        cos_sin: the largest error of PyTorch's own cosines and sines against exact ones.
        logits: how much that changes its float32 logits.
    """

    encoding: str
    length: int
    source: str
    cos_sin: float
    logits: float


@dataclasses.dataclass(frozen=True)
class Parity:
    """What a parity check found: every comparison that was made, in order."""

    taps: list[Tap]
    phases: list[Phases]

    @property
    def first_wrong(self) -> Tap | None:
        """The first tensor that differs by more than is allowed."""
        return next((tap for tap in self.taps if tap.wrong), None)

    @property
    def ok(self) -> bool:
        """Whether no tensor is wrong."""
        return self.first_wrong is None

    def verdict(self) -> str:
        """One sentence that says whether the programs agree."""
        decided = [(tap, tap.tolerance) for tap in self.taps if tap.tolerance is not None]
        wrong = self.first_wrong
        if wrong is None:
            worst, allowed = max(decided, key=lambda pair: pair[0].error / pair[1])
            return (
                f"{len(decided)} tensors agree; the nearest to its tolerance is {worst.name} "
                f"({worst.encoding}, {worst.length} positions, {worst.dtype}): {worst.error:.1e} of "
                f"{allowed:.0e}."
            )
        count = sum(tap.wrong for tap, _ in decided)
        return (
            f"{count} of {len(decided)} tensors differ; the first wrong one is {wrong.name} "
            f"({wrong.encoding}, {wrong.length} positions, {wrong.dtype}): off by {wrong.error:.1e}, "
            f"allowed {wrong.tolerance:.0e}."
        )
