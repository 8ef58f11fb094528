"""Linear layers with a low-rank update: the same numbers as peft's, rounded once."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from propgen.cpu import prepare
from propgen.lora import Product, WideLinear, _parts, train_exactly, widen


def adapted(dtype: torch.dtype = torch.float32, size: float = 1.0) -> tuple[nn.Module, nn.Module]:
    """Return a linear layer with bias, and the same with a LoRA adapter of about `size` as peft makes it."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 48)).to(dtype).requires_grad_(False)
    config = LoraConfig(target_modules=["0"], r=4, lora_alpha=8)
    model = get_peft_model(copy.deepcopy(plain), config)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=size)
    return plain, model.base_model.model  # type: ignore[return-value]


def test_the_product_has_the_right_gradients() -> None:
    """Compared with finite differences in float64."""
    torch.manual_seed(0)
    states, low, up = (torch.randn(shape, dtype=torch.float64) for shape in ((5, 6), (5, 2), (4, 2)))
    frozen = nn.Linear(6, 4, bias=False, dtype=torch.float64).requires_grad_(False)
    for tensor in (states, low, up):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *parts: Product.apply(*parts[:2], frozen, parts[2]), (states, low, up))


@pytest.mark.parametrize("prepared", [False, True])
def test_layers_agree_with_those_of_peft(prepared: bool) -> None:
    """In float32, in training and in inference, with a bias; gradients too; also with weights laid out for the CPU."""
    _, expected = adapted()
    trained = copy.deepcopy(expected)
    if prepared:
        prepare(trained, backward=True)
    train_exactly(trained)
    states = torch.randn(2, 3, 64)
    torch.testing.assert_close(trained(states), expected(states))
    for model in (trained, expected):
        model(states).square().sum().backward()
    gradients = dict(expected.named_parameters())
    for name, weight in trained.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-4, atol=1e-4)
    assert widen(expected)
    assert isinstance(expected[0], WideLinear)  # type: ignore[index]
    torch.testing.assert_close(expected(states), trained(states))


@pytest.mark.parametrize("way", [train_exactly, widen])
def test_a_small_update_is_not_lost_in_bfloat16(way: object) -> None:
    """An update of a thousandth of the output counts in full; added to a rounded output, half of it is lost."""
    plain, model = adapted(torch.bfloat16, size=2e-4)
    states = torch.randn(512, 64).bfloat16()
    with torch.no_grad():
        base = plain(states).double()
        _, down, up = _parts(model[0])  # type: ignore[index]
        exact = states.double() @ down.double().T @ up.double().T
        lost = model(states).double() - base
        way(model)  # type: ignore[operator]
        kept = model(states).double() - base
    share = [((effect * exact).sum() / exact.square().sum()).item() for effect in (lost, kept)]
    assert share[0] < 0.8
    assert share[1] == pytest.approx(1, abs=0.05)


def test_layers_of_other_kinds_are_left_alone() -> None:
    """GPT-2's layers hold their weights transposed; widen says so and changes nothing."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=16)
    model = GPT2LMHeadModel(config)
    get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=True))
    before = [type(module) for module in model.modules()]
    assert not widen(model)
    assert [type(module) for module in model.modules()] == before
