"""How a command ends: a mistake is told in one sentence, and the exit code says what happened.

0: done. 1: it ran, and the verdict is no. 2: the user's input. 3: finished, with items left out. 130:
interrupted, and the same command goes on.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

Config = TypeVar("Config")

INTERRUPTED = "interrupted; run the same command again to go on."
OURS = ("resonance_jax", "configs", "experiments")
"""Packages whose ValueErrors are sentences for the user."""


def leave_on_sigterm() -> None:
    """SIGTERM ends the command at once with code 130, where no training loop is there to save first."""

    def leave(number: int, frame: object) -> None:
        # Not an exception: one that is raised while Python collects garbage is lost.
        os.write(sys.stderr.fileno(), f"\n{INTERRUPTED}\n".encode())
        os._exit(130)

    signal.signal(signal.SIGTERM, leave)


def guarded(run: Callable[[Config], int | None], config: Config) -> int:
    """The exit code of run(config); a user's mistake is told in one sentence instead of a traceback."""
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
    """Whether our own code raised it: then it is the user's mistake, told in a sentence of ours.

    What is raised deeper (by jax or numpy) is a defect, whose traceback has to be seen.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    # A module that is run by `python -m` is called __main__, but knows its package.
    module = frame.f_globals.get("__package__") or frame.f_globals["__name__"]
    return module.partition(".")[0] in OURS
