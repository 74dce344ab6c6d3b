"""What commands are run on that are killed, or run in several processes."""

from pathlib import Path

import pytest

from tests.reliability import arguments, scored


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A small checkpoint with its tokenizer, texts, and questions."""
    folder = scored.base(tmp_path_factory.mktemp("inputs") / "given")
    arguments.base(folder)
    return folder
