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
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.rope import Explain, Export, Numerics, Show, Table
from resonance_jax.command import guarded, open_run
from resonance_jax.files import read_json, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int32

    from resonance_jax.rope import Frequencies, RopeSpec

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def run(config: Explain | Show | Numerics | Export) -> int | None:
    command = {Explain: explain, Show: show, Numerics: numerics, Export: export}
    return command[type(config)](config)


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
    import json

    from resonance_jax import rope
    from resonance_jax.interop.hf_config import read_config

    path = Path(config.config)
    if path.is_dir():
        print(rope.explain(read_config(path), length=config.length, layer_type=config.layer_type))
    elif path.is_file():
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}).") from None
        print(rope.explain(stated, length=config.length, layer_type=config.layer_type))
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
    from resonance_jax import report

    source = Path(config.checkpoint)
    spec, train_length, length = export_spec(config, source)
    folder = open_run("rope-export", config)
    out = Path(config.out or folder / "hf")
    write_export(config, source, out, spec, length, folder / "encoding.json")
    rope_type = read_json(out / "config.json")["rope_parameters"]["rope_type"]
    print(f"{out}: {spec.title}, rope_type {rope_type}, for {length:,} positions")
    if not config.check:
        return 0
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not checked: {' and '.join(missing)} is not installed (pip install -e '.[parity]').")
        return 0
    if not (folder / "export.json").exists():
        from resonance_jax.interop.export_check import check_export

        tokens, text = check_tokens(config, source, out, length)
        found = check_export(out, tokens, (train_length, length), train_length, config.new_tokens)
        result = {"encoding": spec.title, "text": text, **found, "machine": report.machine()}
        write_text(folder / "export.csv", report.csv_text(found["rows"]))
        write_json(folder / "export.json", result)
    return show_check(read_json(folder / "export.json"), config.tolerance)


def export_spec(config: Export, source: Path) -> "tuple[RopeSpec, int, int]":
    """(RopeSpec, L, L') of the exported encoding."""
    from resonance_jax import rope
    from resonance_jax.interop.hf_config import from_hf_config, read_config
    from resonance_jax.rope.names import parse_name

    if not source.is_dir():
        raise ValueError(f"{source} is not a directory; expected one with config.json and *.safetensors.")
    _, own = from_hf_config(read_config(source))
    train_length = own.train_length if config.train_length is None else config.train_length
    if train_length is None:
        raise ValueError(f"{source}/config.json states no training length; give it with --train-length.")
    method = own.method if config.encoding == "own" else parse_name(config.encoding)[0]
    scale = config.scale
    if scale is None:
        scale = own.scale if method == own.method and rope.METHODS[method].takes_scale else 8.0
    length = int(scale * train_length) if config.length is None else config.length
    if length < train_length:
        raise ValueError(f"--length {length} is less than the training length {train_length}.")
    spec = rope.restate(own, config.encoding, scale=scale, train_length=train_length)
    return spec, train_length, length


def write_export(
    config: Export, source: Path, out: Path, spec: "RopeSpec", length: int, record: Path
) -> None:
    """The directory, with the tokenizer's files beside the weights; a second call finds it finished."""
    from resonance_jax import interop, rope
    from resonance_jax.interop.hf_config import read_config

    if not record.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} exists already; name a new or an empty directory with --out.")
        write_json(record, rope.to_record(rope.frequencies(spec, length=length), spec))
    if not (out / "config.json").exists():
        stated = read_config(source)
        stored = stated.get("dtype") or stated.get("torch_dtype") or "float32"
        lm = interop.load_hf(source, dtype=config.dtype or stored)
        ids = {key: stated[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in stated}
        interop.save_hf(lm, out, rope=spec, length=length, extra=ids)
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)


def check_tokens(
    config: Export, source: Path, out: Path, length: int
) -> 'tuple[Int32[np.ndarray, "length"], str]':
    """(token ids, what they are): held-out text, or random ids where there is no tokenizer."""
    import numpy as np

    from resonance_jax import data

    vocab_size = read_json(out / "config.json")["vocab_size"]
    own = any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    if config.tokenizer is None and not own:
        ids = np.random.default_rng(0).integers(0, vocab_size, length).astype(np.int32)
        return ids, f"random ids below {vocab_size:,} (no tokenizer)"
    tokenizer = data.tokenizer(config.tokenizer or source)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but {source} embeds {vocab_size}; give the "
            "model's own with --tokenizer."
        )
    parts = [] if tokenizer.bos_id is None else [np.array([tokenizer.bos_id])]
    size = 0
    for document in data.corpus(config.corpus).split("heldout"):
        parts.append(tokenizer.encode(document.text) if document.tokens is None else document.tokens)
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
    if far > tolerance:
        print(f"NOT the same model: logits with phases alike differ by {far:.1e}, allowed are {tolerance:g}.")
    return int(far > tolerance or not greedy["identical"])


def main(arguments: list[str] | None = None) -> None:
    import tyro

    asked = tyro.cli(
        Explain | Show | Numerics | Export,
        args=arguments,
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    sys.exit(guarded(run, asked))


if __name__ == "__main__":
    main()
