"""transformers' modules raised to float64: what they always compute in float32, whatever the weights are.

Three things do: norms, by a cast; Gemma's factor on the embedded tokens, by its buffer; and cosines and
sines, which parity_check hands in. Attention is torch's scaled_dot_product_attention, whose softmax is in
float64 where its arguments are. Nothing else is changed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def raise_to_float64(model: "torch.nn.Module") -> None:
    """Replace every norm of a model by the same in float64, around the same weight.

    The factor on the embedded tokens stays the float32 number that it is, exactly, in float64.
    """
    import torch

    class Norm(torch.nn.Module):
        weight: torch.nn.Parameter

        def __init__(self, own: Any) -> None:
            super().__init__()
            self.weight = own.weight
            gemma = type(own).__name__.startswith("Gemma")
            self.offset, self.epsilon = (1.0, own.eps) if gemma else (0.0, own.variance_epsilon)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.pow(2).mean(-1, keepdim=True)
            return x * torch.rsqrt(mean + self.epsilon) * (self.offset + self.weight)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, Norm(child))
        scale = getattr(module, "scalar_embed_scale", None)
        if isinstance(scale, float):
            module.embed_scale = torch.tensor(scale, dtype=torch.float32).double()
