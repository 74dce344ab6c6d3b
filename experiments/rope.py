"""Encodings looked at closely: explained, drawn, measured, exported.

    python -m experiments.rope explain CONFIG       what a config.json, a directory or a name means
    python -m experiments.rope show METHOD…         wavelengths, decay, feature gap, rotation angles
    python -m experiments.rope numerics             the error of cos and sin, ours and others'
    python -m experiments.rope export CHECKPOINT --encoding resonance-yarn --scale 8 --out DIR

configs/rope.py has every setting.
"""

import ast
import dataclasses
import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.rope import Explain, Export, Numerics, Show, Table
from resonance_jax import digest
from resonance_jax.command import (
    default_folder,
    keep_result,
    kept_result,
    leave_on_signals,
    main,
    open_run,
)
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int32

    from resonance_jax.data import Tokenizer
    from resonance_jax.digest import Identity
    from resonance_jax.interop import Checkpoint
    from resonance_jax.rope import Frequencies, RopeSpec

BYTES_PER_PHASE = 32
"""What the pictures need for a pair at a position: several arrays of float64."""
ASKED = Explain | Show | Numerics | Export


def run(config: ASKED) -> int | None:
    """Run the command that was asked for."""
    _check(config)
    command = {Explain: explain, Show: show, Numerics: numerics, Export: export}
    return command[type(config)](config)


def _check(config: ASKED) -> None:
    """Raise ValueError for numbers that no option can be, before anything is made."""
    from resonance_jax.train.config import check_whole

    least = dict.fromkeys(("head_dim", "train_length", "length", "new_tokens", "last_position"), 1)
    least |= {"angles_train_length": 2, "angles_length": 2, "pair": 0}
    for name, smallest in least.items():
        if (value := getattr(config, name, None)) is not None:
            check_whole(f"--{name.replace('_', '-')}", value, smallest, 2**31)
    if config.scale is not None and not 1 <= config.scale <= 2**31:
        raise ValueError(f"--scale must be from 1 to 2^31, got {config.scale:g}.")
    if isinstance(config, Export) and not 0 < config.tolerance < math.inf:
        raise ValueError(f"--tolerance must be a positive number, got {config.tolerance}.")


def _check_memory(length: int, head_dim: int) -> None:
    """Raise ValueError where the pictures of so many positions would not fit into memory."""
    import jax

    from resonance_jax.parallel import memory

    free, needed = memory.free(jax.devices()[:1]), BYTES_PER_PHASE * length * (head_dim // 2)
    if free is not None and needed > free:
        raise ValueError(
            f"{length:,} positions need about {memory.readable(needed)} of memory, and "
            f"{memory.readable(free)} are free; choose a shorter --length."
        )


def lengths(scale: float | None, train_length: int, length: int | None) -> tuple[float, int]:
    """(s, L') from whichever was given; 8x where neither was."""
    if scale is None:
        scale = 8.0 if length is None else max(1.0, length / train_length)
    return scale, int(scale * train_length) if length is None else length


def specs_of(names: Iterable[str], c: Table) -> "dict[str, RopeSpec]":
    """{title: RopeSpec} of encodings by name. Raises ValueError for an option that none of them takes."""
    from resonance_jax import rope

    scale, _ = lengths(c.scale, c.train_length, c.length)
    given = {"head_dim": c.head_dim, "base": c.base, "scale": scale, "train_length": c.train_length}
    given["short_factor"] = (1.0,) * (c.head_dim // 2)
    options = options_of(c)
    specs, taken = {}, set()
    for name in names:
        spec = rope.named(name, **given, **options)
        taken |= rope.METHODS[spec.method].options.keys()
        specs[spec.title] = spec
    for option in options.keys() - taken:
        raise ValueError(f"none of {', '.join(names)} takes --{option.replace('_', '-')}; leave it out.")
    return specs


def options_of(c: Table) -> dict[str, object]:
    """The options of single methods that were given, as flags or as --options NAME=VALUE."""
    from resonance_jax import rope

    names = {name for record in rope.METHODS.values() for name in record.options}
    flags = {name: getattr(c, name) for name in names if getattr(c, name, None) is not None}
    more = {}
    for entry in c.options:
        name, equals, value = entry.partition("=")
        if not equals or name in flags or name in more:
            raise ValueError(f"--options {entry!r}: expected NAME=VALUE, each name once.")
        try:
            more[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            more[name] = value
    return flags | more


def tables_of(names: Iterable[str], c: Table) -> "tuple[dict[str, RopeSpec], dict[str, Frequencies], int]":
    """({title: RopeSpec}, {title: Frequencies}, L')."""
    from resonance_jax import rope

    if not names:
        raise ValueError("name at least one encoding, such as yarn or resonance-yarn.")
    _, length = lengths(c.scale, c.train_length, c.length)
    specs = specs_of(names, c)
    return specs, {title: rope.frequencies(spec, length=length) for title, spec in specs.items()}, length


def explain(config: Explain) -> None:
    from resonance_jax import rope
    from resonance_jax.interop.hf_config import read_config

    path = Path(config.config)
    if path.is_dir():
        print(rope.explain(read_config(path), length=config.length, layer_type=config.layer_type))
    elif path.is_file():
        print(
            rope.explain(
                read_json(path, remedy="expected a config.json"),
                length=config.length,
                layer_type=config.layer_type,
            )
        )
    elif path.suffix or len(path.parts) > 1:
        raise ValueError(f"there is no file or directory {path}; expected a config.json, or its directory.")
    else:
        specs, _, length = tables_of([config.config], config)
        for spec in specs.values():
            print(rope.explain(spec, length=length if spec.dynamic else None))


def records(specs: "dict[str, RopeSpec]", tables: "dict[str, Frequencies]") -> dict[str, object]:
    from resonance_jax import rope

    return {title: rope.to_record(tables[title], spec) for title, spec in specs.items()}


def show(config: Show) -> None:
    from resonance_jax import report, rope
    from resonance_jax.report import rope as pictures

    _check_memory(lengths(config.scale, config.train_length, config.length)[1], config.head_dim)
    specs, tables, length = tables_of(config.methods, config)
    short, long = config.angles_train_length, config.angles_length
    plain = rope.frequencies(rope.RopeSpec(head_dim=config.head_dim, base=config.base))
    pair = config.pair
    if pair is None:
        pair = pictures.straying_pair(plain, short, long)
    # With and without Resonance, whichever was named.
    both = {
        twin.title: rope.frequencies(twin, length=length)
        for spec in specs.values()
        for twin in (dataclasses.replace(spec, resonance=on) for on in (False, True))
    }
    pairs = pictures.pair_rows(tables, config.train_length, length)
    angles = pictures.angle_rows(both, pair, short, long)
    decays = pictures.decay_rows(tables, length)
    folder = open_run("rope-show", config)
    for name, rows in (("pairs", pairs), ("decay", decays), ("angles", angles)):
        write_text(folder / f"{name}.csv", report.csv_text(rows))
    pictures.wavelength_plot(pairs, folder / "wavelengths.png", config.train_length, length)
    pictures.gap_plot(pairs, folder / "feature_gap.png", config.train_length, length)
    pictures.decay_plot(decays, folder / "decay.png", config.train_length)
    pictures.angle_plot(angles, folder / "angles.png", short, long)
    write_json(folder / "encodings.json", records(specs, tables))
    table = pictures.summary(pairs, tables)
    write_json(folder / "show.json", {"rows": table, "machine": report.machine()})
    title = f"Trained at {config.train_length:,} positions, extended to {length:,}"
    report.print_table(table, title)
    names = ("wavelengths.png", "feature_gap.png", "decay.png", "angles.png")
    print("\n" + "  ".join(str(folder / name) for name in names))


def numerics(config: Numerics) -> None:
    from resonance_jax import report
    from resonance_jax.report import phase_error

    specs, tables, _ = tables_of(config.methods, config)
    positions = phase_error.doubling_positions(config.last_position)
    folder = open_run("rope-numerics", config)
    rows = phase_error.phase_error_rows(tables, positions)
    write_text(folder / "phase_error.csv", report.csv_text(rows))
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == backend]
        phase_error.phase_error_plot(own, folder / f"phase_error_{backend}.png")
    write_json(folder / "encodings.json", records(specs, tables))
    shown = sorted({positions[0], *positions[4::4], positions[-1]})
    table = phase_error.table(rows, shown)
    write_json(folder / "numerics.json", {"rows": table, "machine": report.machine()})
    report.print_table(table, "Largest error in cos or sin, over all pairs and 256 positions, below position")
    print(f"\n{folder}/phase_error.csv  {folder}/phase_error_{rows[0]['backend']}.png")


def export(config: Export) -> int:
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
    print("Differences of logits in standard deviations of the logits; NLL in nats a token.")
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


if __name__ == "__main__":
    leave_on_signals()  # importing tyro takes a while
    from tyro.conf import PositionalRequiredArgs

    main(run, PositionalRequiredArgs[ASKED], __doc__)
