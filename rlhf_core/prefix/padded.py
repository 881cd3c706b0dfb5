"""The plain computation, and the reference for every faster one: each completion in a row of its own, with its prompt.

Rows are padded on the right, without a mask: what stands behind a token can't change it in a causal model, whatever its
layers are, while padding on the left shifts positions that a model counts itself and passes through recurrent layers.
With `alone`, rows do not stand beside each other either, and there is no padding at all.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group, stacked
from rlhf_core.prefix.packed import unwrap

TOKEN_BUDGET = 8192  # of the rows of a pass without gradient, with their padding
Row = tuple[list[int], list[int]]  # a prompt and one completion


def completion_logps(
    model: Any, groups: Sequence[Group], *, temperature: float = 1.0, hidden: bool = False, alone: bool = False
) -> CompletionLogps:
    """Log-probability and entropy of every completion token. With `hidden`, the states of the same pass as well."""
    logps, entropies, states = [], [], []
    for part in _passes(_rows_of(groups), alone):
        output, first = _forward(model, part, hidden)
        for i, (prompt, completion) in enumerate(part):  # a row at a time: float32 is large
            start = len(prompt) - 1 - first
            logits = output.logits[i, start : start + len(completion)]
            distribution = torch.log_softmax(logits.float() / temperature, dim=-1)
            tokens = torch.tensor(completion, device=logits.device)
            logps.append(distribution.gather(-1, tokens[:, None])[:, 0])
            with torch.no_grad():
                entropies.append(-(distribution.exp() * distribution).sum(-1))
            if hidden:
                states.append(_states(output, i, prompt, completion))
    mask = _stacked([torch.ones_like(row, dtype=torch.long) for row in logps])
    return CompletionLogps(_stacked(logps), _stacked(entropies), mask, _stacked(states) if hidden else None)


def completion_hidden(model: Any, groups: Sequence[Group], *, alone: bool = False) -> CompletionHidden:
    """The last hidden states at the prompt's last token and at every completion token."""
    states = []
    for part in _passes(_rows_of(groups), alone):
        output, _ = _forward(model, part, hidden=True)
        states += [_states(output, i, prompt, completion) for i, (prompt, completion) in enumerate(part)]
    return CompletionHidden(
        _stacked(states), _stacked([torch.ones_like(row[1:, 0], dtype=torch.long) for row in states])
    )


def last_logits(model: Any, rows: Sequence[Sequence[int]], *, alone: bool = False) -> Tensor:
    """(rows, vocabulary): what comes behind each row of tokens."""
    found = []
    for part in _passes([(list(row), []) for row in rows], alone):
        output, first = _forward(model, part, hidden=False)
        found += [output.logits[i, len(row) - 1 - first] for i, (row, _) in enumerate(part)]
    return torch.stack(found)


def _rows_of(groups: Sequence[Group]) -> list[Row]:
    return [(list(group.prompt), list(completion)) for group in groups for completion in group.completions]


def _passes(rows: Sequence[Row], alone: bool) -> Iterator[list[Row]]:
    """The rows that go through the model together: one, or without gradient as many as the budget allows, or all."""
    budget = 0 if alone else sys.maxsize if torch.is_grad_enabled() else TOKEN_BUDGET
    part: list[Row] = []
    longest = 0
    for prompt, completion in rows:
        tokens = len(prompt) + len(completion)
        if part and (len(part) + 1) * max(longest, tokens) > budget:
            yield part
            part, longest = [], 0
        part.append((prompt, completion))
        longest = max(longest, tokens)
    if part:
        yield part


def _forward(model: Any, part: list[Row], hidden: bool) -> tuple[Any, int]:
    """(the model's output, the number of the first column that its logits are of)."""
    ids = stacked([prompt + completion for prompt, completion in part], device=unwrap(model).device)
    first = min(len(prompt) for prompt, _ in part) - 1
    settings: dict[str, Any] = {"use_cache": False}
    if hidden:
        settings["output_hidden_states"] = True
    if "logits_to_keep" not in inspect.signature(unwrap(model).forward).parameters:  # in a few families
        return model(input_ids=ids, **settings), 0
    return model(input_ids=ids, logits_to_keep=ids.shape[1] - first, **settings), first


def _states(output: Any, row: int, prompt: list[int], completion: list[int]) -> Tensor:
    """(1 + completion, size)."""
    return output.hidden_states[-1][row, len(prompt) - 1 : len(prompt) + len(completion)]


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """(rows, longest, …), with 0 after the end of shorter ones."""
    return pad_sequence(list(values), batch_first=True)
