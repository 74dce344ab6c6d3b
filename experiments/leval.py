"""L-Eval's closed-ended tasks for any checkpoint, beside the paper's Table 2.

    python -m experiments.leval any --checkpoint PATH --data FOLDER --context 16k
    python -m experiments.leval 7b-short-resonance --checkpoint PATH --data FOLDER
    python -m experiments.leval score FOLDER/*.pred.jsonl

Stop it at any time: the same command goes on with the next question. It exits with 3 when documents,
questions or predictions had to be left out, and says which. configs/leval.py has every setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.leval import PRESETS, Config, Score
from resonance_jax.command import (
    decoding_mesh,
    device_line,
    keep_result,
    kept_result,
    main,
    open_run_of_first,
    together,
    use_precision,
    with_chosen_dtype,
)
from resonance_jax.command.bounds import check_at_least, check_some
from resonance_jax.files import write_json, write_text

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from resonance_jax.data.leval import Question
    from resonance_jax.digest import Identity
    from resonance_jax.evaluate.leval_asking import Answer, Asker, Prompt
    from resonance_jax.report.leval import TaskResult

SHOWN = 5
"""How many of the questions that were left out are printed."""


def run(config: Config | Score) -> int:
    """Ask what is missing, then print the table; 3 where something had to be left out."""
    if isinstance(config, Score):
        return score(config)
    _check(config)
    with together():
        return ask(config)


def ask(config: Config) -> int:
    """Ask and print, with the other processes of the mesh if there are any."""
    from resonance_jax.parallel.distributed import of_first

    config = with_chosen_dtype(config)
    use_precision(config.precision, config.dtype)
    mesh, study = decoding_mesh(config.tensor), Study(config)
    folder = open_run_of_first("leval", config)
    identity = study.identity(config.tasks)
    path = folder / "leval.json"
    result = of_first(lambda: kept_result(path, identity)) or study.result(folder, identity, mesh)
    show(result)
    print(f"{folder}/table.csv  {folder}/predictions/")
    return 3 if result["left_out"] else 0


def _check(config: Config) -> None:
    """Raise ValueError before anything is read or made."""
    from resonance_jax.data import leval
    from resonance_jax.evaluate.leval_asking import DYNAMIC_SCALES
    from resonance_jax.report.leval import PAPER

    if not config.checkpoint:
        raise ValueError("--checkpoint must be a Hugging Face directory, a GGUF file or a packaged name.")
    if not config.data or not Path(config.data).is_dir():
        raise ValueError(f"--data must be a directory, got {config.data!r}.")
    check_some(config, "tasks")
    for task in config.tasks:
        if task not in leval.TASKS:
            raise ValueError(f"unknown task {task!r}; expected one of {', '.join(leval.TASKS)}.")
    if len(set(config.tasks)) < len(config.tasks):
        raise ValueError(f"--tasks must be each once, got {' '.join(config.tasks)}.")
    if config.paper not in (None, *PAPER):
        raise ValueError(f"Table 2 has no row {config.paper!r}; expected one of {', '.join(PAPER)}.")
    if config.dynamic_scale not in DYNAMIC_SCALES:
        raise ValueError(f"--dynamic-scale must be ceil or exact, got {config.dynamic_scale!r}.")
    if not all(config.stop):
        raise ValueError("--stop must be strings of at least one character.")
    leval.document_budget(config.context)
    check_at_least(config, 1, "scale", "train_length", "length", "limit", "batch_size")
    check_at_least(config, 1, "max_new_tokens", "gsm_new_tokens")


def label(config: Config) -> str:
    """The name of our row, and of the predictions' field."""
    return config.name or f"{Path(config.checkpoint).resolve().name}-{config.context}"


class Study:
    """The questions of a config as a checkpoint reads them, and the encoding that it is asked under.

    Attributes:
        prompts: by task.
        left_out: the documents and questions that are not asked, and why.
    """

    def __init__(self, config: Config):
        from resonance_jax import interop, rope
        from resonance_jax.command.checkpoints import tokenizer_of

        self.config = config
        self.checkpoint = interop.open_checkpoint(config.checkpoint)
        self.tokenizer = tokenizer_of(self.checkpoint, config.tokenizer, config.bos)
        asked = {"scale": config.scale, "train_length": config.train_length}
        encoding_for = lambda length: rope.restate_for_length(
            self.checkpoint.rope, config.encoding, length, **asked
        )
        encoding_for(1)  # refuses a name or a scale before hours of reading
        self.left_out: list[dict[str, str]] = []
        found = {task: self._prompts(task) for task in config.tasks}
        needed = [p.longest + self.new_tokens(task) for task, part in found.items() for p in part]
        self.length = config.length or max(needed, default=1)
        self.prompts = {task: self._fitting(part, self.new_tokens(task)) for task, part in found.items()}
        if not any(self.prompts.values()):
            why = self.left_out[0]["why"] if self.left_out else "no questions."
            raise ValueError(f"no question could be asked: {why}")
        self.spec = encoding_for(self.length)

    def _prompts(self, task: str) -> list[Prompt]:
        """The prompts of one task."""
        from resonance_jax.data import leval
        from resonance_jax.evaluate import leval_asking

        questions, problems = leval.read(self.config.data, task)
        self.left_out += [{"task": task, "why": problem} for problem in problems]
        budget, rows = leval.document_budget(self.config.context), self.checkpoint.config.vocab_size
        chosen = questions[: self.config.limit]
        asked = (chosen, self.tokenizer, budget, rows, self._leave_out)
        return list(leval_asking.prompts(*asked, chat=self.config.chat == "own"))

    def new_tokens(self, task: str) -> int:
        """The most tokens of an answer to a question of a task."""
        own = self.config.gsm_new_tokens if task == "gsm100" else None
        return own or self.config.max_new_tokens

    def _fitting(self, prompts: Sequence[Prompt], new: int) -> list[Prompt]:
        """Those that fit the length with their new tokens."""
        kept = []
        for prompt in prompts:
            if prompt.longest + new <= self.length:
                kept.append(prompt)
                continue
            needs = f"its prompt and {new} new tokens make {prompt.longest + new}"
            self._leave_out(prompt.question, f"{needs}, more than the declared length {self.length}.")
        return kept

    def _leave_out(self, question: Question, why: str) -> None:
        sentence = f"Question {question.id} was left out: {why}"
        self.left_out.append({"task": question.task, "why": sentence})

    def identity(self, tasks: Sequence[str]) -> Identity:
        """What the answers to these tasks depend on."""
        import jax

        from resonance_jax import digest, rope
        from resonance_jax.command.checkpoints import checkpoint_identity
        from resonance_jax.model.lowering import default_precision

        c = self.config
        files = {task: digest.of_file(Path(c.data) / f"{task}.jsonl") for task in tasks}
        return {
            "checkpoint": checkpoint_identity(self.checkpoint, self.tokenizer),
            "encoding": self.spec.to_dict(),
            "table": rope.fingerprint(rope.frequencies(self.spec, length=self.length)),
            "length": self.length,
            "dynamic scale": c.dynamic_scale if self.spec.dynamic else None,
            "L-Eval's data": files,
            "context": c.context,
            "limit": c.limit,
            "new tokens": [self.new_tokens(task) for task in tasks],
            "stop": list(c.stop),
            "chat": c.chat if c.chat == "leval" else self.tokenizer.chat_template,
            "name": label(c),
            "dtype": c.dtype,
            "platform": jax.default_backend(),
            "precision": default_precision(),
        }

    def result(self, folder: Path, identity: Identity, mesh: Mesh | None) -> dict:
        """Ask every question that has no answer of these inputs yet, and write down the scores."""
        from resonance_jax import interop, rope
        from resonance_jax.command.checkpoints import scale_note
        from resonance_jax.evaluate.leval_asking import Asker
        from resonance_jax.parallel.distributed import of_first

        c, spec = self.config, self.spec
        longest = max(prompt.longest for part in self.prompts.values() for prompt in part)
        devices = 1 if mesh is None else mesh.size
        line = device_line(c.dtype, longest, self.checkpoint.config.head_dim, devices=devices)
        print(f"{line}\nencoding: {spec.title}")
        source = "as asked" if c.length else "as needed"
        print(
            f"length: {self.length:,} positions, {source} (the longest prompt has {longest:,} tokens, "
            f"at most {max(map(self.new_tokens, c.tasks)):,} new ones follow)"
        )
        if note := scale_note(spec, self.checkpoint.rope, c.scale, self.length):
            print(f"{spec.title}: {note}")
        table = rope.frequencies(spec, length=self.length)
        of_first(lambda: write_json(folder / "encodings.json", [rope.to_record(table, spec)]))
        asker = Asker(
            interop.load_hf(self.checkpoint.path, dtype=c.dtype, mesh=mesh),
            self.tokenizer,
            spec,
            self.length,
            c.dynamic_scale,
            c.max_new_tokens,
            c.stop,
            c.batch_size,
        )
        results = [self._task(task, asker, folder) for task in c.tasks if self.prompts[task]]
        return of_first(lambda: write_results(folder, self, results, identity))

    def _shown(self, question: Question) -> str:
        """A question's prompt for people: its document is replaced by its size."""
        from resonance_jax.data import leval

        size = f"<document of {len(question.document):,} characters>"
        asked = question.task, size, question.instruction
        if self.config.chat == "own":
            return self.tokenizer.apply_chat_template(leval.messages(*asked))
        return leval.prompt(*asked)

    def _task(self, task: str, asker: Asker, folder: Path) -> TaskResult:
        """Ask what is missing of one task, and score it."""
        from resonance_jax import report
        from resonance_jax.evaluate.journal import Journal
        from resonance_jax.report.leval import task_result

        name, prompts = label(self.config), self.prompts[task]
        journal = Journal(folder / "predictions" / f"{task}.pred.jsonl", self.identity([task]))
        answered = {record["id"] for record in journal.records}
        todo = [prompt for prompt in prompts if prompt.question.id not in answered]
        if todo:
            print(f"\n{task}, first prompt:\n{self._shown(todo[0].question)}")
        with report.Progress(task) as progress:
            done = len(answered)
            asker = dataclasses.replace(asker, max_new_tokens=self.new_tokens(task))
            for batch in asker.answers(todo):
                journal.extend(line(answer, name) for answer in batch)
                done += len(batch)
                progress(done, len(prompts))
        by_id = {record["id"]: record for record in journal.records}
        records = [by_id[prompt.question.id] for prompt in prompts]
        said, answers = ([str(record[field]) for record in records] for field in (f"{name}_pred", "gt"))
        return task_result(task, said, answers, records)


def line(answer: Answer, name: str) -> dict[str, str | int]:
    """A line of L-Eval's predictions, with fields of our own that say how the answer came about."""
    from resonance_jax.data import leval

    return {
        **leval.prediction_record(answer.question, answer.prediction, name),
        "id": answer.question.id,
        "ended": answer.ended,
        "prompt_tokens": answer.prompt_tokens,
        "document_tokens": answer.cut.tokens,
        "document_tokens_before": answer.cut.tokens_before,
    }


def write_results(folder: Path, study: Study, results: Sequence[TaskResult], identity: Identity) -> dict:
    """table.csv, and last leval.json, whose presence says the run is finished."""
    from resonance_jax import report
    from resonance_jax.report.leval import table

    config = study.config
    rows = table(label(config), results, config.paper)
    write_text(folder / "table.csv", report.csv_text(rows))
    result = {
        "table": rows,
        "results": results,
        "left_out": study.left_out,
        "checkpoint": config.checkpoint,
        "data": config.data,
        "encoding": study.spec.to_dict(),
        "title": study.spec.title,
        "length": study.length,
        "machine": report.machine(),
    }
    keep_result(folder / "leval.json", identity, result)
    return result


def show(result: dict) -> None:
    """Print the table and what was left out."""
    from resonance_jax.report.tables import print_table

    print(
        f"\n{result['checkpoint']} under {result['title']}, {result['length']:,} positions, asked from "
        f"{result['data']}"
    )
    print_table(result["table"], "L-Eval, closed-ended tasks (%)")
    show_left_out([f"{item['task']}: {item['why']}" for item in result["left_out"]], " in leval.json")


def show_left_out(sentences: Sequence[str], where: str = "") -> None:
    """Print what was left out, the first few of it. where: all of it can be read, for people."""
    for sentence in sentences[:SHOWN]:
        print(f"left out, {sentence}")
    if len(sentences) > SHOWN:
        print(f"… and {len(sentences) - SHOWN} more{where}.")


def score(config: Score) -> int:
    """Score prediction files, a table per model; 3 where lines had to be left out."""
    from resonance_jax.data.leval_predictions import read_predictions
    from resonance_jax.evaluate.leval_scoring import without_slow_space
    from resonance_jax.report.leval import table, task_result
    from resonance_jax.report.tables import print_table

    check_some(config, "files")
    models: dict[str, dict[str, TaskResult]] = {}
    left_out: list[str] = []
    for file in config.files:
        read = read_predictions(Path(file))
        tasks = models.setdefault(read.model, {})
        if read.task in tasks:
            raise ValueError(f"{file} is a second file of {read.model}'s predictions of {read.task}.")
        said = [without_slow_space(p) for p in read.said] if config.leading_space == "drop" else read.said
        tasks[read.task] = task_result(read.task, said, read.answers)
        left_out += [f"{read.task}: {sentence}" for sentence in read.left_out]
    for model, results in models.items():
        print_table(table(model, list(results.values())), f"L-Eval, closed-ended tasks (%): {model}")
    show_left_out(left_out)
    return 3 if left_out else 0


if __name__ == "__main__":
    main(run, PRESETS, __doc__)
