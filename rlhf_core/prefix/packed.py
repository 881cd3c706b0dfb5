"""Groups as one row of tokens without padding, `[prompt, completion 1, …, completion G, next prompt, …]`, and the pass
over it, in which each prompt goes through the model once.

A completion's positions go on where its prompt ends, so each completion sees its prompt as if it stood alone behind it.
`attention.py` sees to it that nothing attends to anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlhf_core.prefix.attention import NO_MASK, AttentionMetadata, GroupSpans, NotShared, PackedAttention
from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group
from rlhf_core.prefix.head import token_logps


@dataclass(frozen=True)
class Packed:
    """`input_ids`, `position_ids`: (1, tokens). `spans`: of each group. `tokens`: (N,), the completions' tokens one
    after another; `previous`: (N,), the index in the row of the token before each, whose state predicts it. `last`:
    (completions,), the index of each one's last token. `lengths`: of the completions.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: tuple[GroupSpans, ...]
    tokens: Tensor
    previous: Tensor
    last: Tensor
    lengths: list[int]

    def mask(self) -> Tensor:
        """(completions, longest), 1 for the tokens of each completion."""
        return self.rows(torch.ones_like(self.tokens))

    def rows(self, values: Tensor) -> Tensor:
        """`values` (N, …), one of each completion's token, as (completions, longest, …) with 0 after the end."""
        return pad_sequence(values.split(self.lengths), batch_first=True)

    def states(self, previous: Tensor, last: Tensor) -> Tensor:
        """(completions, 1 + longest, size): the state of the prompt's last token, then that of each token.

        `previous`: (N, size), the states that predict the tokens; `last`: (completions, size), of the last tokens.
        """
        pairs = zip(previous.split(self.lengths), last.split(1), strict=True)
        return pad_sequence([torch.cat(pair) for pair in pairs], batch_first=True)


def pack(groups: Sequence[Group], device: torch.device | None = None) -> Packed:
    """All groups in one row."""
    ids: list[int] = []
    positions: list[int] = []
    tokens: list[int] = []
    previous: list[int] = []
    spans, last, lengths = [], [], []
    for group in groups:
        start, size = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(size)
        completions = []
        for completion in group.completions:
            first = len(ids)
            ids += completion
            tokens += completion
            positions += range(size, size + len(completion))
            previous += [start + size - 1, *range(first, len(ids) - 1)]
            completions.append((first, len(ids)))
            last.append(len(ids) - 1)
            lengths.append(len(completion))
        spans.append(GroupSpans((start, start + size), tuple(completions)))
    return Packed(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(spans),
        torch.tensor(tokens, device=device),
        torch.tensor(previous, device=device),
        torch.tensor(last, device=device),
        lengths,
    )


def size(group: Group) -> int:
    """Tokens that a group takes in a packed row."""
    return len(group.prompt) + sum(map(len, group.completions))


def batches(groups: Sequence[Group], token_budget: int) -> Iterator[list[Group]]:
    """The groups in their order, whole, as many at a time as `token_budget` allows, and at least one."""
    batch: list[Group] = []
    total = 0
    for group in groups:
        if batch and total + size(group) > token_budget:
            yield batch
            batch, total = [], 0
        batch.append(group)
        total += size(group)
    if batch:
        yield batch


class Values(NamedTuple):
    """Of some completions' tokens, one after another: log-probabilities, entropies, and last hidden states (`previous`:
    those that predict each token; `last`: those of each completion's last token).
    """

    logps: Tensor
    entropies: Tensor
    previous: Tensor
    last: Tensor

    def in_rows(self, packed: Packed, hidden: bool) -> CompletionLogps:
        rows = packed.rows(self.logps.float()), packed.rows(self.entropies.float())
        return CompletionLogps(*rows, packed.mask(), packed.states(self.previous, self.last) if hidden else None)


def completion_logps(
    model: Any,
    groups: Sequence[Group],
    *,
    temperature: float = 1.0,
    hidden: bool = False,
    token_budget: int = sys.maxsize,
) -> CompletionLogps:
    """As `rlhf_core.prefix.completion_logps`, with as many groups in a row as `token_budget` allows."""
    packed = pack(groups, unwrap(model).device)
    states = _states(model, groups, token_budget)
    previous, head = states[packed.previous], unwrap(model).get_output_embeddings()
    logps, entropies = token_logps(head, previous, packed.tokens, temperature)
    return Values(logps, entropies, previous, states[packed.last]).in_rows(packed, hidden)


def completion_hidden(model: Any, groups: Sequence[Group], *, token_budget: int = sys.maxsize) -> CompletionHidden:
    packed = pack(groups, unwrap(model).device)
    states = _states(model, groups, token_budget)
    return CompletionHidden(packed.states(states[packed.previous], states[packed.last]), packed.mask())


def pack_rows(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A model's inputs that hold all `rows` of token ids in one, without padding; each sees nothing but itself."""
    packed = pack([Group(row, []) for row in rows])
    ones = torch.ones(1, 1, 1, packed.input_ids.shape[1], dtype=torch.long)  # read by nobody but token counters
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": ones,
        "shared_prefix": PackedAttention(packed.spans),
    }


def _states(model: Any, groups: Sequence[Group], token_budget: int) -> Tensor:
    """(tokens of all groups as they are packed, hidden size)."""
    rows = [pack(part, unwrap(model).device) for part in batches(groups, token_budget)]
    return torch.cat(
        [last_states(model, row.input_ids, row.position_ids, PackedAttention(row.spans))[0] for row in rows]
    )


def last_states(model: Any, input_ids: Tensor, position_ids: Tensor, metadata: AttentionMetadata) -> Tensor:
    """(rows, tokens, hidden size)."""
    states: list[Tensor] = []
    decoder = unwrap(model).base_model
    with decoder.register_forward_hook(lambda module, inputs, output: states.append(output.last_hidden_state)):
        call(model, input_ids, position_ids, metadata)
    if not states:
        raise NotShared("the model does not compute its states by its base model")
    return states[0]


def call(
    model: Any, input_ids: Tensor, position_ids: Tensor, metadata: AttentionMetadata, logits_to_keep: int | Tensor = 1
) -> Any:
    """The model's output, with logits of the last so many tokens, or of those with these numbers. It goes through the
    outermost module, so that wrappers around it do their part.
    """
    return model(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=NO_MASK,
        shared_prefix=metadata,
        use_cache=False,
        logits_to_keep=logits_to_keep,
    )


def within_wrappers(model: Any) -> Any:
    """The model, with its adapter, in what several processes train: torch's wrappers and DeepSpeed's engine have it as
    their child `module`.
    """
    while not isinstance(model, PreTrainedModel | PeftModel) and "module" in dict(model.named_children()):
        model = model.module
    return model


def unwrap(model: Any) -> Any:
    """The transformers model within wrappers and adapters."""
    model = within_wrappers(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def hidden_size(model: Any) -> int:
    """The size of the states that `completion_hidden` gives: what the model's head reads."""
    plain = unwrap(model)
    head = plain.get_output_embeddings()
    return getattr(head, "in_features", plain.config.get_text_config().hidden_size)  # an adapter may be around it


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
