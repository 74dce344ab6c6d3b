"""Checkpoints of a run, by Orbax: saved asynchronously, committed atomically, verified when they are read.

Folders may be local or anything that etils.epath opens (gs://…). Every checkpoint states what made it
(train.identity) and a checksum of each of its files (train.checksums). One that is damaged is set aside, and
the run goes on from the one before. A checkpoint of an earlier version has no checksums: it is read if Orbax
can read it, and a warning says that nothing could be compared.
"""

import contextlib
import errno
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, PyTree

from resonance_jax.files import AnyPath, as_path, is_remote
from resonance_jax.model.decoder import Params
from resonance_jax.parallel import distributed
from resonance_jax.parallel.memory import readable
from resonance_jax.train import checksums
from resonance_jax.train.config import check_whole
from resonance_jax.train.identity import AnotherRun, Identity, refuse_another

RESUME = ("auto", "never", "must")

State = TypeVar("State")
"""A pytree of arrays, or of ShapeDtypeStructs."""


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        directory: where they lie; made if it is not there.
        made_by: what makes them, stored with each. Only a checkpoint that agrees with it is restored.
        keep: how many of the newest stay, at least 1.
    """

    def __init__(self, directory: AnyPath, made_by: Identity, keep: int = 2) -> None:
        import orbax.checkpoint as ocp
        from etils import epath

        check_whole("keep", keep, 1)
        self._ocp = ocp
        self._made_by = made_by
        path = epath.Path(directory)
        # Orbax wants an absolute path; a URL already is one.
        self._path = path = path if is_remote(path) else path.absolute()
        if not is_remote(path):
            distributed.check_shared(as_path(path))
        self._saving = 0  # the step that Orbax is writing
        self._manager = ocp.CheckpointManager(
            path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._state_checksums),
            ),
        )

    def check_space(self, state: PyTree[Array | jax.ShapeDtypeStruct]) -> None:
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

    def save(self, step: int, state: PyTree[Array], log: str | None = None) -> None:
        """Start saving; the arrays are copied before this returns, so they may be donated afterwards.

        Args:
            step: how many steps the state has behind it.
            state: the arrays.
            log: a digest of what the run has logged (History.digest), kept with the checkpoint.
        """
        if self._manager.latest_step() == step:
            return
        self.check_space(state)
        args = self._ocp.args
        meta = {**self._made_by, "step": step, "log": log}
        with _storage_errors():
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(
                step, args=args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta))
            )

    def _state_checksums(self) -> None:
        """Called by Orbax, on the first process, when a step's files are written but not yet committed."""
        assert self._saving is not None
        steps = self._ocp.path.step
        folder = steps.find_step_path(
            self._path, steps.standard_name_format(), step=self._saving, include_uncommitted=True
        )
        checksums.write_manifest(as_path(folder), self._saving)

    def resume(self, like: State) -> tuple[int, State, str | None] | None:
        """Read the newest whole checkpoint: (step, state, log) as they were saved; None if there is none.

        Newer ones that are damaged are set aside with a warning each.

        Args:
            like: the state as arrays or ShapeDtypeStructs. Each leaf is placed by the sharding of its leaf in
                `like` (if that has none, on the first device), whatever devices it was saved from.

        Raises:
            ValueError: all of them are damaged, or the newest whole one was made by something else.
        """
        faults: dict[int, str] = {}
        while (step := self._newest_whole(faults)) is not None:
            stated = checksums.has_manifest(self._folder(step))
            try:
                state, log = self._read(step, like)
            except AnotherRun:
                raise
            except Exception as error:  # whatever Orbax and what it rests on raise for files that are damaged
                if stated:
                    raise
                faults[step] = f"Orbax cannot read it ({type(error).__name__})"
                continue
            self._set_aside(faults, step)
            if not stated:
                _say(
                    f"the checkpoint of step {step} in {self._path} is one of an earlier version: it has no "
                    "checksums, so whether its files are as they were saved could not be checked."
                )
            return step, state, log
        return None

    def _folder(self, step: int) -> Path:
        return as_path(self._path / str(step))

    def _newest_whole(self, faults: dict[int, str]) -> int | None:
        """The newest step that is not damaged, None where there is no step; faults gets those that are.

        The first process looks at the files, and all of them get its answer. A step without checksums counts
        as whole unless it is in `faults` already. Raises ValueError when all of them are damaged.
        """
        none, damaged = -1, -2
        answer = none
        if jax.process_index() == 0:
            for step in sorted(self._ocp.utils.checkpoint_steps(self._path), reverse=True):
                if step not in faults and (found := checksums.fault(self._folder(step), step)):
                    faults[step] = found
                answer = damaged if step in faults else step
                if answer == step:
                    break
        if jax.process_count() > 1:
            answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
        if answer == damaged:
            told = ", ".join(f"{step} ({found})" for step, found in faults.items())
            raise ValueError(
                f"no checkpoint in {self._path} is whole: {told or 'the first process says why'}. Put a copy "
                "back, or remove the folder to begin anew."
            )
        return None if answer == none else answer

    def _read(self, step: int, like: State) -> tuple[State, str | None]:
        """(state, log) of a step, placed as `like` is. Raises AnotherRun if another run saved it."""
        args = self._ocp.args
        saved = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
        if saved.get("step", step) != step:
            raise ValueError(f"it was saved as step {saved['step']}")
        refuse_another(saved, self._made_by)
        target = jax.tree.map(self._placed, like)
        restored = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(target)))
        return restored["state"], saved.get("log")

    def _placed(self, x: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """How Orbax places a leaf. Without a sharding it would ask for the devices that saved it."""
        where = x.sharding or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    def _set_aside(self, faults: dict[int, str], good: int) -> None:
        """Move the damaged steps out of the way, so that they can be saved again, and say so."""
        if jax.process_index() == 0:
            for step, found in faults.items():
                aside = checksums.set_aside(self._folder(step))
                _say(
                    f"the checkpoint of step {step} in {self._path} is damaged ({found}); it lies in "
                    f"{aside.name} now, and the run goes on from step {good}."
                )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait until everything is committed. Raises OSError if it could not be (a full disk)."""
        with _storage_errors():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()


def newest_step(directory: AnyPath) -> int | None:
    """The step of the newest committed checkpoint in a folder; None if there is none, or no folder."""
    import orbax.checkpoint as ocp

    return max(ocp.utils.checkpoint_steps(as_path(directory)), default=None)


def saved_params(directory: AnyPath) -> Params:
    """The params of the newest checkpoint in a folder as NumPy arrays, whatever devices saved them.

    Where many runs were trained at once, axis 0 is the run. Raises ValueError when there is no checkpoint and
    when the newest one is damaged.
    """
    import orbax.checkpoint as ocp

    step = newest_step(directory)
    if step is None:
        raise ValueError(f"{directory} holds no checkpoint.")
    folder = as_path(directory).absolute() / str(step)
    if found := checksums.fault(folder, step):
        raise ValueError(
            f"the checkpoint of step {step} in {directory} is damaged ({found}); run what made it again: it "
            "goes on from the one before."
        )
    path = folder / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = {"params": checkpointer.metadata(path).item_metadata.tree["params"]}
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        wanted = ocp.args.PyTreeRestore(item=saved, restore_args=arrays, partial_restore=True)
        return checkpointer.restore(path, args=wanted)["params"]


def check_resume(resume: str, directories: Iterable[AnyPath]) -> None:
    """Check whether the checkpoints that are there allow what is asked.

    Args:
        resume: "auto" goes on from a checkpoint if there is one, "never" refuses a folder that has one,
            "must" refuses folders of which none has one.
        directories: folders of checkpoints, which need not be there.

    Raises:
        ValueError: they do not, or `resume` is another word.
    """
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
    """Turn the ValueError of a page that Tensorstore raises on a full disk into an OSError of a sentence."""
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


def _bytes(state: PyTree[Array | jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def _say(sentence: str) -> None:
    if jax.process_index() == 0:
        warnings.warn(sentence, stacklevel=2)
