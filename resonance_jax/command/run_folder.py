"""The folder that a run writes to, and goes on from: it belongs to one config."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from resonance_jax.command.options import Dataclass, defaults_of, options_of
from resonance_jax.command.run_lock import LOCK, hold
from resonance_jax.files import FilePath, is_remote, reachable, read_json, write_json

Kind = TypeVar("Kind")
"""A config, a dataclass."""
SET_UP = frozenset({"config.json", "corpus.json", "encodings.json", "tokens", "tpu_compile.json", LOCK})
"""What may lie in a run folder before anything was computed."""


def open_run(study: str, config: Dataclass) -> FilePath:
    """The run folder: config.run_dir, or runs/STUDY-HASH. Its config.json must be this config.

    The folder is locked until this process ends, however it ends. A folder in which nothing was computed yet
    (the settings were refused, or the run was stopped early) is taken over by another config. The options
    that the config's class names in ADDED are newer than some folders, which are read as stating the default.

    Args:
        study: the study's name, the first part of the folder's.
        config: the settings of this run.

    Raises:
        ValueError: the folder belongs to another config (the options that differ are named), or another
            process works in it.
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
    """The config that a run folder was made with. Raises ValueError if it is damaged beside results."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError:
        if _computed(child.name for child in path.parent.iterdir()):
            raise
        return None


def _computed(names: Iterable[str]) -> bool:
    """Whether a folder holds something that a run computed, or that does not belong to a run at all."""
    return any(name not in SET_UP and not name.endswith(".tmp") for name in names)


def default_folder(study: str, config: Dataclass) -> Path:
    """Where a run of this config lies when no folder is named."""
    return Path("runs") / f"{study}-{config_hash(config)}"


def config_hash(config: Dataclass) -> str:
    """Eight hexadecimal digits for a config. --run-dir does not count, nor does an option in ADDED that has
    its default, so that the folders of earlier versions are found."""
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
        name: json.loads(json.dumps(default, default=str))
        for name, default in defaults_of(config).items()
        if name in names
    }


def stated_config(folder: FilePath, kind: type[Kind]) -> Kind | None:
    """The config that a run folder was made with; None where there is no run.

    Args:
        folder: the run folder.
        kind: the config's class, which nests no other. Options that it no longer has are left out.
    """
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
    """Record in a file which text a run reads. Raises ValueError where the run began with another text."""
    if not path.exists():
        write_json(path, text)
    elif read_json(path) != text:
        raise ValueError(
            f"the text has changed since the run in {path.parent} began (another interpreter, or edited "
            "files); perplexities on different text cannot be compared: choose another --run-dir."
        )
