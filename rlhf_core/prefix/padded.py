"""The plain computation, and the reference for every faster one: each completion in a row of its own, with its prompt.

Rows are padded on the right, without a mask: what stands behind a token can't change it in a causal model, whatever its
layers are, while padding on the left shifts positions that a model counts itself and passes through recurrent layers.
With `alone`, rows do not stand beside each other either, and there is no padding at all.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group, stacked
from rlhf_core.prefix.packed import is_sharded, unwrap

TOKEN_BUDGET = 8192  # of the rows of a pass without gradient, with their padding
Row = tuple[list[int], list[int]]  # a prompt and one completion


def completion_logps(
    model: Any, groups: Sequence[Group], *, temperature: float = 1.0, hidden: bool = False, alone: bool = False
) -> CompletionLogps:
    """Log-probability and entropy of every completion token. With `hidden`, the states of the same pass as well."""
    logps, entropies, states = [], [], []
    for part in _passes(model, _rows_of(groups), alone):
        found = _forward(model, part)
        for i, (prompt, completion) in enumerate(part):  # a row at a time: float32 is large
            start, end = len(prompt) - found.first, len(prompt) + len(completion) - found.first
            distribution = torch.log_softmax(found.logits[i, start - 1 : end - 1].float() / temperature, dim=-1)
            logps.append(distribution.gather(-1, found.tokens[i, start:end, None])[:, 0])
            with torch.no_grad():
                entropies.append(-(distribution.exp() * distribution).sum(-1))
            states.append(found.states[i, start - 1 : end])
    mask = _stacked([torch.ones_like(row, dtype=torch.long) for row in logps])
    return CompletionLogps(_stacked(logps), _stacked(entropies), mask, _stacked(states) if hidden else None)


def completion_hidden(model: Any, groups: Sequence[Group], *, alone: bool = False) -> CompletionHidden:
    """The last hidden states at the prompt's last token and at every completion token."""
    states = []
    for part in _passes(model, _rows_of(groups), alone):
        found = _forward(model, part)
        for i, (prompt, completion) in enumerate(part):
            start = len(prompt) - 1 - found.first
            states.append(found.states[i, start : start + 1 + len(completion)])
    mask = _stacked([torch.ones_like(row[1:, 0], dtype=torch.long) for row in states])
    return CompletionHidden(_stacked(states), mask)


def last_logits(model: Any, rows: Sequence[Sequence[int]], *, alone: bool = False) -> Tensor:
    """(rows, vocabulary): what comes behind each row of tokens."""
    last = []
    for part in _passes(model, [(list(row), []) for row in rows], alone):
        found = _forward(model, part)
        last += [found.logits[i, len(row) - 1 - found.first] for i, (row, _) in enumerate(part)]
    return torch.stack(last)


def _rows_of(groups: Sequence[Group]) -> list[Row]:
    return [(list(group.prompt), list(completion)) for group in groups for completion in group.completions]


def _passes(model: Any, rows: Sequence[Row], alone: bool) -> Iterator[list[Row]]:
    """The rows that go through the model together: one, or without gradient as many as the budget allows, or all. Of a
    model that processes share in parts always all: each takes part in every pass, so all must have as many.
    """
    together = torch.is_grad_enabled() or is_sharded(model)
    budget = 0 if alone else sys.maxsize if together else TOKEN_BUDGET
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


class _Pass(NamedTuple):
    """What a pass gives for its columns from `first` on: `tokens` (rows, columns), `logits` (rows, columns,
    vocabulary), `states` (rows, columns, size).
    """

    first: int
    tokens: Tensor
    logits: Tensor
    states: Tensor


def _forward(model: Any, part: list[Row]) -> _Pass:
    """The columns that predict a completion's token are among those that it gives. States are what the head reads, or
    in a model without a head what its decoder gives.
    """
    plain = unwrap(model)
    ids = stacked([prompt + completion for prompt, completion in part], device=plain.device)
    first, settings = 0, {"use_cache": False}
    if "logits_to_keep" in inspect.signature(plain.forward).parameters:  # not in all families
        first = min(len(prompt) for prompt, _ in part) - 1
        settings["logits_to_keep"] = ids.shape[1] - first
    states: list[Tensor] = []
    head = plain.get_output_embeddings()
    if head is None:
        decoder = plain.base_model
        hook = decoder.register_forward_hook(lambda _, inputs, output: states.append(output.last_hidden_state))
    else:
        hook = head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with hook:
        output = model(input_ids=ids, **settings)
    # A model that is nothing but its layers has no logits, and nobody asks for them.
    return _Pass(first, ids[:, first:], output.get("logits"), states[-1])


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """(rows, longest, …), with 0 after the end of shorter ones."""
    return pad_sequence(list(values), batch_first=True)
