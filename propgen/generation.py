"""Generation: what a model answers to prompts, in batches whose composition decides nothing.

Sampling is the Gumbel-max trick: a token is the argmax of logits / temperature + noise, and the noise of a response
comes from its own name (seed, item, sample, step) alone. A response therefore depends on the model, its prompt and the
settings, and not on its neighbours, up to the rounding of products of another size: where two tokens are almost equally
likely, that can decide between them, in bfloat16 now and then.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers is typed in part)

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from propgen.bank import Item, messages
from propgen.batching import evaluating, in_batches
from propgen.config import Generation
from propgen.encoding import MULTIPLE, tokenise
from propgen.errors import InputError

BATCHED = 8
"""Batches hold so many times the token budget, which is for scoring, where all tokens of a row are in one forward pass.
Here a prompt is read once; then each step adds one token a row, and reads all weights however few rows there are."""

ANSWER = "Yes."
"""Any response: what follows its text is the end of turn."""


class Request(NamedTuple):
    """One response that is asked for: the tokens of its prompt, and what names its noise."""

    item: str
    sample: int
    prompt: list[int]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    settings: Generation,
    token_budget: int,
) -> list[dict[str, object]]:
    """Return `samples` responses to each item's prompt: rows item, sample, response, finish_reason, in items' order.

    finish_reason: `stop` at an end of turn, `length` at `max_tokens`. token_budget: of scoring; see `BATCHED`.

    Raises:
        InputError: a prompt that the template refuses, or that leaves no room for a response in the model's context.
        PropgenError: a prompt that exceeds the memory.
    """
    requests, ends = _requests(tokenizer, items, settings.samples)
    stops = _stops(model, tokenizer, ends)
    _check_context(model, requests, settings.max_tokens)

    def run(rows: list[int], width: int) -> list[list[int]]:
        return _continue(model, [requests[i] for i in rows], width - settings.max_tokens, settings)

    with evaluating(model), torch.inference_mode(), _as_asked(model, settings, stops):
        found = in_batches(
            [request.item for request in requests],
            [math.ceil(len(r.prompt) / MULTIPLE) * MULTIPLE + settings.max_tokens for r in requests],
            BATCHED * token_budget,
            run,
        )
    return [_row(tokenizer, request, tokens, stops) for request, tokens in zip(requests, found, strict=True)]


def _requests(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], samples: int
) -> tuple[list[Request], set[int]]:
    """Return what is asked for, and the tokens that end an assistant's turn in the chat template."""
    requests: list[Request] = []
    ends: set[int] = set()
    for item in items:
        try:
            prompt, answer = tokenise(tokenizer, messages(item["prompt"], "")[:-1], ANSWER)
        except InputError as error:
            raise InputError(f"item '{item['item']}': {error}") from error
        ends.add(answer[-1])
        requests += [Request(item["item"], sample, prompt) for sample in range(samples)]
    return requests, ends


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> list[int]:
    """Return the tokens at which a response is finished: those of model and tokenizer, and the template's."""
    named = getattr(model.generation_config, "eos_token_id", None)
    known = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    special = ends & set(tokenizer.all_special_ids)
    return sorted({token for token in (*known, *special) if isinstance(token, int)})


def _check_context(model: PreTrainedModel, requests: Sequence[Request], max_tokens: int) -> None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
    for request in requests:
        if len(request.prompt) + max_tokens > limit:
            raise InputError(
                f"item '{request.item}': its prompt of {len(request.prompt)} tokens and {max_tokens} of the response "
                f"exceed the model's context of {limit}; shorten the prompt, or set a smaller generation.max_tokens"
            )


@contextmanager
def _as_asked(model: PreTrainedModel, settings: Generation, stops: list[int]) -> Iterator[None]:
    """Have the model generate by our settings alone: its own penalties and limits, if any, are put away meanwhile."""
    kept = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=settings.max_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    try:
        yield
    finally:
        model.generation_config = kept


def _continue(model: PreTrainedModel, batch: Sequence[Request], width: int, settings: Generation) -> list[list[int]]:
    """Return the tokens behind each prompt; prompts are padded on the left to `width`."""
    tokens = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, request in enumerate(batch):
        tokens[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, width - len(request.prompt) :] = 1
    noise = [Noise(batch, width, settings)] if settings.temperature else []
    generator: Any = model  # generate() is typed for models of known classes
    found: Tensor = generator.generate(
        tokens.to(model.device), attention_mask=mask.to(model.device), logits_processor=LogitsProcessorList(noise)
    )
    return found[:, width:].tolist()


class Noise(LogitsProcessor):
    """Makes a greedy choice a draw from softmax(logits / temperature), with noise that each response has to itself."""

    def __init__(self, batch: Sequence[Request], width: int, settings: Generation) -> None:
        self.names = [f"{settings.seed}:{request.sample}:{request.item}" for request in batch]
        self.width, self.temperature = width, settings.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits (rows, vocabulary) / temperature + noise for the next token of each row."""
        step = input_ids.shape[1] - self.width
        noise = torch.stack([gumbel(f"{step}:{name}", scores.shape[1]) for name in self.names])
        return scores / self.temperature + noise.to(scores.device)


def gumbel(name: str, count: int) -> Tensor:
    """Return `count` draws from the standard Gumbel distribution that depend on the name alone, made on the CPU."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    draws = torch.empty(count).exponential_(generator=generator)
    return draws.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_()


def _row(
    tokenizer: PreTrainedTokenizerBase, request: Request, tokens: list[int], stops: list[int]
) -> dict[str, object]:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return {
        "item": request.item,
        "sample": request.sample,
        "response": str(text).strip(),
        "finish_reason": "length" if end is None else "stop",
    }
