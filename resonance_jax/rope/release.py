"""What the Resonance paper's released code reads, and what it gets wrong, method by method: data alone.

from_hf reads the release's own rope types with the meaning that their names promise; explain() prints what
the release really does with them.
"""

import dataclasses
from collections.abc import Mapping

from resonance_jax.rope.methods import METHODS
from resonance_jax.rope.schema import RopeType
from resonance_jax.rope.spec import RopeSpec

_YARN = METHODS["yarn"].read_from["yarn"]
_DYNAMIC_YARN = dataclasses.replace(
    _YARN,
    factor=None,
    refused={
        "finetuned": "starts at s = max / original, which no spec says: state it as yarn with a factor, "
        "or drop finetuned"
    },
)
ROPE_TYPES: dict[str, tuple[str, RopeType, bool]] = {
    "ntk": ("ntk", RopeType(), False),
    "dynamic-yarn": ("dynamic_yarn", _DYNAMIC_YARN, False),
    "dynamic_yarn": ("dynamic_yarn", _DYNAMIC_YARN, False),
    "resonance_yarn": ("yarn", _YARN, True),
}
"""The release's own rope types: our method, how they state it, and whether they mean Resonance."""


@dataclasses.dataclass(frozen=True)
class Released:
    """What the release does with a method.

    Attributes:
        without, resonant: in sentences, without Resonance and with it.
        knows: whether it has the method at all.
        passed_over: keys of the method that it does not read.
    """

    without: str
    resonant: str
    knows: bool = True
    passed_over: tuple[str, ...] = ()


_SAME = "Computes the same"
_LATE = "where the type is set on a finished config; a config.json that states it is refused"
_SWALLOWED = "Drops the flag without a word (an AttributeError is swallowed)"
_NOT_SHRINKING = "its table never shrinks again after a long call"
_NO_CONFIG = "No config selects it; its class of this name is an older rule with two ramps."
_POSGEN_YARN = (
    "PosGen takes the longest length + 1 for L, so that fewer pairs are scaled, and swaps the scaled "
    "table in at evaluation alone."
)
_NOT_READ = tuple(key for key in _YARN.keys if key not in ("factor", "finetuned"))

RELEASED: dict[str, Released] = {
    "default": Released(
        f"{_SAME}.",
        f"{_SAME} in float32; loaded in bfloat16 its angles are bfloat16 too, and cos is off by up to 0.044. "
        "Its fine-tuning script refuses a model without rope_scaling.",
    ),
    "linear": Released(
        f"{_SAME}.",
        "Drops the flag without a word, having no class for it: plain linear. PosGen's class crashes "
        "(AttributeError).",
    ),
    "ntk": Released(
        f"{_SAME} {_LATE}.", f"{_SWALLOWED}: plain NTK, {_LATE}. PosGen's class computes the same."
    ),
    "dynamic_ntk": Released(
        f"The same formula, but {_NOT_SHRINKING}, and its fine-tuning sets max_position_embeddings to s L: "
        "nothing is scaled up to there.",
        f"{_SWALLOWED}: plain dynamic NTK, and {_NOT_SHRINKING}.",
    ),
    "ntk_by_parts": Released(_NO_CONFIG, _NO_CONFIG),
    "yarn": Released(
        f"{_SAME} in LLaMA. {_POSGEN_YARN}",
        f"{_SAME} in LLaMA (`resonance_yarn`, or `yarn` with resonance_rope), as for no other scaled method. "
        "Its stand-alone class makes tables of half the width, which the rotation refuses. "
        f"{_POSGEN_YARN}",
        passed_over=_NOT_READ,
    ),
    "dynamic_yarn": Released(
        "Takes s = n / max_position_embeddings instead of n / L, which drops past a fine-tuned length, and "
        "ignores rope_theta. Its config knows only `dynamic-yarn` and its attention only `dynamic_yarn`: it "
        "works where the type is set on a finished config.",
        "Crashes: its constructor calls its parent's without arguments (TypeError).",
        passed_over=_NOT_READ,
    ),
}
"""What the release does, by method; a method that isn't here is one that it does not know."""

_UNKNOWN = "Does not know this type: ValueError."
_ABSENT = Released(_UNKNOWN, _UNKNOWN, knows=False)


def notes(spec: RopeSpec, config: Mapping[str, object]) -> list[str]:
    """Sentences on what the release makes of an encoding.

    Args:
        spec: the encoding.
        config: the keys of the config.json that states it; empty where none does.
    """
    known = RELEASED.get(spec.method, _ABSENT)
    says = [known.resonant if spec.resonance else known.without]
    factor = config.get("factor")
    if factor is not None and known.knows and not (isinstance(factor, float) and factor > 1):
        says.append(f"It refuses factor={factor}: it wants a float above 1, such as 8.0.")
    if passed_over := [key for key in known.passed_over if config.get(key) is not None]:
        says.append(f"It reads factor and the original length alone, not {', '.join(passed_over)}.")
    if known.knows:
        says.append("(As published it starts only with its scaled_rope folder on the path.)")
    return says
