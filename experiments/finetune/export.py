"""The Hugging Face directory that a fine-tuning leaves, with everything that goes with its weights."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.finetune.inputs import Inputs
from resonance_jax.files import is_remote, upload

if TYPE_CHECKING:
    from resonance_jax.model import Decoder


def export(inputs: Inputs, path: Path, local: Path, lm: Decoder, base: Path) -> None:
    """Write the directory anew: weights, the base's config.json, the files of the tokenizer.

    Args:
        inputs: what the config names.
        path: the directory. To an object store it is uploaded from a local one, config.json last.
        local: the local one, or the same.
        lm: what was fine-tuned.
        base: the checkpoint that it started from.
    """
    import jax

    from resonance_jax import interop
    from resonance_jax.interop.other_tokenizer import with_tokenizer
    from resonance_jax.parallel import distributed

    config, tokenizer = inputs.config, inputs.tokenizer
    params = jax.tree.map(lambda x: x.astype(config.dtype), lm.params)
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(local, ignore_errors=True)
    distributed.wait("export")
    with contextlib.ExitStack() as stack:
        like, ids = base, {}
        if tokenizer is not None and not inputs.own_tokenizer():
            name = config.text.tokenizer or "bytes"
            like = stack.enter_context(with_tokenizer(interop.open_checkpoint(base), name))
            several = len(tokenizer.eos_ids) > 1
            ids = {
                "bos_token_id": tokenizer.bos_id,
                "eos_token_id": list(tokenizer.eos_ids) if several else tokenizer.eos_id,
                "pad_token_id": tokenizer.pad_id,
            }
        interop.save_hf(lm.replace_params(params), local, extra=ids, like=like)
    if is_remote(path) and first:
        upload(local, path)


def content(directory: Path) -> str | None:
    """SHA-256 (hex) over the files of a directory, None where there is none."""
    from resonance_jax import digest

    if not directory.is_dir():
        return None
    return digest.of_folder(directory)
