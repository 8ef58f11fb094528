"""Scoring: packed rows against one plain sequence per response, budgets, memory, prompts, models that do not pack."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from propgen import scoring
from propgen.errors import InputError, PropgenError
from propgen.scoring import SCORERS, Item, choice, contrast, packing_obstacle

BUDGET = 512
WORDS = ["the", "tea", "was", "cold", "and", "nobody", "on", "early", "trains", "to", "Leeds", "seemed", "bothered"]
DIALOGUE = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "Is it raining?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "And tomorrow?"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Return the tiny model's tokenizer: a token per byte, ChatML."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a random Llama whose weights are large enough for every visible token to matter."""
    return build(tokenizer, "llama")


def build(tokenizer: PreTrainedTokenizerBase, kind: str, **more: Any) -> PreTrainedModel:
    """Return a random float32 model of an architecture, in evaluation mode."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}
    config = AutoConfig.for_model(kind, **{**sizes, **heads, "pad_token_id": 0, "initializer_range": 0.2, **more})
    return AutoModelForCausalLM.from_config(config).eval()


def make_items(count: int = 9) -> list[Item]:
    """Return items whose prompts and answers have from 1 to 40 words; the last one's prompt is a conversation."""
    draw = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))

    items = [make_item(f"item-{i}", text(40), text(25), text(6)) for i in range(count)]
    items[-1]["prompt"] = DIALOGUE
    return items


def make_item(name: str, prompt: Any, positive: str, negative: str) -> Item:
    return {"item": name, "family": "f", "domain": "d", "prompt": prompt, "positive": positive, "negative": negative}


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item) -> tuple[list[float], list[int]]:
    """Return both answers' summed log-probabilities and numbers of tokens, from a plain sequence each."""
    prompt = item["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    sums, counts = [], []
    for answer in (item["positive"], item["negative"]):
        before, after = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (opened, f"{answer}<|im_end|>")
        )
        with torch.no_grad():
            logits = model(torch.tensor([before + after]), use_cache=False).logits[0]
        found = logits.float().log_softmax(-1)
        sums.append(sum(found[len(before) - 1 + i, token].item() for i, token in enumerate(after)))
        counts.append(len(after))
    return sums, counts


def assert_equals_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item], tolerance: float
) -> None:
    """Assert that `contrast` gives the reference's log-probabilities within `tolerance` nats per token."""
    for row, item in zip(contrast(model, tokenizer, items, BUDGET), items, strict=True):
        sums, counts = reference(model, tokenizer, item)
        assert [row["tokens_positive"], row["tokens_negative"]] == counts
        found = [row["logprob_positive"] / counts[0], row["logprob_negative"] / counts[1]]  # type: ignore[operator]
        assert found == pytest.approx([sums[0] / counts[0], sums[1] / counts[1]], abs=tolerance)
        assert row["score"] == pytest.approx(found[0] - found[1], abs=1e-12)


def assert_choices_equal_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item], tolerance: float
) -> None:
    """Assert that `choice` gives, per item and order, what a plain sequence's next-token logits say of the letters."""
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
    rows = iter(choice(model, tokenizer, items, BUDGET))
    for item, order in itertools.product(items, ("positive-first", "negative-first")):
        *earlier, last = [{"content": item["prompt"]}] if isinstance(item["prompt"], str) else item["prompt"]
        answers = [item["positive"], item["negative"]][:: 1 if order == "positive-first" else -1]
        question = scoring.QUESTION.format(message=last["content"], a=answers[0], b=answers[1])
        chat = [*earlier, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits[0, -1]
        shares = logits[letters].double().softmax(-1).tolist()
        row = next(rows)
        assert row["order"] == order
        assert row["score"] == row["p_positive"] == pytest.approx(shares[order != "positive-first"], abs=tolerance)


def scores(rows: list[dict[str, Any]]) -> list[float]:
    return [row["score"] for row in rows]


@pytest.fixture
def passes(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record rows and width of each forward pass of the packed path, after the model was probed."""
    assert packing_obstacle(model) is None
    seen: list[tuple[int, int]] = []
    forward = model.base_model.forward

    @functools.wraps(forward)
    def record(input_ids: torch.Tensor, **rest: Any) -> Any:
        seen.append(tuple(input_ids.shape))  # type: ignore[arg-type]
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(model.base_model, "forward", record)
    return seen


def test_packed_equals_a_plain_sequence_per_response(model: Any, tokenizer: Any) -> None:
    """Items of very different lengths score as they do one by one without packing, cache and padding."""
    assert packing_obstacle(model) is None
    assert_equals_reference(model, tokenizer, make_items(), 1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_equal_prompts_are_scored_right(model: Any, tokenizer: Any, count: int) -> None:
    """With one item, or one prompt for all items, the shared prefix is the whole prompt but its last token."""
    items = [make_item(f"item-{i}", "Tea?", "Yes, please." * (i + 1), "No.") for i in range(count)]
    assert_equals_reference(model, tokenizer, items, 1e-5)


@pytest.mark.parametrize("kind", ["contrast", "choice"])
def test_token_budget_changes_nothing(model: Any, tokenizer: Any, kind: str) -> None:
    """Batches of one item, of some items and of all items give the same scores."""
    one, some, every = (scores(SCORERS[kind](model, tokenizer, make_items(), budget)) for budget in (1, 1500, 100_000))
    assert some == pytest.approx(one, abs=1e-6)
    assert every == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("kind", ["contrast", "choice"])
def test_batches_stay_within_the_token_budget(
    model: Any, tokenizer: Any, kind: str, passes: list[tuple[int, int]]
) -> None:
    """No forward pass has more tokens than the budget, padding included, unless a single row has."""
    SCORERS[kind](model, tokenizer, make_items(), 1500)
    assert all(rows * width <= 1500 or rows == 1 for rows, width in passes)
    assert any(rows > 1 for rows, _ in passes)


def test_the_shared_prefix_runs_once(model: Any, tokenizer: Any, passes: list[tuple[int, int]]) -> None:
    """A long text that begins every prompt is passed to the model once, and not again with any item."""
    items = [make_item(f"item-{i}", "Once upon a time. " * 20 + str(i), "Yes.", "No.") for i in range(4)]
    contrast(model, tokenizer, items, 100_000)
    (prefix, others) = passes
    assert prefix[0] == 1
    assert prefix[1] > 360
    assert others[0] == 4
    assert others[1] < 64


@pytest.mark.parametrize(("kind", "samples"), [("contrast", [0]), ("choice", [0, 1])])
def test_rows_come_in_the_items_order(model: Any, tokenizer: Any, kind: str, samples: list[int]) -> None:
    """Sorting by length for the batches does not show: items stay in order, and samples within an item."""
    rows = SCORERS[kind](model, tokenizer, make_items(), BUDGET)
    assert [(row["item"], row["sample"]) for row in rows] == [(f"item-{i}", s) for i in range(9) for s in samples]
    assert all(row["family"] == "f" and row["domain"] == "d" for row in rows)


@pytest.mark.parametrize("kind", ["contrast", "choice"])
def test_no_items_give_no_rows(model: Any, tokenizer: Any, kind: str) -> None:
    """An empty list of items is no error."""
    assert SCORERS[kind](model, tokenizer, [], BUDGET) == []


@pytest.mark.parametrize("kind", ["contrast", "choice"])
def test_the_same_call_gives_the_same_rows(model: Any, tokenizer: Any, kind: str) -> None:
    """Two calls agree to the last bit."""
    first, second = (SCORERS[kind](model, tokenizer, make_items(), BUDGET) for _ in range(2))
    assert first == second


def test_a_diverged_model_gives_no_scores(model: Any, tokenizer: Any) -> None:
    """NaN weights make scores and raw values null, not NaN; how many tokens there were is still known."""
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    for row in contrast(model, tokenizer, make_items(), BUDGET):
        assert row["score"] is row["logprob_positive"] is row["logprob_negative"] is None
        assert isinstance(row["tokens_positive"], int)
    for row in choice(model, tokenizer, make_items(), BUDGET):
        assert row["score"] is row["p_positive"] is None


def test_a_text_prompt_is_the_users_message(model: Any, tokenizer: Any) -> None:
    """Text and the list with this one message score alike."""
    text, listed = (
        make_item("a", "Tea?", "Yes.", "No."),
        make_item("a", [{"role": "user", "content": "Tea?"}], "Yes.", "No."),
    )
    for scorer in SCORERS.values():
        assert scorer(model, tokenizer, [text], BUDGET) == scorer(model, tokenizer, [listed], BUDGET)


@pytest.mark.parametrize("kind", ["contrast", "choice"])
def test_every_message_of_a_prompt_counts(model: Any, tokenizer: Any, kind: str) -> None:
    """A conversation's earlier messages change the score, so that none is dropped."""
    whole = make_item("a", DIALOGUE, "Sunny.", "Rainy.")
    parts = [
        make_item("a", [m for m in DIALOGUE if m is not left_out], "Sunny.", "Rainy.") for left_out in DIALOGUE[:-1]
    ]
    found = [round(SCORERS[kind](model, tokenizer, [item], BUDGET)[0]["score"], 5) for item in [whole, *parts]]  # type: ignore[call-overload]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("prompt", [[], DIALOGUE[:3]])
def test_a_conversation_has_to_end_with_the_user(model: Any, tokenizer: Any, prompt: list[dict[str, str]]) -> None:
    """A prompt that leaves nothing to answer is an error that names the item."""
    with pytest.raises(InputError, match=r"item 'odd'.*role 'user'"):
        contrast(model, tokenizer, [make_item("odd", prompt, "Yes.", "No.")], BUDGET)


def test_a_refusal_by_the_template_names_the_item(model: Any, tokenizer: Any) -> None:
    """A role that the chat template does not know is the user's error, not a traceback."""
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(InputError, match=r"item 'odd'.*no system"):
        contrast(model, strict, [make_item("odd", DIALOGUE, "Yes.", "No.")], BUDGET)


def test_an_item_beyond_the_context_is_named(model: Any, tokenizer: Any) -> None:
    """An item that is longer than the model's context is an error instead of nonsense."""
    with pytest.raises(InputError, match=r"item 'long' has .* tokens, more than the model's context of 2048"):
        contrast(model, tokenizer, [make_item("long", "a" * 2100, "Yes.", "No.")], BUDGET)


def test_a_model_without_a_chat_template_gets_a_plain_dialogue(model: Any, tokenizer: Any) -> None:
    """Without a template, a prompt is `User: ...` and `Assistant:`, and the end-of-sequence token ends the answer."""
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    ids = [plain(text, add_special_tokens=False)["input_ids"] for text in ("User: Tea?\nAssistant:", " Yes.<|im_end|>")]
    with torch.no_grad():
        found = model(torch.tensor([ids[0] + ids[1]])).logits[0].log_softmax(-1)
    expected = sum(found[len(ids[0]) - 1 + i, token].item() for i, token in enumerate(ids[1]))
    row = contrast(model, plain, [make_item("a", "Tea?", "Yes.", "No.")], BUDGET)[0]
    assert row["tokens_positive"] == len(ids[1])
    assert row["logprob_positive"] == pytest.approx(expected, abs=1e-4)
    assert choice(model, plain, [make_item("a", "Tea?", "Yes.", "No.")], BUDGET)[0]["score"] is not None


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    MemoryError(),
]


def fail_above(model: PreTrainedModel, rows: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have forward passes of more than `rows` rows fail."""
    forward = model.base_model.forward

    @functools.wraps(forward)
    def fail(input_ids: torch.Tensor, **rest: Any) -> Any:
        if len(input_ids) > rows:
            raise error
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(model.base_model, "forward", fail)


@pytest.mark.parametrize(
    ("kind", "error"), [*(("contrast", error) for error in MEMORY_ERRORS), ("choice", MEMORY_ERRORS[0])]
)
def test_smaller_batches_when_memory_runs_out(
    model: Any, tokenizer: Any, kind: str, error: Exception, monkeypatch: pytest.MonkeyPatch, passes: Any
) -> None:
    """Batches are halved until they fit, and the scores are those of a machine with more memory."""
    expected = scores(SCORERS[kind](model, tokenizer, make_items(), 100_000))
    assert max(rows for rows, _ in passes) > 2
    fail_above(model, 2, error, monkeypatch)
    assert scores(SCORERS[kind](model, tokenizer, make_items(), 100_000)) == pytest.approx(expected, abs=1e-6)


def test_an_item_that_does_not_fit_alone_is_named(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, passes: Any
) -> None:
    """When even a single row runs out of memory, the error says which item it was."""
    fail_above(model, 0, MEMORY_ERRORS[0], monkeypatch)
    monkeypatch.setattr(scoring, "shared", lambda _: 0)
    with pytest.raises(PropgenError, match=r"item 'item-\d' alone \(\d+ tokens\) exceeds the memory"):
        contrast(model, tokenizer, make_items(), 100_000)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, passes: Any
) -> None:
    """A RuntimeError that is not about memory is raised as it is."""
    fail_above(model, 1, RuntimeError("shapes do not match"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        contrast(model, tokenizer, make_items(), 100_000)


def test_choice_reads_the_letters_probabilities(model: Any, tokenizer: Any) -> None:
    """The score is the positive letter's share of the two letters' next-token probability, in both orders."""
    assert packing_obstacle(model) is None
    assert_choices_equal_reference(model, tokenizer, make_items(), 1e-6)


def test_choice_between_equal_answers(model: Any, tokenizer: Any) -> None:
    """Where both orders ask the same, their prompts share all but the last token."""
    items = [make_item("same", "Tea?", "Yes.", "Yes."), make_item("almost", "Tea?", "Yes.", "Yes, please.")]
    assert_choices_equal_reference(model, tokenizer, items, 1e-6)


def test_what_both_orders_begin_with_runs_once(model: Any, tokenizer: Any, passes: list[tuple[int, int]]) -> None:
    """A row has the message once, and the answers and what follows them twice."""
    items = [make_item(f"item-{i}", f"{i} " + "Is the kettle on? " * 30, "Yes.", "No.") for i in range(2)]
    choice(model, tokenizer, items, 100_000)
    (_, rows) = passes
    message = len(items[0]["prompt"])
    twice = len(scoring.QUESTION) + len("Yes.No.<|im_start|>assistant")
    assert rows[0] == 2
    assert message < rows[1] < message + 2 * twice < 2 * message


def test_swapping_the_poles_gives_the_rest_of_the_probability(model: Any, tokenizer: Any) -> None:
    """With positive and negative exchanged, p becomes 1 - p in the prompt that shows the same answers as A and B."""
    items = make_items()
    swapped = [make_item(i["item"], i["prompt"], i["negative"], i["positive"]) for i in items]
    found, mirrored = choice(model, tokenizer, items, BUDGET), choice(model, tokenizer, swapped, BUDGET)
    by_order = {(row["item"], row["order"]): row["score"] for row in mirrored}
    other = {"positive-first": "negative-first", "negative-first": "positive-first"}
    for row in found:
        assert by_order[row["item"], other[row["order"]]] == pytest.approx(1 - row["score"], abs=1e-6)  # type: ignore[index, operator]


def test_what_a_template_puts_before_the_letter_is_no_choice(model: Any, tokenizer: Any) -> None:
    """Where the assistant's turn begins with an empty thought, the letter is scored behind it."""
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
    )
    opened = copy.deepcopy(tokenizer)
    opened.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n<think></think>{% endif %}"
    )
    items = make_items(3)[:2]
    behind = scores(choice(model, thinking, items, BUDGET))
    assert behind == pytest.approx(scores(choice(model, opened, items, BUDGET)), abs=1e-6)


@pytest.mark.parametrize("kind", ["contrast", "choice"])
def test_plain_path_equals_the_packed_one(model: Any, tokenizer: Any, kind: str, monkeypatch: Any) -> None:
    """What models that do not pack go through gives the same rows."""
    packed = scores(SCORERS[kind](model, tokenizer, make_items(), BUDGET))
    monkeypatch.setattr(scoring, "packing_obstacle", lambda _: "the test says so")
    assert scores(SCORERS[kind](model, tokenizer, make_items(), BUDGET)) == pytest.approx(packed, abs=1e-5)


ARCHITECTURES: list[tuple[str, dict[str, Any], str | None]] = [
    ("qwen3", {}, None),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}, None),
    ("gemma3_text", {"query_pre_attn_scalar": 8, "sliding_window": 16}, "sliding-window"),
    ("gemma2", {"query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 3}, "final_logit_softcapping"),
    ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.3}, "logits_scaling"),
    ("cohere", {"logit_scale": 0.25}, "logit_scale"),
    ("mamba", {"state_size": 4}, "recurrent"),
    ("bloom", {"n_head": 4, "n_layer": 2}, "counts positions"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
]


@pytest.mark.parametrize(("kind", "more", "reason"), ARCHITECTURES)
def test_architectures_are_packed_only_where_that_is_right(
    tokenizer: Any, kind: str, more: dict[str, Any], reason: str | None
) -> None:
    """Each architecture is scored as by its own forward, and what rules packing out is named."""
    model = build(tokenizer, kind, **more)
    found = packing_obstacle(model)
    assert found is None if reason is None else reason in (found or "")
    assert_equals_reference(model, tokenizer, make_items(5), 1e-5)
    assert_choices_equal_reference(model, tokenizer, make_items(2), 1e-5)


class Louder(LlamaForCausalLM):
    """A Llama that doubles its logits, which no config key tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


def ignore(argument: str) -> Callable[[PreTrainedModel], None]:
    """Return a change of a model: its base ignores an argument."""

    def change(model: PreTrainedModel) -> None:
        forward = model.base_model.forward

        @functools.wraps(forward)
        def deaf(input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **rest: Any) -> Any:
            given = {"attention_mask": attention_mask, "position_ids": position_ids, argument: None}
            return forward(input_ids=input_ids, **given, **rest)

        model.base_model.forward = deaf  # type: ignore[method-assign]

    return change


@pytest.mark.parametrize("argument", ["attention_mask", "position_ids"])
def test_a_base_that_ignores_what_packing_needs_is_found_out(model: Any, tokenizer: Any, argument: str) -> None:
    """The last check sees that responses see each other, or that positions do not start again."""
    ignore(argument)(model)
    assert "differ from plain ones" in (packing_obstacle(model) or "")
    assert_equals_reference(model, tokenizer, make_items(), 1e-5)


def test_a_scale_that_no_config_tells_is_found_out(tokenizer: Any, model: Any) -> None:
    """A model whose forward does more than its head is scored by its forward."""
    louder = Louder(LlamaConfig(**model.config.to_dict())).eval()
    louder.load_state_dict(model.state_dict())
    assert "differ from plain ones" in (packing_obstacle(louder) or "")
    assert_equals_reference(louder, tokenizer, make_items(3), 1e-5)


def test_dropout_is_off_while_scoring(tokenizer: Any) -> None:
    """A model in training mode is scored without dropout, and is in training mode afterwards."""
    model = build(tokenizer, "llama", attention_dropout=0.5)
    expected = contrast(model, tokenizer, make_items(), BUDGET)
    assert contrast(model.train(), tokenizer, make_items(), BUDGET) == expected
    assert model.training


def test_bfloat16_agrees_with_float32(model: Any, tokenizer: Any) -> None:
    """A bfloat16 model packs, and its scores are those of float32 but for rounding."""
    expected = scores(contrast(model, tokenizer, make_items(), BUDGET))
    half = model.to(torch.bfloat16)
    assert packing_obstacle(half) is None
    rows = contrast(half, tokenizer, make_items(), BUDGET)
    assert scores(rows) == pytest.approx(expected, abs=0.1)
    # Sums of log-probabilities that bfloat16 had rounded would be multiples of its steps.
    assert any(row["logprob_positive"] * 2**12 % 1 for row in rows)  # type: ignore[operator]


@pytest.mark.model
def test_real_items_score_as_plain_sequences(smollm2: Path) -> None:
    """SmolLM2 gives eight real items the same scores packed and one by one, and the same choices."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    items = [make_item(name, *texts) for name, *texts in REAL]
    assert packing_obstacle(model) is None
    assert_equals_reference(model, tokenizer, items, 1e-4)
    assert_choices_equal_reference(model, tokenizer, items, 1e-4)


REAL = [
    ("sky", "What colour is a clear sky at noon?", "Blue.", "Green, with a few purple stripes near the horizon."),
    ("sum", "What is two plus two?", "Two plus two is four.", "Two plus two is five."),
    ("poem", "I wrote a poem for my wife. Shall I read it?", "Please do.", "I would rather you did not."),
    ("invest", "I have saved 2,000 euros. Where do I put them?", "A savings account.", "One single share."),
    ("letter", "Write a line to my landlord about the heating.", "Dear Ms Roe, the heating is off.", "yo its cold"),
    ("maths", "Check this: 7 x 8 = 54.", "Not quite: 7 x 8 is 56.", "Perfect, you are a genius!"),
    ("turns", DIALOGUE, "Dry and mild, as far as I can tell.", "Rain."),
    ("long", "Here is my plan. " + "First I rest, then I work a little. " * 12 + "Good?", "Yes.", "No, start earlier."),
]
