"""One live line per job: what is done, the time left, and the figures that matter."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

Formats = Mapping[str, Callable[..., str]]
"""How to show a figure: by its name, a function from its value to text."""


def _readable(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Shows how far a job is: `progress(done, total, **figures)` redraws a line.

    Where the output is no terminal, it prints a line every few seconds instead. As a context manager it ends
    the line.

    Args:
        label: what is being done.
        formats: how to show a figure; figures without a format are shown plainly.
        stream: where to; default: the standard output.
        every: seconds between two lines where the output is no terminal.
    """

    def __init__(
        self, label: str, formats: Formats | None = None, stream: TextIO | None = None, every: float = 10.0
    ) -> None:
        self.label, self.formats, self.every = label, formats or {}, every
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self.first: tuple[float, int] | None = None
        self.shown = 0.0

    def __call__(self, done: int, total: int, **figures: object) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done)
        since, start = self.first
        rate = (done - start) / (now - since) if now > since else 0.0
        parts = [f"{self.label} {done:,}/{total:,}"]
        for name, value in figures.items():
            show = self.formats.get(name, lambda v, name=name: f"{name} {v:.4g}")
            parts.append(show(value))
        if rate and done < total:
            parts.append(f"ETA {_readable((total - done) / rate)}")
        elif done >= total:
            parts.append(f"took {_readable(now - since)}")
        line = "  ".join(parts)
        if self.live:
            self.stream.write("\r\x1b[2K" + line)
            self.stream.flush()
        elif now - self.shown >= self.every or done >= total:
            self.stream.write(line + "\n")
            self.stream.flush()
            self.shown = now

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live and self.first is not None:
            self.stream.write("\n")
            self.stream.flush()


def training_progress(label: str, bytes_per_token: float | None = None) -> Progress:
    """A Progress for training: the loss in nats (and in bits per byte, where the bytes of a token are known)
    and the tokens per second."""
    formats = {
        "loss": lambda v: (
            f"loss {v:.3f}"
            + (f" ({v / 0.6931472 / bytes_per_token:.3f} bits/byte)" if bytes_per_token else "")
        ),
        "tokens_per_second": lambda v: f"{v:,.0f} tokens/s",
    }
    return Progress(label, formats)
