"""What `benchmarks/gpu.py` measures, each part in its own process. Prints a line of JSON for every finding.

    python -m benchmarks.gpu_parts equality [--rehearse]

Models have random weights: speed and memory do not depend on them, and no file is needed. Every answer has the full
length.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise
from typing import Any

import torch
from transformers import Qwen3Config

from benchmarks.gpu_kit import (
    GB,
    REAL,
    REHEARSAL,
    Scale,
    attempt,
    built,
    busy,
    peak_of,
    qwen3,
    rates,
    say,
    seconds,
    token_ids,
    wait,
    where_time_goes,
)
from benchmarks.gpu_runs import commands, qlora
from benchmarks.gpu_trainers import resume, trainers
from rlhf_core.prefix import Group, Sampling, completion_logps, kernels, packed, padded, rollout, share, two_phase

# Equality


def equality(scale: Scale) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        with attempt(f"{name}: log-probabilities and gradients"):
            same_results(scale, dtype, name)
        with attempt(f"{name}: greedy rollouts"):
            same_rollouts(scale, dtype, name)
    for heads, kv_heads, size in ((16, 8, 128), (32, 8, 128), (14, 2, 64)):
        with attempt(f"kernel {heads}/{kv_heads}x{size}"):
            same_kernel(scale, heads, kv_heads, size)


def equality_model(scale: Scale, dtype: torch.dtype) -> Any:
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 4}
    config = Qwen3Config(**shape, vocab_size=2048, num_key_value_heads=2, head_dim=64)
    return built(config, dtype, scale.device)


def same_results(scale: Scale, dtype: torch.dtype, name: str) -> None:
    """The error of the packed and the two-phase pass against float64 is at most twice that of the padded pass."""
    generator = torch.Generator().manual_seed(0)
    answers = [[token_ids(size, generator) for size in sizes] for sizes in ((20, 65, 111), (1, 90, 40, 7))]
    groups = [Group(token_ids(300, generator), answers[0]), Group(token_ids(171, generator), answers[1])]
    plain, sharing = equality_model(scale, dtype), equality_model(scale, dtype)
    exact = equality_model(scale, torch.float64)
    exact.load_state_dict(plain.state_dict())
    if reason := share(sharing):
        raise RuntimeError(reason)
    ways = {
        "exact": lambda: padded.completion_logps(exact, groups),
        "padded": lambda: padded.completion_logps(plain, groups),
        "packed": lambda: packed.completion_logps(sharing, groups),
        "two phases": lambda: two_phase.completion_logps(sharing, groups),
    }
    found = {}
    for way, call in ways.items():
        model = {"exact": exact, "padded": plain}.get(way, sharing)
        model.zero_grad()
        scored = call()
        weights = torch.sin(torch.arange(scored.logps.numel(), device=scale.device)).view_as(scored.logps)
        (scored.logps * weights * scored.mask).sum().backward()
        gradients = torch.cat([p.grad.flatten().double() for p in model.parameters()])
        found[way] = (scored.logps * scored.mask).double().detach(), gradients
    logps, gradients = found.pop("exact")
    floor = {torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]
    apart = {
        way: ((one - logps).abs().max().item(), ((gradient - gradients).norm() / gradients.norm()).item())
        for way, (one, gradient) in found.items()
    }
    for way in ("packed", "two phases"):
        ok = all(ours <= 2 * theirs + floor for ours, theirs in zip(apart[way], apart["padded"], strict=True))
        values = {"logps_apart": apart[way][0], "gradients_apart": apart[way][1]}
        values |= {"padded_logps_apart": apart["padded"][0], "padded_gradients_apart": apart["padded"][1]}
        say(f"{name}: {way} beside padded", ok=ok, **values)


def same_rollouts(scale: Scale, dtype: torch.dtype, name: str) -> None:
    """Greedy: the tokens of `generate`. In bfloat16, where near ties may differ, only log-probabilities must agree."""
    generator = torch.Generator().manual_seed(1)
    plain, sharing = equality_model(scale, dtype), equality_model(scale, dtype)
    share(sharing)
    prompts = [token_ids(size, generator) for size in (40, 40, 23)]
    sampling = Sampling(32, [2048], greedy=True)
    ours, theirs = rollout(sharing, prompts, 2, sampling), rollout(plain, prompts, 2, sampling, "transformers")
    equal = sum(a.completion == b.completion for a, b in zip(ours, theirs, strict=True)) / len(ours)
    groups = [Group(one.prompt, [one.completion]) for one in ours]
    with torch.no_grad():
        again = padded.completion_logps(plain, groups).logps
    apart = (torch.tensor([one.logps for one in ours]) - again.cpu()).abs().mean().item()
    exact = dtype == torch.float32
    ok = (equal == 1.0 and apart < 1e-3) if exact else apart < 0.1
    say(f"{name}: greedy rollouts beside generate", ok=ok, equal_answers=equal, logps_apart_mean=apart)


def same_kernel(scale: Scale, heads: int, kv_heads: int, size: int) -> None:
    """The device's kernel beside plain arithmetic, on the sequences of a long group, forward and backward."""
    torch.manual_seed(0)
    prompt, answer = scale.prompt, scale.answer
    tokens = prompt + 4 * answer
    calls = [
        kernels.Sequences([prompt, *[answer] * 4], [prompt, *[answer] * 4], causal=True),
        kernels.Sequences([4 * answer], [prompt], causal=False),
        kernels.Sequences([answer] * 4, [prompt // 2 + answer] * 4, causal=True, window=prompt // 2 + 1),
    ]
    make = lambda count: torch.randn(tokens + 2 * prompt, count, size, device=scale.device, dtype=scale.dtype)  # noqa: E731
    query, grad_output, key, value = make(heads), make(heads), make(kv_heads), make(kv_heads)
    found = {}
    for name, kernel in (("device", kernels.KERNELS[scale.device]), ("plain", kernels.DENSE)):

        def run(kernel=kernel):
            results = []
            for call in calls:
                queries, keys = sum(call.queries), sum(call.keys)
                given = query[:queries], key[:keys], value[:keys]
                output, lse = kernel.forward(*given, call, size**-0.5)
                gradients = kernel.backward(grad_output[:queries], *given, output, lse, call, size**-0.5)
                results += [output, *gradients]
            return results

        found[name] = run(), seconds(run, 2)
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(found["device"][0], found["plain"][0], strict=True))
    limit = 0.02 if scale.dtype == torch.bfloat16 else 1e-4
    refused = kernels.disagreement(kernels.KERNELS[scale.device], query, key)
    if refused:
        say(f"kernel {heads}/{kv_heads} heads of {size} is used", ok=False, reason=refused)
    times = {"ms": 1000 * found["device"][1], "plain_ms": 1000 * found["plain"][1]}
    say(f"kernel {heads}/{kv_heads} heads of {size}", ok=apart < limit, apart=apart, **times)


# Steps and decoding of a model of 0.6 billion parameters


def decoding(scale: Scale) -> None:
    """Tokens a second of each engine; a step can't be faster than reading the weights once."""
    flops, bandwidth = rates(scale)
    say("machine", matmul_tflops=flops, memory_gb_per_s=bandwidth)
    config = qwen3(scale.small, scale, tied=True)
    model = built(config, scale.dtype, scale.device).eval()
    share(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / GB
    generator = torch.Generator().manual_seed(3)
    prompts = [token_ids(scale.prompt, generator) for _ in range(scale.prompts)]
    sampling = Sampling(scale.sampled, [config.vocab_size], seed=0)

    def decode(engine, answers):
        count = len(prompts) * answers
        rollout(model, prompts, answers, Sampling(4, [config.vocab_size], seed=0), engine)
        wait()
        started = time.perf_counter()
        rollouts = rollout(model, prompts, answers, sampling, engine)
        wait()
        took = time.perf_counter() - started
        tokens = sum(len(one.completion) for one in rollouts)
        floor = weights / bandwidth * sampling.max_new_tokens
        found = {"tokens_per_s": tokens / took, "seconds": took, "floor_s": floor, "times_floor": took / floor}
        if engine != "continuous":  # its work is done in a thread of its own
            short = Sampling(8, [config.vocab_size], seed=0)
            found |= busy(lambda: rollout(model, prompts, answers, short, engine), 8)
        say(f"decoding, {count} rows, {engine}", **found)

    for answers in scale.answers:
        for engine in ("shared", "transformers"):
            with attempt(f"decoding, {engine}"):
                decode(engine, answers)
    where_time_goes(lambda: rollout(model, prompts, 2, Sampling(8, [config.vocab_size], seed=0)))
    with attempt("training"):
        model.train()
        group = Group(prompts[0], [token_ids(scale.answer, generator) for _ in range(8)])

        def train():
            completion_logps(model, [group]).logps.sum().backward()

        took = seconds(train)
        tokens, answers = scale.prompt + 8 * scale.answer, 8 * scale.answer
        head = config.vocab_size * config.hidden_size
        body = sum(p.numel() for p in model.parameters()) - head
        pairs = tokens * tokens / 16 + answers * scale.prompt  # rough: half of each answer's square, and the prompt
        seen = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * pairs
        used = (6 * body * tokens + 6 * head * answers + 3 * seen) / took / 1e12
        say("training, packed", tflops=used, of_matmul=used / flops, seconds=took, **busy(train, 1))
    if scale is REAL:  # on a CPU continuous batching takes minutes to get ready
        with attempt("decoding, continuous"):
            model.eval()
            decode("continuous", scale.answers[-1])


def grpo_steps(scale: Scale) -> None:
    """A full GRPO step of our trainer, and of TRL's with plain generation and with continuous batching."""
    import statistics

    from datasets import Dataset
    from rlhf_method_grpo.trainer import SharedPrefixGRPOTrainer
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlhf_core import builtin

    tokenizer = AutoTokenizer.from_pretrained(builtin.MODEL, padding_side="left")
    generator = torch.Generator().manual_seed(4)
    texts = [tokenizer.decode(token_ids(scale.prompt // 2, generator)) for _ in range(8 * scale.prompts)]

    def even(completion_ids, **_):
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    for name in ("ours", "TRL", *(["TRL, continuous batching"] if scale is REAL else [])):
        ends: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, args, state, control, ends=ends, **kwargs):
                wait()
                ends.append(time.perf_counter())

        with attempt(f"GRPO step, {name}"), tempfile.TemporaryDirectory() as folder:
            model = built(qwen3(scale.small, scale, tied=True), scale.dtype, scale.device)
            if name == "ours":
                share(model)
            real = scale is REAL
            arguments = GRPOConfig(
                folder,
                per_device_train_batch_size=8 * scale.prompts,
                **{"num_generations": 8, "max_completion_length": 2 * scale.sampled, "max_steps": scale.steps + 1},
                use_transformers_continuous_batching=name.endswith("batching"),
                **{"bf16": real, "use_cpu": not real, "report_to": [], "save_strategy": "no", "disable_tqdm": True},
                **{"logging_steps": 1000, "gradient_checkpointing": real, "learning_rate": 1e-6},
            )
            trainer = (SharedPrefixGRPOTrainer if name == "ours" else GRPOTrainer)(
                model=model,
                args=arguments,
                reward_funcs=even,
                train_dataset=Dataset.from_dict({"prompt": texts}),
                processing_class=tokenizer,
                callbacks=[Clock()],
            )
            _, peak = peak_of(trainer.train)
            took = statistics.median(b - a for a, b in pairwise(ends))
            say(f"GRPO step, {name}", seconds=took, peak_gb=peak)
            del trainer, model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


PARTS = {
    "equality": equality,
    "qlora": qlora,
    "decoding": decoding,
    "steps": grpo_steps,
    "commands": commands,
    "trainers": trainers,
    "resume": resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU")
    given = parser.parse_args()
    PARTS[given.part](REHEARSAL if given.rehearse else REAL)


if __name__ == "__main__":
    main()
