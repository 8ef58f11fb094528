"""Products and attention on the CPU: equal to torch's own, with their gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny_model
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from propgen import cpu
from propgen.cpu import ATTENTION, FrozenLinear, prepare
from propgen.model import load
from propgen.trainer import CrossEntropy

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer_is_the_layer(dtype: torch.dtype, bias: bool) -> None:
    layer = nn.Linear(48, 80, bias=bias, dtype=dtype).requires_grad_(False)
    frozen = FrozenLinear(layer, backward=True)
    states = randn(2, 5, 48, dtype=dtype)
    plain, laid_out = states.clone().requires_grad_(), states.clone().requires_grad_()
    out = layer(plain)
    torch.testing.assert_close(frozen(laid_out), out, rtol=0, atol=TOLERANCE[dtype])
    gradient = randn(*out.shape, dtype=dtype)
    out.backward(gradient)
    frozen(laid_out).backward(gradient)
    torch.testing.assert_close(laid_out.grad, plain.grad, rtol=0, atol=4 * TOLERANCE[dtype])
    assert not list(frozen.parameters())
    assert not frozen.state_dict()


def test_what_is_added_to_a_product_is_rounded_with_it() -> None:
    """Added afterwards in bfloat16, a small update would lose a part of itself, always the same way."""
    layer = nn.Linear(64, 512, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    frozen, states = FrozenLinear(layer, backward=False), randn(256, 64, dtype=torch.bfloat16)
    update = 1e-3 * randn(256, 512, dtype=torch.bfloat16)
    without, added = frozen.product(states).double(), update.double()

    def kept(product: torch.Tensor) -> float:
        return float(((product.double() - without) * added).sum() / added.square().sum())

    assert kept(frozen.product(states, update)) == pytest.approx(1, abs=0.03)
    assert kept(frozen.product(states, update)) > kept(frozen.product(states) + update) + 0.02


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mask", ["causal", "none", "boolean", "additive"])
@pytest.mark.parametrize("keys", [7, 300])
def test_attention_is_torchs_own(dtype: torch.dtype, mask: str, keys: int) -> None:
    """With grouped heads, few and many keys, and every kind of mask that transformers hands over."""
    tokens = keys if mask == "causal" else 7
    query, key, value = randn(2, 6, tokens, 16), randn(2, 2, keys, 16), randn(2, 2, keys, 16)
    seen = randn(2, 1, tokens, keys) > 0
    seen[..., 0] = True
    masks: dict[str, Any] = {"boolean": seen, "additive": torch.zeros(seen.shape).masked_fill(~seen, -1e9)}
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = mask == "causal", 3  # type: ignore[assignment]
    found: list[torch.Tensor] = []
    parts = [[part.to(dtype).requires_grad_() for part in (query, key, value)] for _ in range(2)]
    exact = [part.detach().float().requires_grad_() for part in parts[0]]
    for attend, inputs in ((cpu._attention, parts[0]), (sdpa_attention_forward, exact)):
        states, _ = attend(module, *inputs, masks.get(mask), scaling=0.3)
        states.float().square().sum().backward()
        found.append(states)
    torch.testing.assert_close(found[0].float(), found[1], rtol=0, atol=3 * TOLERANCE[dtype])
    for ours, theirs in zip(parts[0], exact, strict=True):
        scale = float(theirs.grad.abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=0, atol=2 * TOLERANCE[dtype] * scale)  # type: ignore[union-attr]


def test_a_prepared_model_gives_the_same_logits(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    model, _ = load(tmp_path, "float32", "cpu")
    ids = torch.arange(24).view(2, 12)
    prepared = copy.deepcopy(model).requires_grad_(False)
    prepare(prepared)
    assert prepared.config._attn_implementation == ATTENTION
    assert any(isinstance(layer, FrozenLinear) for layer in prepared.modules())
    with torch.inference_mode():
        torch.testing.assert_close(prepared(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_what_is_trained_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    prepare(model)
    assert type(model[0]) is nn.Linear
    assert type(model[1]) is FrozenLinear


def test_without_onednn_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "FAST", False)
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False))
    prepare(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cross_entropy_and_its_gradient_are_torchs_own(dtype: torch.dtype) -> None:
    logits, labels = 4 * randn(70, 50, dtype=dtype), torch.arange(70) % 50
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = CrossEntropy.apply(ours, labels)
    expected = functional.cross_entropy(theirs.float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (loss / 7).backward()  # type: ignore[operator]
    (expected / 7).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2 * TOLERANCE[dtype], atol=1e-6)
