"""A checkpoint beside another tokenizer than its own, for an export of what was trained with that one."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resonance_jax.interop.checkpoint import Checkpoint

PATTERNS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "additional_chat_templates", "generation_config.json"),
)
"""Files and folders that belong to a tokenizer, or name tokens by its ids."""


@contextlib.contextmanager
def with_tokenizer(checkpoint: Checkpoint, tokenizer: str) -> Iterator[Path]:
    """A directory with the checkpoint's config.json and what goes with its weights, but another tokenizer.

    It lives as long as the block, and is what `save_hf` takes as `like`.

    Args:
        checkpoint: opened.
        tokenizer: as data.tokenizer takes it; "bytes" has no files.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(dict(checkpoint.stated)), encoding="utf-8")
        checkpoint.write_companions(folder)
        for old in _of_tokenizer(folder):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        if tokenizer != "bytes":
            _copy(Path(tokenizer), folder)
        yield folder


def _of_tokenizer(folder: Path) -> list[Path]:
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern)})


def _copy(tokenizer: Path, folder: Path) -> None:
    """Copy a tokenizer's files: those of its directory, or a single file and what lies beside it."""
    home = tokenizer if tokenizer.is_dir() else tokenizer.parent
    for path in _of_tokenizer(home):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    if tokenizer.is_file():
        other = {".model": "tokenizer.json", ".json": "tokenizer.model"}.get(tokenizer.suffix)
        if other is not None:
            (folder / other).unlink(missing_ok=True)
        shutil.copyfile(tokenizer, folder / ("tokenizer" + tokenizer.suffix))
