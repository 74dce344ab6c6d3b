"""PosGen: sequences whose next token is a hash of near tokens and of far ones (Resonance RoPE, section 5).

A sequence starts with n = far + near seed tokens; then x_l = h(x_f ... x_{f+far-1}, x_{l-near} ... x_{l-1}),
and the task says where the far tokens are:

    recursive        f = l - n              the last n tokens
    cot              f = 0                  always the first ones, like a question that is referred back to
    semi_recursive   f = floor((l - n)/2)   they follow at half the pace

(The index that section 5 prints for the last one is negative at l = n; its Figure 2 and the published code
agree on this.) The paper has 17 numbers, far = 1, near = 3 and h = the sum modulo 17.

The modular sum has an exact shortcut through two near tokens: see `shortcut`, and `hash="permuted_sum"` for a
task without it.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Int32

TASKS = ("recursive", "cot", "semi_recursive")
PROTOCOLS = ("release", "paper", "corrected")
HASHES = ("sum", "permuted_sum")
SPLITS = ("train", "val", "test")
SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[EOS]")
IGNORED = -100


class Split(NamedTuple):
    """One split as a model is trained on it or scored.

    Attributes:
        tokens: the sequences, each with [EOS] first.
        labels: the same tokens, not shifted, with -100 in the place of [EOS] and the seed tokens.
    """

    tokens: Int32[Array, "B T+1"]
    labels: Int32[Array, "B T+1"]


class Ceiling(NamedTuple):
    """The accuracy (0 ... 1) that the shortcut reaches.

    Attributes:
        id: in distribution, over the tokens n ... train_length - 1.
        ood: out of distribution, over the tokens train_length ... length - 1.
    """

    id: float
    ood: float


def sequences(
    task: str,
    seeds: Int[Array | np.ndarray, "*B order"],
    length: int,
    modulus: int = 17,
    far: int = 1,
    near: int = 3,
    hash: str = "sum",
) -> Int32[Array, "*B length"]:
    """The sequences that grow from seed tokens, generated on the device; works under jit and vmap.

    Args:
        task: one of TASKS: where the far tokens are.
        seeds: the first far + near (the order) tokens of each sequence.
        length: tokens per sequence, seeds included.
        modulus: the tokens are the numbers 0 ... modulus - 1.
        far: how many far tokens a token depends on.
        near: how many of the tokens right before it.
        hash: "sum", (x_a + x_b + ...) mod modulus; or "permuted_sum", (P_0[x_a] + P_1[x_b] + ...) mod modulus
            with a fixed permutation of the numbers for each argument. With these nothing cancels between two
            steps: for 17 numbers the best rule of any kind from two of the 14 tokens before is right 9.3 % of
            the time (chance 5.9 %). One permutation of the sum would not do: it can be undone, and for
            `recursive` x_l = P[P^-1[x_{l-1}] + x_{l-1} - x_{l-5}] is as short as before.

    Raises:
        ValueError: an unknown task or hash, a length that leaves nothing to make, a modulus below 2 (below
            4 for permuted_sum, where every permutation is affine or nearly), seeds of another shape or range.
    """
    order = _checked(task, modulus, far, near, hash)
    if length <= order:
        raise ValueError(f"A PosGen length must be more than far + near = {order}, not {length}.")
    if jnp.ndim(seeds) < 1 or jnp.shape(seeds)[-1] != order:
        raise ValueError(
            f"PosGen seeds must be [B, far + near] = [B, {order}], not {list(jnp.shape(seeds))}."
        )
    if not isinstance(seeds, Tracer) and np.size(seeds) and not 0 <= np.min(seeds) <= np.max(seeds) < modulus:
        raise ValueError(
            f"PosGen seeds must be in 0 ... {modulus - 1}, not {np.min(seeds)} ... {np.max(seeds)}."
        )
    return _generate(jnp.asarray(seeds, jnp.int32), task, length, modulus, far, near, hash)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _generate(
    seeds: Int32[Array, "*B order"], task: str, length: int, modulus: int, far: int, near: int, hash: str
) -> Int32[Array, "*B length"]:
    order = far + near
    tokens = jnp.zeros(
        (length, *seeds.shape[:-1]), jnp.int32
    )  # time first: a step reads and writes whole rows
    tokens = tokens.at[:order].set(jnp.moveaxis(seeds, -1, 0))
    permutations = jnp.asarray(_permutations(modulus, order)) if hash == "permuted_sum" else None

    def step(
        tokens: Int32[Array, "length *B"], l: Int32[Array, ""]
    ) -> tuple[Int32[Array, "length *B"], None]:
        first = {"recursive": l - order, "cot": jnp.zeros_like(l), "semi_recursive": (l - order) // 2}[task]
        far_tokens = jax.lax.dynamic_slice_in_dim(tokens, first, far)
        near_tokens = jax.lax.dynamic_slice_in_dim(tokens, l - near, near)
        arguments = jnp.concatenate([far_tokens, near_tokens])
        if permutations is not None:
            arguments = jax.vmap(lambda permutation, x: permutation[x])(permutations, arguments)
        token = arguments.sum(axis=0, dtype=jnp.int32) % modulus
        return jax.lax.dynamic_update_index_in_dim(tokens, token, l, axis=0), None

    tokens, _ = jax.lax.scan(step, tokens, jnp.arange(order, length, dtype=jnp.int32))
    return jnp.moveaxis(tokens, 0, -1)


def _permutations(modulus: int, order: int) -> Int32[np.ndarray, "order modulus"]:
    """Fixed permutations of the numbers, from raw random words: the same in every NumPy."""
    words = [np.random.Philox(np.random.SeedSequence([modulus, i])).random_raw(modulus) for i in range(order)]
    return np.argsort(words, axis=-1, kind="stable").astype(np.int32)


def seeds(
    protocol: str,
    split: str,
    sizes: tuple[int, int, int] = (10_000, 1_000, 1_000),
    modulus: int = 17,
    far: int = 1,
    near: int = 3,
    seed: int = 0,
) -> Int32[np.ndarray, "B order"]:
    """The seed tokens (far + near, the order) of every sequence of one split, under a protocol.

    "release", as the published code: the strictly increasing tuples in lexicographic order (2,380 of them for
    17 numbers), cycled. train = rows 0 ... 9,999; val = rows 0 ... 999 and test = rows 1,000 ... 1,999 of the
    same list, so both are *inside* the training set, each tuple of which occurs about four times. No
    randomness: `seed` changes nothing.

    "paper", as the paper says: tuples drawn at random from all modulus^(far + near), all different, so the
    three splits are disjoint. "corrected" has the same data; it differs in training (see the study's
    configuration).

    Args:
        protocol: one of PROTOCOLS.
        split: "train", "val" or "test".
        sizes: sequences in these three.
        modulus: the tokens are the numbers 0 ... modulus - 1.
        far: far tokens that a token depends on.
        near: near tokens that it depends on.
        seed: of the random draw.

    Raises:
        ValueError: the protocol or split is unknown, or there are not enough tuples.
    """
    order = _checked("cot", modulus, far, near, "sum")
    if protocol not in PROTOCOLS or split not in SPLITS:
        raise ValueError(
            f"PosGen has the protocols {', '.join(PROTOCOLS)} and the splits {', '.join(SPLITS)}, "
            f"not {protocol!r}, {split!r}."
        )
    train, val, test = sizes
    if protocol == "release":
        if modulus < order:
            raise ValueError(
                f"The release's seeds are increasing: {order} of them need a modulus >= {order}."
            )
        start, stop = {"train": (0, train), "val": (0, val), "test": (val, val + test)}[split]
        cycled = itertools.cycle(itertools.combinations(range(modulus), order))
        return np.array(list(itertools.islice(cycled, start, stop)), np.int32).reshape(-1, order)
    if sum(sizes) > modulus**order:
        raise ValueError(
            f"There are {modulus**order} different PosGen seeds for modulus {modulus}, far + near = {order}, "
            f"fewer than train + val + test = {sum(sizes)}."
        )
    words = np.random.Philox(np.random.SeedSequence(seed)).random_raw(modulus**order)
    start, stop = {"train": (0, train), "val": (train, train + val), "test": (train + val, sum(sizes))}[split]
    drawn = np.argsort(words, kind="stable")[start:stop]
    return np.stack(np.unravel_index(drawn, (modulus,) * order), axis=-1).astype(np.int32)


def split(
    protocol: str,
    task: str,
    split: str,
    train_length: int = 64,
    length: int = 256,
    sizes: tuple[int, int, int] = (10_000, 1_000, 1_000),
    modulus: int = 17,
    far: int = 1,
    near: int = 3,
    hash: str = "sum",
    seed: int = 0,
) -> Split:
    """One split as the model sees it: [EOS] and train_length (train) or length (val, test) tokens per row.

    Numbers are their own ids; the special tokens follow them ([EOS] = modulus + 4: 21 for 17 numbers). The
    arguments and errors are those of `seeds` and `sequences`.
    """
    start = seeds(protocol, split, sizes, modulus, far, near, seed)
    numbers = sequences(task, start, train_length if split == "train" else length, modulus, far, near, hash)
    eos = jnp.full((len(start), 1), modulus + SPECIAL_TOKENS.index("[EOS]"), jnp.int32)
    tokens = jnp.concatenate([eos, numbers], axis=1)
    return Split(tokens, tokens.at[:, : 1 + far + near].set(IGNORED))


def vocab_size(modulus: int = 17) -> int:
    """The numbers and the five special tokens: 22 for 17 numbers."""
    return modulus + len(SPECIAL_TOKENS)


def shortcut(
    task: str, tokens: Int[Array, "*B T"], modulus: int = 17, far: int = 1, near: int = 3
) -> Int[Array, "*B T"]:
    """What the shortcut predicts for each token of sequences (without [EOS]), from two tokens before it.

    The difference of two successive modular sums cancels all but two tokens:

        recursive             x_l = 2 x_{l-1} - x_{l-1-n}      exact for every l > n
        cot                   x_l = 2 x_{l-1} - x_{l-1-near}   exact for every l > n
        semi_recursive        the same                         exact for odd l - n, chance otherwise

    so a model may solve `recursive` and `cot` without ever seeing a far token. -1 for l <= n, where the rule
    says nothing. The arguments are those of `sequences`.
    """
    order = _checked(task, modulus, far, near, "sum")
    lag = 1 + (order if task == "recursive" else near)
    l = jnp.arange(order + 1, tokens.shape[-1])
    told = (2 * tokens[..., l - 1] - tokens[..., l - lag]) % modulus
    return jnp.full_like(tokens, -1).at[..., l].set(told)


def ceiling(
    task: str,
    train_length: int = 64,
    length: int = 256,
    modulus: int = 17,
    far: int = 1,
    near: int = 3,
    hash: str = "sum",
) -> Ceiling:
    """The accuracy of `shortcut`, and of chance (1/modulus) where it says nothing or nothing true.

    98.43 % in distribution for `recursive` and `cot`, 52.94 % for `semi_recursive`, in the paper's setting.
    Only a model that uses far tokens, or has memorised the sequences, is above. "permuted_sum" has no
    shortcut: chance. The arguments are those of `split`.
    """
    order = _checked(task, modulus, far, near, hash)
    l = np.arange(order, length)
    exact = (l > order) & ((task != "semi_recursive") | ((l - order) % 2 == 1)) & (hash == "sum")
    accuracy = np.where(exact, 1.0, 1 / modulus)
    return Ceiling(float(accuracy[l < train_length].mean()), float(accuracy[l >= train_length].mean()))


def _checked(task: str, modulus: int, far: int, near: int, hash: str) -> int:
    """far + near, after checking the settings that every function here shares."""
    if task not in TASKS or hash not in HASHES:
        raise ValueError(
            f"PosGen has the tasks {', '.join(TASKS)} and the hashes {', '.join(HASHES)}, "
            f"not {task!r}, {hash!r}."
        )
    if far < 1 or near < 1:
        raise ValueError(f"PosGen needs at least one far and one near token, not far={far}, near={near}.")
    if modulus < (4 if hash == "permuted_sum" else 2):
        raise ValueError(
            f"A PosGen modulus must be at least 2, and 4 for permuted_sum (below, every permutation is "
            f"affine), not {modulus}."
        )
    return far + near
