"""Another command, run to its end in a process of its own."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType

STOPPED = 130
"""The exit code of a command that was interrupted."""


def run_command(words: Sequence[str]) -> int:
    """Run a command and give its exit code; STOPPED where this process was told to stop meanwhile.

    SIGINT and SIGTERM are handed on, once each: the command saves and ends, and only then does this return.
    The command is kept out of the terminal's foreground group, where Ctrl-C would reach it a second time.

    Args:
        words: the program and its arguments.
    """
    told: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for process in running:
            process.send_signal(number)

    handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, hand_on) for number in handled}
    try:
        running.append(subprocess.Popen(list(words), process_group=0))
        if told:  # before the process was there to hand it on to
            running[0].terminate()
        code = running[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return STOPPED if told else code
