"""The folder that a run writes to, and goes on from: it belongs to one config."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from resonance_jax.command.options import Dataclass, options_of
from resonance_jax.command.run_lock import LOCK, hold
from resonance_jax.files import FilePath, is_remote, reachable, read_json, write_json

Kind = TypeVar("Kind")
"""A config, a dataclass."""
SET_UP = frozenset({"config.json", "corpus.json", "encodings.json", "tokens", "tpu_compile.json", LOCK})
"""What lies in a run folder before anything was computed."""


def open_run(study: str, config: Dataclass) -> FilePath:
    """The run folder: config.run_dir, or runs/STUDY-HASH. Its config.json must be this config.

    The folder is this process's until it ends, however it ends. One in which nothing was computed yet (its
    settings were refused, or it was stopped early) is taken over by another config. An option named in the
    config's class variable ADDED came later than some folders: one that does not state it has its default.

    Raises ValueError when the folder belongs to another config, naming the options that differ, and when
    another process works in it.
    """
    folder = reachable(getattr(config, "run_dir", None) or default_folder(study, config))
    path, asked = folder / "config.json", {"study": study, **_resolved(config)}
    if not is_remote(folder):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, expected a run folder; choose another --run-dir.")
        begun = [child.name for child in folder.iterdir()] if folder.exists() else []
        if "config.json" not in begun and _computed(begun):
            raise ValueError(f"{folder} is not empty and not a run folder; choose another --run-dir.")
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder)
    stored = _stored(path)
    if stored is not None:
        stored = {**_added(config), **stored}
    if stored != asked:
        if stored is not None and _computed(child.name for child in folder.iterdir()):
            differing = sorted(k for k in stored.keys() | asked.keys() if stored.get(k) != asked.get(k))
            changes = ", ".join(
                f"{k}: {_shown(stored.get(k))} there, {_shown(asked.get(k))} here" for k in differing
            )
            raise ValueError(f"{folder} holds a run of another config ({changes}); choose another --run-dir.")
        write_json(path, asked)
    return folder


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)


def _stored(path: FilePath) -> dict[str, object] | None:
    """The config that a run folder was made with. Damage to it is told only where it matters."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError:
        if _computed(child.name for child in path.parent.iterdir()):
            raise
        return None


def _computed(names: Iterable[str]) -> bool:
    """Whether something lies in a folder that a run computed (or that is no run's at all)."""
    return any(name not in SET_UP and not name.endswith(".tmp") for name in names)


def default_folder(study: str, config: Dataclass) -> Path:
    """Where a run of this config lies when no folder is named."""
    return Path("runs") / f"{study}-{config_hash(config)}"


def config_hash(config: Dataclass) -> str:
    """Eight hexadecimal digits of a config. --run-dir does not count, nor what was ADDED and has its default,
    so that the folders of earlier versions are found."""
    added = _added(config)
    counted = {k: v for k, v in _resolved(config).items() if k not in added or v != added[k]}
    text = json.dumps(counted, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _resolved(config: Dataclass) -> dict[str, object]:
    """The options as JSON gives them back, without --run-dir."""
    values = json.loads(json.dumps(options_of(config), default=str))
    values.pop("run_dir", None)
    return values


def _added(config: Dataclass) -> dict[str, object]:
    """The defaults of the options that folders of earlier versions do not state, as JSON gives them back."""
    names = getattr(type(config), "ADDED", ())
    return {
        f.name: json.loads(json.dumps(f.default, default=str))
        for f in dataclasses.fields(config)
        if f.name in names
    }


def stated_config(folder: FilePath, kind: type[Kind]) -> Kind | None:
    """The flat config that a run folder was made with, as far as `kind` still has its options; None where
    there is no run."""
    path = folder / "config.json"
    if not path.exists():
        return None
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in read_json(path).items() if name in known})


def local_part(study: str, config: Dataclass, folder: FilePath) -> FilePath:
    """Where a run keeps what has to be a local file, such as mapped tokens.

    The run folder itself, or a twin on this machine's disk for one that lies in an object store.
    """
    if not is_remote(folder):
        return folder
    twin = default_folder(study, config)
    return twin.with_name(f"{twin.name}-local")


def remember(path: FilePath, text: dict[str, object]) -> None:
    """Write down which text a run is about; ValueError where it began with another one."""
    if not path.exists():
        write_json(path, text)
    elif read_json(path) != text:
        raise ValueError(
            f"the text has changed since the run in {path.parent} began (another interpreter, or edited "
            "files); perplexities on different text cannot be compared: choose another --run-dir."
        )
