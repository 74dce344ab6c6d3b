"""What makes a run the one that it is, as JSON kept with each checkpoint: it goes on only where that agrees.

Where and how fast a run is computed (mesh, micro-batches, what is recomputed, the attention kernel, the time
between checkpoints) is left out: that may change when the run goes on.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, TypeAlias, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from resonance_jax import rope
from resonance_jax.digest import flat
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.lowering import default_precision
from resonance_jax.parallel.mesh import sharding
from resonance_jax.train.batches import Reader
from resonance_jax.train.config import TrainConfig

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
Encodings: TypeAlias = list[dict[str, Any]]
"""Records of rope.to_record."""


class Identity(TypedDict):
    """What made a checkpoint.

    Attributes:
        encodings: the table of each run, as rope.to_record writes it.
        settings: what else has to agree.
        versions: of jax and optax; not compared.
    """

    encodings: Encodings
    settings: dict[str, JSON]
    versions: dict[str, str]


ELSEWHERE = ("remat", "kernel")
"""Fields of DecoderConfig that may change when a run goes on: they say only how it computes."""


def identity(
    encodings: Encodings,
    config: DecoderConfig,
    training: TrainConfig,
    settings: dict[str, JSON],
    meta: dict[str, JSON] | None,
) -> Identity:
    """The identity of a run.

    Args:
        encodings: records of its tables.
        config, training: the decoder, and how it is trained.
        settings: what else this kind of training depends on, such as its data and seeds.
        meta: what the caller of the training wants to agree.
    """
    decoder = {name: value for name, value in config.to_dict().items() if name not in ELSEWHERE}
    own = {
        "optimizer": training.optimizer.identity(training.steps),
        "decoder": decoder,
        "precision of products": default_precision(),
        **settings,
        "meta": meta or {},
    }
    versions = {name: version(name) for name in ("jax", "jaxlib", "optax")}
    made = {"encodings": encodings, "settings": own, "versions": versions}
    return json.loads(json.dumps(made))  # tuples become lists, as they will be when they are read


def data_digest(read: Reader, rows: int, mesh: Mesh | None) -> str:
    """SHA-256 over the batch of step 0; each process reads only the rows of its own devices.

    Args:
        read: reads rows of a batch.
        rows: B of the whole batch.
        mesh: what cuts the rows; None: one device.
    """
    own = {(0, rows)}
    if mesh is not None and jax.process_count() > 1:
        where = sharding(mesh, ("batch",), (rows,)).addressable_devices_indices_map((rows,))
        own = {index[0].indices(rows)[:2] for index in where.values() if index}
    sums = np.zeros((rows, hashlib.sha256().digest_size), np.uint8)
    for start, stop in own:
        batch = read(0, start, stop)
        for row in range(start, stop):
            one = {name: np.asarray(x)[row - start] for name, x in batch.items()}
            sums[row] = np.frombuffer(bytes.fromhex(arrays_digest(one)), np.uint8)
    if jax.process_count() > 1:
        sums = np.max(multihost_utils.process_allgather(sums), axis=0)
    return hashlib.sha256(sums.tobytes()).hexdigest()


def arrays_digest(arrays: PyTree[Int[Array | np.ndarray, "..."]]) -> str:
    """SHA-256 over the names, shapes and values of integer arrays, whatever their width in bits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        digest.update(f"{jax.tree_util.keystr(path)} {list(np.shape(leaf))}\n".encode())
        digest.update(np.ascontiguousarray(leaf, np.int64).data)
    return digest.hexdigest()


class AnotherRun(ValueError):
    """A checkpoint was made by something else than what is asked for."""


def refuse_another(saved: Mapping[str, Any], asked: Identity) -> None:
    """Raise AnotherRun, naming what differs, unless a checkpoint was made by what is asked for now.

    Tables of encodings agree as rope.same says. A checkpoint of an earlier version states no settings, and
    only its encodings are compared.
    """
    _refuse_other_encodings(saved.get("encodings", []), asked["encodings"])
    there, here = dict(flat(saved.get("settings", asked["settings"]))), dict(flat(asked["settings"]))
    differing = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if differing:
        told = ", ".join(
            f"{name}: {_short(there.get(name))} there, {_short(here.get(name))} here" for name in differing
        )
        raise AnotherRun(
            f"the checkpoint belongs to another run ({told}); use another run folder, or the settings that "
            "it was begun with."
        )


def _refuse_other_encodings(saved: Encodings, asked: Encodings) -> None:
    matches = len(saved) == len(asked) and all(
        rope.same(rope.from_record(a), rope.from_record(b)) for a, b in zip(saved, asked, strict=True)
    )
    if not matches:
        names = lambda records: ", ".join(r["fingerprint"] for r in records) or "none"
        raise AnotherRun(
            f"the checkpoint was trained under the encodings {names(saved)}, but {names(asked)} are asked "
            "for; use another run folder, or the encodings it was trained with."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:30] + "…" + text[-6:]
