"""A decoder over the devices that score with it: NLLs of windows of any size, each computed once."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float, Integer

from resonance_jax import rope
from resonance_jax.evaluate.nll import TOKENS_PER_BATCH, token_nll, token_nll_by_pmap
from resonance_jax.evaluate.window_batches import Cuts, WindowBatch, batches
from resonance_jax.model.decoder import Decoder
from resonance_jax.model.parameters import shardings
from resonance_jax.parallel.gather import gathered
from resonance_jax.parallel.mesh_for_rows import same_parts, time_instead_of_rows
from resonance_jax.parallel.pmap import replicate


class NllOverDevices:
    """Scores windows with a decoder on one device, on its mesh, or by pmap.

    The weights are put where they are needed here, once. On a mesh the devices of the axis `data` share the
    windows of a batch, and cut the time of what is left over. A mesh may span processes: each of them has all
    windows then, and is given all figures.

    Args:
        lm: the decoder.
        pmap: split rows over this host's devices, with the weights copied to each.
    """

    def __init__(self, lm: Decoder, pmap: bool = False) -> None:
        self.pmap = pmap
        if pmap:
            lm = lm.replace_params(replicate(lm.params))
            self.cuts = Cuts(either=jax.local_device_count())
        elif lm.mesh is None:
            self.cuts = Cuts()
        else:
            size = lm.mesh.shape
            self.cuts = Cuts(size["fsdp"], size["data"], size["sequence"], movable=True)
        self.lm = lm
        self._with_time_cut = {1: lm}

    def together(self, length: int) -> int:
        """How many windows of `length` positions fill a batch."""
        return max(1, TOKENS_PER_BATCH // length) * self.cuts.shards

    def windows(
        self, windows: Sequence[Integer[np.ndarray, "_"]], freqs: rope.Tables, length: int
    ) -> Iterator[tuple[WindowBatch, Float[np.ndarray, "rows width-1"]]]:
        """Each batch of them, and the NLL in nats of every id but a row's first.

        Args:
            windows: token ids, of at most `length` each.
            freqs: the table.
            length: the longest that a window can be.
        """
        for batch in batches([len(ids) for ids in windows], length, self.cuts, TOKENS_PER_BATCH):
            tokens = np.zeros((batch.rows, batch.width), np.int32)
            for row in range(batch.rows):
                ids = windows[batch.windows[min(row, len(batch.windows) - 1)]]
                tokens[row, : len(ids)] = ids
            score = token_nll_by_pmap if self.pmap else token_nll
            yield batch, gathered(score(self._cut(batch.time), tokens, freqs))

    def _cut(self, time: int) -> Decoder:
        """The decoder on the mesh in which so many devices of `data` cut time."""
        if time not in self._with_time_cut:
            assert self.lm.mesh is not None
            mesh = time_instead_of_rows(self.lm.mesh, time)
            params = same_parts(self.lm.params, self.lm.shardings(), shardings(self.lm.config, mesh))
            self._with_time_cut[time] = self.lm.replace(mesh=mesh, params=params)
        return self._with_time_cut[time]
