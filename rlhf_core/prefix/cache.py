"""The cache that sampling reads and writes: keys and values of prompts, once for all of their answers, and of the
answers, with room for as many tokens as these may have. What a step needs is on the device, in tensors that stay where
they are.

A row is an answer under way. Its new token attends to its prompt and to its own tokens so far, in two parts that are
merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.prefix.attention import Cache
from rlhf_core.prefix.decoding_kernels import attend, decodes_by_kernel, flash_decoding
from rlhf_core.prefix.groups import on_device
from rlhf_core.prefix.kernels import Span
from rlhf_core.prefix.recurrent import Run, States

HIDDEN = -1e30  # added to a score; with -inf a row that sees nothing of its prompt would give NaN


def cache_bytes(model: Any, tokens: int) -> int:
    """Of the keys and values of a row."""
    return cache_numbers(model.config, tokens) * int(model.dtype.itemsize)


def cache_numbers(config: Any, tokens: int) -> int:
    """Of a row's keys and values: 2 × layers × heads × size × tokens, of layers that keep them."""
    config = config.get_text_config()
    settings, names = config.to_dict(), config.attribute_map
    heads, key_values, width, layers = (
        settings.get(names.get(name, name))
        for name in ("num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers")
    )
    # Of latent attention, of the usual kind, and of layers that see all tokens in Gemma 4; the largest is counted.
    sizes = [settings.get(name) or 0 for name in ("qk_head_dim", "head_dim", "global_head_dim")]
    heads, size = key_values or heads, max(sizes) or width // heads
    # Probed: not all families have them.
    kinds: Iterable[str] = getattr(config, "layer_types", None) or ["full_attention"] * layers
    window = getattr(config, "sliding_window", None) or tokens
    kept = {"full_attention": tokens, "hybrid": tokens, "sliding_attention": min(tokens, window)}
    return sum(2 * heads * size * kept.get(kind, 0) for kind in kinds)


class Room(NamedTuple):
    """What a cache holds: `rows` answers of up to `tokens` tokens, and `prompts` of up to `longest` tokens."""

    rows: int
    tokens: int
    prompts: int
    longest: int


class DecodingCache:
    """Attention metadata of one new token a row.

    `prompts`: for each layer (keys, values), (places, heads, longest, size) each; `completions`: (rows, heads, tokens,
    size). `left`: for each recurrent layer the state that a prompt left, (places, …); `states`: each row's, (rows, …).
    `lengths`: (rows,), how many tokens of each row are here. `taken`: the places of prompts, with their lengths;
    `owners`: the place of each row's prompt.
    """

    def __init__(self, room: Room, device: torch.device) -> None:
        self.room, self.device = room, device
        self.prompts: Cache = {}
        self.completions: Cache = {}
        self.left: States = {}
        self.states: States = {}
        self.taken: dict[int, int] = {}
        self.owners: list[int] = []
        self.lengths = torch.zeros(room.rows, dtype=torch.long, device=device)
        self.prompt_lengths = torch.ones(room.prompts, dtype=torch.long, device=device)
        self.numbers = torch.arange(max(room) + 1, device=device)
        # For plain arithmetic: each row's number among all places for rows of all prompts.
        self.slots = torch.zeros(room.rows, dtype=torch.long, device=device)
        # For the kernel: runs of rows with one prompt, their first rows and the places of their prompts.
        self.runs = torch.zeros(2, room.rows + 1, dtype=torch.long, device=device)
        self.by_kernel: dict[Hashable, bool] = {}
        self.plainly = False  # whether a layer attends by plain arithmetic
        self.of_step: dict[Hashable, Any] = {}  # what layers share

    # Between steps

    @property
    def free_places(self) -> int:
        return self.room.prompts - len(self.taken)

    def add_prompts(self, spans: Sequence[Span], cache: Cache, states: States) -> list[int]:
        """Prompts that stand in a row at `spans`; `cache`: the row's keys and values; `states`: what each prompt left.
        Returns their places.
        """
        places = sorted(set(range(self.room.prompts)) - set(self.taken))[: len(spans)]
        self.taken |= {place: end - start for place, (start, end) in zip(places, spans, strict=True)}
        for layer, pair in cache.items():
            if layer not in self.prompts:
                self._allocate(layer, pair)
            for ours, tensor in zip(self.prompts[layer], pair, strict=True):
                for place, (a, b) in zip(places, spans, strict=True):
                    ours[place, :, : b - a] = tensor[0, :, a:b]
        at = on_device(places, self.device)
        for layer, state in states.items():
            if layer not in self.left:
                self.left[layer] = _zeros(state, self.room.prompts)
                self.states[layer] = _zeros(state, self.room.rows)
            for ours, tensor in zip(self.left[layer], state, strict=True):
                ours[at] = tensor
        self.prompt_lengths[at] = on_device([b - a for a, b in spans], self.device)
        return places

    def _allocate(self, layer: int, pair: tuple[Tensor, Tensor]) -> None:
        """Zeros: what a mask hides is multiplied by 0, which of a NaN gives NaN."""
        room = self.room
        sizes = (room.prompts, room.longest), (room.rows, room.tokens)
        for cache, (count, tokens) in zip((self.prompts, self.completions), sizes, strict=True):
            keys, values = (one.new_zeros(count, one.shape[1], tokens, one.shape[3]) for one in pair)
            cache[layer] = keys, values

    def keep(self, rows: Sequence[int], places: Collection[int]) -> None:
        """Of the rows these, in their order, are left, of the prompts theirs and those at `places`."""
        first = next((i for i, row in enumerate(rows) if i != row), len(rows))
        self.owners = [self.owners[row] for row in rows]
        if moved := rows[first:]:
            numbers = on_device(moved, self.device)
            kept = [*self.completions.values(), *self.states.values()]
            for tensor in (self.lengths, *(tensor for several in kept for tensor in several)):
                tensor[first : len(rows)] = tensor[numbers]
        self.taken = {place: length for place, length in self.taken.items() if place in {*self.owners, *places}}

    def add_rows(self, owners: Sequence[int]) -> None:
        """Rows with prompts at these places, without a token yet, behind those that are here."""
        before = len(self.owners)
        self.owners += owners
        self.lengths[before : len(self.owners)] = 0
        at = on_device(owners, self.device)
        for layer, left in self.left.items():
            for ours, tensor in zip(self.states[layer], left, strict=True):
                ours[before : len(self.owners)] = tensor[at]

    def arrange(self, rows: int) -> None:
        """Prepare steps of so many rows, of which those that there are not are computed beside the last one."""
        owners = [*self.owners, *[self.owners[-1]] * (rows - len(self.owners))]
        counts: dict[int, int] = {}
        ranks = []
        for owner in owners:
            ranks.append(counts.get(owner, 0))
            counts[owner] = ranks[-1] + 1
        lengths = set(self.taken.values())
        self.rows, self.width, self.count = rows, max(counts.values()), max(owners) + 1
        self.longest, self.all_equal = max(lengths), len(lengths) == 1 and len(self.taken) == self.count
        slots = [owner * self.width + rank for owner, rank in zip(owners, ranks, strict=True)]
        starts = [i for i in range(rows) if i == 0 or owners[i] != owners[i - 1]]
        unused = self.room.rows + 1 - len(starts)
        runs = [[*starts, *[rows] * unused], [*[owners[i] for i in starts], *[owners[0]] * unused]]
        self.lengths[len(self.owners) : rows] = 0
        self.slots[:rows] = on_device(slots, self.device)
        self.runs.copy_(on_device(runs, self.device))

    @property
    def layout(self) -> tuple[int, ...]:
        """What a step has of the arrangement in its shapes."""
        return (self.rows, *((self.width, self.count, self.longest, self.all_equal) if self.plainly else ()))

    # In a step

    def begin(self, columns: int, *, equal: bool) -> None:
        """A token comes to each row; none will have more than `columns`, and with `equal` each has so many."""
        self.read, self.equal = columns, equal
        self.at = self.numbers[: self.rows], slice(None), self.lengths[: self.rows]
        self.of_step = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        keys, values = self.completions[layer]
        keys[self.at], values[self.at] = key[:, :, 0], value[:, :, 0]
        kind = (query.dtype, query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        if kind not in self.by_kernel:
            self.by_kernel[kind] = decodes_by_kernel(query, key, value)
        if window is None and self.by_kernel[kind]:
            return self._by_kernel(layer, query[:, :, 0], scale)
        self.plainly = True
        return self._by_arithmetic(layer, query, scale, window)

    def carry(self, layer: int, run: Run, states: Tensor) -> Tensor:
        ours = tuple(tensor[: self.rows] for tensor in self.states[layer])
        output, after = run(states, ours)
        for mine, tensor in zip(ours, after, strict=True):
            if tensor is not mine:  # some layers write to what they are given
                mine.copy_(tensor)
        return output

    def _by_kernel(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """By flash attention: its spans of keys begin anywhere, and end by lengths that are on the device."""
        keys, values = self.completions[layer]
        rows, longest = self._shared(("rows", keys.shape), self._rows_for_kernel, keys), self.room.tokens
        output, lse = flash_decoding(query, keys, values, *rows, most=1, longest=longest, scale=scale)
        keys, values = self.prompts[layer]
        runs, longest = self._shared(("runs", keys.shape), self._runs_for_kernel, keys), self.room.longest
        most = max(2, self.rows)  # with 1, flash attention takes each run to have a row
        prefix_output, prefix_lse = flash_decoding(query, keys, values, *runs, most=most, longest=longest, scale=scale)
        weight = torch.sigmoid(prefix_lse - lse).t()[..., None]
        return torch.lerp(output, prefix_output, weight.to(output.dtype))[:, :, None]

    def _rows_for_kernel(self, keys: Tensor) -> tuple[Tensor, ...]:
        """(first query of each row, and one more; first key of each; number of keys), in int32."""
        numbers = self.numbers[: self.rows + 1]
        return numbers.int(), (numbers * keys.shape[1] * keys.shape[2]).int(), (self.lengths[: self.rows] + 1).int()

    def _runs_for_kernel(self, keys: Tensor) -> tuple[Tensor, ...]:
        """The same of the runs of rows with one prompt."""
        starts, places = self.runs
        return starts.int(), (places * keys.shape[1] * keys.shape[2]).int(), self.prompt_lengths[places[:-1]].int()

    def _by_arithmetic(self, layer: int, query: Tensor, scale: float, window: int | None) -> Tensor:
        keys, values = (tensor[: self.rows, :, : self.read] for tensor in self.completions[layer])
        rows, heads, _, size = query.shape
        each = heads // keys.shape[1]
        query = query.reshape(rows, keys.shape[1], each, size)
        output, lse = attend(query, keys, values, self._shared(("own", window), self._own_mask, window), scale)
        mask = self._shared(("prompt", window, each), self._prompt_mask, window, each)
        prefix_output, prefix_lse = self._attend_to_prompts(query, layer, mask, scale)
        merged = torch.lerp(output, prefix_output, torch.sigmoid(prefix_lse - lse)[..., None].to(output.dtype))
        return merged.reshape(rows, heads, 1, -1)

    def _attend_to_prompts(self, query: Tensor, layer: int, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """The rows of each prompt stand beside each other, so that its keys are read once for all of them."""
        keys, values = (tensor[: self.count, :, : self.longest] for tensor in self.prompts[layer])
        _, groups, each, size = query.shape
        at = self.slots[: self.rows]
        slots = query.new_zeros(self.count * self.width, groups, each, size).index_copy_(0, at, query)
        slots = slots.unflatten(0, (self.count, self.width)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output, lse = attend(slots, keys, values, mask, scale)
        output = output.unflatten(2, (each, self.width)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        lse = lse.unflatten(2, (each, self.width)).permute(0, 3, 1, 2).flatten(0, 1)
        return output[at], lse[at]

    def _own_mask(self, window: int | None) -> Tensor | None:
        """(rows, 1, 1, columns), added to the scores of the rows' own tokens."""
        if self.equal and window is None:
            return None
        columns, last = self.numbers[: self.read], self.lengths[: self.rows, None]
        hidden = columns > last if window is None else (columns > last) | (columns <= last - window)
        return _added(hidden)[:, None, None]

    def _prompt_mask(self, window: int | None, each: int) -> Tensor | None:
        """(places, 1, 1 or queries, longest), added to the scores of the prompts' tokens."""
        if self.all_equal and window is None:
            return None
        columns, lengths = self.numbers[: self.longest], self.prompt_lengths[: self.count, None]
        hidden = columns >= lengths
        if window is None:
            return _added(hidden)[:, None, None]
        own = lengths.new_zeros(self.count * self.width).index_copy_(0, self.slots[: self.rows], self.at[2])
        positions = lengths[:, None] + own.unflatten(0, (self.count, self.width))[..., None]
        hidden = hidden[:, None] | (columns <= positions - window)
        return _added(hidden)[:, None, None].expand(-1, -1, each, -1, -1).flatten(2, 3)

    def _shared(self, key: Hashable, compute: Any, *arguments: Any) -> Any:
        """What all layers of a step share, computed by the first one."""
        if key not in self.of_step:
            self.of_step[key] = compute(*arguments)
        return self.of_step[key]


def _zeros(state: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    return tuple(tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in state)


def _added(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, HIDDEN)
