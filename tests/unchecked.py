"""Bad input as a user gives it: the tests hold every call to its annotations, a user's run does not."""

import contextlib
from collections.abc import Iterator

import jaxtyping


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """A block, or as a decorator a test, without run-time types: the library's own sentence refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
