"""Whether a faster way computes the same as each row alone: small groups, both ways, before the first ones.

How far results may be apart is measured: as a multiple of what rounding the embeddings once more does to rows alone. So
it follows from the model and from the precision that it computes in, and a wrong attention is far beyond it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_core.prefix import attention, packed, padded, recurrent
from rlhf_core.prefix.groups import Group
from rlhf_core.prefix.packed import evaluating, unwrap, within_wrappers

LONGEST = 48  # tokens of a prompt with its completion
NARROW = 8  # tokens of a window under which a model is compared, of a prompt that has 24
STEPS = 3  # tokens that `generate` is compared on
ROUNDINGS = 3  # that results may be apart; right ones are one at most, with weights of any spread and up to 24 layers
BY_TOKEN = {"mlp", "moe"}  # kinds of layers, where they are layers of their own, in which no token sees another
QUANTIZED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)  # of a model that is called otherwise


def compute_dtype(model: Any) -> torch.dtype:
    """The coarsest type that `model` (without wrappers) computes in: its weights', autocast's, quantized layers'."""
    dtypes = {weight.dtype for weight in model.parameters()} & {torch.float64, *QUANTIZED.values()}
    kind = model.device.type
    if torch.is_autocast_enabled(kind):
        dtypes.add(torch.get_autocast_dtype(kind))
    quantization = model.config.to_dict().get("quantization_config") or {}
    if quantization.get("load_in_4bit"):
        dtypes.add(QUANTIZED[quantization["bnb_4bit_compute_dtype"]])
    if quantization.get("load_in_8bit"):  # inputs have 8 bits, as bfloat16's numbers have
        dtypes.add(torch.bfloat16)
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def sharing_disagrees(model: Any, longest: int | None) -> str | None:
    """What is different with shared prompts, or None. `longest`: tokens that a row may have at most, if any."""
    return _compared(model, longest, _packed_values)


def windows_disagree(model: Any, longest: int | None) -> str | None:
    """What is different with shared prompts in rows longer than the model's window, or None. It is compared under a
    narrow window, so that small groups show it.
    """
    with _narrowed(unwrap(model)):
        return _compared(model, longest, _windowed_values)


def padding_disagrees(model: Any, longest: int | None) -> str | None:
    """What is different where rows stand beside longer ones, or None."""
    return _compared(model, longest, _padded_values)


def generation_disagrees(model: Any, longest: int | None, generate: Callable[..., Tensor]) -> str | None:
    """What is different where `generate` samples, or None. `generate(model, rows, steps)`: the log-probabilities (rows,
    steps, vocabulary) of the last `steps` tokens of each row, as it computes them.
    """

    def ours(model: Any, groups: list[Group]) -> Tensor:
        return generate(model, _rows(groups), STEPS).double()

    def alone(model: Any, groups: list[Group]) -> Tensor:
        ends = [[row[: len(row) - STEPS + i] for i in range(STEPS)] for row in _rows(groups)]
        logits = [padded.last_logits(model, starts, alone=True) for starts in ends]
        return torch.stack(logits).float().log_softmax(-1).double()

    return _compared(model, longest, ours, alone)


def decoding_disagrees(model: Any, longest: int | None, forced: Callable[..., Tensor]) -> str | None:
    """The same of a step that is written out for models like Llama."""
    problem = generation_disagrees(model, longest, forced)
    return problem and f"the step written out for layers like Llama's is not this model's ({problem})"


@torch.no_grad()
def continuing_disagrees(model: Any, longest: int | None, sample: Callable[..., list[list[int]]]) -> str | None:
    """What is different where continuous batching samples, or None. `sample(model, rows, engine)`: greedy tokens."""
    rows = _rows(distinct_groups(unwrap(model).get_input_embeddings().weight.shape[0], LONGEST))
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with evaluating(model), torch.random.fork_rng(devices):  # which continuous batching seeds
            found, expected = (sample(model, rows, engine) for engine in ("continuous", "transformers"))
    except FAILURES as error:
        return f"{type(error).__name__}: {error}"
    return None if found == expected else "its likeliest tokens are others than those of generate"


def logps_disagree(model: Any, longest: int | None, row_logps: Callable[..., Tensor]) -> str | None:
    """What is different where `row_logps(model, row)` gives the log-probabilities of a row's tokens but the first."""

    def ours(model: Any, groups: list[Group]) -> Tensor:
        rows = [(group.prompt, completion) for group in groups for completion in group.completions]
        return torch.cat([row_logps(model, [*start, *end])[len(start) - 1 :] for start, end in rows]).double()

    def alone(model: Any, groups: list[Group]) -> Tensor:
        scored = padded.completion_logps(model, groups, alone=True)
        return scored.logps[scored.mask.bool()].double()

    return _compared(model, longest, ours, alone)


def _rows(groups: list[Group]) -> list[list[int]]:
    return [[*group.prompt, *group.completions[-1]] for group in groups]


@contextmanager
def _narrowed(plain: Any) -> Iterator[None]:
    """The model's window has `NARROW` tokens at most: where its masks are made, which read it in the configuration, and
    in its layers, which tell it to their attention.
    """
    config = plain.config.get_text_config()
    window = config.sliding_window
    holders = [config, *(one for one in plain.modules() if vars(one).get("sliding_window") == window)]
    for holder in holders:
        holder.sliding_window = min(window, NARROW)
    try:
        yield
    finally:
        for holder in holders:
            holder.sliding_window = window


def _windowed_values(model: Any, groups: list[Group]) -> Tensor:
    return _packed_values(model, groups, windowed=True)


def _packed_values(model: Any, groups: list[Group], *, windowed: bool = False) -> Tensor:
    """Raises `NotShared` if a layer does not attend exactly once, or carry its state exactly once: the others would mix
    what prompts and completions hold in a way that is not known here.
    """
    row, plain = packed.pack(groups, model.device), unwrap(model)
    counted = _Counted(row.spans)
    packed.last_states(model, row.input_ids, row.position_ids, counted)
    if counted.carried != Counter(layer.layer_idx for layer in recurrent.layers(plain)):
        raise attention.NotShared("not every recurrent layer carries its state exactly once")
    config = plain.config.get_text_config()
    kinds = recurrent.layer_kinds(config) or ["full_attention"] * config.num_hidden_layers
    attend = Counter(i for i, kind in enumerate(kinds) if i not in counted.carried and kind not in BY_TOKEN)
    if attend - counted.attended or max(counted.attended.values(), default=1) > 1:
        raise attention.NotShared("not every layer attends exactly once")
    if windowed and not counted.windows:
        raise attention.NotShared("no layer tells its attention that it has a window")
    return _values(model, groups, packed)


def _padded_values(model: Any, groups: list[Group]) -> Tensor:
    return _values(model, groups, padded)


def _alone_values(model: Any, groups: list[Group]) -> Tensor:
    return _values(model, groups, padded, alone=True)


Values = Callable[[Any, list[Group]], Tensor]


@torch.no_grad()
def _compared(model: Any, longest: int | None, ours: Values, alone: Values = _alone_values) -> str | None:
    model = within_wrappers(model)
    plain = unwrap(model)
    # Results are in float32, whatever the weights are in.
    eps = max(torch.finfo(dtype).eps for dtype in (compute_dtype(plain), torch.float32))
    try:
        groups = distinct_groups(plain.get_input_embeddings().weight.shape[0], min(LONGEST, longest or LONGEST))
        with evaluating(model):
            found = ours(model, groups)
            with attention.set_aside(plain):
                expected = alone(model, groups)
                with plain.get_input_embeddings().register_forward_hook(_rounding(eps)):
                    rounded = alone(model, groups)
    except FAILURES as error:
        return str(error) if isinstance(error, attention.NotShared) else f"{type(error).__name__}: {error}"
    numbers = expected.isfinite() & rounded.isfinite()
    if not numbers.any():  # the weights are broken, which whatever uses the model says
        return None
    found, expected, rounded = found[numbers], expected[numbers], rounded[numbers]
    apart = (found - expected).abs().max().item()
    rounding = (rounded - expected).abs().max().item() + torch.finfo(torch.float32).eps * expected.abs().max().item()
    return None if apart <= ROUNDINGS * rounding else f"results differ by {apart:.2g}, and by rounding {rounding:.2g}"


def distinct_groups(vocabulary: int, longest: int) -> list[Group]:
    """Two groups with completions of unequal lengths, the second the longer, none with a token of another where the
    vocabulary is large enough. The same for a model each time.
    """
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0)).tolist()
    used = 0

    def take(count: int) -> list[int]:
        nonlocal used
        used += count
        return [order[i % vocabulary] for i in range(used - count, used)]

    prompt = max(1, longest // 2)
    rest = max(1, longest - prompt)
    return [
        Group(take(prompt), [take(-(-rest // 4)), take(rest)]),
        Group(take(-(-prompt // 3)), [take(1), take(-(-rest // 2))]),
    ]


def _values(model: Any, groups: list[Group], way: Any, **how: bool) -> Tensor:
    """Log-probabilities, or states where there is no head, by `packed` or `padded`; 0 where there is no token."""
    if unwrap(model).get_output_embeddings() is not None:
        return way.completion_logps(model, groups, **how).logps.double()
    found = way.completion_hidden(model, groups, **how)
    return (found.states * pad(found.mask, (1, 0), value=1)[..., None]).double()


class _Counted(packed.PackedAttention):
    """Counts how often each layer attends, and carries a state."""

    def __init__(self, groups: Sequence[attention.GroupSpans]) -> None:
        super().__init__(groups)
        self.attended: Counter[int] = Counter()
        self.carried: Counter[int] = Counter()
        self.windows: set[int] = set()

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        self.attended[layer] += 1
        if window is not None:
            self.windows.add(window)
        return super().attend(layer, query, key, value, scale, window)

    def carry(self, layer: int, run: recurrent.Run, states: Tensor) -> Tensor:
        self.carried[layer] += 1
        return super().carry(layer, run, states)


def _rounding(eps: float) -> Callable[..., Tensor]:
    """A hook that makes each number of a module's output `eps` of itself larger or smaller, at random."""
    generator = torch.Generator().manual_seed(0)

    def rounded(module: Any, inputs: Any, output: Tensor) -> Tensor:
        signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
        return output * (1 + eps * signs)

    return rounded
