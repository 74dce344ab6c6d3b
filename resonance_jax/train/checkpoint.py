"""Checkpoints: Orbax behind one door. Saved asynchronously, committed atomically, the encoding inside.

Folders may be local or anything that etils.epath opens (gs://…). A checkpoint states the encoding's
float64 table; resuming under another one is refused.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from resonance_jax import rope


class Checkpoints:
    """The checkpoints of one run folder, keeping the newest `keep`.

    meta: JSON stored with every checkpoint; its "encodings" (records of rope.to_record) must agree with
    those of a checkpoint that is restored.
    """

    def __init__(self, directory, meta: dict[str, Any], keep: int = 2):
        import orbax.checkpoint as ocp
        from etils import epath

        self._ocp = ocp
        self._meta = meta
        path = epath.Path(directory)
        # Orbax wants an absolute path; a URL already is one.
        path = path if "://" in str(path) else path.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(path, options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Start saving; the arrays are copied before this returns, so they may be donated afterwards."""
        if self._manager.latest_step() == step:
            return
        args = self._ocp.args
        with _storage_errors():
            self._manager.save(
                step, args=args.Composite(state=args.StandardSave(state), meta=args.JsonSave(self._meta))
            )

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The state saved at `step` (the newest), placed as the leaves of `like` are.

        Raises ValueError when it was saved under another encoding.
        """
        args = self._ocp.args
        step = self.latest_step() if step is None else step
        meta = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
        _refuse_other_encodings(meta.get("encodings", []), self._meta.get("encodings", []))
        target = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=args.Composite(state=args.StandardRestore(target)))["state"]

    def close(self) -> None:
        """Wait until everything is committed. Raises OSError if it could not be (a full disk)."""
        with _storage_errors():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Tensorstore reports a full disk as a ValueError of a page; say it as the OSError that it is."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(
            number, f"a checkpoint could not be written ({os.strerror(number)}); the one before it is whole"
        ) from error


def _refuse_other_encodings(saved: list[dict], asked: list[dict]) -> None:
    matches = len(saved) == len(asked) and all(
        rope.same(rope.from_record(a), rope.from_record(b)) for a, b in zip(saved, asked, strict=True)
    )
    if not matches:
        names = lambda records: ", ".join(r["fingerprint"] for r in records) or "none"
        raise ValueError(
            f"the checkpoint was trained under the encodings {names(saved)}, but {names(asked)} are asked "
            "for; use another run folder, or the encodings it was trained with."
        )
