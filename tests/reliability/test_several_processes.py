"""Passkey and L-Eval as commands in two processes, over a mesh of one device each: what one process says."""

import socket

import pytest

from resonance_jax.parallel.distributed import VARIABLES
from tests.reliability.resumed import finish
from tests.reliability.test_kills import COMMANDS


@pytest.mark.full
@pytest.mark.parametrize("name", ["passkey", "leval"])
def test_two_processes_say_what_one_says(inputs, tmp_path, name):
    """The heads of one model are cut over both: one of them writes and speaks."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    one = COMMANDS[name].start(inputs, tmp_path / "one")
    code, said = finish(one)
    assert code in (0, 3), said
    own = lambda number: dict(zip(VARIABLES, (address, "2", str(number)), strict=True))
    both = [
        COMMANDS[name].start(inputs, tmp_path / "both", "--tensor", "-1", **own(number))
        for number in range(2)
    ]
    (first, told), (second, quiet) = [finish(process) for process in both]
    assert (first, second) == (code, code), told + quiet
    assert COMMANDS[name].figures(tmp_path / "both") == COMMANDS[name].figures(tmp_path / "one")
