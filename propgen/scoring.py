"""Protocols that score an item by a causal language model's own probabilities, without generating text.

Both protocols turn items into queries (a prompt and responses to it, as tokens) and read summed log-probabilities off
one of two paths, which agree up to floating-point error:

- packed: a query is one row `prompt | response | response` with a block mask and with positions that start again behind
  the prompt, so that the prompt runs once; the tokens that begin every prompt of the call run once for all rows; the
  head runs only where a response token is predicted.
- plain: a row per response through the model's own forward, where `packing_obstacle` names a reason.

Nothing is random: rows depend on model, items and, in their last digits, the token budget.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypedDict, cast
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from propgen.batching import evaluating, in_batches
from propgen.cpu import ATTENTION
from propgen.encoding import MULTIPLE, tokenise
from propgen.errors import InputError, PropgenError

log = logging.getLogger("propgen")

PROBE_GAP = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest difference between the two paths, in nats per token, that is rounding; 0.1 in 16-bit types."""

_PROBED: WeakSet[PreTrainedModel] = WeakSet()
"""Models on which the two paths were found equal."""

HEAD_ROWS = 1024
"""Tokens per call of the head, which bounds the memory of float32 logits (1024 x 128,000 are 0.5 GB)."""

LOSS_ROWS = 32
"""Rows whose softmax is taken at a time, while their float32 logits are in the processor's cache."""

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


class Query(NamedTuple):
    """What the model is asked: how likely each response is behind the prompt. item: its name, for messages."""

    item: str
    prompt: list[int]
    responses: list[list[int]]


class Batch(NamedTuple):
    """Queries as tensors. tokens, positions, blocks: [rows, width]; block 0 is the prompt, k a response, -1 padding.

    row, column, token, response: [scored tokens]; the logits at (row, column) predict `token` of that response.
    """

    tokens: Tensor
    positions: Tensor
    blocks: Tensor
    row: Tensor
    column: Tensor
    token: Tensor
    response: Tensor


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
    queries = [_contrast_query(tokenizer, item) for item in items]
    sums = logprobs(model, queries, token_budget)
    return [_contrast_row(*found) for found in zip(items, queries, sums, strict=True)]


def choice(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], token_budget: int
) -> list[dict[str, object]]:
    """Score each item by the probability that the model picks its positive answer from two labelled A and B.

    score = p_positive = P(letter of the positive answer) / (P(A) + P(B)), as first token of the assistant's turn. Two
    rows per item: sample 0 shows the positive answer first and sample 1 second, so that their mean is free of a
    preference for a letter. Token budget, None and errors as in `contrast`.
    """
    asked = [(item, sample) for item in items for sample in (0, 1)]
    sums = logprobs(model, [_choice_query(tokenizer, *ask) for ask in asked], token_budget)
    return [_choice_row(*ask, found) for ask, found in zip(asked, sums, strict=True)]


SCORERS: dict[str, Scorer] = {"contrast": contrast, "choice": choice}


def _contrast_query(tokenizer: PreTrainedTokenizerBase, item: Item) -> Query:
    prompt, positive = _tokenise(tokenizer, item, _messages(item), item["positive"])
    _, negative = _tokenise(tokenizer, item, _messages(item), item["negative"])
    return Query(item["item"], prompt, [positive, negative])


def _contrast_row(item: Item, query: Query, sums: list[float]) -> dict[str, object]:
    (positive, negative), (n_positive, n_negative) = sums, map(len, query.responses)
    return _row(item, 0, positive / n_positive - negative / n_negative) | {
        "logprob_positive": None if math.isnan(positive) else positive,
        "logprob_negative": None if math.isnan(negative) else negative,
        "tokens_positive": n_positive,
        "tokens_negative": n_negative,
    }


def _choice_query(tokenizer: PreTrainedTokenizerBase, item: Item, sample: int) -> Query:
    """Return the query whose one-token responses are the positive and the negative answer's letters."""
    *earlier, last = _messages(item)
    a, b = (item["negative"], item["positive"]) if sample else (item["positive"], item["negative"])
    chat = [*earlier, {"role": "user", "content": QUESTION.format(message=last["content"], a=a, b=b)}]
    (prompt, first), (_, second) = (_tokenise(tokenizer, item, chat, letter) for letter in "AB")
    # What a template or tokenizer puts before either letter (a space, an empty thought) belongs to the prompt.
    same = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
    if same is None:
        raise PropgenError(f"item '{item['item']}': the model's tokenizer does not tell the letters A and B apart")
    letters = [[first[same]], [second[same]]]
    return Query(item["item"], prompt + first[:same], letters[::-1] if sample else letters)


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
        length = len(query.prompt) + max(map(len, query.responses))
        if length > limit:
            raise InputError(
                f"item '{query.item}' has {length} tokens, more than the model's context of {limit}; shorten the item"
            )


def supports_packing(model: PreTrainedModel) -> bool:
    """Return whether packed rows give what plain sequences give; see `packing_obstacle`."""
    return packing_obstacle(model) is None


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
    query = Query("probe", tokens[:32], [tokens[32:], tokens[32:]])
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
    shared = _shared([query.prompt for query in queries])
    cache = DynamicCache(config=model.config)
    if shared:
        prefix = torch.tensor([queries[0].prompt[:shared]], device=model.device)
        model.base_model(input_ids=prefix, past_key_values=cache, use_cache=True)
    return _in_batches(queries, shared, token_budget, partial(_packed_sums, model, cache))


def _shared(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, at most all but the last, which predicts each response."""
    shortest = min(map(len, prompts)) - 1
    extremes = zip(min(prompts), max(prompts), strict=False)  # what these two begin with, all begin with
    return min(shortest, next((i for i, (a, b) in enumerate(extremes) if a != b), shortest))


def _plain(model: PreTrainedModel, queries: Sequence[Query], token_budget: int) -> list[list[float]]:
    """Score a row per response; responses of one token share a row, to which they add nothing."""
    parts = [[q.responses] if max(map(len, q.responses)) == 1 else [[r] for r in q.responses] for q in queries]
    rows = [q._replace(responses=part) for q, own in zip(queries, parts, strict=True) for part in own]
    found = iter([x for sums in _in_batches(rows, 0, token_budget, partial(_plain_sums, model)) for x in sums])
    return [[next(found) for _ in query.responses] for query in queries]


def _in_batches(
    queries: Sequence[Query], shared: int, token_budget: int, score: Callable[[Batch], list[list[float]]]
) -> list[list[float]]:
    """Score queries in batches within the budget, behind `shared` tokens that are in a cache already."""

    def run(rows: list[int], width: int) -> list[list[float]]:
        return score(_batch([queries[i] for i in rows], shared, width))

    return in_batches(
        [query.item for query in queries],
        [len(q.prompt) - shared + sum(len(r) - 1 for r in q.responses) for q in queries],
        lambda length: math.ceil((shared + length) / MULTIPLE) * MULTIPLE - shared,
        token_budget,
        run,
    )


def _batch(queries: Sequence[Query], shared: int, width: int) -> Batch:
    """Lay queries out as rows `prompt[shared:] | response[:-1] | ...`; a last token predicts nothing."""
    grid: list[list[tuple[int, int, int]]] = []
    targets: list[tuple[int, int, int, int]] = []
    for row, (_, prompt, responses) in enumerate(queries):
        cells = [(prompt[i], i, 0) for i in range(shared, len(prompt))]
        for k, response in enumerate(responses):
            columns = [len(prompt) - shared - 1, *range(len(cells), len(cells) + len(response) - 1)]
            targets += [(row, column, token, k) for column, token in zip(columns, response, strict=True)]
            cells += [(token, len(prompt) + i, k + 1) for i, token in enumerate(response[:-1])]
        grid.append(cells + [(0, 0, -1)] * (width - len(cells)))
    return Batch(*torch.tensor(grid).movedim(-1, 0).contiguous(), *torch.tensor(targets).T.contiguous())


def _packed_sums(model: PreTrainedModel, cache: DynamicCache, batch: Batch) -> list[list[float]]:
    past = copy.deepcopy(cache)
    past.batch_repeat_interleave(len(batch.tokens))
    hidden = model.base_model(
        input_ids=batch.tokens.to(model.device),
        attention_mask=_block_mask(batch.blocks, cache.get_seq_length(), model.dtype).to(model.device),
        position_ids=batch.positions.to(model.device),
        past_key_values=past,
        use_cache=True,
    ).last_hidden_state
    head = cast(torch.nn.Module, model.get_output_embeddings())
    return _sums(hidden, head, batch)


def _block_mask(blocks: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """Return an additive mask, [rows, 1, width, shared + width].

    A token sees the shared prefix and, of what stands before it, the prompt and its own block.
    """
    query, key = blocks[:, :, None], blocks[:, None, :]
    seen = ((key == 0) | (key == query)).tril()
    seen = torch.cat([seen.new_ones(*blocks.shape, shared), seen], dim=-1)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


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
    return _sums(logits, torch.nn.Identity(), batch._replace(column=torch.searchsorted(kept, batch.column)))


def _sums(states: Tensor, head: Callable[[Tensor], Tensor], batch: Batch) -> list[list[float]]:
    """Return summed log-probabilities, [rows][responses], from states [rows, columns, features].

    The log-softmax is in float32 and the sum in float64 on the CPU, where its order is fixed.
    """
    responses = int(batch.response.max()) + 1
    sums = torch.zeros(len(states) * responses, dtype=torch.float64)
    places = (batch.row * states.shape[1] + batch.column, batch.token, batch.row * responses + batch.response)
    for at, token, into in zip(*(place.split(HEAD_ROWS) for place in places), strict=True):
        logits = head(states.flatten(0, 1)[at.to(states.device)])
        rights = token.to(logits.device).split(LOSS_ROWS)
        parts = zip(logits.split(LOSS_ROWS), rights, strict=True)
        lost = torch.cat([cross_entropy(some.float(), right, reduction="none") for some, right in parts])
        sums.index_add_(0, into, -lost.double().cpu())
    return sums.view(len(states), responses).tolist()
