"""A profiler trace of a few training steps, for TensorBoard or Perfetto."""

import tempfile
from pathlib import Path

import jax
from jaxtyping import Array, PyTree

from resonance_jax.files import AnyPath, as_path, is_remote, upload


class Trace:
    """Traces a few steps into a folder, after the first two that this process runs: those compile.

    Use it as a context around the loop, and call before_step and after_step around every step. Leaving the
    context ends a trace that has begun.

    Args:
        folder: where the trace goes. JAX writes local files; they are uploaded to an object store at the end.
        count: how many steps; 0: no trace.
    """

    def __init__(self, folder: AnyPath, count: int) -> None:
        self._folder, self._count, self._seen, self._temporary = as_path(folder), count, 0, None
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def before_step(self, earlier: PyTree[Array]) -> None:
        """Begin the trace if it begins with this step. earlier: what the step before gave, waited for so that
        it is no part of the trace."""
        if self._seen == 2 and self._count:
            jax.block_until_ready(earlier)
            if is_remote(self._folder):
                self._temporary = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._temporary.name if self._temporary else str(self._folder))
            self._running = True

    def after_step(self, results: PyTree[Array]) -> None:
        """End the trace if this was its last step. results: what the step gave, waited for before the end."""
        self._seen += 1
        if self._running and self._seen == 2 + self._count:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        if self._temporary is not None:
            upload(Path(self._temporary.name), self._folder)
            self._temporary.cleanup()
