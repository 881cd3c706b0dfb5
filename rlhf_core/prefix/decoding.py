"""Sampling with shared prompts: each distinct prompt goes through the model once, and its keys and values are cached
once for all of its completions.

A step runs on the device alone: it feeds each row's last token, chooses the next and writes it down. Every few tokens
the device is read once: rows that have ended leave, and waiting ones take their places. What a row sampled behind its
end is dropped. On CUDA a step is captured as a graph for each number of rows, of which there are few.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_core.prefix.attention import PackedAttention
from rlhf_core.prefix.cache import DecodingCache, Room, cache_bytes
from rlhf_core.prefix.groups import Group, Rollout, Sampling, on_device
from rlhf_core.prefix.llama_step import LlamaStep, is_like_llama
from rlhf_core.prefix.packed import batches, call, evaluating, pack, send, unwrap
from rlhf_core.prefix.recurrent import state_bytes
from rlhf_core.prefix.sampler import Row, Sampler, seen_in
from rlhf_core.prefix.self_check import decoding_disagrees
from rlhf_core.prefix.sharing import checked, exceeds_window, free_bytes

PREFILL_TOKENS = 8192  # of prompts in one pass
MAX_ROWS = 256  # completions that are sampled beside each other
LOOK = 16  # tokens from one read of the device to the next
REFILL = 4  # rows come in when this part of the places is free: 1/4
MEMORY = 0.8  # share of the free memory that rows may take
NUMBERS = 32  # bytes for each logit of a step: in float32 and, where tokens are chosen, in float64
BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)  # numbers of rows that graphs are captured for
BY_MODULES = "sampling goes through the model's modules, with more operations for each token"
log = logging.getLogger("rlhf")
Step = Callable[[Tensor, Tensor, DecodingCache], Tensor]


@torch.no_grad()
def rollout(model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[Rollout]:
    """As `rlhf_core.prefix.rollout`, by a model that shares prompts, and with fewer rows at once if memory runs out."""
    sampler = Sampler(sampling)
    rows = sampler.rows([prompt for prompt in prompts for _ in range(n)])
    with evaluating(model):
        step = step_of(model, max(map(len, prompts)) + sampling.max_new_tokens)
        room = room_for(model, rows, sampling)  # beside what the step holds
        while True:
            try:
                return sampler.rollouts(_sampled(model, step, sampler, rows, room))
            except torch.OutOfMemoryError:
                if room.rows == 1:
                    raise
            room = room._replace(rows=room.rows // 2, prompts=max(1, room.prompts // 2))
            log.warning("sampling ran out of memory: it goes on with %d answers at once", room.rows)
            for row in rows:
                row.tokens.clear()
                row.logps.clear()


def _sampled(model: Any, step: Step, sampler: Sampler, rows: Sequence[Row], room: Room) -> list[Row]:
    waiting, done = deque(rows), []
    batch = Batch(model, step, sampler, room)
    while waiting or batch.rows:
        if waiting and batch.admits(waiting[0]) and (not batch.rows or REFILL * batch.free >= room.rows):
            batch.enter(waiting)
        batch.run(min(LOOK, max(map(sampler.left, batch.rows))))
        done += batch.look()
    return done


def room_for(model: Any, rows: Sequence[Row], sampling: Sampling) -> Room:
    """What fits into free memory, by estimate, of what these rows need."""
    plain = unwrap(model)
    prompts = {row.prompt for row in rows}
    longest, tokens = max(map(len, prompts)), sampling.max_new_tokens + LOOK
    each = len(rows) / len(prompts)
    vocabulary = plain.get_input_embeddings().weight.shape[0]
    states = state_bytes(plain)
    row = states + cache_bytes(plain, tokens) + NUMBERS * vocabulary + (states + cache_bytes(plain, longest)) * 2 / each
    fits, wanted = int(MEMORY * free_bytes(plain.device) / row), min(len(rows), MAX_ROWS)
    count = max(1, min(fits, wanted))
    if plain.device.type == "cuda":
        enough = [size for size in BUCKETS if wanted <= size <= fits]
        count = min(enough, default=max(size for size in BUCKETS if size <= count))
    return Room(count, tokens, min(len(prompts), -(-2 * count // max(1, int(each)))), longest)


def step_of(model: Any, longest: int) -> Step:
    """The step of a model: written out where it is made like Llama and computes the same, else by its modules, which
    know their windows.
    """
    if (
        is_like_llama(model)
        and not exceeds_window(model, longest)
        and not checked(model, decoding_disagrees, None, BY_MODULES, _forced)
    ):
        return LlamaStep(model)
    return lambda tokens, positions, cache: call(model, tokens[:, None], positions[:, None], cache).logits[:, 0]


def _forced(model: Any, rows: Sequence[Sequence[int]], steps: int) -> Tensor:
    """Log-probabilities (rows, steps, vocabulary) at the last tokens of each row, as sampling computes them."""
    sampler = Sampler(Sampling(steps, (), seed=0))  # torch's generator goes on as it was
    given = sampler.rows([row[: len(row) - steps] for row in rows])
    batch = Batch(model, LlamaStep(model), sampler, Room(len(rows), steps, len(rows), max(map(len, rows))))
    found = [batch.enter(deque(given))]
    batch.cache.arrange(len(rows))
    for number in range(steps - 1):
        batch.tokens[: len(rows)] = torch.tensor([row[len(row) - steps + number] for row in rows])
        found.append(batch.logits(number + 1, equal=True))
        batch.cache.lengths += 1
    return torch.stack(found, dim=1).float().log_softmax(-1)


class Batch:
    """Rows that are sampled together. All tensors are as large as they will be: `tokens` (rows,), each row's last one;
    `points` (rows, tokens), its random numbers; `chosen` (tokens of a look, 2, rows), tokens and log-probabilities.
    """

    def __init__(self, model: Any, step: Step, sampler: Sampler, room: Room) -> None:
        self.model, self.step, self.sampler, self.room = model, step, sampler, room
        self.device = unwrap(model).device
        self.rows: list[Row] = []
        self.fresh = 0  # rows at the end that have come in since the last look
        self.steps = 0  # since the last look
        self.graphs: dict[Hashable, Any] = {}
        self.captures = self.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.cache = DecodingCache(room, self.device)
        # Of the prompt that the next waiting row shares with the last ones: its place, and the logits behind it.
        self.prefilled: dict[tuple[int, ...], tuple[int, Tensor]] = {}
        self.last = sampler.sampling.max_new_tokens - 1  # the number of the last token that a row may have
        with torch.device(self.device):
            self.tokens = torch.zeros(room.rows, dtype=torch.long)
            self.starts = torch.zeros(room.rows, dtype=torch.long)
            self.points = torch.zeros(room.rows, self.last + 1, dtype=torch.float64)
            self.chosen = torch.zeros(LOOK + 1, 2, room.rows)
            self.number = torch.zeros(1, dtype=torch.long)  # of the step since the last look
        self.seen: Tensor | None = None

    @property
    def free(self) -> int:
        return self.room.rows - len(self.rows)

    def admits(self, row: Row, more: int = 0, prompts: Collection[tuple[int, ...]] = ()) -> bool:
        """Whether there is room for a row beside `more` others that come in, with these `prompts`."""
        there = row.prompt in self.prefilled or row.prompt in prompts
        return more < self.free and (there or len(prompts) < self.cache.free_places)

    def enter(self, waiting: deque[Row]) -> Tensor:
        """Take rows in for which there is room, at least one, prefill their prompts, and choose their first tokens, by
        logits (rows, vocabulary) that are returned.
        """
        new: list[Row] = []
        prompts: dict[tuple[int, ...], None] = {}
        while waiting and self.admits(waiting[0], len(new), prompts):
            if waiting[0].prompt not in self.prefilled:
                prompts[waiting[0].prompt] = None
            new.append(waiting.popleft())
        self._prefill(list(prompts))
        places, behind = zip(*(self.prefilled[row.prompt] for row in new), strict=True)
        shared = waiting[0].prompt if waiting else ()
        self.prefilled = {prompt: found for prompt, found in self.prefilled.items() if prompt == shared}
        logits = torch.stack(behind)
        rows = slice(len(self.rows), len(self.rows) + len(new))
        self.rows += new
        self.fresh += len(new)
        self.cache.add_rows(places)
        self.starts[rows] = on_device([len(row.prompt) for row in new], self.device)
        self.points[rows] = torch.stack([row.uniforms for row in new]).to(self.device)
        if self.sampler.needs_seen:
            if self.seen is None:
                self.seen = logits.new_zeros(len(self.tokens), logits.shape[1], dtype=torch.bool)
            self.seen[rows] = seen_in([row.prompt for row in new], logits)
        self._choose(logits, rows, self.points[rows, 0])
        return logits

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> None:
        for part in batches([Group(prompt, []) for prompt in prompts], PREFILL_TOKENS):
            packed = pack(part, self.device)
            metadata = PackedAttention(packed.spans, use_cache=True)
            send(self.model, metadata)
            spans = [spans.prompt for spans in packed.spans]
            ends = on_device([end - 1 for _, end in spans], self.device)
            logits = call(self.model, packed.input_ids, packed.position_ids, metadata, ends).logits[0]
            found = zip(self.cache.add_prompts(spans, *metadata.take_cache()), logits, strict=True)
            self.prefilled |= dict(zip((tuple(group.prompt) for group in part), found, strict=True))

    def run(self, steps: int) -> None:
        """Sample so many tokens of each row, without a read from the device."""
        if not steps:
            return
        live = len(self.rows)
        bucket = min(size for size in (*BUCKETS, self.room.rows) if size >= live)
        self.cache.arrange(min(bucket, self.room.rows) if self.captures else live)
        lengths = [max(0, len(row.tokens) - 1) for row in self.rows]  # in the cache
        for step in range(steps):
            if graph := self.graphs.get(self.cache.layout):
                graph.replay()
            else:
                columns = self.room.tokens if self.captures else max(lengths) + step + 1
                self.sample(columns, equal=not self.captures and min(lengths) == max(lengths))
                if self.captures:
                    self._capture()
        self.steps += steps

    def sample(self, columns: int, *, equal: bool) -> None:
        """The next token of each row of the arrangement; none has more than `columns` before, all with `equal`."""
        rows = slice(0, self.cache.rows)
        logits = self.logits(columns, equal=equal)
        lengths = self.cache.lengths[rows].add_(1)
        self.number.add_(1)
        self._choose(logits, rows, self.points[rows].gather(1, lengths.clamp(max=self.last)[:, None])[:, 0])

    def logits(self, columns: int, *, equal: bool) -> Tensor:
        """(rows, vocabulary), behind each row's last token."""
        rows = self.cache.rows
        self.cache.begin(columns, equal=equal)
        positions = self.starts[:rows] + self.cache.lengths[:rows].clamp(max=self.last)
        return self.step(self.tokens[:rows], positions, self.cache)

    def _choose(self, logits: Tensor, rows: slice, points: Tensor) -> None:
        seen = None if self.seen is None else self.seen[rows]
        tokens, logps = self.sampler.choose(logits, points, seen)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        self.tokens[rows] = tokens
        # float32 has all token ids
        self.chosen[:, :, rows].index_copy_(0, self.number, torch.stack([tokens.float(), logps])[None])

    def _capture(self) -> None:
        """Capture the step that was just computed, for others of its layout. What waits for the device can't be."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads may go on to use the device meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.sample(self.room.tokens, equal=False)
        except RuntimeError as error:
            self.captures = False
            torch.cuda.set_stream(stream)  # a capture that ends with an error leaves its own
            log.warning("a step of sampling can't be captured as a CUDA graph, so each is launched anew: %s", error)
        else:
            self.graphs[self.cache.layout] = graph

    def look(self) -> list[Row]:
        """Read what was sampled since the last look, and let the rows go that have ended, which are returned."""
        live = len(self.rows)
        block = self.chosen[: self.steps + 1, :, :live].tolist()
        for number, row in enumerate(self.rows):
            for tokens, logps in block[0 if number >= live - self.fresh else 1 :]:
                self.sampler.append(row, int(tokens[number]), logps[number])
                if self.sampler.ended(row):
                    break
        self.fresh = self.steps = 0
        self.number.zero_()
        stay = [number for number, row in enumerate(self.rows) if not self.sampler.ended(row)]
        ended = [row for row in self.rows if self.sampler.ended(row)]
        if ended:
            self.rows = [self.rows[number] for number in stay]
            numbers = on_device(stay, self.device, torch.long)
            for tensor in (self.tokens, self.starts, self.points, *([] if self.seen is None else [self.seen])):
                tensor[: len(stay)] = tensor[numbers]
            self.cache.keep(stay, [place for place, _ in self.prefilled.values()])
        return ended
