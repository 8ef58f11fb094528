"""Linear layers with a low-rank update whose result is rounded once, so that bfloat16 does not lose small updates.

bfloat16 has eight binary digits, and the update of a young adapter is smaller than the last of them. Added to a product
that is already rounded (as peft does in training), or to weights that are (as a merge does), much of it is lost, in one
direction: towards the base model. Here weight and update are one product, which sums in float32 and rounds at the end.

Measured with SmolLM2-135M, rank 16. Training losses of five steps: float32 1.047 .818 .605 .412 .215; peft in bfloat16
1.040 .970 .748 .561 .304; this 1.040 .817 .607 .406 .216, and no slower. Effect on the log-probability of answers in
bfloat16, as a share of that in float32, after 2 and after 12 steps: merged .94 and 1.00 where the base is stored in
float32, .57 and .97 where it is stored in bfloat16, as most models are; this 1.00 and 1.00 for both, 3 % slower.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and peft are typed in part)

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from propgen.cpu import FrozenLinear

ADAPTER = "default"
Frozen = nn.Linear | FrozenLinear
"""A layer whose weight does not change, as torch or as the CPU's products have it."""


class WideLinear(nn.Module):
    """A linear layer with its adapter, for inference: `[x, x A'] [W, s B]'` with the frozen W (out, in)."""

    def __init__(self, layer: LoraLinear) -> None:
        super().__init__()
        base, down, up = _parts(layer)
        assert isinstance(base, nn.Linear)
        weight = torch.cat([base.weight, up.to(base.weight.dtype)], dim=1)
        self.down = _linear(down.to(weight.dtype), None)
        self.wide = _linear(weight, base.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (..., in) to (..., out)."""
        return self.wide(torch.cat([states, self.down(states)], dim=-1))


class Product(torch.autograd.Function):
    """The product `states @ weight.T + low @ up.T` of a frozen layer's weight and a trained update, without its bias.

    states (tokens, in), low (tokens, rank), weight (out, in), up (out, rank); no gradient is made for weight.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, low: Tensor, frozen: Frozen, up: Tensor) -> Tensor:
        """Return the product (tokens, out)."""
        ctx.frozen = frozen
        ctx.save_for_backward(low, up)
        if isinstance(frozen, FrozenLinear):
            return frozen.product(states, low @ up.T)
        return torch.cat([states, low], dim=1) @ torch.cat([frozen.weight, up], dim=1).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, Tensor]:
        """Return the gradients of states, low and up from that of the product."""
        (gradient,) = gradients
        low, up = ctx.saved_tensors
        frozen: Frozen = ctx.frozen
        states = None
        if ctx.needs_input_grad[0]:
            states = frozen.gradient(gradient) if isinstance(frozen, FrozenLinear) else gradient @ frozen.weight
        return states, gradient @ up, None, gradient.T @ low


def train_exactly(model: nn.Module) -> None:
    """Have the adapted linear layers of a model run forward through Product."""
    for layer in model.modules():
        if _plain(layer):
            setattr(layer, "forward", partial(_forward, layer))  # noqa: B010  # a method, for the type checker


def widen(model: nn.Module) -> bool:
    """Replace each adapted layer by a WideLinear; False, and nothing done, if one is no plain linear layer."""
    adapted = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    if not all(_plain(cast(nn.Module, layer)) for _, layer in adapted):
        return False
    for name, layer in adapted:
        model.set_submodule(name, WideLinear(cast(LoraLinear, layer)))
    vars(model).pop("peft_config", None)  # peft's mark that there are adapters
    return True


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """Return a layer with this weight (out, in), which is not trained."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.register_parameter("bias", bias)
    return layer


def _plain(layer: nn.Module) -> TypeGuard[LoraLinear]:
    return isinstance(layer, LoraLinear) and isinstance(layer.base_layer, Frozen) and not layer.lora_variant


def _parts(layer: LoraLinear) -> tuple[Frozen, Tensor, Tensor]:
    """Return the frozen layer, A (rank, in), and B (out, rank) with its scale."""
    base: Any = layer.base_layer
    down: Any = layer.lora_A[ADAPTER].weight
    up: Any = layer.lora_B[ADAPTER].weight
    return base, down, up * layer.scaling[ADAPTER]


def _forward(layer: LoraLinear, states: Tensor) -> Tensor:
    """Map states (..., in) to (..., out) in the data type of the frozen weight."""
    base, down, up = _parts(layer)
    dtype = base.dtype if isinstance(base, FrozenLinear) else base.weight.dtype
    with torch.autocast(states.device.type, enabled=False):
        rows = states.to(dtype).flatten(0, -2)
        low = layer.lora_dropout[ADAPTER](rows) @ down.to(dtype).T
        product: Any = Product.apply(rows, low, base, up.to(dtype))
        if base.bias is not None and not isinstance(base, FrozenLinear):
            product = product + base.bias
        return product.unflatten(0, states.shape[:-1])
