"""Train two small LLaMAs on real text, extend both by every RoPE method, and draw what happens.

    python -m experiments.quickstart            (or: make quickstart)

Stop it at any time: the same command goes on where it was. configs/quickstart.py has every setting.
"""

import math
from pathlib import Path

from configs.quickstart import Config
from experiments.command import main, open_run, use_every_core
from resonance_jax.files import read_json, write_json, write_text

METHODS = ("default", "linear", "ntk", "dynamic_ntk", "yarn")
FINETUNED, SWAPPED = ", fine-tuned", ", swapped in without training"


def run(config: Config) -> None:
    folder = open_run("quickstart", config)
    if not (folder / "perplexity.json").exists():
        _run(config, folder)
    from resonance_jax.report.tables import print_table

    result = read_json(folder / "perplexity.json")
    print_table(table(result, config), f"Perplexity per byte, trained at {config.train_length}, by length")
    print_table(result["differences"], f"Paired differences at {config.length} (nats a byte)")
    print(result["note"])
    print(f"\n{folder}/perplexity.png  {folder}/report.md")


def _run(config: Config, folder: Path) -> None:
    use_every_core()
    import jax

    from resonance_jax import data, evaluate, report, rope, train

    device = jax.devices()[0]
    print(
        f"device: {jax.local_device_count()} x {device.platform} ({device.device_kind}), "
        f"float32, jax {jax.__version__}"
    )
    corpus, tokenizer = data.corpus(config.corpus), data.tokenizer("bytes")
    training_text = corpus.split("train", max_bytes_per_document=64 * 1024)
    heldout = corpus.split("heldout")
    provenance = {"train": training_text.describe(), "heldout": heldout.describe()}
    remember_corpus(folder / "corpus.json", provenance)
    print(
        f"text: {provenance['train']['bytes'] / 1e6:.1f} MB to train on, "
        f"{provenance['heldout']['documents']} documents held out"
    )
    pieces, owners = cut_pieces(heldout, tokenizer, config)
    shape = shape_of(config)
    specs = {resonance: specs_of(config, resonance) for resonance in (False, True)}
    write_json(
        folder / "encodings.json",
        [
            rope.to_record(rope.frequencies(spec, length=config.length), spec)
            for by_method in specs.values()
            for spec in by_method.values()
        ],
    )
    tokens = data.token_file(training_text, tokenizer, folder / "tokens")
    tables = lambda method: [rope.frequencies(specs[r][method], length=config.length) for r in (False, True)]

    def fit(name: str, method: str, steps: int, length: int, rows: int, lr: float, params=None):
        batches = data.Batches(tokens, length, rows, config.seed)
        with report.training_progress(name, bytes_per_token=1.0) as progress:
            return train.fit_many(
                shape,
                [config.seed, config.seed],
                tables(method),
                lambda step: {"tokens": batches[step]},
                train.TrainConfig(
                    steps,
                    train.OptimizerConfig(lr=lr, weight_decay=0.1, schedule="cosine", warmup=0.05, clip=1.0),
                    micro=min(rows, max(1, 512 // length)),  # what stays in a core's cache
                ),
                folder / name.replace(" ", "-"),
                params=params,
                progress=progress,
            )

    base = fit("train", "default", config.steps, config.train_length, config.batch_size, config.lr)
    tuned = fit(
        "fine-tune",
        "yarn",
        config.finetune_steps,
        config.length,
        config.finetune_batch_size,
        config.finetune_lr,
        params=base.params,
    )
    rows = [
        (specs[r][method].title, specs[r][method], base.lm(int(r)))
        for r in (False, True)
        for method in METHODS
    ]
    rows += [(specs[r]["yarn"].title + FINETUNED, specs[r]["yarn"], tuned.lm(int(r))) for r in (False, True)]
    rows += [(specs[True]["yarn"].title + SWAPPED, specs[True]["yarn"], base.lm(0))]
    step = config.train_length
    lengths = range(step, config.length + 1, step)
    results = {}
    with report.Progress("evaluate", {"encoding": str}) as progress:
        for done, (label, spec, lm) in enumerate(rows):
            progress(done, len(rows), encoding=label)
            results[label] = evaluate.sweep(
                lm,
                pieces,
                spec,
                lengths,
                protocol="prefix",
                bos_id=tokenizer.bos_id,
                groups=owners,
                store=evaluate.Store(folder / "nll" / label.replace(", ", "-").replace(" ", "-")),
            )
        progress(len(rows), len(rows))
    write_results(folder, config, rows, results, provenance)


def shape_of(config: Config):
    """The decoder that this config trains."""
    from resonance_jax import model

    heads = config.d_model // config.head_dim
    return model.PRESETS["quickstart"].replace(
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=config.head_dim,
        d_ff=config.d_model * 8 // 3,
    )


def specs_of(config: Config, resonance: bool) -> dict:
    """The encoding of every method at this config's lengths."""
    from resonance_jax import rope

    common = {"head_dim": config.head_dim, "train_length": config.train_length, "resonance": resonance}
    scale = config.length / config.train_length
    scaled = {"linear", "ntk", "yarn"}
    return {
        method: rope.RopeSpec(method=method, **common, **({"scale": scale} if method in scaled else {}))
        for method in METHODS
    }


def cut_pieces(heldout, tokenizer, config: Config):
    """Token pieces that fill the longest window with its BOS, and the document of each."""
    size = config.length - 1
    pieces, owners, documents = [], [], 0
    for document in heldout:
        tokens = tokenizer.encode(document.text)
        count = min(config.pieces_per_document, len(tokens) // size)
        if count and documents < config.documents:
            pieces += [tokens[i * size : (i + 1) * size] for i in range(count)]
            owners += [documents] * count
            documents += 1
    if not pieces:
        raise ValueError(
            f"no held-out document of {config.corpus} has the {size} tokens that one piece needs; "
            "give a corpus with longer documents or a shorter --length."
        )
    return pieces, owners


def remember_corpus(path: Path, provenance: dict) -> None:
    """Refuse to go on with other text than the run began with."""
    if not path.exists():
        write_json(path, provenance)
    elif read_json(path) != provenance:
        raise ValueError(
            f"the text has changed since the run in {path.parent} began (another interpreter, or edited "
            "files); perplexities on different text cannot be compared: choose another --run-dir."
        )


def write_results(folder: Path, config: Config, rows, results, provenance) -> None:
    """perplexity.csv, .png, report.md, and last perplexity.json, whose presence says the run is finished."""
    from resonance_jax import report

    figures = [row for label, spec, _ in rows for row in report.figures(label, spec, results[label])]
    plain = [label for label, spec, _ in rows if not spec.resonance]
    pairs = [(f"Resonance {label}", label) for label in plain] + [(f"Resonance YaRN{SWAPPED}", "YaRN")]
    at = lambda label: results[label][config.length]
    differences = [report.difference(a, at(a), b, at(b)) for a, b in pairs]
    result = {
        "rows": figures,
        "differences": differences,
        "corpus": provenance,
        "note": note(),
        "machine": report.machine(),
    }
    title = f"Trained at {config.train_length} bytes, extended to {config.length} (held-out text)"
    report.perplexity_plot(results, folder / "perplexity.png", config.train_length, title, unit="byte")
    write_text(folder / "perplexity.csv", report.csv_text(figures))
    by_position = [row for label in results for row in report.positions(label, results[label][config.length])]
    write_text(folder / "positions.csv", report.csv_text(by_position))
    write_text(folder / "report.md", report_text(result, config))
    write_json(folder / "perplexity.json", result)


def table(result: dict, config: Config) -> list[dict]:
    from resonance_jax import report

    return report.table(result["rows"], report.doubling(config.train_length, config.length))


def note() -> str:
    drift = 32 * (2 * math.pi / 6 - 1)
    return (
        f'Why "{SWAPPED.strip(", ")}" detunes a model: Resonance rounds the fastest wavelength from 6.283 '
        f"positions to 6, so its phase drifts by {drift:.1f} rad over 32 positions from what the weights "
        "were trained with. The paper always trains with what it tests."
    )


def report_text(result: dict, config: Config) -> str:
    from resonance_jax import report

    text = result["corpus"]["heldout"]
    windows = result["rows"][0]
    return "\n".join(
        [
            "# Perplexity past the training length",
            "",
            f"Two models of one shape and the same first weights, trained at {config.train_length} bytes "
            f"(RoPE, Resonance RoPE), each extended to {config.length} by every method. Protocol `prefix`: "
            f"BOS and the first n-1 bytes, every byte after BOS scored; {windows['windows']} pieces of "
            f"{windows['documents']} held-out documents, the same at every length. Text: {text['name']}"
            + (f" of Python {text['python']}" if "python" in text else "")
            + f" (SHA-1 {text['fingerprint'][:12]}). Intervals: bootstrap over documents.",
            "",
            "Made by `python -m experiments.quickstart` on "
            + ", ".join(f"{name} {value}" for name, value in result["machine"].items())
            + ".",
            "",
            report.markdown(table(result, config)),
            f"## Resonance minus its base, nats a byte at {config.length}",
            "",
            report.markdown(result["differences"]),
            result["note"],
            "",
            "![perplexity](perplexity.png)",
            "",
        ]
    )


if __name__ == "__main__":
    main(run, Config, __doc__)
