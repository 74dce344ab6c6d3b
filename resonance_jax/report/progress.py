"""One live line a job: what is done, the rate, the time left, and the figures that matter."""

import sys
import time


def _readable(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """`progress(done, total, **figures)` redraws a line on a terminal, prints one now and then elsewhere.

    label: what is being done. formats: how to show a figure, name -> function of its value giving text;
    figures without one are shown plainly. As a context manager it ends the line.
    """

    def __init__(self, label: str, formats: dict | None = None, stream=None, every: float = 10.0):
        self.label, self.formats, self.every = label, formats or {}, every
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self.first: tuple[float, int] | None = None
        self.shown = 0.0

    def __call__(self, done: int, total: int, **figures) -> None:
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

    def __exit__(self, *_) -> None:
        if self.live and self.first is not None:
            self.stream.write("\n")
            self.stream.flush()


def training_progress(label: str, bytes_per_token: float | None = None) -> Progress:
    """Loss in nats (and bits a byte where a token's bytes are known), tokens/s."""
    formats = {
        "loss": lambda v: (
            f"loss {v:.3f}"
            + (f" ({v / 0.6931472 / bytes_per_token:.3f} bits/byte)" if bytes_per_token else "")
        ),
        "tokens_per_second": lambda v: f"{v:,.0f} tokens/s",
    }
    return Progress(label, formats)
