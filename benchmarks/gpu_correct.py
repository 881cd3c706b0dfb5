"""Is what the engine computes on a GPU right there? Passes for a loss against float64; sampling with captured steps
against steps that are not captured, against `generate`, and against a plain pass over the tokens that were sampled.

python -m benchmarks.gpu_parts correct [--rehearse]
python -m benchmarks.gpu_parts kernels [--rehearse]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.gpu_kit import REAL, Scale, attempt, say, seconds, token_ids
from benchmarks.gpu_seen import Warnings, batch_of, batches, on_device
from rlhf_core.prefix import Group, Sampling, decoding_kernels, kernels, packed, padded, rollout, share, two_phase
from rlhf_core.prefix.llama_step import LlamaStep

SMALL = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
LINEAR = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_conv_kernel_dim": 4}
LINEAR |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
LINEAR |= {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full attention": ("qwen3", {}),
    "linear attention": ("qwen3_5_text", LINEAR),
    "windows": ("mistral", {"sliding_window": 48}),
}
# Models that are sampled: family, type, adapter, 4 bits.
MODELS = {
    "bfloat16": ("full attention", torch.bfloat16, False, False),
    "LoRA, autocast": ("full attention", torch.bfloat16, True, False),
    "QLoRA": ("full attention", torch.bfloat16, True, True),
    "float32": ("full attention", torch.float32, False, False),
    "linear attention": ("linear attention", torch.bfloat16, True, False),
    "linear attention, float32": ("linear attention", torch.float32, False, False),
    "windows": ("windows", torch.bfloat16, True, False),
    "windows, float32": ("windows", torch.float32, False, False),
}
EXPECTED = ("a sampled token's attention", "attention on ")  # that of float32 is plain arithmetic, which is said


def correct(scale: Scale) -> None:
    with on_device(scale):
        for name in MODELS:
            with attempt(f"sampling, {name}"):
                same_samples(scale, name)
        for family in FAMILIES:
            for dtype in (torch.float32, torch.bfloat16):
                name = f"{family}, {str(dtype).removeprefix('torch.')}"
                with attempt(f"{name}: passes for a loss"):
                    same_passes(scale, family, dtype, name)


def kernels_alone(scale: Scale) -> None:
    """Heads of Qwen3 0.6B and 8B, of Qwen2.5-0.5B, of Qwen3.5, and without grouped ones."""
    with on_device(scale):
        for heads, kv_heads, size in ((16, 8, 128), (32, 8, 128), (14, 2, 64), (8, 2, 256), (12, 12, 64)):
            with attempt(f"kernel {heads}/{kv_heads}x{size}"):
                same_kernel(scale, heads, kv_heads, size)


def model_of(scale: Scale, family: str, dtype: torch.dtype, *, lora: bool = False, quantized: bool = False) -> Any:
    """Of weights so large that attention and the distributions of tokens are far from uniform."""
    kind, settings = FAMILIES[family]
    config = CONFIG_MAPPING[kind](**SMALL, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(3)
    model = model.to(dtype)
    if quantized:
        model = in_4_bits(model, scale)
    model = model.to(scale.device)
    if lora:
        torch.manual_seed(1)
        adapter = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, adapter, autocast_adapter_dtype=True).eval()
    return model


def in_4_bits(model: Any, scale: Scale) -> Any:
    import tempfile

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=settings, dtype=model.dtype, device_map={"": scale.device}
        ).eval()


def same_samples(scale: Scale, name: str) -> None:
    family, dtype, lora, quantized = MODELS[name]
    exact = dtype == torch.float32
    model = model_of(scale, family, dtype, lora=lora, quantized=quantized)
    plain = copy.deepcopy(model) if not quantized else model_of(scale, family, dtype, lora=lora, quantized=True)
    autocast = torch.autocast(scale.device, torch.bfloat16, enabled=lora)
    generator = torch.Generator().manual_seed(1)
    prompts = [token_ids(size, generator) for size in (60, 60, 23, 90)]
    greedy = Sampling(scale.checked, [2047], greedy=True)
    found: dict[str, Any] = {}
    with autocast, Warnings() as warnings:
        if reason := share(model):
            raise RuntimeError(reason)
        with batches(scale, captures=True) as seen:
            captured = rollout(model, prompts, 2, greedy, "shared")
            random = rollout(model, prompts, 2, Sampling(scale.checked, [2047, *range(100, 140)], seed=0), "shared")
        graphs = [graph for batch in seen for graph in batch.graphs.values()]
        found["graphs"], found["replays"] = len(graphs), sum(graph.replays for graph in graphs)
        found["written_out"] = any(isinstance(batch.step, LlamaStep) for batch in seen)
        found["by_kernel"] = all(kind for batch in seen for kind in batch.cache.by_kernel.values())
        with batches(scale, captures=False):
            launched = rollout(model, prompts, 2, greedy, "shared")
        found["random_lengths"] = len({len(one.completion) for one in random})
        generated = rollout(plain, prompts, 2, greedy, "transformers")
        groups = [Group(one.prompt, [one.completion]) for one in captured]
        with torch.no_grad():
            again = padded.completion_logps(plain, groups, alone=True)
        if scale is REAL:
            found["waits"] = waits(scale, model, prompts, greedy)
    found["equal_to_launched"] = equal(captured, launched)
    found["equal_to_generate"] = equal(captured, generated)
    mine = torch.nn.utils.rnn.pad_sequence([torch.tensor(one.logps) for one in captured], batch_first=True)
    found["logps_apart_mean"] = ((mine - again.logps.cpu()).abs() * again.mask.cpu()).mean().item()
    said = [one for one in warnings.said if not (exact and one.startswith(EXPECTED))]
    ok = found["replays"] > scale.checked and found["equal_to_launched"] == 1 and not said and not found.get("waits")
    ok = ok and found["logps_apart_mean"] < (1e-3 if exact else 0.1) and found["random_lengths"] > 1
    ok = ok and (not exact or found["equal_to_generate"] == 1)
    ok = ok and found["by_kernel"] is not exact and found["written_out"] is (family == "full attention")
    say(f"sampling, {name}", ok=ok, **found, warnings=said)


def equal(ours: Any, theirs: Any) -> float:
    """The share of tokens up to which answers are the same."""
    same = total = 0
    for one, other in zip(ours, theirs, strict=True):
        pairs = list(zip(one.completion, other.completion, strict=False))
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        total += max(len(one.completion), len(other.completion))
    return same / total


@torch.no_grad()
def waits(scale: Scale, model: Any, prompts: Any, sampling: Sampling) -> str:
    """Where a step waits for the device, launched and replayed; '' if nowhere."""
    batch = batch_of(model, prompts, 2, sampling)
    arrange = batch.cache.arrange

    def then_refuse(rows: int) -> None:  # before the steps numbers are copied there, once
        torch.cuda.set_sync_debug_mode("default")
        arrange(rows)
        torch.cuda.set_sync_debug_mode("error")

    batch.run(2)
    batch.cache.arrange = then_refuse
    try:
        batch.run(4)
        batch.sample(batch.room.tokens, equal=False)
    except RuntimeError as error:
        return str(error)[:300]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def same_passes(scale: Scale, family: str, dtype: torch.dtype, name: str) -> None:
    """The error of the packed and the two-phase pass against float64 is at most twice that of the padded pass."""
    generator = torch.Generator().manual_seed(0)
    answers = [[token_ids(size, generator) for size in sizes] for sizes in ((20, 65, 111), (1, 90, 40, 7))]
    groups = [Group(token_ids(200, generator), answers[0]), Group(token_ids(71, generator), answers[1])]
    plain, sharing = model_of(scale, family, dtype), model_of(scale, family, dtype)
    exact = model_of(scale, family, dtype).double()
    if reason := share(sharing):
        raise RuntimeError(reason)
    ways: dict[str, tuple[Any, Callable[..., Any]]] = {
        "exact": (exact, padded.completion_logps),
        "padded": (plain, padded.completion_logps),
        "packed": (sharing, packed.completion_logps),
        "two phases": (sharing, two_phase.completion_logps),
    }
    found = {}
    for way, (model, call) in ways.items():
        model.zero_grad()
        scored = call(model, groups)
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


def same_kernel(scale: Scale, heads: int, kv_heads: int, size: int) -> None:
    """The device's kernels beside plain arithmetic, on the sequences of a long group, forward and backward."""
    torch.manual_seed(0)
    prompt, answer = scale.prompt, scale.answer
    tokens = prompt + 4 * answer
    calls = [
        kernels.Sequences([prompt, *[answer] * 4], [prompt, *[answer] * 4], causal=True),
        kernels.Sequences([4 * answer], [prompt], causal=False),
        kernels.Sequences([answer] * 4, [prompt // 2 + answer] * 4, causal=True, window=prompt // 2 + 1),
    ]
    make = lambda count: torch.randn(tokens + 2 * prompt, count, size, device=scale.device, dtype=torch.bfloat16)  # noqa: E731
    query, grad_output, key, value = make(heads), make(heads), make(kv_heads), make(kv_heads)
    found = {}
    for name, kernel in (("device", kernels.KERNELS[scale.device]), ("plain", kernels.DENSE)):

        def run(kernel: kernels.Kernel = kernel) -> list[torch.Tensor]:
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
    one = torch.randn(8, heads, 1, size, device=scale.device, dtype=torch.bfloat16)
    decodes = decoding_kernels.decodes_by_kernel(one, one[:, :kv_heads], one[:, :kv_heads])
    refused = kernels.disagreement(kernels.KERNELS[scale.device], query, key)
    times = {"ms": 1000 * found["device"][1], "plain_ms": 1000 * found["plain"][1], "decodes_by_kernel": decodes}
    ok = apart < 0.02 and refused is None and decodes
    say(f"kernel {heads}/{kv_heads} heads of {size}", ok=ok, apart=apart, refused=refused, **times)
