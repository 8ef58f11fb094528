"""Protocols that score an item by a causal language model's own probabilities, without generating text.

Both protocols turn items into queries (see `propgen.query`) and read summed log-probabilities off one of two paths,
which agree up to floating-point error:

- packed: a row per query, so that its prompt runs once; the tokens that begin every prompt of the call run once for all
  rows; the head runs only where a response token is predicted.
- plain: a row per branch of a query through the model's own forward, where `packing_obstacle` names a reason.

Nothing is random: rows depend on model, items and, in their last digits, the token budget.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypedDict, cast
from weakref import WeakSet

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from propgen.batching import evaluating, in_batches
from propgen.cpu import ATTENTION
from propgen.encoding import tokenise
from propgen.errors import InputError, PropgenError
from propgen.query import Batch, Branch, Query, block_mask, lay_out, response_sums, shared

log = logging.getLogger("propgen")

PROBE_GAP = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference between the two paths, in nats per token, that is rounding; 0.1 in 16-bit types."""

_PROBED: WeakSet[PreTrainedModel] = WeakSet()
"""Models on which the two paths were found equal."""

SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Config keys of models that change the logits behind their head."""

QUESTION = (
    "Below are a message and two answers to it, A and B. Say which of the two answers you would give.\n\n"
    "Message:\n{message}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}\n\n"
    "Reply with the letter of the answer you would give, A or B, and with nothing else."
)


class Item(TypedDict):
    """A unit of a trait's bank. prompt: the user's message, or a conversation (role, content) that ends with one."""

    item: str
    family: str
    domain: str
    prompt: str | list[dict[str, str]]
    positive: str
    negative: str


Scorer = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Sequence[Item], int], list[dict[str, object]]]
"""(model, tokenizer, items, token budget) -> rows of a cell, in the items' order."""


def contrast(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], token_budget: int
) -> list[dict[str, object]]:
    """Score each item by how much likelier, per token, its positive answer is than its negative one.

    score = logprob_positive / tokens_positive - logprob_negative / tokens_negative, in nats per token; a response's
    natural log-probability is summed over its tokens, the chat template's end of turn included. `token_budget` is the
    largest rows x width of a forward pass, padding included, the shared prefix not; a longer item runs alone, and the
    budget is halved when memory runs out.

    Returns:
        One row per item, in the items' order; a score that is not finite is None, and so is a raw NaN.

    Raises:
        InputError: an item that the template rejects or that exceeds the model's context.
        PropgenError: an item that exceeds the memory.
    """
    queries = [contrast_query(tokenizer, item) for item in items]
    sums = logprobs(model, queries, token_budget)
    return [_contrast_row(*found) for found in zip(items, queries, sums, strict=True)]


def choice(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], token_budget: int
) -> list[dict[str, object]]:
    """Score each item by the probability that the model picks its positive answer from two labelled A and B.

    score = p_positive = P(letter of the positive answer) / (P(A) + P(B)), as first token of the assistant's turn. Two
    rows per item: sample 0 shows the positive answer first and sample 1 second, so that their mean is free of a
    preference for a letter; both are asked in one row. Token budget, None and errors as in `contrast`.
    """
    sums = logprobs(model, [choice_query(tokenizer, item) for item in items], token_budget)
    return [
        _choice_row(item, sample, found[2 * sample : 2 * sample + 2])
        for item, found in zip(items, sums, strict=True)
        for sample in (0, 1)
    ]


SCORERS: dict[str, Scorer] = {"contrast": contrast, "choice": choice}


def contrast_query(tokenizer: PreTrainedTokenizerBase, item: Item) -> Query:
    """Return the query whose two branches are the positive and the negative answer."""
    prompt, positive = _tokenise(tokenizer, item, _messages(item), item["positive"])
    _, negative = _tokenise(tokenizer, item, _messages(item), item["negative"])
    return Query(item["item"], prompt, [Branch([], [positive]), Branch([], [negative])])


def _contrast_row(item: Item, query: Query, sums: list[float]) -> dict[str, object]:
    (positive, negative), (n_positive, n_negative) = sums, (len(branch.responses[0]) for branch in query.branches)
    return _row(item, 0, positive / n_positive - negative / n_negative) | {
        "logprob_positive": None if math.isnan(positive) else positive,
        "logprob_negative": None if math.isnan(negative) else negative,
        "tokens_positive": n_positive,
        "tokens_negative": n_negative,
    }


def choice_query(tokenizer: PreTrainedTokenizerBase, item: Item) -> Query:
    """Return the query with a branch per order, from where the orders differ: the positive answer first, then second.

    A branch's one-token responses are the letters of the positive and of the negative answer.
    """
    asked = [_ask(tokenizer, item, sample) for sample in (0, 1)]
    common = shared([prompt for prompt, _ in asked])
    branches = [Branch(prompt[common:], letters) for prompt, letters in asked]
    return Query(item["item"], asked[0][0][:common], branches)


def _ask(tokenizer: PreTrainedTokenizerBase, item: Item, sample: int) -> tuple[list[int], list[list[int]]]:
    """Return the prompt of one order, and the letters of the positive and the negative answer behind it."""
    *earlier, last = _messages(item)
    a, b = (item["negative"], item["positive"]) if sample else (item["positive"], item["negative"])
    chat = [*earlier, {"role": "user", "content": QUESTION.format(message=last["content"], a=a, b=b)}]
    (prompt, first), (_, second) = (_tokenise(tokenizer, item, chat, letter) for letter in "AB")
    # What a template or tokenizer puts before either letter (a space, an empty thought) belongs to the prompt.
    same = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
    if same is None:
        raise PropgenError(f"item '{item['item']}': the model's tokenizer does not tell the letters A and B apart")
    letters = [[first[same]], [second[same]]]
    return prompt + first[:same], letters[::-1] if sample else letters


def _choice_row(item: Item, sample: int, sums: list[float]) -> dict[str, object]:
    row = _row(item, sample, float(torch.tensor(sums, dtype=torch.float64).softmax(0)[0]))
    return row | {"order": "negative-first" if sample else "positive-first", "p_positive": row["score"]}


def _row(item: Item, sample: int, score: float) -> dict[str, object]:
    about: dict[str, object] = {"item": item["item"], "family": item["family"], "domain": item["domain"]}
    return about | {"sample": sample, "score": score if math.isfinite(score) else None}


def _messages(item: Item) -> list[dict[str, str]]:
    prompt = item["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or messages[-1].get("role") != "user":
        raise InputError(f"item '{item['item']}': a prompt that is a list of messages has to end with role 'user'")
    return messages


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, item: Item, messages: list[dict[str, str]], response: str
) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of a response; see `encoding.tokenise` for the boundary between them."""
    try:
        prompt, answer = tokenise(tokenizer, messages, response)
    except InputError as error:
        raise InputError(f"item '{item['item']}': {error}") from error
    if not prompt or not answer:
        raise InputError(f"item '{item['item']}': the prompt or an answer has no tokens; write some text there")
    return prompt, answer


def logprobs(model: PreTrainedModel, queries: Sequence[Query], token_budget: int) -> list[list[float]]:
    """Return the log-probability of each query's responses in nats, [queries][responses]; NaN stays NaN."""
    if not queries:
        return []
    _check_context(model, queries)
    with evaluating(model), torch.inference_mode():
        reason = packing_obstacle(model)
        if reason is None:
            return _packed(model, queries, token_budget)
        log.info("scoring with plain sequences, since %s", reason)
        return _plain(model, queries, token_budget)


def _check_context(model: PreTrainedModel, queries: Sequence[Query]) -> None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
    for query in queries:
        if query.longest > limit:
            many = f"{query.longest} tokens, more than the model's context of {limit}"
            raise InputError(f"item '{query.item}' has {many}; shorten the item")


def packing_obstacle(model: PreTrainedModel) -> str | None:
    """Return why packed rows are not to be trusted with this model, or None.

    What the config tells comes first. What no config tells (an unknown scale, say) shows in a last check.
    """
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    layers = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    scaled = [key for key in SCALED_LOGITS if getattr(config, key, None) not in (None, 1.0)]
    attention = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    reasons = {
        "it has an encoder": model.config.is_encoder_decoder,
        f"its {attention} attention takes no mask of our own": attention not in ("sdpa", "eager", ATTENTION),
        "it has sliding-window, chunked or recurrent layers": bool(layers - {"DynamicLayer"}),
        "its rotary frequencies depend on the length": rope.get("rope_type") in ("dynamic", "longrope"),
        f"it changes its logits behind the head ({', '.join(scaled)})": bool(scaled),
        "it counts positions itself": "position_ids" not in inspect.signature(model.base_model.forward).parameters,
        "it has no head of its own": model.get_output_embeddings() is None or model.base_model is model,
    }
    told = next((reason for reason, holds in reasons.items() if holds), None)
    return told if told or model in _PROBED else _probe(model)


def _probe(model: PreTrainedModel) -> str | None:
    """Score a query both ways; its responses are the same tokens, so that one that saw the other would copy it."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = [7919 * i % vocabulary for i in range(1, 65)]
    query = Query("probe", tokens[:32], [Branch([], [tokens[32:]])] * 2)
    try:
        with evaluating(model), torch.inference_mode():
            plain, packed = (torch.tensor(path(model, [query], 128)) / 32 for path in (_plain, _packed))
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"it does not run packed rows ({error})"
    gap = float((packed - plain).abs().max())
    if gap > PROBE_GAP.get(model.dtype, 0.1):
        return f"packed rows differ from plain ones by {gap:.2g} nats per token"
    if math.isfinite(gap):
        _PROBED.add(model)
    return None


def _packed(model: PreTrainedModel, queries: Sequence[Query], token_budget: int) -> list[list[float]]:
    """Score a row per query, behind a cache of the tokens that begin every prompt."""
    prefix = shared([query.prompt for query in queries])
    cache = DynamicCache(config=model.config)
    if prefix:
        tokens = torch.tensor([queries[0].prompt[:prefix]], device=model.device)
        model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return _in_batches(queries, prefix, token_budget, partial(_packed_sums, model, cache))


def _in_batches(
    queries: Sequence[Query], prefix: int, token_budget: int, score: Callable[[Batch], list[list[float]]]
) -> list[list[float]]:
    """Score queries without the `prefix` tokens that all begin with and that are in a cache."""

    def run(rows: list[int], width: int) -> list[list[float]]:
        return score(lay_out([queries[i] for i in rows], prefix, width))

    return in_batches([q.item for q in queries], [q.tokens - prefix for q in queries], token_budget, run)


def _packed_sums(model: PreTrainedModel, cache: DynamicCache, batch: Batch) -> list[list[float]]:
    past = copy.deepcopy(cache)
    past.batch_repeat_interleave(len(batch.tokens))
    hidden = model.base_model(
        input_ids=batch.tokens.to(model.device),
        attention_mask=block_mask(batch.blocks, cache.get_seq_length(), model.dtype).to(model.device),
        position_ids=batch.positions.to(model.device),
        past_key_values=past,
        use_cache=True,
    ).last_hidden_state
    head = cast(torch.nn.Module, model.get_output_embeddings())
    return response_sums(hidden, head, batch)


def _plain(model: PreTrainedModel, queries: Sequence[Query], token_budget: int) -> list[list[float]]:
    """Score a row per branch."""
    rows = [query._replace(branches=[branch]) for query in queries for branch in query.branches]
    found = iter(_in_batches(rows, 0, token_budget, partial(_plain_sums, model)))
    return [[x for _ in query.branches for x in next(found)] for query in queries]


def _plain_sums(model: PreTrainedModel, batch: Batch) -> list[list[float]]:
    kept = batch.column.unique()
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(
        input_ids=batch.tokens.to(model.device),
        attention_mask=(batch.blocks >= 0).long().to(model.device),
        use_cache=False,
        **({"logits_to_keep": kept.to(model.device)} if known else {}),
    ).logits
    logits = logits if known else logits[:, kept.to(logits.device)]
    return response_sums(logits, torch.nn.Identity(), batch._replace(column=torch.searchsorted(kept, batch.column)))
