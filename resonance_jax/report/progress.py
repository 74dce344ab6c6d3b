"""One live line per job: what is done, the time left, and the figures that matter."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

Formats = Mapping[str, Callable[..., str]]
"""How to show a figure: by its name, a function from its value to text."""


@runtime_checkable
class Stream(Protocol):
    """Where lines go: the standard output, a file, an io.StringIO."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


Mark = tuple[float, int]
"""When, in seconds of a monotonic clock, and how many items were done by then."""


def _readable(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Shows how far a job is: `progress(done, total, **figures)` redraws a line.

    A first call with 0 done says that the first item begins. As a context manager it also keeps the clock
    going while an item runs. The time counts from the making of the Progress. Where the output is no
    terminal, it prints a line every few seconds instead.

    Args:
        label: what is being done.
        formats: how to show a figure; figures without a format are shown plainly.
        stream: where to; default: the standard output.
        every: seconds between two lines where the output is no terminal.
        first: what the time of the first item mostly goes into, such as "compiling"; shown until it is done.
    """

    def __init__(
        self,
        label: str,
        formats: Formats | None = None,
        stream: Stream | None = None,
        every: float = 10.0,
        first: str = "",
    ) -> None:
        self.label, self.formats, self.every, self.first = label, formats or {}, every, first
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self._began = time.monotonic()
        self._marks: list[Mark] = []
        """The first two calls that said something new, and the newest."""
        self._total, self._figures = 0, ""
        self._written = float("-inf")
        self._lock, self._over = threading.Lock(), threading.Event()

    def __call__(self, done: int, total: int, **figures: object) -> None:
        now = time.monotonic()
        parts = []
        for name, value in figures.items():
            show = self.formats.get(name, lambda v, name=name: f"{name} {v:.4g}")
            parts.append(show(value))
        with self._lock:
            if len(self._marks) < 3 and not (self._marks and self._marks[-1][1] == done):
                self._marks.append((now, done))
            elif self._marks[-1][1] != done:
                self._marks[-1] = (now, done)
            self._total, self._figures = total, "  ".join(parts)
            self._show(now, due=done >= total)

    def say(self, text: str) -> None:
        """Print a line that stays, above the one that is redrawn."""
        with self._lock:
            self.stream.write(("\r\x1b[2K" if self.live else "") + text + "\n")
            if self.live:
                self.stream.write(self._line(time.monotonic()))
            self.stream.flush()

    def _line(self, now: float) -> str:
        passed = f"{_readable(now - self._began)} passed"
        if not self._marks:
            return "  ".join(part for part in (self.label, self.first, passed) if part)
        when, done = self._marks[-1]
        parts = [f"{self.label} {done:,}/{self._total:,}", self._figures]
        if done >= self._total:
            parts.append(f"took {_readable(now - self._began)}")
        elif len(self._marks) > 1:
            # The first item, which often compiles, says little about the others once there are more.
            since, before = self._marks[-2] if len(self._marks) == 2 else self._marks[1]
            each = (when - since) / (done - before)
            parts += [passed, f"ETA {_readable(max(0.0, each * (self._total - done) - (now - when)))}"]
        elif done:  # an earlier run did most of these, or the first of them was not announced
            parts.append(passed)
        else:
            parts += [self.first, passed, "ETA after the first"]
        return "  ".join(part for part in parts if part)

    def _show(self, now: float, due: bool) -> None:
        """Draw the line; where the output is no terminal, only if it is due or the last one is old."""
        if self.live:
            self.stream.write("\r\x1b[2K" + self._line(now))
        elif due or now - self._written >= self.every:
            self.stream.write(self._line(now) + "\n")
            self._written = now
        self.stream.flush()

    def _tick(self) -> None:
        while not self._over.wait(1.0 if self.live else self.every):
            with self._lock:
                if not self._marks or self._marks[-1][1] < self._total:
                    self._show(time.monotonic(), due=False)

    def __enter__(self) -> "Progress":
        threading.Thread(target=self._tick, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:
            if self.live and self._marks:
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
    return Progress(label, formats, first="compiling")
