"""The shared-prefix computation: each prompt goes through the model once, whatever the number of its completions.

Packed: all groups in one row, one pass. In two phases: each prompt once, its completions one after another against its
keys and values, so that memory is that of one completion; backward replays them from the slopes that came from above,
and the prompt last, with what the completions asked of its keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlhf_core.prefix.attention import NO_MASK, ContinuedPath, PackedPath, Path
from rlhf_core.prefix.checkpointing import applies, checkpointed
from rlhf_core.prefix.groups import CompletionHidden, CompletionLogps, Group
from rlhf_core.prefix.head import token_logps
from rlhf_core.prefix.packing import Packed, batches, pack
from rlhf_core.prefix.pages import give_back
from rlhf_core.prefix.sampled import Known, SampledStates, are_right


class Values(NamedTuple):
    """Of some completions' tokens, one after another: log-probabilities, entropies, and states (those before each
    token, then those of each one's last token).
    """

    logps: Tensor
    entropies: Tensor
    before: Tensor
    last: Tensor


def completion_logps(
    model: Any,
    groups: Sequence[Group],
    temperature: float,
    hidden: bool,
    tokens_at_once: int,
    sampled: SampledStates | None = None,
) -> CompletionLogps:
    """As `rlhf_core.prefix.completion_logps`, with as many groups in a row as `tokens_at_once` allow."""
    packed = pack(groups, unwrap(model).device)
    states, known = _states(model, groups, tokens_at_once, sampled)
    before, head = states[packed.before], unwrap(model).get_output_embeddings()
    known = known if sampled and sampled.temperature == temperature else None
    logps, entropies = token_logps(head, before, packed.tokens, temperature, known)
    return _in_rows(packed, Values(logps, entropies, before, states[packed.last]), hidden)


def completion_hidden(model: Any, groups: Sequence[Group], tokens_at_once: int) -> CompletionHidden:
    packed = pack(groups, unwrap(model).device)
    states, _ = _states(model, groups, tokens_at_once)
    return CompletionHidden(packed.states(states[packed.before], states[packed.last]), packed.mask())


def pack_rows(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A model's inputs that hold all `rows` of token ids in one, without padding; each sees nothing but itself."""
    packed = pack([Group(row, []) for row in rows])
    everyone = torch.ones(1, 1, 1, packed.input_ids.shape[1], dtype=torch.long)  # read by nobody but token counters
    return {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": everyone,
        "shared_prefix": PackedPath(packed.layout),
    }


def _in_rows(packed: Packed, values: Values, hidden: bool) -> CompletionLogps:
    rows = packed.rows(values.logps.float()), packed.rows(values.entropies.float())
    return CompletionLogps(*rows, packed.mask(), packed.states(values.before, values.last) if hidden else None)


def _states(
    model: Any, groups: Sequence[Group], tokens_at_once: int, sampled: SampledStates | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """((tokens of all groups as they are packed, hidden size), log-probabilities and entropies if all are known)."""
    parts = [_states_of_row(model, part, sampled) for part in batches(groups, tokens_at_once)]
    states, found = torch.cat([states for states, _ in parts]), [known for _, known in parts if known]
    if len(found) < len(parts):
        return states, None
    return states, (torch.cat([known.logps for known in found]), torch.cat([known.entropies for known in found]))


def _states_of_row(model: Any, groups: Sequence[Group], sampled: SampledStates | None) -> tuple[Tensor, Known | None]:
    plain = unwrap(model)
    row = pack(groups, plain.device)

    def compute() -> Tensor:
        return last_states(model, row.input_ids, row.position_ids, PackedPath(row.layout))[0]

    if not (torch.is_grad_enabled() and applies(plain)):
        return compute(), None
    known = sampled.take(groups) if sampled else None
    if known and not are_right(plain, known.outputs, compute, row.last):
        known = None
    with checkpointed(plain, known.outputs if known else None):
        states = compute()
    give_back()
    return states, known


def last_states(model: Any, input_ids: Tensor, position_ids: Tensor, path: Path) -> Tensor:
    """(rows, tokens, hidden size)."""
    kept: list[Tensor] = []
    decoder = unwrap(model).base_model
    handle = decoder.register_forward_hook(lambda module, inputs, output: kept.append(output.last_hidden_state))
    try:
        call(model, input_ids, position_ids, path)
    finally:
        handle.remove()
    return kept[0]


def call(model: Any, input_ids: Tensor, position_ids: Tensor, path: Path, places: int | Tensor = 1) -> Any:
    """The model's output, with logits of the last so many tokens, or of those with these numbers. It goes through the
    outermost module, so that wrappers around it do their part.
    """
    return model(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=NO_MASK,
        shared_prefix=path,
        use_cache=False,
        logits_to_keep=places,
    )


def unwrap(model: Any) -> Any:
    """The transformers model within wrappers."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return model.get_base_model() if isinstance(model, PeftModel) else model


# Two phases


def two_phase_logps(
    model: Any, groups: Sequence[Group], temperature: float, hidden: bool, rows_at_once: int = 1
) -> CompletionLogps:
    """As `completion_logps`, with the memory of a prompt and of `rows_at_once` completions."""
    packed = pack(groups, unwrap(model).device)
    if isinstance(model, DistributedDataParallel):
        # It gathers gradients only after a forward of its own with gradient; what this one gives is not used.
        model(input_ids=packed.input_ids[:, :1], logits_to_keep=1)
    job = _Job(unwrap(model), list(groups), temperature, rows_at_once)
    learning = [p for p in job.model.parameters() if p.requires_grad]
    return _in_rows(packed, Values(*_TwoPhase.apply(job, *learning)), hidden)


class _Job(NamedTuple):
    model: Any
    groups: list[Group]
    temperature: float
    rows_at_once: int

    def chunks(self, group: Group) -> Iterator[Group]:
        """The group's prompt with those completions that go through the model together."""
        for first in range(0, len(group.completions), self.rows_at_once):
            yield Group(group.prompt, group.completions[first : first + self.rows_at_once])

    def prompt(self, group: Group) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
        """(keys and values of each layer, the last token's state (1, size))."""
        packed = pack([Group(group.prompt, [])], self.model.device)
        path = PackedPath(packed.layout, keep=True)
        states = last_states(self.model, packed.input_ids, packed.position_ids, path)
        return path.kept, states[0, -1:]

    def completions(self, chunk: Group, kept: dict[int, tuple[Tensor, Tensor]], state: Tensor) -> Values:
        device = self.model.device
        rows = chunk.completions
        ends = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        tokens = torch.tensor([token for row in rows for token in row], device=device)
        start = len(chunk.prompt)
        positions = torch.cat([torch.arange(start, start + len(row)) for row in rows]).to(device)
        states = last_states(self.model, tokens[None], positions[None], ContinuedPath(kept, spans))[0]
        before = torch.cat([part for a, b in spans for part in (state, states[a : b - 1])])
        logps, entropies = token_logps(self.model.get_output_embeddings(), before, tokens, self.temperature)
        return Values(logps, entropies, before, states[[b - 1 for b in ends]])


class _TwoPhase(torch.autograd.Function):
    """`apply(job, *weights that learn)` -> the `Values` of all completions, in the order of the groups.

    The weights are inputs so that their gradients leave by the usual way, and are seen by whoever gathers them.
    """

    @staticmethod
    def forward(ctx, job: _Job, *learning: nn.Parameter):
        ctx.job, ctx.learning = job, learning
        ctx.random = _random_state(job.model.device)
        kind = job.model.device.type
        ctx.precision = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        parts = []
        with torch.no_grad():
            for group in job.groups:
                kept, state = job.prompt(group)
                parts += [job.completions(chunk, kept, state) for chunk in job.chunks(group)]
        values = Values(*map(torch.cat, zip(*parts, strict=True)))
        ctx.mark_non_differentiable(values.entropies)
        return tuple(values)

    @staticmethod
    def backward(ctx, by_logps, _, by_before, by_last):
        job = ctx.job
        totals = [torch.zeros_like(weight) for weight in ctx.learning]
        token = row = 0
        with torch.enable_grad(), torch.autocast(*ctx.precision), _replayed(ctx.random, job.model.device):
            for group in job.groups:
                kept, state = job.prompt(group)
                roots = [tensor for pair in kept.values() for tensor in pair] + [state]
                leaves = [root.detach().requires_grad_() for root in roots]
                slopes = [torch.zeros_like(leaf) for leaf in leaves]
                pairs = zip(leaves[:-1:2], leaves[1:-1:2], strict=True)
                given = dict(zip(kept, pairs, strict=True))
                for chunk in job.chunks(group):
                    values = job.completions(chunk, given, leaves[-1])
                    size, rows = len(values.logps), len(values.last)
                    above = (by_logps[token : token + size], by_before[token : token + size], by_last[row : row + rows])
                    outputs = (values.logps, values.before, values.last)
                    _add([*totals, *slopes], outputs, [*ctx.learning, *leaves], above)
                    token, row = token + size, row + rows
                _add(totals, roots, ctx.learning, slopes)
        return None, *totals


def _add(totals: Sequence[Tensor], outputs, inputs, above) -> None:
    """Adds to `totals` the slopes of `outputs` by `inputs`, where there are any."""
    chosen = [(output, slope) for output, slope in zip(outputs, above, strict=True) if output.requires_grad]
    if not chosen:
        return
    outputs, above = zip(*chosen, strict=True)
    slopes = torch.autograd.grad(outputs, inputs, above, allow_unused=True)
    for total, slope in zip(totals, slopes, strict=True):
        if slope is not None:
            total += slope


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _replayed(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """The random numbers (of dropout) are once more those that followed `states`."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield
