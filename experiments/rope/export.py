"""Export: a Hugging Face directory under another encoding, held to unmodified transformers."""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.rope import Export
from resonance_jax import digest
from resonance_jax.command import default_folder, keep_result, kept_result, open_run
from resonance_jax.files import read_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int32

    from resonance_jax.data import Tokenizer
    from resonance_jax.digest import Identity
    from resonance_jax.interop import Checkpoint
    from resonance_jax.rope import RopeSpec


def export(config: Export) -> int:
    """Write the directory and check it in transformers; 1 where the check fails."""
    from resonance_jax import interop, report

    source = interop.open_checkpoint(config.checkpoint)
    spec, train_length, length = export_spec(config, source)
    tokenizer = check_tokenizer(config, source) if config.check else None
    begun = Path(config.run_dir or default_folder("rope-export", config)).exists()
    if not begun and config.out is not None and Path(config.out).exists() and any(Path(config.out).iterdir()):
        raise ValueError(f"{config.out} exists already; name a new or an empty directory with --out.")
    folder = open_run("rope-export", config)
    out = Path(config.out or folder / "hf")
    made_by = {
        "weights": source.weights_digest(),
        "stated": dict(source.stated),
        "encoding": spec.to_dict(),
        "length": length,
        "dtype": config.dtype,
        "out": str(out.resolve()),
    }
    content = write_export(config, source, out, spec, length, folder, made_by)
    rope_type = read_json(out / "config.json")["rope_parameters"]["rope_type"]
    print(f"{out}: {spec.title}, rope_type {rope_type}, for {length:,} positions")
    if not config.check:
        return 0
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not checked: {' and '.join(missing)} is not installed (pip install -e '.[parity]').")
        return 0
    tokens, text = check_tokens(config, tokenizer, source.config.vocab_size, length)
    made_by = {
        **made_by,
        "content": content,
        "tokens": digest.of_json(tokens.tolist()),
        "lengths": [train_length, length, config.new_tokens],
    }
    result = kept_result(folder / "export.json", made_by)
    if result is None:
        from resonance_jax.interop.export_check import check_export

        found = check_export(out, tokens, (train_length, length), train_length, config.new_tokens)
        result = {"encoding": spec.title, "text": text, **found, "machine": report.machine()}
        write_text(folder / "export.csv", report.csv_text(found["rows"]))
        keep_result(folder / "export.json", made_by, result)
    return show_check(result, config.tolerance)


def export_spec(config: Export, source: "Checkpoint") -> "tuple[RopeSpec, int, int]":
    """(RopeSpec, L, L') of the exported encoding."""
    from resonance_jax import rope
    from resonance_jax.rope.names import parse_name

    own = source.rope
    train_length = own.train_length if config.train_length is None else config.train_length
    if train_length is None:
        raise ValueError(f"{source.path} states no training length; give it with --train-length.")
    method = own.method if config.encoding == "own" else parse_name(config.encoding)[0]
    scale = config.scale
    if scale is None:
        scale = own.scale if method == own.method and rope.METHODS[method].takes_scale else 8.0
    length = int(scale * train_length) if config.length is None else config.length
    if length < train_length:
        raise ValueError(f"--length {length} is less than the training length {train_length}.")
    spec = rope.restate(own, config.encoding, scale=scale, train_length=train_length)
    rope.frequencies(spec, length=length)
    return spec, train_length, length


def write_export(
    config: Export,
    source: "Checkpoint",
    out: Path,
    spec: "RopeSpec",
    length: int,
    folder: Path,
    made_by: "Identity",
) -> str:
    """The directory, with all that goes with the weights; a second call finds it finished.

    Returns the SHA-256 of its files. Raises ValueError where something else lies there, or what was written
    has been changed.
    """
    from resonance_jax import interop, rope

    begun, finished = folder / "encoding.json", folder / "written.json"
    there = out.exists() and any(out.iterdir())
    kept = kept_result(finished, made_by) if there else None
    if kept is not None:
        if kept["content"] != digest.of_folder(out):
            raise ValueError(f"{out} is not what this run wrote; remove it to have it made anew.")
        return kept["content"]
    # Killed between the last file and the record, the directory is whole: it appears complete or not at all.
    if there and (finished.exists() or kept_result(begun, made_by) is None):
        raise ValueError(f"{out} exists already; name a new or an empty directory with --out.")
    if not there:
        keep_result(begun, made_by, rope.to_record(rope.frequencies(spec, length=length), spec))
        stored = source.stated.get("dtype") or source.stated.get("torch_dtype") or "float32"
        lm = interop.load_hf(source.path, dtype=config.dtype or stored)
        interop.save_hf(lm, out, rope=spec, length=length, like=source.path)
    content = digest.of_folder(out)
    keep_result(finished, made_by, {"content": content})
    return content


def check_tokenizer(config: Export, source: "Checkpoint") -> "Tokenizer | None":
    """The tokenizer of the check's text, None where there is none."""
    from resonance_jax.command.checkpoints import tokenizer_of

    own = source.gguf is not None or any(
        (source.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")
    )
    return tokenizer_of(source, config.tokenizer) if own or config.tokenizer is not None else None


def check_tokens(
    config: Export, tokenizer: "Tokenizer | None", vocab_size: int, length: int
) -> 'tuple[Int32[np.ndarray, "length"], str]':
    """(token ids, what they are): held-out text, or random ids where there is no tokenizer."""
    import numpy as np

    from resonance_jax import data
    from resonance_jax.data.ids import check_ids, document_ids

    if tokenizer is None:
        ids = np.random.default_rng(0).integers(0, vocab_size, length).astype(np.int32)
        return ids, f"random ids below {vocab_size:,} (no tokenizer)"
    parts = [] if tokenizer.bos_id is None else [np.array([tokenizer.bos_id], np.int32)]
    size = 0
    for document in data.corpus(config.corpus).split("heldout"):
        parts.append(document_ids(document, tokenizer))
        check_ids(parts[-1], vocab_size, f"The document {document.name}")
        size += len(parts[-1])
        if size >= length:
            return np.concatenate(parts)[:length].astype(np.int32), f"{config.corpus}, held-out documents"
    raise ValueError(f"{config.corpus} holds out only {size:,} tokens; {length:,} are needed.")


def show_check(result: dict[str, Any], tolerance: float) -> int:
    """Print the comparison; 1 where the export is not the same model in transformers."""
    from resonance_jax.report import print_table

    rows, greedy = result["rows"], result["greedy"]
    shown = {
        "length": "length",
        "perplexity, ours": "perplexity",
        "transformers": "perplexity_transformers",
        "NLL difference": "nll_difference",
        "logits": "logits",
        "logits, phases alike": "logits_alike",
        "cos lost": "cos_error",
        "logits lost": "logits_lost",
        "NLL lost": "nll_lost",
    }
    table = [{name: row[key] for name, key in shown.items()} for row in rows]
    print_table(table, f"{result['encoding']} in transformers and here, float32, on {result['text']}")
    print("Differences of logits in standard deviations of the logits; NLL in nats per token.")
    print("Lost: what transformers' float32 phases change, against transformers with our phases.")
    same = "identical" if greedy["identical"] else f"they differ from token {greedy['first_difference']} on"
    print(
        f"greedy output, {greedy['tokens']} tokens after {greedy['prompt']:,}: {same} "
        f"(our two best logits come within {greedy['smallest_margin']:.2g})"
    )
    far = rows[0]["logits_alike"]
    close = far <= tolerance  # which what is not a number never is
    if not close:
        print(f"NOT the same model: logits with phases alike differ by {far:.1e}, allowed are {tolerance:g}.")
    figures = [value for row in rows for value in row.values()] + [greedy["smallest_margin"]]
    if not all(map(math.isfinite, figures)):
        print("NOT the same model: some figures are not finite numbers.")
        close = False
    return int(not close or not greedy["identical"])
