"""Do we compute what PyTorch computes? A checkpoint compared layer by layer, in float64 first.

    python -m experiments.parity --checkpoint PATH --encodings own resonance-yarn
    python -m experiments.parity --checkpoint COPY --reference ORIGINAL    where did the copy go wrong?
    python -m experiments.parity --against goldens                         kept numbers, without torch

Exit code 0: every tensor agrees; 1: one does not, and the first of them is named.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

from configs.parity import Config
from resonance_jax.command import open_run
from resonance_jax.files import write_json, write_text

if TYPE_CHECKING:
    from resonance_jax import interop, rope

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
"""The numbers kept in a clone."""


def run(config: Config) -> int:
    """Compare, write down what was found; 1 where a tensor is wrong."""
    _check(config)
    folder = open_run("parity", config)
    import jax

    from resonance_jax import report
    from resonance_jax.report import parity as reports

    print(f"device: {jax.devices()[0].device_kind}, jax {jax.__version__}")
    found = _compare(config, folder)
    result = {
        "verdict": found.verdict(),
        "ok": found.ok,
        "machine": report.machine(),
        "summary": reports.summary(found),
        "phases": reports.phase_rows(found),
        "tensors": reports.rows(found),
    }
    write_json(folder / "parity.json", result)
    write_text(folder / "parity.csv", report.csv_text(result["tensors"]))
    report.print_table(result["summary"], "Largest differences")
    if found.phases:
        report.print_table(result["phases"], "What PyTorch's own float32 phases lose")
    print(found.verdict())
    print(f"{folder}/parity.json  {folder}/parity.csv" + _picture(folder))
    return 0 if found.ok else 1


def _compare(config: Config, folder: Path) -> interop.Parity:
    """What was asked for, compared; a picture of it in the folder where PyTorch ran."""
    if config.against == "goldens":
        from experiments.parity.goldens import against_goldens

        return against_goldens(GOLDENS)
    from resonance_jax import interop
    from resonance_jax.report.parity import parity_plot

    path = _checkpoint(config, folder)
    specs, lengths = _asked(config, path)
    found = interop.parity(
        path,
        specs,
        lengths,
        config.dtypes,
        reference=config.reference,
        gradients=config.gradients,
        seed=config.seed,
    )
    parity_plot(found, folder / "parity.png")
    return found


def _picture(folder: Path) -> str:
    """Where the picture is, if there is one."""
    return f"  {folder}/parity.png" if (folder / "parity.png").exists() else ""


def _check(config: Config) -> None:
    """Raise ValueError before anything is made."""
    if config.against == "transformers":
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} not installed: pip install -e '.[parity]', or compare with kept "
                "numbers by --against goldens."
            )
    for name in (config.checkpoint, config.reference):
        if name not in (None, "random") and not Path(name).is_dir():
            raise ValueError(f"{name} is not a directory; expected one with config.json and *.safetensors.")
    asked = (*config.lengths, *config.positions)
    if not asked or not all(0 < length < math.inf for length in asked):
        raise ValueError("--lengths and --positions must be positive, and there must be one.")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {config.seed}.")


def _checkpoint(config: Config, folder: Path) -> str:
    """The directory to read; a random one is made in the run folder."""
    if config.checkpoint != "random":
        return config.checkpoint
    import jax

    from resonance_jax import interop, model, rope

    path = folder / "checkpoint"
    if not path.exists():
        shape = model.DecoderConfig(
            vocab_size=256, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=352
        )
        spec = rope.RopeSpec(method="yarn", head_dim=32, scale=8.0, train_length=64)
        lm = model.Decoder(shape, key=jax.random.key(config.seed))
        # Fresh weights attend to everything alike, and hardly show where they look.
        louder = lambda where, x: 10 * x if where[-1].key in ("q", "k") else x
        params = jax.tree_util.tree_map_with_path(louder, lm.params)
        interop.save_hf(lm.replace_params(params), path, rope=spec)
    return str(path)


def _asked(config: Config, path: str) -> tuple[list[rope.RopeSpec] | None, list[int]]:
    """The encodings (None: each side's own) and the lengths in positions."""
    from resonance_jax import rope
    from resonance_jax.interop.hf_config import from_hf_config, read_config

    stated = read_config(Path(path))
    own = from_hf_config(stated)[1]
    trained = config.train_length or own.train_length or stated.get("max_position_embeddings")
    if not trained:
        raise ValueError(f"{path} states no training length; give --train-length.")
    specs = None
    if config.encodings != ("own",):
        restated = {"scale": config.scale, "train_length": trained}
        specs = [
            own if name == "own" else rope.restate_for_length(own, name, 8 * trained, **restated)
            for name in config.encodings
        ]
    lengths = config.positions or {max(2, round(x * trained)) for x in config.lengths}
    return specs, sorted(lengths)
