"""A profiler trace of a few training steps, for TensorBoard or Perfetto."""

import tempfile
from pathlib import Path

import jax
from jaxtyping import Array, PyTree

from resonance_jax.files import AnyPath, as_path, is_remote, upload


class Trace:
    """Traces `count` steps into `folder`, after the first two that this process runs, which compile.

    Use it as a context around the loop, and call before_step and after_step around every step. Leaving the
    context ends a trace that has begun. JAX writes local files; for an object store they are uploaded then.
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
        """Begin the trace if this is the step to begin with. earlier: results of the step before, which is no
        part of it."""
        if self._seen == 2 and self._count:
            jax.block_until_ready(earlier)
            if is_remote(self._folder):
                self._temporary = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._temporary.name if self._temporary else str(self._folder))
            self._running = True

    def after_step(self, results: PyTree[Array]) -> None:
        """End the trace if this was the last step of it. results: of the step, which is waited for then."""
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
