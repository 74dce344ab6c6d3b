"""How wrong cosines and sines are, by the way they are computed: rows, and a picture.

exact             rope.cos_sin: phases counted in turns, whole numbers only
float32 product   float32(position) * float32(inv_freq), as most code (transformers too) has it
bfloat16 product  the same with positions, frequencies and product rounded to bfloat16, as in a model that was
                  cast whole; cosine and sine themselves are float32

All without the attention factor, against float64.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int, Integer

from resonance_jax import rope
from resonance_jax.files import AnyPath
from resonance_jax.parallel.mesh import Device
from resonance_jax.report.plots import Style, legend_below, mark, new_figure, save, style

_MARKERS = "osD^vP*X"

WINDOW = 256
"""An error "at" a position is the largest in this many positions below it."""


class ErrorRow(TypedDict):
    """The largest errors of one way to compute phases, in the positions below one position."""

    encoding: str
    way: str
    dtype: str
    backend: str
    device: str
    position: int
    cos_error: float
    sin_error: float


def exact_cos_sin(
    freqs: rope.Frequencies, positions: Integer[np.ndarray, "P"]
) -> tuple[Float64[np.ndarray, "P pairs"], Float64[np.ndarray, "P pairs"]]:
    """The oracle: cosines and sines, attention factor left out, computed on the host.

    A pair with an integer wavelength takes the position modulo it first. The others are p * theta in
    float64, whose rounding moves a cosine by at most p * 2.3e-16: 2.4e-10 at 2^20.
    """
    positions = np.asarray(positions, np.int64)[:, None]
    wavelength = np.asarray(freqs.wavelength, np.int64)
    turns = positions % np.maximum(wavelength, 1) / np.maximum(wavelength, 1)
    angle = np.where(wavelength > 0, 2 * np.pi * turns, positions * freqs.inv_freq64)
    return np.cos(angle), np.sin(angle)


def _exact(
    freqs: rope.Frequencies, inv_freq: Float32[Array, "pairs"], positions: Int[Array, "P"]
) -> tuple[Array, Array]:
    return rope.cos_sin(freqs, positions)


def _product(
    freqs: rope.Frequencies, inv_freq: Float32[Array, "pairs"], positions: Int[Array, "P"]
) -> tuple[Array, Array]:
    angle = positions.astype(jnp.float32)[:, None] * inv_freq[None]
    return jnp.cos(angle), jnp.sin(angle)


def _coarse_product(
    freqs: rope.Frequencies, inv_freq: Float32[Array, "pairs"], positions: Int[Array, "P"]
) -> tuple[Array, Array]:
    # A cast alone may be optimised away under jit: compilers are free to keep more digits than asked for.
    bfloat16 = lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    angle = bfloat16(bfloat16(positions.astype(jnp.float32))[:, None] * bfloat16(inv_freq)[None])
    return jnp.cos(angle), jnp.sin(angle)


WAYS: dict[str, tuple[str, Callable[..., tuple[Array, Array]]]] = {
    "exact": ("float32", _exact),
    "float32 product": ("float32", _product),
    "bfloat16 product": ("bfloat16", _coarse_product),
}
"""Way -> (dtype of its phases, function of the table, its frequencies in float32, and positions)."""


def doubling_positions(last: int) -> list[int]:
    """256, 512, … up to `last`. Raises ValueError unless it is from 256 to 2^30."""
    if not WINDOW <= last <= 2**30:
        raise ValueError(f"the last position must be from {WINDOW} to {2**30:,}, got {last:,}.")
    return [WINDOW << i for i in range((last // WINDOW).bit_length())]


def phase_error_rows(
    tables: Mapping[str, rope.Frequencies],
    positions: Sequence[int],
    devices: Sequence[Device] | None = None,
) -> list[ErrorRow]:
    """The largest error in cos and in sin, over all pairs and the 256 positions below each position.

    Args:
        tables: the encodings, by label.
        positions: where errors are looked at.
        devices: what computes; default: the default device and, where that is another kind, a CPU.
    """
    devices = default_devices() if devices is None else devices
    every = np.concatenate([np.arange(p - WINDOW, p) for p in positions]).astype(np.int32)
    rows: list[ErrorRow] = []
    for device in devices:
        for way, (dtype, function) in WAYS.items():
            compiled = jax.jit(function)
            for label, freqs in tables.items():
                plain = dataclasses.replace(freqs, attention_factor=np.float32(1))
                inv_freq = freqs.inv_freq64.astype(np.float32)
                got = compiled(*jax.device_put((plain, inv_freq, every), device))
                errors = [
                    np.abs(np.asarray(ours, np.float64) - true).reshape(len(positions), -1).max(axis=1)
                    for ours, true in zip(got, exact_cos_sin(freqs, every), strict=True)
                ]
                rows += [
                    ErrorRow(
                        encoding=label,
                        way=way,
                        dtype=dtype,
                        backend=device.platform,
                        device=device.device_kind,
                        position=position,
                        cos_error=float(errors[0][i]),
                        sin_error=float(errors[1][i]),
                    )
                    for i, position in enumerate(positions)
                ]
    return rows


def default_devices() -> list[Device]:
    """The default device and, where that is another kind, a CPU."""
    first = jax.local_devices()[0]
    return [first] if first.platform == "cpu" else [first, *jax.local_devices(backend="cpu")[:1]]


def table(rows: Sequence[ErrorRow], positions: Sequence[int]) -> list[dict[str, str]]:
    """One line per way, backend and encoding; one column per position, the larger error of cos and sin."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        key = (row["way"], row["backend"], row["encoding"])
        line = lines.setdefault(key, dict(zip(("way", "backend", "encoding"), key, strict=True)))
        if row["position"] in positions:
            line[f"{row['position']:,}"] = f"{max(row['cos_error'], row['sin_error']):.1e}"
    return list(lines.values())


def phase_error_plot(rows: Sequence[ErrorRow], path: AnyPath) -> None:
    """Write a PNG: error against position, a panel per way, a line per encoding. rows: of one backend."""
    figure, axes = new_figure(len(WAYS), width=4.4, height=4.4)
    for axis, way in zip(axes, WAYS, strict=True):
        own = [row for row in rows if row["way"] == way]
        labels = list(dict.fromkeys(row["encoding"] for row in own))
        ticks: list[int] = []
        for number, label in enumerate(labels):
            line = [row for row in own if row["encoding"] == label]
            error = [max(row["cos_error"], row["sin_error"]) for row in line]
            # Many lines coincide: each has its own markers, where the others have none.
            marks: Style = {
                "marker": _MARKERS[number % len(_MARKERS)],
                "markevery": (number, len(labels)),
                "markersize": 6,
            }
            axis.plot([row["position"] for row in line], error, label=label, **(style(label) | marks))
            ticks = [row["position"] for row in line][::4]
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_yscale("log")
        axis.set_ylim(1e-8, 4)
        mark(axis, "1e-6", y=1e-6)
        axis.set_title(way, fontsize=10)
        axis.set_xlabel("position")
    axes[0].set_ylabel("largest error in cos or sin")
    legend_below(figure, axes[0])
    figure.suptitle(f"Phase error on {rows[0]['device']}, against float64", fontsize=11)
    save(figure, path)
