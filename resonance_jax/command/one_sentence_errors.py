"""How a command ends: a mistake is told in one sentence, and the exit code says what happened.

0: done. 1: it ran, and the verdict is no. 2: the user's input. 3: finished, with items left out. 70: a defect
of ours, with a traceback. 130: interrupted, and the same command goes on.
"""

import errno
import logging
import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from resonance_jax.command.signals import INTERRUPTED

Config = TypeVar("Config")

OURS = ("resonance_jax", "configs", "experiments")
"""Packages whose ValueErrors are sentences for the user."""
DEFECT = 70
"""What a traceback ends with (EX_SOFTWARE of sysexits.h), so that 1 always means a verdict."""


def guarded(run: Callable[[Config], int | None], config: Config) -> int:
    """The exit code of run(config); a user's mistake is told in one sentence instead of a traceback."""
    # Orbax logs, through absl, a traceback of every error that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return run(config) or 0
    except KeyboardInterrupt:
        return _say(f"\n{INTERRUPTED}", 130)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _say(f"\nerror: {error.strerror or error}{where}.", 2)
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            _say("Free some disk space and run the same command again to go on.", 2)
        return 2
    except MemoryError:
        return _say("\nerror: the machine has too little memory for this; make it smaller.", 2)
    except (ValueError, FloatingPointError) as error:
        return _say(f"\nerror: {error}", 2) if _raised_by_us(error) else _defect()
    except Exception as error:
        # Not imported at the top: train brings jax, and --help should not wait for it.
        from resonance_jax.train.loop import Interrupted

        return _say(f"\n{error}", 130) if isinstance(error, Interrupted) else _defect()


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _defect() -> int:
    traceback.print_exc()
    return _say("\nThis is a defect of resonance-jax, not of your input; please report it.", DEFECT)


def _raised_by_us(error: BaseException) -> bool:
    """Whether our own code raised it: then it is the user's mistake, told in a sentence of ours.

    What is raised deeper (by jax or numpy) is a defect, whose traceback has to be seen.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    # A module that is run by `python -m` is called __main__, but knows its package.
    module = frame.f_globals.get("__package__") or frame.f_globals["__name__"]
    return module.partition(".")[0] in OURS
