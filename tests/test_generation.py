"""Generation: one response does not depend on its neighbours, draws follow the model, and turns end where they end."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_scoring import DIALOGUE, MEMORY_ERRORS, build
from tiny import write_tiny_model
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from propgen import cpu
from propgen.bank import Item
from propgen.config import Generation
from propgen.encoding import tokenise
from propgen.errors import InputError, PropgenError
from propgen.generation import Noise, Request, generate, gumbel

PROMPTS: list[Any] = ["Tea?", "Which of the early trains to Leeds is late, and why is nobody bothered by it?", DIALOGUE]
GREEDY = Generation(samples=1, temperature=0.0, max_tokens=12)
GOLDEN = [1.005382, 1.015122, 0.191194]
SAMPLED = Generation(samples=2, temperature=0.8, max_tokens=12)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Return the tiny model's tokenizer: a token per byte, ChatML."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a random Llama whose weights are large enough for every visible token to matter."""
    return build(tokenizer, "llama", eos_token_id=tokenizer.eos_token_id)


def items(prompts: list[Any] = PROMPTS) -> list[Item]:
    """Return an item for each prompt."""
    return [
        {"item": f"item-{i}", "family": "f", "domain": "d", "split": "test", "prompt": prompt}
        for i, prompt in enumerate(prompts)
    ]


def texts(rows: list[dict[str, object]]) -> dict[tuple[object, object], object]:
    """Return item and sample to response."""
    return {(row["item"], row["sample"]): row["response"] for row in rows}


def reference(model: Any, tokenizer: Any, item: Item, sample: int, settings: Generation) -> str:
    """Return a response token by token, each from the whole plain sequence: no batch, no padding, no cache."""
    prompt = item["prompt"] if isinstance(item["prompt"], list) else [{"role": "user", "content": item["prompt"]}]
    tokens, _ = tokenise(tokenizer, prompt, "x")
    start = len(tokens)
    while len(tokens) < start + settings.max_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        if settings.temperature:
            step = len(tokens) - start
            noise = gumbel(f"{step}:{settings.seed}:{sample}:{item['item']}", len(logits))
            logits = logits / settings.temperature + noise
        if (token := int(logits.argmax())) == tokenizer.eos_token_id:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
@pytest.mark.parametrize("prepared", [False, True])
def test_batched_responses_equal_plain_ones(model: Any, tokenizer: Any, settings: Generation, prepared: bool) -> None:
    """Left padding, cache, batches and the CPU's own layers and attention change nothing."""
    expected = {
        (item["item"], sample): reference(model, tokenizer, item, sample, settings)
        for item in items()
        for sample in range(settings.samples)
    }
    if prepared:
        cpu.prepare(model.requires_grad_(False))
        assert model.config._attn_implementation == cpu.ATTENTION
    rows = generate(model, tokenizer, items(), settings, 512)
    assert texts(rows) == expected
    assert [(row["item"], row["sample"]) for row in rows] == list(expected)
    assert texts(generate(model, tokenizer, items()[::-1], settings, 1)) == expected  # each alone, in another order


def test_a_response_depends_on_seed_sample_and_item(model: Any, tokenizer: Any) -> None:
    """The same prompt under other names, samples or seeds is answered otherwise; greedily it is answered the same."""
    same = items(["Tea?", "Tea?"])
    found = texts(generate(model, tokenizer, same, SAMPLED, 512))
    other = texts(generate(model, tokenizer, same, Generation(samples=2, temperature=0.8, max_tokens=12, seed=1), 512))
    assert len({*found.values(), *other.values()}) == 8
    assert len(set(texts(generate(model, tokenizer, same, GREEDY, 512)).values())) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Frequencies of 4000 draws lie within four standard errors of softmax(logits / temperature)."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    batch = [Request(f"item-{i}", 0, []) for i in range(4000)]
    noise = Noise(batch, 5, Generation(temperature=temperature))
    drawn = noise(torch.zeros(4000, 5, dtype=torch.long), logits.expand(4000, 4)).argmax(-1)
    for share, expected in zip(drawn.bincount(minlength=4) / 4000, (logits / temperature).softmax(0), strict=True):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_each_step_has_noise_of_its_own() -> None:
    """Else a token that was lucky once would be lucky throughout."""
    noise = Noise([Request("item", 0, [])], 5, SAMPLED)
    first, second = (noise(torch.zeros(1, width, dtype=torch.long), torch.zeros(1, 50)) for width in (5, 6))
    assert not torch.equal(first, second)
    assert torch.equal(first, noise(torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 50)))


def test_golden_noise() -> None:
    """Stored responses can be made again as long as torch's generator draws as it does."""
    assert gumbel("0:0:0:item", 3).tolist() == pytest.approx(GOLDEN, abs=1e-6)


def test_a_turn_ends_at_the_models_own_stop(model: Any, tokenizer: Any) -> None:
    """`stop` where an end token comes, whose text and all behind it are left out, and `length` otherwise."""
    long = Generation(samples=1, temperature=0.0, max_tokens=30)
    (whole,) = generate(model, tokenizer, items(["Tea?"]), long, 512)
    assert whole["finish_reason"] == "length"
    prompt, _ = tokenise(tokenizer, [{"role": "user", "content": "Tea?"}], "x")
    tokens = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30, pad_token_id=0)[0][
        len(prompt) :
    ]
    stop = tokens[4].item()
    model.generation_config.eos_token_id = [stop]
    rows = generate(model, tokenizer, items(["Tea?", DIALOGUE]), long, 512)
    cut = tokens[: tokens.tolist().index(stop)]
    assert rows[0]["finish_reason"] == "stop"
    assert rows[0]["response"] == tokenizer.decode(cut, skip_special_tokens=True).strip() != whole["response"]


def test_the_models_own_sampling_settings_do_not_enter(model: Any, tokenizer: Any) -> None:
    """Penalties and lengths that a model ships with are put away, and are there again afterwards."""
    expected = generate(model, tokenizer, items(), SAMPLED, 512)
    own = GenerationConfig(repetition_penalty=5.0, max_length=7, top_k=1, do_sample=True, min_new_tokens=9)
    model.generation_config = own
    assert generate(model, tokenizer, items(), SAMPLED, 512) == expected
    assert model.generation_config is own


def fail_above(model: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have forward passes of more than `rows` rows run out of memory."""
    forward = model.forward

    @functools.wraps(forward)
    def fail(*arguments: Any, **named: Any) -> Any:
        if len(named["input_ids"]) > rows:
            raise MEMORY_ERRORS[0]
        return forward(*arguments, **named)

    monkeypatch.setattr(model, "forward", fail)


def test_smaller_batches_when_memory_runs_out(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The responses are those of a machine with more memory; a prompt that does not fit alone is named."""
    expected = generate(model, tokenizer, items(), SAMPLED, 512)
    fail_above(model, 1, monkeypatch)
    assert generate(model, tokenizer, items(), SAMPLED, 512) == expected
    fail_above(model, 0, monkeypatch)
    with pytest.raises(PropgenError, match=r"item 'item-\d' alone"):
        generate(model, tokenizer, items(), SAMPLED, 512)


def test_a_prompt_without_room_for_a_response_is_named(tokenizer: Any) -> None:
    """Before anything is generated."""
    small = build(tokenizer, "llama", max_position_embeddings=96)
    with pytest.raises(InputError, match=r"item 'item-1': its prompt of 1\d\d tokens and 12 of the response exceed"):
        generate(small, tokenizer, items(["Tea?", "x" * 100]), GREEDY, 512)


@pytest.mark.model
def test_the_real_model_answers_alike_alone_and_in_a_batch(smollm2: Path) -> None:
    """In float32 with its own layers and attention on a CPU."""
    from propgen.model import load_frozen

    real, tokens = load_frozen(smollm2, None, "float32", "cpu")
    alone, together = (generate(real, tokens, items(), SAMPLED, budget) for budget in (1, 512))
    assert alone == together
    assert len({str(row["response"]) for row in alone if row["response"]}) > len(alone) / 2
