"""A prediction of what a training step takes: bytes per device, FLOPs, and an estimate of its time.

It needs no machine: nothing is allocated or compiled, shapes and shardings are enough. Memory that lasts from
step to step (parameters, moments, gradients, residual stream) is counted exactly. What one layer takes while
its gradient is computed is estimated from the arrays [B, T, F], [B, T, D] and the heads that XLA keeps at the
same time; that is right to about a tenth.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import PyTree

from resonance_jax.model import lora as adapters
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder_layer import RECOMPUTED
from resonance_jax.model.loss import TILE
from resonance_jax.model.parameters import GATED, declare
from resonance_jax.parallel import memory
from resonance_jax.parallel.mesh import AXES
from resonance_jax.train import flops
from resonance_jax.train.batches import micro_rows
from resonance_jax.train.config import TrainConfig
from resonance_jax.train.run_program import RunProgram

GIB = 2**30
CHIPS = {
    "v4": ("TPU v4", 32 * GIB),
    "v5e": ("TPU v5e", 16 * GIB),
    "v5p": ("TPU v5p", 95 * GIB),
    "v6e": ("TPU v6e", 32 * GIB),
    "a100-40": ("NVIDIA A100", 40 * GIB),
    "a100-80": ("NVIDIA A100", 80 * GIB),
    "h100": ("NVIDIA H100", 80 * GIB),
    "h200": ("NVIDIA H200", 141 * 10**9),
    "t4": ("NVIDIA T4", 16 * GIB),
    "l4": ("NVIDIA L4", 24 * GIB),
}
"""Name -> (its device_kind in flops.PEAKS, bytes of memory)."""

USABLE = 0.92
"""Share of a chip's memory that a program may fill."""
EFFICIENCY = 0.5
"""Share of the dense peak that the estimated time supposes."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The prediction for one step.

    Attributes:
        title: what was planned, for people.
        bytes: on each device, by what they hold.
        flops: of a step over all devices, recomputation included.
        seconds: an estimate of a step's time; None where the chip's peak is not known.
        capacity: usable bytes on a device; None where that is not known.
    """

    title: str
    bytes: dict[str, int]
    flops: float
    seconds: float | None
    capacity: int | None

    @property
    def total(self) -> int:
        """Bytes on a device at a step's worst moment: what lasts, and the larger of two that pass."""
        lasting = sum(n for name, n in self.bytes.items() if name not in PASSING)
        return lasting + max(self.bytes[name] for name in PASSING)

    @property
    def fits(self) -> bool | None:
        return None if self.capacity is None else self.total <= self.capacity

    @property
    def verdict(self) -> str:
        room = "" if self.capacity is None else f" of {memory.readable(self.capacity)} that can be used"
        word = {True: "It fits", False: "It does NOT fit", None: "Whether that fits is not known here"}
        time = (
            ""
            if self.seconds is None
            else f"; about {self.seconds:,.2f} s a step (an estimate: {EFFICIENCY:.0%} of the dense peak)"
        )
        return (
            f"{word[self.fits]}: {memory.readable(self.total)} a device{room}; "
            f"{self.flops / 1e12:,.1f} TFLOP a step over all devices{time}."
        )

    def rows(self) -> list[dict[str, str]]:
        """For report.print_table: what a device holds."""
        note = {True: " (one at a time)", False: ""}
        return [
            {"a device holds": name + note[name in PASSING], "bytes": memory.readable(n)}
            for name, n in self.bytes.items()
        ]


@dataclasses.dataclass(frozen=True)
class State:
    """Bytes on each device that last from step to step.

    Attributes:
        parameters, moments: of what is trained.
        frozen: of the weights that are not trained.
        narrowed: of the same, in the dtype of the activations.
    """

    parameters: int
    moments: int
    frozen: int
    narrowed: int


def state(config: DecoderConfig, mesh: dict[str, int], lora: adapters.LoraConfig | None = None) -> State:
    """What lasts from step to step, whatever the micro-batches and recomputation. Arguments as plan's."""
    abstract = AbstractMesh(tuple(mesh[name] for name in AXES), AXES, axis_types=(AxisType.Auto,) * 4)
    program = RunProgram(config, TrainConfig(1), abstract, lora)
    frozen, item = bytes_of(program.frozen_like), jnp.dtype(config.dtype).itemsize
    return State(
        bytes_of(program.like.params),
        bytes_of(program.like.opt_state),
        frozen,
        frozen * item // jnp.dtype(program.dtype).itemsize,
    )


PASSING = ("one layer's gradient", "loss chunk")
"""Parts that are never held at the same time."""


def plan(
    config: DecoderConfig,
    mesh: dict[str, int],
    batch_size: int,
    length: int,
    micro: int = 0,
    lora: adapters.LoraConfig | None = None,
    chip: tuple[str, int | None] = ("cpu", None),
    lasting: State | None = None,
) -> Plan:
    """Predict one training step.

    Args:
        config: the decoder; its dtype and remat matter.
        mesh: the size of each of parallel.mesh.AXES.
        batch_size, length: rows of a step over all devices, and positions in each.
        micro: rows of a micro-batch over the whole mesh; 0 takes batches.micro_rows.
        lora: adapters, if they are what is trained.
        chip: (device_kind, bytes of memory), as the function `chip` gives it.
        lasting: what `state` gives for this decoder, mesh and lora; None: it is computed.
    """
    kind, capacity = chip
    # Elsewhere XLA keeps the new gradients beside the sums, all the MLP's arrays, and frozen weights as cast.
    tpu = kind.startswith("TPU")
    devices = math.prod(mesh.values())
    shards = mesh["data"] * mesh["fsdp"]
    micro = micro or micro_rows(batch_size, length, shards)
    held = state(config, mesh, lora) if lasting is None else lasting
    c, item = config, jnp.dtype(config.dtype).itemsize
    tokens = max(1, micro // shards) * length // mesh["sequence"]
    stream = tokens * c.d_model * item
    layer = _one_layer(config, tokens, item, mesh, sparing=tpu and lora is None)
    if lora is not None and lora.dropout:
        layer += _dropped(config, tokens, item, mesh["tensor"])
    accumulated = 2 if micro < batch_size and not tpu else 1
    cast = held.narrowed if accumulated == 2 else 0
    # Where time or heads are cut the TPU's compiler keeps weights a second time, in another order, as cast.
    if tpu and (mesh["sequence"] > 1 or mesh["tensor"] > 1):
        cast += (held.parameters + held.frozen) * item // 4
    work = batch_size * length * (flops.per_token(config, length, lora) + _recomputed(config, length, lora))
    peak = flops.peak(kind)
    return Plan(
        title=f"{devices} x {kind}, {batch_size} rows of {length:,}, {micro} at a time, remat {c.remat}",
        bytes={
            "parameters": held.parameters + held.frozen,
            "moments": held.moments,
            **({"weights, cast": cast} if cast else {}),
            "gradients": accumulated * held.parameters,
            "residual stream": c.n_layers * _kept(config, tokens, item, mesh["tensor"]),
            PASSING[0]: layer,
            PASSING[1]: 2 * 4 * TILE + 3 * stream + _head(config, item, mesh),
        },
        flops=work,
        seconds=None if peak is None else work / (devices * peak * EFFICIENCY),
        capacity=None if capacity is None else int(USABLE * capacity),
    )


def _one_layer(c: DecoderConfig, tokens: int, item: int, mesh: dict[str, int], sparing: bool) -> int:
    """Bytes alive while one layer's gradient is computed, its recomputed activations included. sparing: the
    MLP's arrays are used up one after the other (model.gated_mlp)."""
    tensor, gathered = mesh["tensor"], mesh["sequence"]
    queries, keys = c.n_heads * c.head_dim // tensor, c.n_kv_heads * c.head_dim // tensor
    wide = 4 if sparing and c.remat in RECOMPUTED and c.mlp in GATED else 6
    activations = wide * c.d_ff // tensor + 4 * c.d_model + 5 * queries + 4 * gathered * keys
    weights = 0
    if mesh["fsdp"] > 1:  # the layer's weights whole, and their gradient before it is cut
        heads = 2 * c.n_heads + 2 * c.n_kv_heads
        weights = 2 * item * c.d_model * (heads * c.head_dim + 3 * c.d_ff) // tensor
    return tokens * activations * item + weights


def _head(c: DecoderConfig, item: int, mesh: dict[str, int]) -> int:
    """Bytes of the head on a device, gathered, and of its gradient before it is added up over the devices."""
    return c.d_model * c.vocab_size // mesh["tensor"] * (4 + (item if mesh["fsdp"] > 1 else 0))


def _dropped(c: DecoderConfig, tokens: int, item: int, tensor: int) -> int:
    """Bytes of the inputs of one layer's adapters, of which dropout makes a copy for each adapter."""
    inputs = {path.removeprefix("layers/"): p for path, p in adapters.flatten(declare(c)).items()}
    wide = sum(
        inputs[name].shape[1] // (tensor if name in ("o", "down") else 1)
        for name in adapters.LINEAR
        if name in inputs
    )
    return tokens * wide * item


def _recomputed(c: DecoderConfig, length: int, lora: adapters.LoraConfig | None) -> float:
    """FLOPs per token that the gradient computes a second time, as in the forward pass."""
    attention, rest = flops.attention_per_token(c, length) / 3, flops.forward_per_token(c, lora)
    return {"none": 0, "dots": attention, "attention": rest, "full": attention + rest}[c.remat]


def _kept(c: DecoderConfig, tokens: int, item: int, tensor: int) -> int:
    """Bytes that a layer keeps for its gradient: its input, and what it does not recompute."""
    queries, keys = c.n_heads * c.head_dim // tensor, c.n_kv_heads * c.head_dim // tensor
    if c.remat == "full":
        return tokens * c.d_model * item
    if c.remat == "attention":  # its output and a log-sum-exp a head
        return tokens * ((c.d_model + queries) * item + 4 * c.n_heads // tensor)
    wide = {"dots": 2, "none": 5}[c.remat] * c.d_ff // tensor
    narrow = {"dots": 2, "none": 7}[c.remat] * c.d_model
    # Without recomputation the two norms keep what they computed in float32.
    norms = 2 * 4 * c.d_model if c.remat == "none" and item < 4 else 0
    return tokens * (
        (wide + narrow + {"dots": 1, "none": 2}[c.remat] * (queries + keys) + keys) * item + norms
    )


def bytes_of(like: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Bytes per device of a pytree of ShapeDtypeStructs; one without a sharding lies whole on each."""
    total = 0
    for x in jax.tree.leaves(like):
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        total += math.prod(shape) * x.dtype.itemsize
    return total


def chip(name: str) -> tuple[str, int | None]:
    """(device_kind, bytes of memory or None) of a chip by its short name in CHIPS, or by jax's device_kind.

    Raises ValueError for a name that is neither.
    """
    if name in CHIPS:
        return CHIPS[name]
    if flops.peak(name) is not None or name == jax.devices()[0].device_kind:
        return name, memory.free(jax.local_devices())
    raise ValueError(f"there is no chip {name!r}; expected one of {', '.join(CHIPS)}.")
