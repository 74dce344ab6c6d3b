"""How a command ends."""

import errno

import pytest

from resonance_jax.command import guarded
from resonance_jax.rope import RopeSpec
from resonance_jax.train import Interrupted


def raising(error: BaseException):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "code", "said"),
    [
        (lambda _: None, 0, ""),
        (lambda _: 3, 3, ""),
        (lambda _: RopeSpec("rotary"), 2, "error: unknown RoPE method 'rotary'"),
        (raising(KeyboardInterrupt()), 130, "run the same command again"),
        (raising(Interrupted("stopped after step 3")), 130, "stopped after step 3"),
        (raising(OSError(errno.ENOSPC, "No space left on device", "a.npz")), 2, "Free some disk space"),
        (raising(FileNotFoundError(errno.ENOENT, "No such file", "a.txt")), 2, "error: No such file: a.txt."),
    ],
)
def test_codes(run, code, said, capsys):
    assert guarded(run, None) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("run", "raised"), [(lambda _: int("x"), "invalid literal"), (lambda _: 1 / 0, "zero")]
)
def test_a_defect_keeps_its_traceback_and_has_a_code_of_its_own(run, raised, capsys):
    """What neither our packages nor the user's input raised is no sentence for the user, and no verdict."""
    assert guarded(run, None) == 70
    said = capsys.readouterr().err
    assert raised in said and "Traceback" in said and "please report it" in said
