"""Chat examples as token ids: what of them is trained on, in which order, and how they form a batch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (transformers is typed in part)

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from propgen.errors import InputError

IGNORED = -100
"""The label of a token that is not trained on."""

MULTIPLE = 16
"""Batches are padded to a multiple of this many tokens, which matrix products like."""


TODAY = datetime.date(2025, 1, 1)
"""What chat templates that print the date are told, so that a result does not depend on the day."""


class Example(NamedTuple):
    """A chat example as token ids. prompt: how many of the tokens come before the response."""

    tokens: list[int]
    prompt: int


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> Example:
    """Turn OpenAI messages into token ids; the response is the last message. Raises InputError."""
    if not messages or messages[-1]["role"] != "assistant":
        raise InputError("its last message is not the assistant's, and only that is trained on")
    if not messages[-1]["content"].strip():
        raise InputError("its response is empty; drop the example or fill in what the assistant should say")
    prompt, response = tokenise(tokenizer, messages[:-1], messages[-1]["content"])
    return Example(prompt + response, len(prompt))


def tokenise(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], response: str
) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt and of the assistant's response to it, its end-of-turn token included.

    The rendered prompt (generation prompt included) is tokenised alone, as in generation. The response is what the
    rendered chat adds to that text, up to the end of turn, after which a model stops: the rest of the whole chat's
    tokens where these begin with the prompt's (which spares SentencePiece a spurious space), and else, where a token
    straddles the boundary, the rest of the text tokenised alone. Where a template renders a turn otherwise than it
    opens one (with a thought, say), the response is its text and the end-of-sequence token. Raises InputError.
    """
    try:
        opened, whole = _render(tokenizer, messages, None), _render(tokenizer, messages, response).rstrip()
    except jinja2.TemplateError as error:
        raise InputError(f"the model's chat template refuses its messages ({error}); change their roles") from error
    if not whole.startswith(opened):
        whole = f"{opened}{response}{tokenizer.eos_token or ''}"
    prompt, chat = _ids(tokenizer, opened), _ids(tokenizer, whole)
    begins = chat[: len(prompt)] == prompt
    return prompt, chat[len(prompt) :] if begins else _ids(tokenizer, whole[len(opened) :])


def encode_all(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Sequence[Mapping[str, str]]], longest: int
) -> list[Example]:
    """Encode the examples; InputError names the first one that is no good, counting from 1."""
    if not examples:
        raise InputError("there are no training examples")
    encoded: list[Example] = []
    for number, messages in enumerate(examples, 1):
        try:
            encoded.append(encode(tokenizer, messages))
        except InputError as error:
            raise InputError(f"training example {number} of {len(examples)}: {error}") from error
        if (length := len(encoded[-1].tokens)) > longest:
            raise InputError(
                f"training example {number} of {len(examples)} has {length} tokens; "
                f"shorten it, or raise training.max_tokens (now {longest})"
            )
    return encoded


def order(examples: int, epochs: int, seed: int) -> list[int]:
    """Return indices of examples in training order: a permutation per epoch that depends on `seed` and size only.

    Batches are cut from the whole list, so that each but the last is full, also where an epoch ends inside one.
    """
    return [int(i) for epoch in range(epochs) for i in np.random.default_rng([seed, epoch]).permutation(examples)]


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Pad examples on the right; input_ids and labels are (examples, tokens), labels IGNORED outside responses.

    A causal model's states at real tokens do not see padding on the right, so that no attention mask is needed.
    """
    width = math.ceil(max(len(example.tokens) for example in examples) / MULTIPLE) * MULTIPLE
    ids = torch.zeros((len(examples), width), dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = ids[row, prompt : len(tokens)]
    return {"input_ids": ids, "labels": labels}


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], response: str | None) -> str:
    """Return a chat as text; with no response, up to where the assistant's turn begins.

    Without a chat template, its lines are `User: ...` and `Assistant: ...`, behind the begin-of-sequence token where
    the tokenizer itself adds one, and the end-of-sequence token ends it.
    """
    if not tokenizer.chat_template:
        begin = tokenizer.bos_token if _ids(tokenizer, "", special=True)[:1] == [tokenizer.bos_token_id] else ""
        turns = "".join(f"{message['role'].capitalize()}: {message['content']}\n" for message in messages)
        return f"{begin}{turns}Assistant:" + ("" if response is None else f" {response}{tokenizer.eos_token or ''}")
    answer = [] if response is None else [{"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(
        [*map(dict, messages), *answer],  # type: ignore[arg-type]
        tokenize=False,
        add_generation_prompt=response is None,
        strftime_now=TODAY.strftime,
    )
    return str(text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    return list[int](tokenizer(text, add_special_tokens=special)["input_ids"])  # type: ignore[arg-type]
