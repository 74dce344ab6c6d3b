"""What we keep and read again, damaged: each is found out, and made anew or refused; never believed."""

import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments import perplexity as command
from resonance_jax import data
from resonance_jax.evaluate.journal import Journal
from resonance_jax.train.checkpoint import Checkpoints
from tests.mutations import mutated_bytes, mutated_json
from tests.reliability.judge import Verdict, judged
from tests.reliability.scored import TEXTS, config_of, figure


def damage(rng: random.Random, files: list[Path]) -> Path:
    """Damage, remove, swap or rename one of some files; returns it."""
    file, way = rng.choice(files), rng.random()
    if way < 0.5:
        file.write_bytes(mutated_bytes(file.read_bytes(), rng))
    elif way < 0.7 and file.suffix == ".json":
        file.write_text(mutated_json(file.read_text(), rng), encoding="utf-8")
    elif way < 0.8:
        file.unlink()
    elif way < 0.9:
        content, other = file.read_bytes(), rng.choice(files)
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        file.rename(file.with_name(f"{file.stem}_{file.suffix}"))
    return file


def a_token_cache(rng: random.Random, folder: Path) -> Verdict:
    """The two files of a token cache."""
    corpus = lambda: data.corpus(folder / "lines.jsonl")
    cache = folder / "tokens"
    data.token_file(corpus(), data.tokenizer("bytes"), cache)
    damage(rng, sorted(cache.iterdir()))
    found = []

    def read(_: None) -> None:
        found.append(data.token_file(corpus(), data.tokenizer("bytes"), cache))

    verdict = judged(read, None, ["token file"], None)
    right = [id for text in TEXTS for id in (256, *text.encode(), 257)]
    if found and list(found[0].tokens) != right:
        verdict.faults.append(("wrong number", "other tokens than the corpus's"))
    return verdict


def a_run_folder(rng: random.Random, folder: Path) -> Verdict:
    """Any file of a finished perplexity run, whose command is given again."""
    run_dir = folder / "run"
    shutil.copytree(folder / "finished", run_dir)
    right = figure(run_dir)
    file = damage(
        rng, sorted(file for file in run_dir.rglob("*") if file.is_file() and file.suffix != ".png")
    )
    if rng.random() < 0.5:
        (run_dir / "perplexity.json").unlink(missing_ok=True)
    verdict = judged(command.run, config_of(folder, run_dir), [file.name, "run"], run_dir)
    if verdict.outcome == "read" and figure(run_dir) != right:
        verdict.faults.append(
            ("wrong number", f"{figure(run_dir)} after {file.name} was damaged, not {right}")
        )
    return verdict


def a_kept_document(rng: random.Random, folder: Path) -> Verdict:
    """The NLLs of a finished document, of which nothing but the store remains."""
    run_dir = folder / "run"
    shutil.copytree(folder / "finished", run_dir)
    right = figure(run_dir)
    damage(rng, sorted((run_dir / "nll").rglob("*.npz")))
    (run_dir / "perplexity.json").unlink()
    verdict = judged(command.run, config_of(folder, run_dir), ["run"], run_dir)
    if verdict.outcome != "read" or figure(run_dir) != right:
        verdict.faults.append(("wrong number", f"{figure(run_dir)} instead of {right}: {verdict.said}"))
    return verdict


def a_journal(rng: random.Random, folder: Path) -> Verdict:
    """A journal of answers: what is read of it was written to it, under the same identity."""
    file, identity = folder / "answers.jsonl", {"weights": "a", "length": 3}
    written = [{"id": i, "answer": f"answer {i}", "score": i / 3} for i in range(4)]
    journal = Journal(file, identity)
    journal.extend(written)
    Journal(folder / "other.jsonl", {"weights": "b"}).extend([{"id": 9, "answer": "of others"}])
    damage(rng, [file, folder / "other.jsonl"])
    read: list[Journal] = []
    verdict = judged(lambda _: read.append(Journal(file, identity)), None, ["answers"], None)
    plain = (
        [{key: r[key] for key in ("id", "answer", "score") if key in r} for r in read[0].records]
        if read
        else []
    )
    for number, record in enumerate(plain):
        if record not in written or record in plain[:number]:
            verdict.faults.append(("wrong number", f"the journal gave {record}"))
    return verdict


MADE_BY = {"encodings": [], "settings": {"seed": 3}}


def state(step: int) -> dict[str, jax.Array]:
    """A training's state after some steps."""
    return {"w": jnp.arange(12.0).reshape(3, 4) + step}


def saved(folder: Path) -> None:
    """Checkpoints of the steps 3 and 4."""
    checkpoints = Checkpoints(folder, MADE_BY)
    for step in (3, 4):
        checkpoints.save(step, state(step), "log")
    checkpoints.close()


def a_training_checkpoint(rng: random.Random, folder: Path) -> Verdict:
    """Any file of the newest checkpoint of a training, or its folder's name."""
    place = folder / "checkpoints"
    if rng.random() < 0.15:
        (place / "4").rename(place / rng.choice(["7", "-4", "4 copy", "1000000000000"]))
    else:
        damage(rng, sorted(file for file in (place / "4").rglob("*") if file.is_file()))
    found: list[tuple[int, float] | None] = []

    def resume(_: None) -> None:
        checkpoints = Checkpoints(place, MADE_BY)
        try:
            resumed = checkpoints.resume(jax.eval_shape(lambda: state(0)))
            found.append(None if resumed is None else (resumed[0], float(resumed[1]["w"][0, 0])))
        finally:
            checkpoints.close()

    verdict = judged(resume, None, ["checkpoints"], None)
    if found and found[0] not in ((3, 3.0), (4, 4.0)):
        verdict.faults.append(("wrong number", f"resumed at {found[0]}"))
    return verdict
