"""The stages of the paper, each a command of ours that goes on by itself where it was stopped."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import finetune, leval, perplexity
from configs.paper import Config
from resonance_jax.command import option_words, stated_options, with_options

if TYPE_CHECKING:
    from resonance_jax.train.plan_search import Search

BASE = ("dynamic-ntk", "ntk")
"""Rows of Table 2 that are asked of the checkpoint as it is."""
COMPUTED = {"7b": "llama2-7b", "13b": "llama2-13b"}
"""The names of the shapes, by size."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        part: one of configs.paper.PARTS.
        study, preset: the command's name and its preset.
        config: the study's config with all options.
        options: what is given beside the preset.
        folder: of the stage's run.
    """

    part: str
    study: str
    preset: str
    config: Any
    options: dict[str, object]
    folder: Path

    @property
    def words(self) -> list[str]:
        """The command line."""
        own = option_words({**self.options, "run_dir": self.folder})
        return [sys.executable, "-m", f"experiments.{self.study}", self.preset, *own]


def stages(config: Config, folder: Path) -> list[Stage]:
    """All stages of a size in their order, whichever parts are asked for now.

    Raises ValueError for options that their commands do not have.
    """
    size = config.model
    tuned = lambda name: folder / "finetune" / f"{size}-{name}"
    both = {"checkpoint": config.checkpoint, "corpus": config.corpus}
    found = [
        _stage(config, "finetune", finetune.PRESETS, f"{size}-{kind}-{name}", both, folder)
        for kind in ("long", "short")
        for name in ("yarn", "resonance")
    ]
    three = {
        "chat": config.checkpoint,
        "yarn": tuned("long-yarn") / "hf",
        "resonance": tuned("long-resonance") / "hf",
    }
    figure: dict[str, object] = {"checkpoints": tuple(f"{name}={path}" for name, path in three.items())}
    figure |= {"corpora": config.corpora} | ({"data_dir": config.data_dir} if config.data_dir else {})
    found.append(_stage(config, "figure4", perplexity.PRESETS, f"figure4-llama2-{size}", figure, folder))
    for preset in leval.PRESETS:
        asked, _, row = preset.partition("-")
        if asked == size:
            path = config.checkpoint if row in BASE else tuned(row) / "hf"
            own = {"checkpoint": str(path), "data": config.leval, "name": preset}
            found.append(_stage(config, "table2", leval.PRESETS, preset, own, folder))
    return found


STUDIES = {"finetune": "finetune", "figure4": "perplexity", "table2": "leval"}
"""The study whose command a part runs."""


def _stage(
    config: Config,
    part: str,
    presets: dict[str, tuple[str, Any]],
    preset: str,
    options: dict[str, object],
    folder: Path,
) -> Stage:
    """A stage with its options and those that the user adds to its part."""
    options = {**options, **stated_options(getattr(config, part))}
    try:
        own = with_options(presets[preset][1], **options)
    except TypeError as error:
        raise ValueError(f"--{part}: experiments.{STUDIES[part]}: {error}") from None
    where = folder / part if part == "figure4" else folder / part / preset
    return Stage(part, STUDIES[part], preset, own, options, where)


def searched(stage: Stage, chip: str, devices: int) -> Search:
    """The mesh, the rows at a time and the recomputation of a fine-tuning, by its plan."""
    from resonance_jax import model
    from resonance_jax.command.checkpoints import open_if_there
    from resonance_jax.train import plan, plan_search

    c: finetune.Config = stage.config
    there = open_if_there(c.checkpoint) if c.checkpoint else None
    decoder = (model.PRESETS[c.shape] if there is None else there.config).replace(dtype=c.dtype)
    lora = c.adapters if c.lora else None
    return plan_search.search(
        plan_search.settings(decoder, devices, c.batch_size, c.length, lora, plan.chip(chip))
    )


def on_chips(stage: Stage, found: Search) -> Stage:
    """A fine-tuning with the setting that its search has chosen. Raises ValueError where nothing fits."""
    if found.chosen is None:
        raise ValueError(f"{stage.preset} does not fit: no mesh of so many of these chips has the memory.")
    chosen = {"micro": found.chosen.micro, "remat": found.chosen.remat, **found.chosen.mesh}
    # What the user states wins.
    options = {**{k: v for k, v in chosen.items() if k not in stage.options}, **stage.options}
    return dataclasses.replace(stage, options=options, config=with_options(stage.config, **options))
