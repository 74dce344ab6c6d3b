"""What every command shares: its options, its run folder, and how it ends.

Exit codes: 0 done; 1 it ran and the verdict is no; 2 the user's input; 3 finished with items left out;
130 interrupted, and the same command goes on.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resonance_jax.files import as_path, is_remote, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent


def main(run: Callable[[Any], int | None], config: type | dict, description: str | None = None) -> None:
    """Parse the command line, run it, and exit with the code of how it went.

    config: a frozen dataclass, or named presets {name: (one sentence, config)}, the first of which is taken
    when none is named; every field can be overridden on the command line.
    """
    leave_on_sigterm()
    import tyro

    if isinstance(config, dict):
        if len(sys.argv) < 2 or (sys.argv[1].startswith("--") and sys.argv[1] != "--help"):
            sys.argv.insert(1, next(iter(config)))
        parsed = tyro.extras.overridable_config_cli(config, description=description)
    else:
        parsed = tyro.cli(config, description=description)
    code = guarded(run, parsed)
    if code == 2:
        # The writers of a checkpoint that failed may still be at work, and would print their own tracebacks
        # while the interpreter shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


INTERRUPTED = "interrupted; run the same command again to go on."


def leave_on_sigterm() -> None:
    """SIGTERM ends a command at once with code 130, where no training loop is there to save first."""

    def leave(number, frame):
        # Not an exception: one that is raised while Python collects garbage is lost.
        os.write(sys.stderr.fileno(), f"\n{INTERRUPTED}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGTERM, leave)


def guarded(run: Callable[[Any], int | None], config: Any) -> int:
    """run(config) with a user's mistake told in one sentence instead of a traceback."""
    # Orbax logs, through absl, a traceback of every error that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return run(config) or 0
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"\nerror: {error.strerror or error}{where}.", file=sys.stderr)
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            print("Free some disk space and run the same command again to go on.", file=sys.stderr)
        return 2
    except (ValueError, FloatingPointError) as error:
        if not _raised_by_us(error):
            raise
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        # Not imported at the top: train brings jax, and --help should not wait for it.
        from resonance_jax.train.loop import Interrupted

        if not isinstance(error, Interrupted):
            raise
        print(f"\n{error}", file=sys.stderr)
        return 130


def _raised_by_us(error: BaseException) -> bool:
    """A sentence of ours is the user's mistake; anything raised deeper (jax, numpy) is a defect: show it."""
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    packages = ("resonance_jax", "configs", "experiments")
    return any((ROOT / package) in last.parents for package in packages)


def config_hash(config: Any) -> str:
    text = json.dumps(_resolved(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _resolved(config: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    values.pop("run_dir", None)
    return values


def open_run(study: str, config: Any) -> Path:
    """The run folder: config.run_dir, or runs/<study>-<config hash>. Its config.json must be this config.

    Raises ValueError naming the fields that differ when the folder belongs to another config.
    """
    folder = as_path(config.run_dir or default_folder(study, config))
    path, asked = folder / "config.json", {"study": study, **_resolved(config)}
    if path.exists():
        stored = read_json(path)
        differing = sorted(k for k in stored.keys() | asked.keys() if stored.get(k) != asked.get(k))
        if differing:
            changes = ", ".join(f"{k}: {stored.get(k)!r} there, {asked.get(k)!r} here" for k in differing)
            raise ValueError(f"{folder} holds a run of another config ({changes}); choose another --run-dir.")
    else:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and not a run folder; choose another --run-dir.")
        write_json(path, asked)
    return folder


def default_folder(study: str, config: Any) -> Path:
    return Path("runs") / f"{study}-{config_hash(config)}"


def local_part(study: str, config: Any, folder: Path) -> Path:
    """Where a run keeps what has to be a local file, such as mapped tokens: its folder, or a twin of one that
    lies in an object store."""
    if not is_remote(folder):
        return folder
    twin = default_folder(study, config)
    return twin.with_name(f"{twin.name}-local")


def use_every_core() -> None:
    """One host device a core, so that many runs are sharded over them; before jax first looks at devices."""
    import jax

    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and "device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
