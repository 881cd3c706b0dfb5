"""Layers that carry a state from token to token: linear attention (gated delta rule), state space (Mamba 2) and short
convolutions. A completion goes on from the state that its prompt's last token left, as attention goes on from keys and
values: the last inputs of the convolution, and the recurrent state. Gradients flow back into the prompt through both.

transformers' layers take and leave that state by a cache, which copies it into buffers; `LayerCache` speaks the same
interface and keeps the tensors. `share` sets `forward` of each such layer, which without the keyword `shared_prefix` is
the layer's own. What is private of transformers in this is in `LAYERS` and `LayerCache` alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.utils.import_utils import is_mamba_2_ssm_available

from rlhf_core.prefix.groups import on_device
from rlhf_core.prefix.kernels import Span

MAMBA_2 = ("BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer", "NemotronHMamba2Mixer")
# transformers' layers, and their argument for a cache. Each computes whole rows from a state, not single tokens only.
LAYERS = {
    **dict.fromkeys(("Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet"), "cache_params"),
    **dict.fromkeys(("OlmoHybridGatedDeltaNet", "KimiLinearDeltaAttention"), "cache_params"),
    "BailingHybridDeltaAttention": "cache_params",
    **dict.fromkeys(MAMBA_2, "cache_params"),
    **dict.fromkeys(("Lfm2ShortConv", "Lfm2MoeShortConv", "Lfm3ShortConv"), "past_key_values"),
}
FILLED = 0.75  # of the longest row in a batch: a row shorter than that stands in another
# Tokens that a row has at least: for one alone the layers choose kernels that decode, which have no gradient.
SHORTEST = 2

# The last inputs of the convolution (rows, channels, kernel size), and the recurrent state, where a layer has one.
State = tuple[Tensor, ...]
States = dict[int, State]  # for each layer
# states (rows, tokens, size), and what stands before each row -> the layer's output, and the state behind the rows
Run = Callable[[Tensor, State | None], tuple[Tensor, State]]


class LayerCache:
    """What one layer is given as transformers' cache. `state`: before the call what it goes on from, if anything. With
    `decodes` a layer may write to it, as kernels for single tokens do.
    """

    def __init__(self, state: State | None, *, decodes: bool = False) -> None:
        self.record_past = not decodes  # transformers' word for: never a token by itself
        self.state: State = state or ()
        self.given = state is not None
        self.layers: defaultdict[int, LayerCache] = defaultdict(lambda: self)  # read so before 5.18

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.given

    def is_recording_past(self, layer_idx: int) -> bool:
        return self.record_past

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.state[0] if self.given else None

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.state[1] if self.given else None

    @property
    def conv_states(self) -> tuple[Tensor | None, ...]:
        return (self.get_conv_state(0),)

    @property
    def recurrent_states(self) -> tuple[Tensor | None, ...]:
        return (self.get_recurrent_state(0),)

    def update_conv_state(self, inputs: Tensor, layer_idx: int, state_idx: int = 0, *, conv_kernel_size: int) -> Tensor:
        """The inputs with those before them, of which the convolution's output has more columns than asked for."""
        whole = torch.cat([self.state[0], inputs], dim=-1) if self.given else inputs
        missing = max(0, conv_kernel_size - whole.shape[-1])
        self.state = (pad(whole, (missing, 0))[..., -conv_kernel_size:], *self.state[1:])
        return whole

    def update_recurrent_state(self, state: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        self.state = (self.state[0], state)
        return state


def layers(model: Any) -> list[Any]:
    """The modules of a model (without wrappers) that are known here."""
    return [module for module in model.modules() if type(module).__name__ in LAYERS]


@torch.no_grad()
def state_bytes(model: Any) -> int:
    """Of one row's states in all such layers of a model, as the first one leaves them behind a token."""
    found = layers(model)
    if not found:
        return 0
    size = model.config.get_text_config().hidden_size
    state = _run(found[0], torch.zeros(1, 1, size, dtype=model.dtype, device=model.device), None)[1]
    return len(found) * sum(tensor.nbytes for tensor in state)


def numbers_for_backward(model: Any) -> int:
    """What the largest such layer of a model keeps of a token, by estimate, in numbers of its type. Measured in torch's
    own arithmetic: 11 for each number that its projections give with the gated delta rule, 2 with a short convolution.
    Mamba 2 without its kernel keeps in float32, for each head, 11 for each number of the head, 7 of the state, and 3
    for each token of a chunk.
    """
    return max((_numbers(layer, model.dtype) for layer in layers(model)), default=0)


def _numbers(layer: Any, dtype: torch.dtype) -> int:
    projected = sum(part.out_features for part in layer.modules() if isinstance(part, nn.Linear))
    if type(layer).__name__ not in MAMBA_2 or is_mamba_2_ssm_available():
        return 11 * projected
    scanned = layer.num_heads * (11 * layer.head_dim + 7 * layer.ssm_state_size + 3 * layer.chunk_size)
    return 2 * projected + scanned * torch.float32.itemsize // dtype.itemsize


def layer_kinds(config: Any) -> list[str]:
    """What a configuration of transformers says of each layer, by whatever name; nothing if it does not."""
    return config.to_dict().get(config.attribute_map.get("layer_types", "layer_types")) or []


def share(model: Any) -> None:
    """Let such layers read the keyword `shared_prefix`."""
    for layer in layers(model):
        layer.forward = MethodType(_forward, layer)  # a bound method, so that a copy of the model has its own


def _forward(layer: Any, hidden_states: Tensor, *, shared_prefix: Any = None, **rest: Any) -> Tensor:
    if shared_prefix is None:
        return type(layer).forward(layer, hidden_states, **rest)
    # Nothing of `rest` is for such a layer but a cache and a mask, and there is neither.
    return shared_prefix.carry(layer.layer_idx, partial(_run, layer), hidden_states)


def _run(layer: Any, states: Tensor, before: State | None) -> tuple[Tensor, State]:
    cache = LayerCache(before, decodes=before is not None and states.shape[1] == 1)
    output = type(layer).forward(layer, states, **{LAYERS[type(layer).__name__]: cache})
    return output, cache.state


class PackedRows:
    """The spans of a packed row as batches of rows: prompts that have completions one by one, since nothing may stand
    behind the last token whose state goes on, then all other spans beside each other, padded on the right.

    `groups`: (prompt, completions) for each. With `keep`, the states behind all prompts are asked for.
    """

    def __init__(self, groups: Sequence[tuple[Span, Sequence[Span]]], *, keep: bool = False) -> None:
        self.prompts = [prompt for prompt, completions in groups if completions or keep]
        below = [completions for _, completions in groups if completions or keep]
        self.batches = [*_batches([(prompt, None) for prompt, completions in groups if not completions and not keep])]
        self.batches += _batches([(span, number) for number, spans in enumerate(below) for span in spans])
        self.indices: list[Tensor] = []  # made once for all layers: of each batch's tokens in the row, and back

    def carry(self, run: Run, states: Tensor) -> tuple[Tensor, list[State]]:
        """The output of a layer for `states` (1, tokens, size), and the state behind each prompt that has completions,
        or with `keep` each.
        """
        self.send(states.device)
        outputs, after = [], []
        for start, end in self.prompts:
            output, state = run(states[:, start:end], None)
            outputs.append(output[0])
            after.append(state)
        for batch, index in zip(self.batches, self.indices[1:], strict=True):
            rows = states[0].index_select(0, index).view(len(batch), -1, states.shape[-1])
            outputs.append(run(rows, _before(batch, after))[0].flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.indices[0])[None], after

    def send(self, device: torch.device) -> None:
        """Have the indices on the device, which all layers use."""
        if not self.indices:
            self.indices = self._indices(device)

    def _indices(self, device: torch.device) -> list[Tensor]:
        """Where each token of the row stands in what `carry` puts one after another; then, for each batch, which token
        of the row stands at each place.
        """
        places = [range(start, end) for start, end in self.prompts]
        found, done = [], sum(map(len, places))
        back = {token: place for place, token in enumerate(token for tokens in places for token in tokens)}
        for batch in self.batches:
            width = max(SHORTEST, *(end - start for (start, end), _ in batch))
            index: list[int] = []
            for (start, end), _ in batch:
                back |= {token: done + len(index) + token - start for token in range(start, end)}
                index += [*range(start, end), *[start] * (width - end + start)]
            done += len(index)
            found.append(index)
        found.insert(0, [back[token] for token in range(len(back))])
        numbers = on_device([number for index in found for number in index], device)
        return list(numbers.split([len(index) for index in found]))


Rows = list[tuple[Span, int | None]]  # each with the number of the prompt that it goes on from, if any


def _batches(rows: Rows) -> Iterator[Rows]:
    """Rows of about the same length together."""
    batch: Rows = []
    for row in sorted(rows, key=lambda one: one[0][0] - one[0][1]):
        if batch and row[0][1] - row[0][0] < FILLED * (batch[0][0][1] - batch[0][0][0]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _before(batch: Rows, after: Sequence[State]) -> State | None:
    """(rows, …) of each tensor of a state."""
    numbers = [number for _, number in batch if number is not None]
    return joined([after[number] for number in numbers]) if numbers else None


def joined(states: Sequence[State]) -> State:
    """States of single rows as one of all rows."""
    return tuple(torch.cat(tensors) for tensors in zip(*states, strict=True))


def carry_on(run: Run, states: Tensor, before: State) -> Tensor:
    """The output of a layer for one row `states` (1, tokens, size) that goes on from a state."""
    tokens = states.shape[1]
    return run(pad(states, (0, 0, 0, max(0, SHORTEST - tokens))), before)[0][:, :tokens]
