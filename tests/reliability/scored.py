"""Checkpoints, tokenizers and corpora that are mutated, then scored by the perplexity command.

A figure that comes out is held to the float64 of the oracle on the same mutated files.
"""

import dataclasses
import gzip
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from configs.perplexity import Config
from experiments import perplexity as command
from resonance_jax import interop, model, rope
from tests.data.small_tokenizers import byte_level
from tests.mutations import mutated_bytes, mutated_json
from tests.reliability import oracle
from tests.reliability.judge import Verdict, judged

LENGTH = 32
TEXTS = [
    "".join(chr(97 + (i * k + i // 3) % 26) + (" " if i % 5 == k else "") for i in range(90))
    for k in (1, 2, 3)
]


def base(folder: Path) -> Path:
    """A folder with small/, a checkpoint with its tokenizer, and the corpora; returns the folder."""
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 24}
    lm = model.Decoder(model.PRESETS["tiny"].replace(vocab_size=259, **shape), jax.random.key(0))
    # As drawn it knows nothing of positions: its figures would hide most mistakes.
    lm = lm.replace_params(jax.tree.map(lambda w: 5 * w, lm.params))
    interop.save_hf(lm, folder / "small", rope=rope.RopeSpec(head_dim=8, train_length=LENGTH), length=LENGTH)
    byte_level(folder / "small", ("<s>",))
    stated = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": LENGTH}
    (folder / "small" / "tokenizer_config.json").write_text(json.dumps(stated))
    generation = {"bos_token_id": 256, "eos_token_id": 257}
    (folder / "small" / "generation_config.json").write_text(json.dumps(generation))
    (folder / "text.txt").write_text(TEXTS[0])
    lines = [json.dumps({"text": text, "n": i}) for i, text in enumerate(TEXTS)]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "array.json").write_text("[" + ",".join(lines) + "]")
    (folder / "packed.txt.gz").write_bytes(gzip.compress(TEXTS[1].encode(), mtime=0))
    _parquet(folder / "table.parquet")
    return folder


def _parquet(file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), file, compression="none")


def config_of(folder: Path, run_dir: Path, **changes: object) -> Config:
    """The perplexity of small/ under its own encoding at one length."""
    given = {"corpora": (str(folder / "lines.jsonl"),), "checkpoints": (f"small={folder / 'small'}",)}
    common = {"encodings": ("own",), "lengths": (LENGTH,), "documents": 9, "run_dir": str(run_dir)}
    return dataclasses.replace(Config(checkpoints=()), **{**given, **common, **changes})


def figure(run_dir: Path) -> float:
    """The perplexity that a run wrote down."""
    result = json.loads((run_dir / "perplexity.json").read_text())
    (part,) = result["corpora"].values()
    (row,) = part["rows"]
    return row["perplexity"]


def scored(folder: Path, config: Config, names: list[str], truth: Callable[[type], float]) -> Verdict:
    """Run the command and hold its figure to the oracle's."""
    verdict = judged(command.run, config, names, Path(config.run_dir))
    if verdict.outcome in ("read", "partly"):
        verdict.faults += [("wrong number", fault) for fault in against(figure(Path(config.run_dir)), truth)]
    return verdict


def against(found: float, truth: Callable[[type], float]) -> list[str]:
    """What float64 says against a figure. truth: computes it in a NumPy type.

    Ours may differ by a few roundings in float32, and by as much again as float32 costs the oracle itself.
    """
    try:
        right, rounded = truth(np.float64), truth(np.float32)
    except Exception as error:  # whatever the oracle's plain reading trips over
        return [f"{found} where the files give nothing ({type(error).__name__}: {error})"]
    if found == right:  # infinite, both
        return []
    if not math.isfinite(found):
        return [f"{found}, float64 says {right}"]
    allowed = 2e-5 * abs(right) + (4 * abs(rounded - right) if math.isfinite(rounded) else 0)
    return [] if abs(found - right) <= allowed else [f"{found}, float64 says {right} (float32 {rounded})"]


def byte_ids(texts: list[str]) -> list[list[int]]:
    """What a byte-level tokenizer without merges makes of texts: the alphabet's places in byte order."""
    from tokenizers import pre_tokenizers

    order = {token: id for id, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [[order[c] for part, _ in level.pre_tokenize_str(text) for c in part] for text in texts]


def long_enough(documents: list[list[int]], bos: int | None) -> list[list[int]]:
    """The documents that fill a window."""
    return [ids for ids in documents if len(ids) >= LENGTH - (bos is not None)]


def a_config(rng: random.Random, folder: Path) -> Verdict:
    """config.json: a value of another kind, a key gone, renamed or twice, damaged bytes."""
    file = folder / "small" / "config.json"
    file.write_text(mutated_json(file.read_text(), rng))
    truth = lambda kind: oracle.perplexity(folder / "small", byte_ids(TEXTS), 256, LENGTH, kind)
    return scored(folder, config_of(folder, folder / "run"), ["config.json", "small"], truth)


def safetensors(rng: random.Random, folder: Path) -> Verdict:
    """model.safetensors: its header as JSON, any of its bytes, numbers that are none or huge."""
    file = folder / "small" / "model.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    way = rng.random()
    if way < 0.4:
        header = mutated_json(content[8:start].decode(), rng).encode("utf-8", "replace")
        content = len(header).to_bytes(8, "little") + header + content[start:]
    elif way < 0.7:
        at = start + 4 * rng.randrange((len(content) - start) // 4)
        value = rng.choice([np.nan, np.inf, -np.inf, 1e38, 1e20, 1e-40, -1.0])
        content = content[:at] + np.float32(value).tobytes() + content[at + 4 :]
    else:
        content = mutated_bytes(content, rng)
    file.write_bytes(content)
    truth = lambda kind: oracle.perplexity(folder / "small", byte_ids(TEXTS), 256, LENGTH, kind)
    return scored(folder, config_of(folder, folder / "run"), ["model.safetensors", "small"], truth)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def a_tokenizer(rng: random.Random, folder: Path) -> Verdict:
    """tokenizer.json and the files beside it."""
    file = folder / "small" / rng.choice(TOKENIZER_FILES)
    file.write_text(mutated_json(file.read_text(), rng), encoding="utf-8")

    def truth(kind: type) -> float:
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(folder / "small" / "tokenizer.json"))
        first = read.encode("a").ids[:1]
        bos = None if first == read.encode("a", add_special_tokens=False).ids[:1] else first[0]
        documents = [read.encode(text, add_special_tokens=False).ids for text in TEXTS]
        return oracle.perplexity(folder / "small", long_enough(documents, bos), bos, LENGTH, kind)

    return scored(folder, config_of(folder, folder / "run"), [file.name, "small", "tokenizer"], truth)


def a_corpus(rng: random.Random, folder: Path) -> Verdict:
    """A file of text, of records, packed, of columns; or none but a pipe or a folder of its name."""
    name = rng.choice(
        ["text.txt", "lines.jsonl", "lines.jsonl", "array.json", "packed.txt.gz", "table.parquet"]
    )
    file, way = folder / name, rng.random()
    if way < 0.07:
        file.unlink()
        rng.choice([os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)])(file)
    elif way < 0.4 and name.startswith(("lines", "array")):
        whole = file.read_text()
        first = whole.index("{")
        end = whole.index("}") + 1
        file.write_text(whole[:first] + mutated_json(whole[first:end], rng) + whole[end:], encoding="utf-8")
    else:
        file.write_bytes(mutated_bytes(file.read_bytes(), rng))

    def truth(kind: type) -> float:
        documents = long_enough(byte_ids(_texts(file)), 256)
        return oracle.perplexity(folder / "small", documents, 256, LENGTH, kind)

    return scored(folder, config_of(folder, folder / "run", corpora=(str(file),)), [name], truth)


def _texts(file: Path) -> list[str]:
    """The texts of a corpus, read the plain way."""
    if file.suffix == ".parquet":
        import pyarrow.parquet

        return [text for text in pyarrow.parquet.read_table(file)["text"].to_pylist() if text]
    content = file.read_bytes()
    text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")
    if file.suffix == ".json":
        records = json.loads(text)
    elif file.suffix == ".jsonl":
        records = [json.loads(line) for line in text.replace("\r", "\n").split("\n") if line.strip()]
    else:
        return [text]
    return [record["text"] for record in records if isinstance(record.get("text"), str) and record["text"]]


def changed_under_a_kept_result(rng: random.Random, folder: Path) -> Verdict:
    """A finished run whose weights, text or stated encoding are then others: its figure must not be shown."""
    run_dir = folder / "run"
    shutil.copytree(folder / "finished", run_dir)
    file, old, new = rng.choice(
        [
            ("lines.jsonl", TEXTS[rng.randrange(3)][:20], "x" * rng.randrange(5, 30)),
            ("small/config.json", "10000.0", str(float(rng.randrange(100, 9000)))),
            ("small/config.json", '"rms_norm_eps": 1e-05', f'"rms_norm_eps": {rng.random()}'),
            ("small/model.safetensors", None, None),
        ]
    )
    content = (folder / file).read_bytes()
    if old is None:
        at = len(content) - 4 * rng.randrange(1, 100)
        content = content[:at] + np.float32(rng.uniform(20, 90)).tobytes() + content[at + 4 :]
    else:
        assert old.encode() in content, (file, old)
        content = content.replace(old.encode(), new.encode())
    (folder / file).write_bytes(content)
    kept = figure(run_dir)
    documents = lambda: long_enough(byte_ids(_texts(folder / "lines.jsonl")), 256)
    truth = lambda kind: oracle.perplexity(folder / "small", documents(), 256, LENGTH, kind)
    assert against(kept, truth), f"the change of {file} changes nothing"
    if rng.random() < 0.5:
        (run_dir / "perplexity.json").unlink()  # then the kept documents are what could be mixed in
    return scored(folder, config_of(folder, run_dir), ["run"], truth)
