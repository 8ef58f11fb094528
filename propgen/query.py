"""Queries: what a model is asked, as rows of tokens, and what is read of its states.

A query is a prompt and what may come behind it, as branches. Its row is `prompt | branch | branch`, with a mask in
which branches do not see each other and positions that start again behind the prompt, so that the prompt runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

HEAD_ROWS = 1024
"""Tokens per call of the head, which bounds the memory of float32 logits (1024 x 128,000 are 0.5 GB)."""

LOSS_ROWS = 32
"""Rows whose softmax is taken at a time, while their float32 logits are in the processor's cache."""


class Branch(NamedTuple):
    """What may come behind a prompt: context, then one of the responses.

    There is one response, or there are several of one token each, which share the place that predicts them.
    """

    context: list[int]
    responses: list[list[int]]

    @property
    def tokens(self) -> list[int]:
        """What the model reads of the branch: a response's last token predicts nothing."""
        return self.context + self.responses[0][:-1]


class Query(NamedTuple):
    """What the model is asked: how likely each response is behind its context. item: its name, for messages."""

    item: str
    prompt: list[int]
    branches: list[Branch]

    @property
    def tokens(self) -> int:
        """How many tokens its row has."""
        return len(self.prompt) + sum(len(branch.tokens) for branch in self.branches)

    @property
    def longest(self) -> int:
        """How many tokens its longest sequence has, the response's last one included."""
        return len(self.prompt) + max(len(branch.tokens) + 1 for branch in self.branches)


class Batch(NamedTuple):
    """Queries as tensors. tokens, positions, blocks: [rows, width]; block 0 is the prompt, k a branch, -1 padding.

    row, column, token, response: [scored tokens]; the logits at (row, column) predict `token` of that response, counted
    through the branches of its row.
    """

    tokens: Tensor
    positions: Tensor
    blocks: Tensor
    row: Tensor
    column: Tensor
    token: Tensor
    response: Tensor


def shared(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, at most all but the last, which predicts what comes behind."""
    most = max(0, min(map(len, prompts)) - 1)
    extremes = zip(min(prompts), max(prompts), strict=False)  # what these two begin with, all begin with
    return min(most, next((i for i, (a, b) in enumerate(extremes) if a != b), most))


def lay_out(queries: Sequence[Query], prefix: int, width: int) -> Batch:
    """Lay queries out as rows `prompt[prefix:] | branch | branch | padding`."""
    grid: list[list[tuple[int, int, int]]] = []
    targets: list[tuple[int, int, int, int]] = []
    for row, (_, prompt, branches) in enumerate(queries):
        cells = [(prompt[i], i, 0) for i in range(prefix, len(prompt))]
        number = count()
        for block, branch in enumerate(branches, 1):
            behind = [len(prompt) - prefix - 1, *range(len(cells), len(cells) + len(branch.tokens))]
            cells += [(token, len(prompt) + i, block) for i, token in enumerate(branch.tokens)]
            columns = behind[len(branch.context) :]
            for response in branch.responses:
                k = next(number)
                targets += [(row, column, token, k) for column, token in zip(columns, response, strict=True)]
        grid.append(cells + [(0, 0, -1)] * (width - len(cells)))
    return Batch(*torch.tensor(grid).movedim(-1, 0).contiguous(), *torch.tensor(targets).T.contiguous())


def block_mask(blocks: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Return an additive mask, [rows, 1, width, prefix + width].

    A token sees the prefix and, of what stands before it, the prompt and its own block.
    """
    query, key = blocks[:, :, None], blocks[:, None, :]
    seen = ((key == 0) | (key == query)).tril()
    seen = torch.cat([seen.new_ones(*blocks.shape, prefix), seen], dim=-1)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def response_sums(states: Tensor, head: Callable[[Tensor], Tensor], batch: Batch) -> list[list[float]]:
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
