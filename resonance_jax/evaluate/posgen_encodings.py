"""The encodings of a PosGen run by protocol: the table it is trained with, those it is evaluated under.

    release     as the published code: trained unscaled (RoPE, or RoPE with integer wavelengths); the method's
                table is swapped in for evaluation, at every position. s = 257/65, YaRN's beta 2 and 1, and
                the L of its bounds is length + 1 = 257.
    corrected   the same swap with the lengths as they are: L = 64, s = 256/64, beta 2 and 1.
    paper       the method's own table in training and in evaluation, L = 64, s = 4; the paper names no beta:
                YaRN's usual 32 and 1.

A dynamic method's table is that of the length at hand: the training length, then the longer one. Encodings
that train with the same table share their trainings: train once, evaluate under each table.
"""

import dataclasses
from collections.abc import Sequence

from resonance_jax import rope
from resonance_jax.data.posgen import PROTOCOLS


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """A row of the paper's Table 1.

    Attributes:
        spec: the encoding that is evaluated.
        train, evaluation: the tables of training and of evaluation.
    """

    spec: rope.RopeSpec
    train: rope.Frequencies
    evaluation: rope.Frequencies

    @property
    def title(self) -> str:
        return self.spec.title


def encoding(
    name: str,
    protocol: str,
    train_length: int = 64,
    length: int = 256,
    head_dim: int = 64,
    **options: float | Sequence[float] | None,
) -> Encoding:
    """The encoding of a name under a protocol.

    Args:
        name: a name of rope.named, such as "rope", "yarn" or "resonance-dynamic-ntk".
        protocol: one of data.posgen.PROTOCOLS.
        train_length: tokens of a training sequence, [EOS] not counted.
        length: tokens of a test sequence.
        head_dim: size of a head.
        options: settings of rope.RopeSpec for the methods that take them (beta_fast, beta_slow,
            long_factor, …); None is the protocol's own.

    Raises:
        ValueError: for an unknown name or protocol, and for options that the method cannot mean.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown PosGen protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
    stated, seen = (length + 1, train_length + 1) if protocol == "release" else (length, train_length)
    settings = {
        "scale": stated / seen,
        "train_length": stated if protocol == "release" else train_length,
        "beta_fast": 32.0 if protocol == "paper" else 2.0,
        "beta_slow": 1.0,
        "short_factor": (1.0,) * (head_dim // 2),
        "head_dim": head_dim,
        **{key: value for key, value in options.items() if value is not None},
    }
    spec = rope.named(name, **settings)
    if protocol == "paper":
        train = rope.frequencies(spec, length=train_length)
    else:
        train = rope.frequencies(rope.RopeSpec(head_dim=head_dim, resonance=spec.resonance))
    return Encoding(spec, train, rope.frequencies(spec, length=stated))


def training_groups(encodings: Sequence[Encoding]) -> list[list[int]]:
    """For each training, the numbers of the encodings that it serves: those with the same train table."""
    groups: list[list[int]] = []
    for i, one in enumerate(encodings):
        for group in groups:
            if rope.same(encodings[group[0]].train, one.train):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
