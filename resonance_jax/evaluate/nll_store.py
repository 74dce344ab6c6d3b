"""The documents that an evaluation has finished, kept on disk so that a stopped one goes on."""

import json
from pathlib import Path

import numpy as np

from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.files import atomic

_FACTS = ("protocol", "length", "stride", "bos_id")
_ARRAYS = ("nll", "scored", "document", "position_nll", "position_scored")


class Store:
    """Finished documents in a folder, one .npz each: {length: Perplexity} of that document.

    A file is there whole or not at all. A folder belongs to one checkpoint, encoding, corpus and protocol.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, index: int) -> dict[int, Perplexity] | None:
        """The results of document number `index`, None when they are not there."""
        path = self.folder / f"{index:06d}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            return {
                fact["length"]: Perplexity(**fact, **{a: file[f"{fact['length']}/{a}"] for a in _ARRAYS})
                for fact in facts
            }

    def put(self, index: int, results: dict[int, Perplexity]) -> None:
        """Keep the results of document number `index`."""
        facts = [{name: getattr(r, name) for name in _FACTS} for r in results.values()]
        arrays = {f"{n}/{name}": getattr(r, name) for n, r in results.items() for name in _ARRAYS}
        with atomic(self.folder / f"{index:06d}.npz") as temporary:
            np.savez(temporary, facts=np.array(json.dumps(facts)), **arrays)
