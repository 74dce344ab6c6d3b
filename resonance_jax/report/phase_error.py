"""How wrong cosines and sines are, by the way they are computed: rows, and a picture.

exact             rope.cos_sin: phases counted in turns, whole numbers only
float32 product   float32(position) * float32(inv_freq), as most code (transformers too) has it
bfloat16 product  the same with positions, frequencies and product rounded to bfloat16, as in a model that was
                  cast whole; cosine and sine themselves are float32

All without the attention factor, against float64.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resonance_jax import rope
from resonance_jax.report.plots import _mark, new_figure, save, style

_MARKERS = "osD^vP*X"

WINDOW = 256
"""Positions looked at below each position named."""


def exact_cos_sin(freqs: rope.Frequencies, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: float64[P, R/2] each, attention factor left out, on the host.

    A pair with an integer wavelength takes the position modulo it first. The others are p * theta in
    float64, whose rounding moves a cosine by at most p * 2.3e-16: 2.4e-10 at 2^20.
    """
    positions = np.asarray(positions, np.int64)[:, None]
    wavelength = np.asarray(freqs.wavelength, np.int64)
    turns = positions % np.maximum(wavelength, 1) / np.maximum(wavelength, 1)
    angle = np.where(wavelength > 0, 2 * np.pi * turns, positions * freqs.inv_freq64)
    return np.cos(angle), np.sin(angle)


def _product(freqs, inv_freq: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    angle = positions.astype(jnp.float32)[:, None] * inv_freq[None]
    return jnp.cos(angle), jnp.sin(angle)


def _coarse_product(freqs, inv_freq: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A cast alone may be optimised away under jit: compilers are free to keep more digits than asked for.
    bfloat16 = lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    angle = bfloat16(bfloat16(positions.astype(jnp.float32))[:, None] * bfloat16(inv_freq)[None])
    return jnp.cos(angle), jnp.sin(angle)


WAYS = {
    "exact": ("float32", lambda freqs, inv_freq, positions: rope.cos_sin(freqs, positions)),
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
    devices: Sequence[jax.Device] | None = None,
) -> list[dict]:
    """The largest error in cos and in sin, over all pairs and the 256 positions below each position.

    tables: {label: Frequencies}. devices: one row each for the backends looked at (default: the default
    device and, where that is another, the CPU).
    """
    devices = default_devices() if devices is None else devices
    every = np.concatenate([np.arange(p - WINDOW, p) for p in positions]).astype(np.int32)
    rows = []
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
                    {
                        "encoding": label,
                        "way": way,
                        "dtype": dtype,
                        "backend": device.platform,
                        "device": device.device_kind,
                        "position": position,
                        "cos_error": float(errors[0][i]),
                        "sin_error": float(errors[1][i]),
                    }
                    for i, position in enumerate(positions)
                ]
    return rows


def default_devices() -> list[jax.Device]:
    """The default device and, where that is another kind, a CPU."""
    first = jax.local_devices()[0]
    return [first] if first.platform == "cpu" else [first, *jax.local_devices(backend="cpu")[:1]]


def table(rows: Sequence[dict], positions: Sequence[int]) -> list[dict]:
    """One line a way, backend and encoding; one column a position, the larger error of cos and sin."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        key = (row["way"], row["backend"], row["encoding"])
        line = lines.setdefault(key, dict(zip(("way", "backend", "encoding"), key, strict=True)))
        if row["position"] in positions:
            line[f"{row['position']:,}"] = f"{max(row['cos_error'], row['sin_error']):.1e}"
    return list(lines.values())


def phase_error_plot(rows: Sequence[dict], path: str | Path) -> None:
    """Error against position, a panel a way, a line an encoding; rows of one backend. Writes a PNG."""
    figure, axes = new_figure(len(WAYS), width=4.4, height=4.4)
    for axis, way in zip(axes, WAYS, strict=True):
        own = [row for row in rows if row["way"] == way]
        labels = list(dict.fromkeys(row["encoding"] for row in own))
        for number, label in enumerate(labels):
            line = [row for row in own if row["encoding"] == label]
            error = [max(row["cos_error"], row["sin_error"]) for row in line]
            # Many lines coincide: each has its own markers, where the others have none.
            marks = {"marker": _MARKERS[number % len(_MARKERS)], "markevery": (number, len(labels))}
            look = style(label) | marks | {"markersize": 6}
            axis.plot([row["position"] for row in line], error, label=label, **look)
        axis.set_xscale("log", base=2)
        ticks = [row["position"] for row in line][::4]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_yscale("log")
        axis.set_ylim(1e-8, 4)
        _mark(axis, "1e-6", y=1e-6)
        axis.set_title(way, fontsize=10)
        axis.set_xlabel("position")
    axes[0].set_ylabel("largest error in cos or sin")
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=4, fontsize=8, frameon=False, handlelength=3.6)
    figure.suptitle(f"Phase error on {rows[0]['device']}, against float64", fontsize=11)
    save(figure, path)
