"""transformers' LLaMA and Mistral run layer by layer, in any precision, under cosines that are handed in."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np

if TYPE_CHECKING:
    import torch


class TorchLlama:
    """A checkpoint in unmodified transformers code, and what every part of it computes.

    path: a Hugging Face directory. dtype: "float64", "float32" or "bfloat16". In float64 transformers' norms,
    which always compute in float32, are replaced by torch's own.
    """

    def __init__(self, path: str | Path, dtype: str) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(path), dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
        ).eval()
        self.config = self.model.config
        if dtype == "float64":
            self._norms_in_float64()

    def _norms_in_float64(self) -> None:
        import torch

        for block in (self.model.model, *self.model.model.layers):
            for name, child in list(block.named_children()):
                if name.endswith("norm"):
                    size = child.weight.shape[0]
                    norm = torch.nn.RMSNorm(size, eps=child.variance_epsilon, dtype=torch.float64)
                    norm.weight = child.weight
                    setattr(block, name, norm)

    def run(
        self,
        tokens: np.ndarray,
        tables: tuple[np.ndarray, np.ndarray] | None,
        gradients: bool = False,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(name, value) of every part, in the order of computation.

        tokens: i32[B, T]. tables: cos and sin [T, R/2], taken as they are; None: transformers' own. Names:
        "embedding", "layer 0 q", "… k" (after rotation, [B, T, N or K, H]), "… attention", "… mlp" (what is
        added to the stream), "… residual" [B, T, D], "norm", "logits", "loss" (mean NLL in nats), and with
        gradients "gradient of NAME", transposed as transformers stores it.
        """
        import torch

        found: dict[str, torch.Tensor] = {}
        ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
        with ExitStack() as stack:
            stack.enter_context(self._recording(found))
            if tables is not None:
                stack.enter_context(self._injected(tables))
            stack.enter_context(torch.set_grad_enabled(gradients))
            logits = self.model(ids, use_cache=False).logits
            wide = logits if logits.dtype == torch.float64 else logits.float()
            loss = torch.nn.functional.cross_entropy(wide[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        yield from ((name, _numpy(value)) for name, value in found.items())
        yield "logits", _numpy(logits)
        yield "loss", _numpy(loss)
        if gradients:
            self.model.zero_grad()
            loss.backward()
            for name, parameter in self.model.named_parameters():
                assert parameter.grad is not None  # every one takes part
                yield f"gradient of {name}", _numpy(parameter.grad)

    @contextmanager
    def _recording(self, found: dict) -> Iterator[None]:
        """Hooks on the modules, and on the function that rotates q and k."""
        inner, hooks = self.model.model, []

        def hook(module: "torch.nn.Module", name: str, first: bool = False) -> None:
            keep = lambda _, __, out: found.__setitem__(name, out[0] if first else out)
            hooks.append(module.register_forward_hook(keep))

        hook(inner.embed_tokens, "embedding")
        for i, layer in enumerate(inner.layers):
            hook(layer.self_attn, f"layer {i} attention", first=True)
            hook(layer.mlp, f"layer {i} mlp")
            hooks.append(
                layer.register_forward_hook(
                    lambda _, __, out, i=i: found.__setitem__(
                        f"layer {i} residual", out[0] if isinstance(out, tuple) else out
                    )
                )
            )
        hook(inner.norm, "norm")
        source = sys.modules[type(inner).__module__]
        rotate, layers = source.apply_rotary_pos_emb, iter(range(len(inner.layers)))

        def recorded(*arguments: object, **options: object) -> "tuple[torch.Tensor, torch.Tensor]":
            q, k = rotate(*arguments, **options)
            i = next(layers)
            found[f"layer {i} q"], found[f"layer {i} k"] = q.transpose(1, 2), k.transpose(1, 2)
            return q, k

        try:
            with mock.patch.object(source, "apply_rotary_pos_emb", recorded):
                yield
        finally:
            for one in hooks:
                one.remove()

    @contextmanager
    def _injected(self, tables: tuple[np.ndarray, np.ndarray]) -> Iterator[None]:
        """cos and sin of ours in the place of transformers' rotary module."""
        import torch

        dtype = self.model.dtype
        both = [torch.as_tensor(np.concatenate([x, x], axis=-1))[None].to(dtype) for x in tables]
        own = self.model.model.rotary_emb

        class Injected(torch.nn.Module):
            def forward(self, *_: object, **__: object) -> list[torch.Tensor]:
                return both

        self.model.model.rotary_emb = Injected()
        try:
            yield
        finally:
            self.model.model.rotary_emb = own


def _numpy(x: "torch.Tensor") -> np.ndarray:
    x = x.detach()
    return (x if x.dtype.itemsize > 2 else x.float()).numpy()
