"""A decoder that is made once, kept as a Hugging Face directory, and read from there afterwards."""

from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from resonance_jax.interop.hf_export import save_hf
from resonance_jax.interop.hf_weights import load_hf
from resonance_jax.model.decoder import Decoder
from resonance_jax.parallel import distributed


def load_or_make(path: Path, make: Callable[[], Decoder], mesh: Mesh | None = None) -> Decoder:
    """The decoder of a Hugging Face directory; where that is not there, it is made and saved first.

    Args:
        path: the directory. On several hosts the first one decides whether it is there.
        make: makes the decoder, on the mesh; it has to state its encoding.
        mesh: where a decoder that is read goes.
    """
    if distributed.first_says(path.exists()):
        return load_hf(path, mesh=mesh)
    lm = make()
    save_hf(lm, path)
    return lm
