"""What a fine-tuning is made of: all of it is opened and checked before anything is written."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from configs.finetune import ELSEWHERE, Config
from configs.from_scratch import Config as FromScratch
from resonance_jax.command import default_folder, options_of, stated_config, with_options

if TYPE_CHECKING:
    from resonance_jax import data, rope
    from resonance_jax.digest import Identity
    from resonance_jax.interop import Checkpoint
    from resonance_jax.model import DecoderConfig

PATHS = ("checkpoint", "from_scratch", "corpus", "data_dir", "tokenizer", "run_dir")
"""Options that say where an input lies. What lies there is part of the identity, not its place."""
AT_LEAST = {
    **dict.fromkeys(("steps", "batch_size", "keep", "documents", "pieces_per_document"), 1),
    **dict.fromkeys(("source_chunk", "pretrain_batch_size", "slices"), 1),
    "length": 2,  # a position and the one that it predicts
    **dict.fromkeys(("micro", "profile", "pretrain_steps"), 0),
}
"""Option -> the smallest number that it can be."""


def identity(config: Config) -> Config:
    """The config without what may change between the parts of one run."""
    defaults = options_of(Config())
    return with_options(config, **{name: defaults[name] for name in ELSEWHERE})


def variants(config: Config) -> list[bool]:
    """Whether Resonance is applied, for each encoding that is trained."""
    return [False, True] if config.comparison.compare else [config.resonance]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a config names, opened but not yet read.

    Attributes:
        config: the config.
        checkpoint: the base; None where it is a model of experiments.from_scratch, or a fresh one.
        from_scratch: the run folder of that model and its config.
        shape: the decoder as it is trained.
        own: the base's encoding.
        specs: the encodings that it is trained under.
        tokenizer: encodes the text; None for a corpus that is tokenized.
        text: the split that is trained on.
        heldout: the split that --compare scores, None without it.
    """

    config: Config
    checkpoint: Checkpoint | None
    from_scratch: tuple[Path, FromScratch] | None
    shape: DecoderConfig
    own: rope.RopeSpec
    specs: list[rope.RopeSpec]
    tokenizer: data.Tokenizer | None
    text: data.Corpus
    heldout: data.Corpus | None

    def own_tokenizer(self) -> bool:
        """Whether the tokenizer is the checkpoint's, so that its files and token ids stay as they are."""
        text = self.config.text
        if self.checkpoint is None or text.tokenizer == "bytes":
            return False
        if text.tokenizer in (None, "none"):
            return True
        try:
            return self.checkpoint.tokenizer(bos=text.bos).fingerprint == self.tokenizer.fingerprint
        except ValueError:  # it has none that can be read
            return False

    def identity(self, tokens: data.TokenFile, base: Identity) -> Identity:
        """What the result depends on.

        Args:
            tokens: of the text.
            base: the identity of the decoder to start from.
        """
        from resonance_jax.model.lowering import stated_precision

        options = options_of(identity(self.config))
        return {
            **self.made_by(tokens, base),
            "encodings": [spec.to_dict() for spec in self.specs],
            "heldout": None if self.heldout is None else self.heldout.fingerprint,
            "options": {k: v for k, v in options.items() if k not in (*PATHS, "precision", "seeds")},
            **stated_precision(),
        }

    def made_by(self, tokens: data.TokenFile, base: Identity) -> Identity:
        """What a checkpoint of the training depends on, beside what the training itself records."""
        return {
            "base": base,
            "corpus": tokens.header["corpus"]["fingerprint"],
            "tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint,
            "rule": tokens.header["rule"],
        }


def gather(config: Config) -> Inputs:
    """Open what a config names. Raises ValueError for settings that cannot be, and for what is not there."""
    from resonance_jax import data, interop, rope
    from resonance_jax.command.checkpoints import tokenizer_of
    from resonance_jax.data.tokens import resolved_rule

    check_numbers(config)
    text = config.text
    if text.mode not in ("split", "truncate"):
        raise ValueError(f'unknown --mode {text.mode!r}; expected "split" or "truncate".')
    checkpoint = None if config.checkpoint is None else interop.open_checkpoint(config.checkpoint)
    from_scratch = None if checkpoint is not None else find_from_scratch(config)
    if checkpoint is from_scratch is None and config.pretraining.steps and config.train_length is None:
        raise ValueError("pretraining needs --train-length, the positions in its rows.")
    shape, own = decoder_and_encoding(config, checkpoint, from_scratch)
    specs = [encoding(config, own, resonance) for resonance in variants(config)]
    for spec in specs:
        rope.frequencies(spec, length=config.length)
    if text.tokenizer == "none":
        tokenizer = None
    elif checkpoint is not None:
        tokenizer = tokenizer_of(checkpoint, text.tokenizer, text.bos)
    else:
        tokenizer = data.tokenizer(text.tokenizer or "bytes", bos=text.bos)
    resolved_rule(text.rule, tokenizer)
    corpus = data.corpus(text.corpus, text_field=text.text_field, data_dir=text.data_dir)
    trained_on = corpus.split(text.split)
    heldout = corpus.split("heldout") if config.comparison.compare else None
    inputs = Inputs(config, checkpoint, from_scratch, shape, own, specs, tokenizer, trained_on, heldout)
    if config.comparison.compare:
        _check_comparison(inputs)
    return inputs


def decoder_and_encoding(
    config: Config, checkpoint: Checkpoint | None, from_scratch: tuple[Path, FromScratch] | None
) -> tuple[DecoderConfig, rope.RopeSpec]:
    """The decoder as it is trained, and the encoding that its base was trained under.

    Args:
        config: says how it computes, and what it is where the next two are None.
        checkpoint, from_scratch: the base, as in Inputs.
    """
    from resonance_jax import rope

    if checkpoint is not None:
        shape, own = checkpoint.config, checkpoint.rope
    elif from_scratch is not None:
        _, theirs = from_scratch
        shape = theirs.shape()
        own = rope.RopeSpec(head_dim=theirs.head_dim, train_length=theirs.train_length)
    else:
        shape = shape_named(config.shape)
        own = rope.RopeSpec(head_dim=shape.head_dim, train_length=config.train_length)
    return shape.replace(dtype=config.dtype, remat=config.remat, kernel=config.kernel), own


def check_numbers(config: Config) -> None:
    """Raise ValueError for a number that an option cannot be."""
    from resonance_jax.train.config import SEEDS, check_whole

    options = options_of(config)
    named = lambda name: f"--{name.replace('_', '-')}"
    for name, least in AT_LEAST.items():
        check_whole(named(name), options[name], least)
    check_whole("--seed", config.seed, 0, SEEDS)
    for name in ("train_length", "devices"):  # which may be left out
        if options[name] is not None:
            check_whole(named(name), options[name], 1)
    for name in ("lr", "pretrain_lr"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"{named(name)} must be a positive number, got {options[name]}.")
    if not config.keeping.save_seconds >= 0:
        raise ValueError(f"--save-seconds must be at least 0, got {config.keeping.save_seconds}.")


def _check_comparison(inputs: Inputs) -> None:
    """Raise ValueError where --compare could not evaluate what was trained."""
    import jax

    config, trained = inputs.config, inputs.specs[0].train_length
    if jax.process_count() > 1:
        raise ValueError(
            "--compare is for one host; fine-tune each encoding by itself, then compare them with "
            "python -m experiments.perplexity."
        )
    if inputs.tokenizer is None:
        raise ValueError("--compare evaluates text, which needs a tokenizer; give one, or --no-compare.")
    if trained is None:
        raise ValueError("the base states no training length, which --compare needs; give --train-length.")
    if config.length < trained or config.length % trained:
        raise ValueError(
            f"--compare scores multiples of the training length {trained:,}; choose a --length that is one, "
            f"not {config.length:,}."
        )


def find_from_scratch(config: Config) -> tuple[Path, FromScratch] | None:
    """The run folder of experiments.from_scratch to start from and its config.

    None where none is asked for, or the default one has not finished its training.
    """
    from resonance_jax.train.checkpoint import newest_step

    if config.from_scratch is None:
        return None
    default = default_folder("from_scratch", FromScratch())
    folder = default if config.from_scratch == "default" else Path(config.from_scratch)
    theirs = stated_config(folder, FromScratch)
    if theirs is not None and newest_step(folder / "train" / "checkpoints") == theirs.steps:
        return folder, theirs
    if config.from_scratch != "default":
        raise ValueError(f"{folder} holds no experiments.from_scratch that has finished its training.")
    return None


def encoding(config: Config, own: rope.RopeSpec, resonance: bool) -> rope.RopeSpec:
    """The encoding to train under: the base's own, restated under the method and scale that are asked for."""
    from resonance_jax import rope

    name = f"{'resonance-' if resonance else ''}{config.method}"
    return rope.restate(own, name, scale=config.scale, train_length=config.train_length)


def shape_named(name: str) -> DecoderConfig:
    """A shape of model.PRESETS. Raises ValueError when there is none of that name."""
    from resonance_jax import model

    if name not in model.PRESETS:
        known = ", ".join(model.PRESETS)
        raise ValueError(f"there is no shape {name!r}; expected one of {known}, or give a --checkpoint.")
    return model.PRESETS[name]
