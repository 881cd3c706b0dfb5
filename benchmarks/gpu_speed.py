"""How near to what the card can do: sampling beside the time that reading weights and cache once takes, a training pass
beside a matrix product.

python -m benchmarks.gpu_parts speed [--rehearse]         0.6B in bfloat16, and its training pass
python -m benchmarks.gpu_parts speed_large [--rehearse]   8B in 4 bits, then in bfloat16
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu_grpo import prepared
from benchmarks.gpu_kit import GB, REAL, Scale, attempt, built, busy, qwen3, rates, say, seconds, token_ids, wait
from benchmarks.gpu_seen import batch_of, batches, on_device
from rlhf_core.prefix import Group, Sampling, completion_logps, decoding, rollout, share
from rlhf_core.prefix.cache import cache_bytes
from rlhf_core.prefix.packed import unwrap

GOAL = 2.0  # times the floor
EACH = 8  # answers of a prompt


def speed(scale: Scale) -> None:
    with on_device(scale):
        flops, bandwidth = rates(scale)
        say("machine", matmul_tflops=flops, memory_gb_per_s=bandwidth)
        model = built(qwen3(scale.small, scale, tied=True), scale.dtype, scale.device).eval()
        share(model)
        for rows in scale.rows:
            with attempt(f"sampling, 0.6B, {rows} rows"):
                sampled(scale, model, f"sampling, 0.6B, bfloat16, {rows} rows", rows, bandwidth)
        with attempt("training"):
            trained(scale, model, flops)
        with attempt("generate, 0.6B"):
            generated(scale, model.eval())


def speed_large(scale: Scale) -> None:
    from peft import get_peft_model

    from rlhf_core.method import TrainingOptions
    from rlhf_core.models import loading
    from rlhf_core.models.adapters import new_adapter
    from rlhf_core.models.resolve import find

    with on_device(scale):
        _, bandwidth = rates(scale)
        with prepared(scale, scale.large, "8B") as folder:
            options = TrainingOptions(learning_rate=1e-5, load_in_4bit=True)
            info = loading.inspect(find(str(folder / "base")))
            model = get_peft_model(loading.load(info, options), new_adapter(info, options)).eval()
        for rows in scale.rows:
            with attempt(f"sampling, 8B in 4 bits, {rows} rows"), torch.autocast(scale.device, torch.bfloat16):
                sampled(scale, model, f"sampling, 8B, 4 bits, LoRA, {rows} rows", rows, bandwidth)
        del model
        model = built(qwen3(scale.large, scale, tied=False), scale.dtype, scale.device).eval()
        share(model)
        for rows in scale.rows:
            with attempt(f"sampling, 8B, {rows} rows"):
                sampled(scale, model, f"sampling, 8B, bfloat16, {rows} rows", rows, bandwidth)


@torch.no_grad()
def sampled(scale: Scale, model: Any, what: str, rows: int, bandwidth: float) -> None:
    """Steps of captured graphs, without prefill and capturing."""
    generator = torch.Generator().manual_seed(3)
    each = min(EACH, rows)
    prompts = [token_ids(scale.prompt, generator) for _ in range(rows // each)]
    look = decoding.LOOK
    vocabulary = unwrap(model).get_input_embeddings().weight.shape[0]
    with batches(scale, captures=True) as seen:
        started = time.perf_counter()
        batch = batch_of(model, prompts, each, Sampling(6 * look, [vocabulary], seed=0))
        batch.run(look)  # the first is launched and captured
        batch.look()
        ready = time.perf_counter() - started
        wait()
        started = time.perf_counter()
        for _ in range(2):
            batch.run(look)
            batch.look()
        wait()
        took = (time.perf_counter() - started) / (2 * look)
        working = busy(lambda: batch.run(look), look)
    tokens = sum(map(len, prompts)) + rows * 2 * look
    floor = (weights_of(model) + cache_bytes(unwrap(model), tokens)) / GB / bandwidth
    found = {"tokens_per_s": rows / took, "ms_a_token": 1000 * took, "floor_ms": 1000 * floor, **working}
    found |= {"times_floor": took / floor, "prefill_and_capture_s": ready}
    found["replays"] = sum(graph.replays for one in seen for graph in one.graphs.values())
    say(what, reached=took / floor <= GOAL, goal=f"{GOAL:g} times the floor", **found)


def weights_of(model: Any) -> int:
    """Bytes that a step reads of them: of embeddings it reads a few rows, where the head has others."""
    plain = unwrap(model)
    embedded, head = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    return sum(p.nbytes for p in plain.parameters()) - (0 if embedded is head else embedded.nbytes)


def trained(scale: Scale, model: Any, flops: float) -> None:
    generator = torch.Generator().manual_seed(3)
    group = Group(token_ids(scale.prompt, generator), [token_ids(scale.answer, generator) for _ in range(scale.group)])
    model.train()

    def train() -> None:
        completion_logps(model, [group]).logps.sum().backward()

    took = seconds(train)
    config = model.config
    answers = scale.group * scale.answer
    tokens = scale.prompt + answers
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - head
    pairs = (scale.prompt**2 + scale.group * scale.answer**2) / 2 + answers * scale.prompt
    seen = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * pairs
    used = (6 * body * tokens + 6 * head * answers + 3 * seen) / took / 1e12
    tried = {"tokens_per_s": tokens / took, **busy(train, 1)}
    say("training, 0.6B, packed", tflops=used, of_matmul=used / flops, seconds=took, **tried)
    model.zero_grad()


def generated(scale: Scale, model: Any) -> None:
    """`generate`, for comparison, prefill included."""
    generator = torch.Generator().manual_seed(3)
    count = 32 if scale is REAL else 4
    sampling = Sampling(count, [model.config.vocab_size], seed=0)
    for rows in scale.rows[:2]:
        prompts = [token_ids(scale.prompt, generator) for _ in range(max(1, rows // EACH))]
        for engine in ("shared", "transformers"):
            took = seconds(lambda engine=engine, prompts=prompts: rollout(model, prompts, EACH, sampling, engine), 1)
            say(f"answers of {count} with prefill, 0.6B, {rows} rows, {engine}", tokens_per_s=rows * count / took)
