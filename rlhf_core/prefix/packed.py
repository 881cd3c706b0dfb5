"""Groups as one row of tokens without padding, all prompts and then all completions, and the pass over it, in which
each prompt goes through the model once.

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
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_core.prefix import recurrent
from rlhf_core.prefix.attention import (
    NO_MASK,
    AttentionMetadata,
    ContinuedAttention,
    GroupSpans,
    NotShared,
    PackedAttention,
)
from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group, on_device
from rlhf_core.prefix.head import token_logps
from rlhf_core.prefix.kernels import Span
from rlhf_core.prefix.logits import scaling_of


@dataclass(frozen=True)
class Packed:
    """`input_ids`, `position_ids`: (1, tokens). `spans`: of each group. `tokens`: (N,), the completions' tokens one
    after another; `previous`: (N,), the index in the row of the token before each, whose state predicts it. `last`:
    (completions,), the index of each one's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    spans: tuple[GroupSpans, ...]
    tokens: Tensor
    previous: Tensor
    last: Tensor


def pack(groups: Sequence[Group], device: torch.device | None = None) -> Packed:
    """All groups in one row."""
    prompts: dict[int, Span] = {}
    ids: list[int] = []
    for number, group in sorted(enumerate(groups), key=lambda pair: bool(pair[1].completions)):
        prompts[number] = (len(ids), len(ids) + len(group.prompt))
        ids += group.prompt
    positions = [i for a, b in prompts.values() for i in range(b - a)]
    before = len(ids)
    previous: list[int] = []
    last: list[int] = []
    spans = []
    for number, group in enumerate(groups):
        start, end = prompts[number]
        completions = []
        for completion in group.completions:
            first = len(ids)
            ids += completion
            positions += range(end - start, end - start + len(completion))
            previous += [end - 1, *range(first, len(ids) - 1)]
            completions.append((first, len(ids)))
            last.append(len(ids) - 1)
        spans.append(GroupSpans(prompts[number], tuple(completions)))
    sizes = [len(part) for part in (ids, positions, previous, last)]
    tokens, places, *others = on_device([*ids, *positions, *previous, *last], device).split(sizes)
    return Packed(tokens[None], places[None], tuple(spans), tokens[before:], *others)


class Rows:
    """What is computed of completions' tokens, one after another, as (completions, longest, …) with 0 after the end of
    shorter ones. `lengths`: of the completions. `mask`: (completions, longest), 1 for the tokens of each.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        self.count, self.longest = len(lengths), max(lengths)
        slots = [row * self.longest + i for row, length in enumerate(lengths) for i in range(length)]
        rows = [row for row, length in enumerate(lengths) for _ in range(length)]
        ends = [row * (self.longest + 1) + length for row, length in enumerate(lengths)]
        sizes = [len(slots), len(slots), len(ends)]
        self.slots, self.row, self.ends = on_device([*slots, *rows, *ends], device).split(sizes)
        self.mask = self.of(torch.ones_like(self.slots))

    def of(self, values: Tensor) -> Tensor:
        """`values`: (N, …)."""
        return self._placed(self.longest, (self.slots, values))

    def states(self, previous: Tensor, last: Tensor) -> Tensor:
        """(completions, 1 + longest, size): the state of the prompt's last token, then that of each token.

        `previous`: (N, size), the states that predict the tokens; `last`: (completions, size), of the last tokens.
        """
        return self._placed(self.longest + 1, (self.slots + self.row, previous), (self.ends, last))

    def _placed(self, width: int, *parts: tuple[Tensor, Tensor]) -> Tensor:
        _, like = parts[0]
        made = like.new_zeros(self.count * width, *like.shape[1:])
        for places, values in parts:
            made = made.index_copy(0, places, values)
        return made.unflatten(0, (self.count, width))


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

    def in_rows(self, groups: Sequence[Group], hidden: bool) -> CompletionLogps:
        rows = Rows(lengths_of(groups), self.logps.device)
        found = rows.of(self.logps.float()), rows.of(self.entropies.float())
        return CompletionLogps(*found, rows.mask, rows.states(self.previous, self.last) if hidden else None)


def completion_logps(
    model: Any,
    groups: Sequence[Group],
    *,
    temperature: float = 1.0,
    hidden: bool = False,
    token_budget: int = sys.maxsize,
) -> CompletionLogps:
    """As `rlhf_core.prefix.completion_logps`, with as many groups in a row as `token_budget` allows."""
    found = []
    for row, states in _passes(model, groups, token_budget):
        previous = states[row.previous]
        found.append(Values(*scores(model, previous, row.tokens, temperature), previous, states[row.last]))
    return Values(*map(joined, zip(*found, strict=True))).in_rows(groups, hidden)


def completion_hidden(model: Any, groups: Sequence[Group], *, token_budget: int = sys.maxsize) -> CompletionHidden:
    passes = _passes(model, groups, token_budget)
    previous, last = zip(*((states[row.previous], states[row.last]) for row, states in passes), strict=True)
    rows = Rows(lengths_of(groups), previous[0].device)
    return CompletionHidden(rows.states(joined(previous), joined(last)), rows.mask)


def lengths_of(groups: Sequence[Group]) -> list[int]:
    return [len(completion) for group in groups for completion in group.completions]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another; of one nothing is copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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


def _passes(model: Any, groups: Sequence[Group], token_budget: int) -> Iterator[tuple[Packed, Tensor]]:
    """(a row, its states (tokens, hidden size)) for as many groups at a time as the budget allows."""
    device = unwrap(model).device
    for part in batches(groups, token_budget):
        row = pack(part, device)
        yield row, last_states(model, row.input_ids, row.position_ids, PackedAttention(row.spans))[0]


def scores(model: Any, previous: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log-probabilities, entropies) of tokens, by the states (N, hidden size) that predict them."""
    plain = unwrap(model)
    return token_logps(plain.get_output_embeddings(), previous, tokens, temperature, scaling_of(plain))


def last_states(
    model: Any, input_ids: Tensor, position_ids: Tensor, metadata: PackedAttention | ContinuedAttention
) -> Tensor:
    """(rows, tokens, hidden size), as the model's head reads them."""
    states: list[Tensor] = []
    send(model, metadata)
    plain = unwrap(model)
    decoder = plain.base_model
    with decoder.register_forward_hook(lambda module, inputs, output: states.append(output.last_hidden_state)):
        # By a tensor: after a number Gemma 4 computes no others in its last layers.
        call(model, input_ids, position_ids, metadata, input_ids.new_zeros(1))
    if not states:
        raise NotShared("the model does not compute its states by its base model")
    factor = 1.0 if plain.get_output_embeddings() is None else scaling_of(plain).before
    return states[0] if factor == 1 else states[0] * factor


def send(model: Any, metadata: PackedAttention | ContinuedAttention) -> None:
    """Have on the model's device what its layers need of a row."""
    plain = unwrap(model)
    metadata.send(plain.device, sliding_window(plain), carries=bool(recurrent.layers(plain)))


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


def is_sharded(model: Any) -> bool:
    """Whether each process has a part of the parameters alone (FSDP, ZeRO-3), so that all take part in every pass."""
    first = next(unwrap(model).parameters())
    return isinstance(first, DTensor) or hasattr(first, "ds_id")  # DeepSpeed's mark on a parameter it holds in parts


def sliding_window(model: Any) -> int | None:
    """How far the layers see that do not see all tokens before them, where there are such."""
    settings = model.config.get_text_config().to_dict()
    layers = settings.get("layer_types") or ["sliding_attention"]
    applies = settings.get("use_sliding_window", True) and "sliding_attention" in layers
    return settings.get("sliding_window") if applies else None


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
