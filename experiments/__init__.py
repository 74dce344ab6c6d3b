"""The commands. Ctrl-C and SIGTERM end each of them with code 130 and one line, from the first line here on.

`python -m experiments.NAME` imports this file before anything else.
"""

import os
import signal
import sys

if sys.argv[:1] == ["-m"]:  # so it reads while Python looks for the module that it was told to run

    def _leave(number: int, frame: object) -> None:
        os.write(2, b"\ninterrupted; run the same command again to go on.\n")
        os._exit(130)

    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _leave)

    from resonance_jax.command.signals import leave_on_signals

    leave_on_signals()
