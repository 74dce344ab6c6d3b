"""Ctrl-C and SIGTERM end a command at once, with code 130 and one line, whatever it is doing."""

import os
import signal
import threading

INTERRUPTED = "interrupted; run the same command again to go on."
WATCHER = "signals"
"""The name of the thread that waits for signals."""
_leaving = threading.Lock()
"""Taken by the first call of `leave`, which ends the process."""


def leave(number: int, frame: object) -> None:
    """Say so and end with code 130. Everything kept on disk is whole at any moment, so nothing is lost.

    The handler and the waiting thread may both come here: only one of them speaks.
    """
    if not _leaving.acquire(blocking=False):
        return
    # Not an exception: one that is raised while Python collects garbage is lost, and one that unwinds through
    # a compilation ends in a segmentation fault. os.write, because a stream may be in the middle of a line.
    os.write(2, f"\n{INTERRUPTED}\n".encode())
    os._exit(130)


def leave_on_signals() -> None:
    """SIGINT and SIGTERM call `leave`, also while the main thread is inside a compilation or a computation.

    Python runs a handler only between two of its own instructions, which may be minutes away. So a thread
    waits for the byte that the interpreter writes when a signal arrives. Where another handler is in place (a
    training loop that saves first), the thread does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    if any(thread.name == WATCHER for thread in threading.enumerate()):
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while received := os.read(read, 1):
            if signal.getsignal(received[0]) is leave:
                leave(received[0], None)

    threading.Thread(target=watch, name=WATCHER, daemon=True).start()
