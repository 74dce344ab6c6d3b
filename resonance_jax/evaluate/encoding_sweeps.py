"""Several decoders, each under one encoding, swept over the same pieces of text at the same lengths."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from resonance_jax import rope
from resonance_jax.digest import folder_name
from resonance_jax.evaluate.documents import Ids
from resonance_jax.evaluate.nll_store import Store
from resonance_jax.evaluate.perplexity_result import Perplexity
from resonance_jax.evaluate.perplexity_sweep import Progress, sweep
from resonance_jax.model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Subject:
    """A decoder under an encoding, which a sweep evaluates.

    Attributes:
        label: its name for people, which no other subject has.
        spec: the encoding.
        lm: the decoder.
    """

    label: str
    spec: rope.Specs
    lm: Decoder


def sweep_each(
    subjects: Sequence[Subject],
    pieces: Sequence[Ids],
    owners: Sequence[int],
    lengths: Sequence[int],
    bos_id: int | None,
    folder: str | Path,
    progress: Progress,
) -> dict[str, dict[int, Perplexity]]:
    """Each subject's perplexity at every length, by label, under the protocol `prefix`.

    Args:
        subjects: what is evaluated.
        pieces: token ids; with BOS they fill the longest window.
        owners: the document of each piece.
        lengths: positions, BOS included.
        bos_id: put in front of every piece.
        folder: keeps finished pieces, a folder per subject, so that a stopped evaluation goes on.
        progress: called with the subjects done, all subjects, and encoding=label of the next.
    """
    results: dict[str, dict[int, Perplexity]] = {}
    for done, subject in enumerate(subjects):
        progress(done, len(subjects), encoding=subject.label)
        results[subject.label] = sweep(
            subject.lm,
            pieces,
            subject.spec,
            lengths,
            protocol="prefix",
            bos_id=bos_id,
            groups=owners,
            store=Store(Path(folder) / folder_name(subject.label)),
        )
    progress(len(subjects), len(subjects))
    return results
