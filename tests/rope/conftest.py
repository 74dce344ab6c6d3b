"""A float64 oracle of every rule, written from the formulas alone (scalar loops, nothing of the library),
and the rotary module of transformers."""

import json
import math

import numpy as np
import pytest


def _theta(rotary, base):
    return [1.0 / base ** (2 * j / rotary) for j in range(rotary // 2)]


def _ramp_dimension(spec, rotary):
    """Kept share by dimension index, between floored and ceiled bounds."""

    def bound(turns):
        return rotary * math.log(spec.train_length / (2 * math.pi * turns)) / (2 * math.log(spec.base))

    low, high = bound(spec.beta_fast), bound(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    if low == high:
        high = high + 0.001
    return [1 - min(max((j - low) / (high - low), 0), 1) for j in range(rotary // 2)]


def _ramp_rotations(spec, rotary):
    """Kept share by turns within the training length."""
    shares = []
    for theta in _theta(rotary, spec.base):
        turns = spec.train_length / (2 * math.pi / theta)
        if turns < spec.beta_slow:
            shares.append(0.0)
        elif turns > spec.beta_fast:
            shares.append(1.0)
        else:
            shares.append((turns - spec.beta_slow) / (spec.beta_fast - spec.beta_slow))
    return shares


def _by_parts(spec, rotary, scale):
    ramp = _ramp_dimension if spec.ramp == "dimension" else _ramp_rotations
    kept = [spec.extrapolation_factor * share for share in ramp(spec, rotary)]
    plain = _theta(rotary, spec.base)
    return [t / scale * (1 - g) + t * g for t, g in zip(plain, kept, strict=True)]


def _yarn(spec, rotary, scale):
    def grown(weight):
        return 0.1 * weight * math.log(scale) + 1 if scale > 1 else 1.0

    factor = grown(1)
    if spec.mscale is not None:
        factor = grown(spec.mscale) / grown(spec.mscale_all_dim)
    if spec.attention_factor is not None:
        factor = spec.attention_factor
    return _by_parts(spec, rotary, scale), factor


def _llama3(spec, theta):
    wavelength = 2 * math.pi / theta
    if wavelength < spec.train_length / spec.high_freq_factor:
        return theta
    if wavelength > spec.train_length / spec.low_freq_factor:
        return theta / spec.scale
    blend = (spec.train_length / wavelength - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    return (1 - blend) * theta / spec.scale + blend * theta


def rule(spec, length=None):
    """(list of R/2 radians per position, attention factor) of a RopeSpec, before any rounding."""
    rotary = int(spec.head_dim * spec.partial_rotary_factor)
    if spec.method == "default":
        return _theta(rotary, spec.base), 1.0
    if spec.method == "linear":
        return [t / spec.scale for t in _theta(rotary, spec.base)], 1.0
    if spec.method == "ntk":
        return _theta(rotary, spec.base * spec.scale ** (rotary / (rotary - 2))), 1.0
    if spec.method == "dynamic_ntk":
        n, f = max(length, spec.train_length), spec.dynamic_factor
        base = spec.base * (f * n / spec.train_length - (f - 1)) ** (rotary / (rotary - 2))
        return _theta(rotary, base), 1.0
    if spec.method == "ntk_by_parts":
        return _by_parts(spec, rotary, spec.scale), 1.0
    if spec.method == "yarn":
        return _yarn(spec, rotary, spec.scale)
    if spec.method == "dynamic_yarn":
        return _yarn(spec, rotary, max(1, length / spec.train_length))
    if spec.method == "llama3":
        return [_llama3(spec, t) for t in _theta(rotary, spec.base)], 1.0
    if spec.method == "longrope":
        long = length is not None and length > spec.train_length
        factors = spec.long_factor if long else spec.short_factor
        grown = math.sqrt(1 + math.log(spec.scale) / math.log(spec.train_length)) if spec.scale > 1 else 1.0
        attention = grown if spec.attention_factor is None else spec.attention_factor
        return [t / f for t, f in zip(_theta(rotary, spec.base), factors, strict=True)], attention
    assert spec.method == "proportional"
    turning = int(spec.partial_rotary_factor * spec.head_dim // 2)
    theta = _theta(spec.head_dim, spec.base)
    return [t / spec.scale if j < turning else 0.0 for j, t in enumerate(theta)], 1.0


def angles(theta, positions, resonance):
    """f64[P, R/2] radians, reduced by the integer wavelength where there is one."""
    theta, positions = np.asarray(theta, np.float64), np.asarray(positions, np.int64)[:, None]
    if not resonance:
        return positions * theta
    with np.errstate(divide="ignore"):
        wavelength = np.where(theta > 0, np.round(2 * math.pi / theta), 0)
    whole = np.maximum(wavelength, 1).astype(np.int64)
    return np.where(wavelength > 0, 2 * math.pi * (np.fmod(positions, whole) / whole), 0.0)


def stretched(rotary, most):
    """A plausible longrope list: from 1 up to `most`."""
    return tuple(1 + (most - 1) * j / max(rotary // 2 - 1, 1) for j in range(rotary // 2))


def one_of_each(head_dim, base, train_length=4096, scale=8.0):
    """Keyword settings of one RopeSpec per method, options off their defaults where it has some."""
    shared = {"head_dim": head_dim, "base": base, "train_length": train_length}
    scaled = {**shared, "scale": scale}
    lists = {"short_factor": stretched(head_dim, 1.2), "long_factor": stretched(head_dim, 15.0)}
    return [
        {"method": "default", **shared},
        {"method": "linear", **scaled},
        {"method": "ntk", **scaled},
        {"method": "dynamic_ntk", **shared, "dynamic_factor": 2.0},
        {"method": "ntk_by_parts", **scaled, "truncate": False},
        {"method": "yarn", **scaled},
        {"method": "dynamic_yarn", **shared, "ramp": "rotations"},
        {"method": "llama3", **scaled},
        {"method": "longrope", **scaled, **lists},
        {"method": "proportional", **scaled, "partial_rotary_factor": 0.5},
    ]


class Oracle:
    rule = staticmethod(rule)
    angles = staticmethod(angles)
    one_of_each = staticmethod(one_of_each)
    stretched = staticmethod(stretched)


@pytest.fixture(scope="session")
def oracle():
    return Oracle


@pytest.fixture(scope="session")
def llama_shape():
    """Config keys of a small LLaMA with heads of 128."""
    return {"hidden_size": 512, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 32}


@pytest.fixture(scope="session")
def rotary_module(llama_shape):
    """config keys -> the rotary module that unmodified transformers makes of them."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def make(config):
        return LlamaRotaryEmbedding(LlamaConfig(**{**llama_shape, **json.loads(json.dumps(config))}))

    return make
