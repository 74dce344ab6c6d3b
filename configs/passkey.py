"""Passkey retrieval: a number hidden at some depth of a long text, looked for under every encoding.

    python -m experiments.passkey cpu           2 CPU cores: trains small models of bytes on passkey texts of
                                                up to 512 tokens, and looks for keys in texts of up to 4,096
    python -m experiments.passkey checkpoint --checkpoints PATH
                                                any checkpoint, the original wording

Time:      cpu: about 10 minutes on 2 cores. checkpoint: a prompt's prefill and ten tokens per trial
Expected:  cpu: at 512 the models find some 70 % of the keys under the table they were trained with, beyond
           it what each encoding keeps of that; results/passkey_cpu has a real run. checkpoint: YaRN's table 5
           has 96 to 99 % for its own models up to their windows; it was not run here, where those weights are
           not available.
"""

import dataclasses
from typing import ClassVar

from resonance_jax.settings.precision import Precision


@dataclasses.dataclass(frozen=True)
class Config:
    """Passkey retrieval by depth and length, a grid per encoding; resumable cell by cell."""

    ADDED: ClassVar[tuple[str, ...]] = ("precision", "tensor")

    checkpoints: tuple[str, ...] = ()
    """Each PATH or NAME=PATH: a Hugging Face directory, a GGUF file, or the name of a packaged checkpoint
    (smollm2-135m); none: small models are trained here."""
    template: str = "landmark"
    """The wording: "landmark", the original, or "short-bytes", our own for the models trained here."""
    encodings: tuple[str, ...] = ("own",)
    """"own" is what a checkpoint's config states; or methods, each with an optional "resonance-" in front."""
    lengths: tuple[int, ...] = (2048, 4096, 8192)
    """Prompt lengths in tokens."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """How deep the key is hidden: shares of the garbage text that precede it."""
    trials: int = 10
    """Keys per length and depth (and seed)."""
    scale: float | None = None
    """The scale (the paper's s) of static methods; default: the checkpoint's own for its own method,
    otherwise what takes L to the longest of --lengths."""
    train_length: int | None = None
    """Positions of the training (the paper's L); default: what a checkpoint's config states."""
    tokenizer: str | None = None
    """"bytes", a tokenizer.json, a tokenizer.model, or a directory; default: each checkpoint's own."""
    bos: str = "auto"
    """What stands in front of every prompt: auto (what the tokenizer really puts there), none, or a token's
    id."""
    batch_size: int = 1
    """Prompts at once."""
    dtype: str = "auto"
    """Of weights and activations of a checkpoint; auto: bfloat16 where this device multiplies it faster, else
    float32."""
    precision: Precision = "auto"
    """How exactly a TPU or GPU multiplies float32 numbers, by JAX's names; auto: float32 where --dtype is."""
    tensor: int = 0
    """0: one device. Otherwise all devices, of all processes if there are several: so many of them cut heads,
    MLP and vocabulary (-1: all), the others share the prompts of a batch."""
    seed: int = 0
    """Seed of the keys."""
    seeds: tuple[int, ...] = ()
    """Seeds of the models trained here: per seed one under RoPE and one under Resonance RoPE, where
    --encodings need it."""
    d_model: int = 128
    """Width of the models trained here."""
    n_layers: int = 2
    """Layers of the models trained here."""
    head_dim: int = 32
    """Size of a head of the models trained here."""
    stages: tuple[int, ...] = (64, 128, 256, 512)
    """Lengths of the training texts, one stage each; the last one is L."""
    stage_steps: tuple[int, ...] = (1500, 400, 400, 600)
    """Training steps of each stage."""
    stage_rows: tuple[int, ...] = (16, 16, 8, 8)
    """Texts per step, in each stage."""
    questions: int = 3
    """How often a text asks for its key in the stages before the last, which asks once."""
    lr: float = 2e-3
    """Peak learning rate of the training."""
    finetune_steps: int = 100
    """Steps of fine-tuning under the YaRN encodings, at L; 0 leaves those rows out."""
    finetune_lr: float = 5e-4
    """Peak learning rate of that fine-tuning."""
    run_dir: str | None = None
    """Where results go; default runs/passkey-<hash of this config>."""


PRESETS: dict[str, tuple[str, Config]] = {
    "checkpoint": ("any checkpoint, the original wording", Config()),
    "cpu": (
        "about 10 minutes on 2 cores: small models trained at 512 bytes, grids to 4,096",
        Config(
            template="short-bytes",
            encodings=(
                "rope",
                "ntk",
                "dynamic-ntk",
                "yarn",
                "resonance-rope",
                "resonance-ntk",
                "resonance-dynamic-ntk",
                "resonance-yarn",
            ),
            lengths=(512, 1024, 2048, 4096),
            scale=8.0,
            trials=5,
            train_length=512,
            tokenizer="bytes",
            batch_size=4,
            seeds=(0, 1),
        ),
    ),
}
