"""The documents that an evaluation has finished, kept on disk so that a stopped one goes on.

Every file states the identity of what made it and a checksum of what it holds. What other weights, another
table or another text made, and what is damaged, is computed anew.
"""

import base64
import hashlib
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from resonance_jax.digest import Identity, differing, of_arrays
from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.files import atomic

_FACTS = ("protocol", "length", "stride", "bos_id", "computed")
_ARRAYS = ("nll", "scored", "document", "position_nll", "position_scored")

Results = dict[int, Perplexity]
"""{length: the result of one document}."""


class Store:
    """Finished documents in a folder, one .npz each. A file is there whole or not at all.

    evaluate.sweep says what a result belongs to; the folder's name and its place mean nothing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._told: set[str] = set()

    def get(self, index: int, identity: Identity) -> Results | None:
        """The results of document number `index`, None where there are none that this identity made.

        Args:
            index: the number of the document.
            identity: of everything that the result depends on.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            stated, results = _read(path)
        # A damaged archive fails in many ways, all of which mean that it has to be made again.
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            self._tell(f"{path} is damaged ({str(error) or type(error).__name__})")
            return None
        changed = differing(stated, identity)
        if changed:
            self._tell(f"{self.folder}: kept results are of another {', '.join(changed)}")
            return None
        return results

    def put(self, index: int, identity: Identity, results: Results) -> None:
        """Keep the results of document number `index`; arguments as get's."""
        with atomic(self._path(index)) as temporary:
            _write(temporary, identity, results)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def _tell(self, what: str) -> None:
        """Say once per reason that something is computed anew."""
        if what not in self._told:
            self._told.add(what)
            warnings.warn(f"{what}: computed anew.")


def packed(results: Results) -> str:
    """Results as text, for another process; `unpacked` reads it."""
    file = io.BytesIO()
    _write(file, {}, results)
    return base64.b64encode(file.getvalue()).decode()


def unpacked(text: str) -> Results:
    """The results that `packed` wrote."""
    return _read(io.BytesIO(base64.b64decode(text)))[1]


def _write(file: Path | io.BytesIO, identity: Identity, results: Results) -> None:
    arrays = {f"{n}/{name}": getattr(r, name) for n, r in results.items() for name in _ARRAYS}
    facts = {
        "identity": identity,
        "results": [{name: getattr(r, name) for name in _FACTS} for r in results.values()],
        "sha256": of_arrays(arrays),
    }
    np.savez(file, facts=np.array(json.dumps(facts)), **arrays)


def _read(path: Path | io.BytesIO) -> tuple[Identity, Results]:
    """The identity and the results in a file. Raises what NumPy and JSON raise where it is damaged."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "facts"}
        facts = json.loads(str(file["facts"]))
    if of_arrays(arrays) != facts["sha256"]:
        raise ValueError("its checksum differs")
    results = {fact["length"]: _result(fact, arrays) for fact in facts["results"]}
    return facts["identity"], results


def _result(fact: dict[str, Any], arrays: dict[str, np.ndarray]) -> Perplexity:
    fields: dict[str, Any] = {name: arrays[f"{fact['length']}/{name}"] for name in _ARRAYS}
    return Perplexity(**fact, **fields)


def document_digest(tokens: np.ndarray) -> str:
    """SHA-256 (hex) of a document's token ids."""
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()
