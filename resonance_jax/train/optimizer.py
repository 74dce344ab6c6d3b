"""AdamW and its schedules, made by optax from an OptimizerConfig."""

import math
from collections.abc import Callable, Hashable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num, PyTree

from resonance_jax.settings.optimizer import OptimizerConfig

Number = Num[Array, ""] | float
"""A number, on a device or not."""
ByStep = Callable[[Number], Num[Array, ""]]
"""A number that changes during a run: a function of the optimizer step, counted from 0."""


def _anneal(start: float, end: float, share: Number) -> Num[Array, ""]:
    return end + (start - end) / 2 * (1 + jnp.cos(math.pi * share))


def _onecycle(start: float, peak: float, end: float, peak_step: float, last_step: float) -> ByStep:
    """PyTorch's two cosine phases: start -> peak until `peak_step`, then peak -> end at `last_step`."""

    def value(count: Number) -> Num[Array, ""]:
        # A cycle whose peak is its very first step has no way up.
        share = count / peak_step if peak_step > 0 else jnp.ones_like(count, jnp.float32)
        up = _anneal(start, peak, jnp.clip(share, 0, 1))
        down = _anneal(peak, end, jnp.clip((count - peak_step) / (last_step - peak_step), 0, 1))
        return jnp.where(count <= peak_step, up, down)

    return value


def schedules(config: OptimizerConfig, steps: int) -> tuple[ByStep, ByStep]:
    """(learning rate, beta1), each a function of the step, for a run of `steps` steps."""
    c, warmup = config, round(config.warmup * steps)
    if c.schedule == "onecycle":
        peak_step = float(c.warmup * steps) - 1
        return (
            _onecycle(c.lr / 25, c.lr, c.lr / 25 / 1e4, peak_step, steps - 1),
            _onecycle(0.95, 0.85, 0.95, peak_step, steps - 1),
        )
    # Hugging Face's linear schedule: the very first step has learning rate 0 when there is a warmup.
    ramp = lambda i: i / max(warmup, 1)
    after = lambda i: (i - warmup) / max(steps - warmup, 1)
    decay = {
        "linear": lambda i: 1 - after(i),
        "cosine": lambda i: _anneal(1.0, 0.1, after(i)),
        "constant": lambda i: jnp.ones_like(i, jnp.float32),
    }[c.schedule]
    return lambda i: c.lr * jnp.where(i < warmup, ramp(i), decay(i)), lambda i: jnp.full_like(
        i, c.beta1, jnp.float32
    )


def _scale_by_adam(beta1: ByStep, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction; beta1 is a function of the step.

    optax.scale_by_adam takes 1 - beta2**t from float32 powers, 5e-5 off in the first steps of beta2 = 0.999;
    expm1 keeps it exact, as PyTorch's float64 scalars do.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        adam = cast(optax.ScaleByAdamState, state)
        b1, t = beta1(cast(Array, adam.count)), adam.count + 1
        first_bias, second_bias = -jnp.expm1(t * jnp.log(b1)), -jnp.expm1(t * math.log(beta2))
        first = lambda m, g: b1.astype(m.dtype) * m + (1 - b1).astype(m.dtype) * g
        second = lambda n, g: beta2 * n + (1 - beta2) * g * g
        mu, nu = jax.tree.map(first, adam.mu, updates), jax.tree.map(second, adam.nu, updates)

        def direction(m: Float[Array, "*shape"], n: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
            return m / first_bias.astype(m.dtype) / (jnp.sqrt(n / second_bias.astype(n.dtype)) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(t, mu, nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optax transformation for a run of `steps` steps.

    Its init raises ValueError, naming the paths that there are, when a path of config.freeze is none of them.
    """
    lr, beta1 = schedules(config, steps)
    tx = optax.chain(
        _scale_by_adam(beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(cast(optax.Schedule, lr)),
    )
    if config.clip is not None:
        tx = optax.chain(optax.clip_by_global_norm(config.clip), tx)
    if not config.freeze:
        return tx
    parts: dict[Hashable, optax.GradientTransformation] = {"trained": tx, "frozen": optax.set_to_zero()}
    return optax.partition(parts, lambda params: _labels(params, config.freeze))


def _labels(params: PyTree[Float[Array, "..."]], freeze: tuple[str, ...]) -> PyTree[str]:
    """ "frozen" or "trained" for every parameter."""
    within = lambda path, prefix: path == prefix or path.startswith(prefix + "/")
    name = lambda path: "/".join(str(entry.key) for entry in path)
    paths = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for prefix in freeze:
        if not any(within(path, prefix) for path in paths):
            raise ValueError(f"freeze names {prefix!r}, which is no parameter; there are {', '.join(paths)}.")

    def label(path: tuple, _: Float[Array, "..."]) -> str:
        return "frozen" if any(within(name(path), prefix) for prefix in freeze) else "trained"

    return jax.tree_util.tree_map_with_path(label, params)
