"""Checkpoints: Orbax behind one door. Saved asynchronously, committed atomically, the encoding inside.

Folders may be local or anything that etils.epath opens (gs://…). A checkpoint states the encoding's
float64 table; resuming under another one is refused.
"""

import contextlib
import errno
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from resonance_jax import rope
from resonance_jax.files import AnyPath, as_path, is_remote
from resonance_jax.train.memory import readable

RESUME = ("auto", "never", "must")


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
        self._path = path = path if is_remote(path) else path.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(path, options=options)

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def check_space(self, state: Any) -> None:
        """Raise OSError, before anything is written, when a local disk is too full for this state."""
        if is_remote(self._path):
            return
        free, size = shutil.disk_usage(self._path).free, _bytes(state) // jax.process_count()
        if size > free:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint takes {readable(size)}, but only {readable(free)} are free in {self._path}; "
                "nothing of it was written",
            )

    def save(self, step: int, state: Any) -> None:
        """Start saving; the arrays are copied before this returns, so they may be donated afterwards."""
        if self._manager.latest_step() == step:
            return
        self.check_space(state)
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


def newest_step(directory: AnyPath) -> int | None:
    """The step of the newest whole checkpoint in a folder, which need not be there; creates nothing."""
    import orbax.checkpoint as ocp

    return max(ocp.utils.checkpoint_steps(as_path(directory)), default=None)


def saved_params(directory: AnyPath) -> Any:
    """The params of the newest checkpoint in a folder as NumPy arrays, on whatever devices they were made.

    Of runs trained at once axis 0 is the run. Raises ValueError when there is no checkpoint.
    """
    import orbax.checkpoint as ocp

    step = newest_step(directory)
    if step is None:
        raise ValueError(f"{directory} holds no checkpoint.")
    path = as_path(directory).absolute() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = {"params": checkpointer.metadata(path).item_metadata.tree["params"]}
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        wanted = ocp.args.PyTreeRestore(item=saved, restore_args=arrays, partial_restore=True)
        return checkpointer.restore(path, args=wanted)["params"]


def check_resume(resume: str, directories: Iterable[AnyPath]) -> None:
    """Raise ValueError unless the checkpoints that are there allow what is asked: "auto" goes on from one if
    there is one, "never" refuses a folder that has one, "must" folders of which none has."""
    if resume not in RESUME:
        raise ValueError(f"unknown resume {resume!r}; expected one of {', '.join(RESUME)}.")
    directories = list(directories)
    steps = {str(directory): newest_step(directory) for directory in directories}
    found = [(directory, step) for directory, step in steps.items() if step is not None]
    if resume == "never" and found:
        raise ValueError(
            f"{found[0][0]} holds a checkpoint of step {found[0][1]} and resume is never; choose another "
            "folder, or resume auto to go on from it."
        )
    if resume == "must" and not found:
        raise ValueError(
            f"{directories[0]} holds no checkpoint and resume is must; give the folder of the run to go on "
            "with, or resume auto to begin one."
        )


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


def _bytes(state: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


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
