"""How a command is run: its command line is parsed, and the process ends with its exit code."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

from resonance_jax.command.one_sentence_errors import guarded
from resonance_jax.command.signals import leave_on_signals

Config = TypeVar("Config")


def main(
    run: Callable[[Config], int | None],
    config: type[Config] | Mapping[str, tuple[str, Config]],
    description: str | None = None,
    preset_by_default: bool = True,
) -> None:
    """Parse the command line, run the command, and exit with the code of how it went.

    Args:
        run: the command; what it returns is the exit code, None is 0.
        config: a dataclass; or presets by name, each with a sentence that says what it is. Every field can be
            overridden by an option (resonance_jax.command.options says how these are named).
        description: what --help says first.
        preset_by_default: take the first preset when none is named.
    """
    leave_on_signals()
    import tyro

    from resonance_jax.command.prefixed_options import registry

    with registry():
        if isinstance(config, Mapping):
            named = len(sys.argv) > 1 and not (sys.argv[1].startswith("--") and sys.argv[1] != "--help")
            if preset_by_default and not named:
                sys.argv.insert(1, next(iter(config)))
            parsed = tyro.extras.overridable_config_cli(dict(config), description=description)
        else:
            parsed = tyro.cli(config, description=description)
    leave(guarded(run, parsed))


def leave(code: int) -> NoReturn:
    """End the process with this code.

    All results are on the disk by now, so signals are ignored: while the interpreter shuts down, one would
    kill the process without a word. Where something went wrong the process ends at once: writers of a
    checkpoint that failed may still be at work, and would print their own tracebacks.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if code in (0, 1, 3):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
