"""Numbers that PyTorch computed once and that are kept: the oracle of `--against goldens` and of the tests.

They come from the classes that the paper released, and from transformers.

Each entry is restated as the RopeSpec that its class really computes, which is not always what its name
promises: PosGen's YaRN takes the extended length + 1 as L; tables of the release never shrink after a long
call, those of transformers do below the training length; a fine-tuned dynamic YaRN falls back to
s = n / max_position_embeddings past its maximum.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Integer

from resonance_jax import rope
from resonance_jax.interop.hf_weights import tensors
from resonance_jax.interop.parity_result import FLOAT32, Parity, Tap
from resonance_jax.model.config import DecoderConfig
from resonance_jax.model.decoder import Params, forward, head, hidden_states
from resonance_jax.model.loss import linear_cross_entropy
from resonance_jax.model.parameters import map_declared

LLAMA = DecoderConfig(
    vocab_size=97, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, norm_eps=1e-6
)
"""The decoder of llama_ref.npz and llama_hf.npz."""


def _spec(method: str = "default", **options: object) -> rope.RopeSpec:
    """An encoding for LLAMA's heads."""
    return rope.RopeSpec(method=method, head_dim=LLAMA.head_dim, **options)


_YARN = dict(scale=4.0, train_length=32)
REFERENCE = {
    "none": _spec(),
    "none_res": _spec(resonance=True),
    "linear": _spec("linear", scale=4.0),
    "linear_res": _spec("linear", scale=4.0),  # the reference ignores its flag: bitwise `linear`
    "ntk": _spec("ntk", scale=4.0),
    "ntk_res": _spec("ntk", scale=4.0),  # likewise
    "dynamic_origmax": _spec("dynamic_ntk", train_length=32, dynamic_factor=4.0),
    "dynamic_extmax": _spec("dynamic_ntk", train_length=128, dynamic_factor=4.0),
    "dynamic_res": _spec("dynamic_ntk", train_length=32, dynamic_factor=4.0),  # likewise
    "yarn": _spec("yarn", **_YARN),
    "yarn_res": _spec("yarn", resonance=True, **_YARN),
    "resonance_yarn_type": _spec("yarn", resonance=True, **_YARN),
    "dynamic_yarn": _spec("dynamic_yarn", train_length=32),
}
"""Entry of llama_ref.npz -> the rule that it computed."""

_LONG, _SHORT = [1 + i * 0.875 for i in range(1, 9)], [1 + i * 0.1 for i in range(8)]
HUGGING_FACE = {
    "default": _spec(),
    "linear": _spec("linear", scale=4.0),
    "dynamic": _spec("dynamic_ntk", train_length=32, dynamic_factor=4.0),
    "yarn": _spec("yarn", **_YARN),
    "llama3": _spec("llama3", scale=4.0, train_length=32),
    "longrope": _spec("longrope", scale=4.0, train_length=32, short_factor=_SHORT, long_factor=_LONG),
    "proportional": _spec("proportional", scale=4.0, partial_rotary_factor=0.5),
}
"""Entry of llama_hf.npz -> the same."""

LEFT_OUT = {
    "part_ntk": "the older by-parts rule with two ramps and an NTK base, which no paper defines",
    "dynamic_part_ntk": "the same rule by the length in use",
    "bf16.res_rope": "a defect of the release: plain Resonance RoPE computes its angles in bfloat16",
}
"""Method or entry -> why it is not compared."""


Entry = dict[str, Any]
"""One entry of manifest.json: its "id", "file" and "kind", the names of its "arrays", and what made them."""


class Goldens:
    """The kept numbers. folder: with manifest.json and *.npz (tests/goldens in a clone).

    Raises ValueError for another folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            raise ValueError(f"{self.folder} has no manifest.json; expected a clone's tests/goldens.")
        self.entries = json.loads(manifest.read_text(encoding="utf-8"))["entries"]
        self._files: dict[str, Any] = {}

    def arrays(self, entry: Entry) -> dict[str, np.ndarray]:
        """The numbers of an entry, by name."""
        name = entry["file"]
        if name not in self._files:
            self._files[name] = np.load(self.folder / name)
        return {array: self._files[name][f"{entry['id']}/{array}"] for array in entry["arrays"]}

    def find(self, file: str, id: str) -> tuple[Entry, dict[str, np.ndarray]]:
        """An entry of a file by its id, and its numbers."""
        entry = next(e for e in self.entries if e["file"] == file and e["id"] == id)
        return entry, self.arrays(entry)

    def of_kind(self, kind: str) -> list[Entry]:
        """All entries of a kind, such as "rope_table"."""
        return [e for e in self.entries if e["kind"] == kind]


def reason_left_out(entry: Entry) -> str | None:
    """Why an entry is not compared, None for one that is."""
    return LEFT_OUT.get(entry.get("method"), LEFT_OUT.get(entry["id"]))


def stated(entry: Entry) -> tuple[rope.RopeSpec, int]:
    """(RopeSpec, length) of what a class of the release computes after its sequence of calls."""
    ctor, calls, method = entry["ctor"], entry["calls"], entry["method"]
    longest, most = max(calls), ctor["max_position_embeddings"]
    scale = ctor.get("scaling_factor", ctor.get("scale", ctor.get("alpha")))
    options = {"head_dim": ctor["dim"], "base": ctor["base"], "resonance": entry["resonance"]}
    if method == "none":
        return rope.RopeSpec(**options), longest
    if method in ("linear", "ntk"):
        return rope.RopeSpec(method=method, scale=scale, **options), longest
    if method == "dynamic_linear":
        return rope.RopeSpec(method="linear", scale=longest / most, **options), longest
    if method == "dynamic_ntk":
        factor = ctor.get("scaling_factor", ctor.get("ntk"))
        return rope.RopeSpec(method=method, train_length=most, dynamic_factor=factor, **options), longest
    if method not in ("yarn", "dynamic_yarn"):
        raise ValueError(f"{entry['id']}: no rule of ours restates {method!r}.")
    # PosGen's classes have no original length: they take the longest one for it.
    options["train_length"] = ctor.get("original_max_position_embeddings", most)
    if method == "dynamic_yarn" and not (ctor.get("finetuned") and longest > most):
        return rope.RopeSpec(method=method, **options), longest
    if entry["ref_class"].startswith("Mistral"):
        options |= {"beta_fast": 128, "beta_slow": 2, "attention_factor": 0.07 * math.log(scale) + 1}
    elif "beta_fast" in ctor:
        options["beta_fast"] = ctor["beta_fast"]
    scale = longest / most if method == "dynamic_yarn" else scale
    return rope.RopeSpec(method="yarn", scale=scale, **options), longest


def tolerance(
    positions: Integer[np.ndarray, "P"], resonance: bool = False, scale: float = 1.0
) -> Float64[np.ndarray, "P 1"]:
    """How much float32 arithmetic may differ at each position (measured, JAX against PyTorch).

    Args:
        positions: the positions.
        resonance: whether wavelengths are whole.
        scale: what positions are divided by before they are rotated.
    """
    bounds = np.array([3e-5, 5e-4, 2e-3, 5e-3])
    plain = bounds[np.searchsorted([257, 4096, 16_384, 65_535], positions / scale)]
    return np.full((len(positions), 1), 3e-6) if resonance else plain[:, None]


def llama_params(goldens: Goldens) -> Params:
    """The weights of LLAMA as our params pytree, float32."""
    weights = goldens.find("llama_ref.npz", "weights")[1]
    found: dict[str, Any] = {}
    for name, (path, layer, _) in tensors(LLAMA).items():
        x = weights[name].astype(np.float32)
        found.setdefault(path, {})[layer] = (
            x.T if name.endswith("proj.weight") or name == "lm_head.weight" else x
        )

    def leaf(path: str, _: object) -> Array:
        parts = found[path]
        stacked = parts[None] if None in parts else np.stack([parts[i] for i in range(LLAMA.n_layers)])
        return jax.device_put(stacked)

    return map_declared(leaf, LLAMA)


def against_goldens(folder: str | Path) -> Parity:
    """Our tables and our decoder against every kept LLaMA and RoPE number: needs neither torch nor network.

    float32, the tolerances measured for it. Raises ValueError for a folder without the numbers.
    """
    goldens = Goldens(folder)
    with jax.default_matmul_precision("highest"):
        return Parity([*_tables(goldens), *_logits(goldens)], [])


def _tables(goldens: Goldens) -> Iterator[Tap]:
    """Cosines and sines."""
    turn = jax.jit(rope.cos_sin)
    for entry in goldens.of_kind("rope_table"):
        if reason_left_out(entry) or entry["default_dtype"] == "bfloat16":
            continue
        spec, length = stated(entry)
        freqs, arrays = rope.frequencies(spec, length), goldens.arrays(entry)
        positions = arrays["positions"]
        allowed = tolerance(positions, spec.resonance, spec.scale if spec.method == "linear" else 1.0)
        if spec.resonance and (rope.wavelengths(freqs) != arrays["r_wavelengths"]).any():
            allowed = np.maximum(
                allowed, 2e-5
            )  # float32 rounds a few of the longest wavelengths the other way
        padded = np.zeros(257, np.int32)  # one compiled program for every entry of a rotary size
        padded[: len(positions)] = positions
        for name, ours in zip(("cos", "sin"), turn(freqs, padded), strict=True):
            gap = np.abs(np.asarray(ours)[: len(positions)] - arrays[name])
            where = np.unravel_index((gap / allowed).argmax(), gap.shape)
            error, limit = float(gap[where]), float(np.broadcast_to(allowed, gap.shape)[where])
            name = f"{name} of {entry['id']}"
            yield Tap(
                spec.title, length, "float32", "-", name, error, 1.0, limit, bool((gap > allowed).any())
            )


def _logits(goldens: Goldens) -> Iterator[Tap]:
    """Logits and losses of the LLaMA."""
    params, inputs = llama_params(goldens), goldens.find("llama_ref.npz", "inputs")[1]

    @jax.jit
    def run(
        tokens: Int[Array, "B T"], freqs: rope.Frequencies
    ) -> tuple[Float[Array, "B T V"], Float[Array, ""]]:
        x = hidden_states(LLAMA, params, tokens, freqs)
        loss = linear_cross_entropy(x[:, :-1], head(LLAMA, params), tokens[:, 1:]).mean()
        return forward(LLAMA, params, tokens, freqs), loss

    for file, specs in (("llama_ref.npz", REFERENCE), ("llama_hf.npz", HUGGING_FACE)):
        for id, spec in specs.items():
            entry, expected = goldens.find(file, id)
            kept = expected
            if "logits_short" not in expected:  # bitwise equal entries store them once
                kept = goldens.find(file, entry["bit_identical_to"][0])[1]
            for i, (which, rows) in enumerate((("short", slice(None)), ("long", inputs["long_rows"]))):
                tokens = inputs[f"ids_{which}"]
                logits, loss = run(tokens, rope.frequencies(spec, length=tokens.shape[1]))
                pairs = {
                    "logits": (logits[:, rows], kept[f"logits_{which}"]),
                    "loss": (loss, expected["loss"][i]),
                }
                for kind, (ours, theirs) in pairs.items():
                    error = float(np.abs(np.asarray(ours) - theirs).max())
                    size, limit = float(np.sqrt(np.mean(np.square(theirs)))), FLOAT32[kind]
                    here = (spec.title, tokens.shape[1], "float32", "highest", f"{kind} of {id}, {which}")
                    yield Tap(*here, error, size, limit, not error <= limit)
