"""Three passages of public-domain books that come with the project: real text, the same on every machine.

Each is a little longer than 12,288 tokens of SmolLM2, from the beginning of a chapter on. The books were
published before 1930 and are in the public domain; the transcriptions are Project Gutenberg's, bodies only.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from importlib import resources

from resonance_jax.data.documents import Document


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage: the name of its file without suffix, its source, and the SHA-256 (hex) of its bytes."""

    name: str
    source: str
    sha256: str


PASSAGES = (
    Passage(
        "news-from-nowhere",
        "William Morris, News from Nowhere (1890), chapters 2 to 5; Project Gutenberg 3261",
        "15194bac6f7fc794b160ebd0c2e1fadd9120fc0111d8bd423ea0f4d55b3ec7f0",
    ),
    Passage(
        "jack-sheppard",
        "William Harrison Ainsworth, Jack Sheppard (1839), chapters 2 and 3; Project Gutenberg 16215",
        "5fdb79b86c18d0ad45cbd6b9cb44601ba1b0b9c492d089854504fc29e7c40426",
    ),
    Passage(
        "complete-angler",
        "Izaak Walton, The Compleat Angler (1653), chapters 2 to 4; Project Gutenberg 9198",
        "65d9506eca70cfa34eb0d2da73ad5a7bff0cf75b5fe7b6ff436c71381f303950",
    ),
)
"""In the order in which they are read."""


def passages() -> Iterator[Document]:
    """The passages as documents. Raises ValueError when a file is not the one that is meant, to the byte."""
    for passage in PASSAGES:
        content = (resources.files("resonance_jax.data") / "passages" / f"{passage.name}.txt").read_bytes()
        if hashlib.sha256(content).hexdigest() != passage.sha256:
            raise ValueError(
                f"the passage {passage.name} that comes with the project was changed (another SHA-256); "
                "install the project again, or check it out anew."
            )
        yield Document(passage.name, content.decode())
