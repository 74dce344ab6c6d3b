"""transformers' decoders (interop.families) layer by layer, in any precision, under given cosines."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from resonance_jax.interop.torch_float64 import raise_to_float64

if TYPE_CHECKING:
    import torch


class TorchLlama:
    """A checkpoint in unmodified transformers code, and what every part of it computes.

    Args:
        path: a Hugging Face directory.
        dtype: "float64", "float32" or "bfloat16". In float64, what transformers always computes in float32
            is computed in float64 too (torch_float64).
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
            raise_to_float64(self.model)

    def run(
        self,
        tokens: np.ndarray,
        tables: Mapping[str, tuple[np.ndarray, np.ndarray]] | None,
        gradients: bool = False,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(name, value) of every part, in the order of computation.

        Names: "embedding", "layer 0 q", "… k" (as they meet, [B, T, N or K, H]), "… attention", "… mlp"
        (before a norm of their own, if they have one), "… residual" [B, T, D], "norm", "logits", "loss" (mean
        NLL in nats), and with gradients "gradient of NAME", transposed as transformers stores it.

        Args:
            tokens: i32[B, T].
            tables: cos and sin [T, R/2] by layer type, in place of transformers' own.
            gradients: whether gradients are computed too.
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
        turning = getattr(self.config, "no_rope_layers", None) or [1] * len(inner.layers)
        for i, layer in enumerate(inner.layers):
            if not turning[i]:  # q and k as they are projected
                hooks += [self._projected(layer.self_attn, part, found, f"layer {i} {part}") for part in "qk"]
        rotate, layers = source.apply_rotary_pos_emb, (i for i, turns in enumerate(turning) if turns)

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

    @staticmethod
    def _projected(attention: "torch.nn.Module", part: str, found: dict, name: str) -> Any:
        """A hook that keeps the queries or keys of a layer that does not rotate them, head by head."""
        keep = lambda _, __, out: found.__setitem__(name, out.unflatten(-1, (-1, attention.head_dim)))
        return getattr(attention, f"{part}_proj").register_forward_hook(keep)

    @contextmanager
    def _injected(self, tables: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[None]:
        """cos and sin of ours in the place of transformers' rotary module."""
        import torch

        dtype = self.model.dtype
        twice = lambda x: torch.as_tensor(np.concatenate([x, x], axis=-1))[None].to(dtype)
        made = {name: [twice(x) for x in both] for name, both in tables.items()}
        own = self.model.model.rotary_emb

        class Injected(torch.nn.Module):
            def forward(
                self, x: object, position_ids: object, layer_type: str | None = None
            ) -> list[torch.Tensor]:
                return next(iter(made.values())) if layer_type is None else made[layer_type]

        self.model.model.rotary_emb = Injected()
        try:
            yield
        finally:
            self.model.model.rotary_emb = own


def _numpy(x: "torch.Tensor") -> np.ndarray:
    x = x.detach()
    return (x if x.dtype.itemsize > 2 else x.float()).numpy()
