"""GRPO with QLoRA on a model of 8 billion parameters: what takes how much memory, and does it fit into 8 or 12 GB?

python -m benchmarks.gpu_parts qlora [--rehearse]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Qwen3Config

from benchmarks.gpu_kit import GB, Scale, allocated, attempt, built, peak_of, qwen3, say, token_ids
from rlhf_core.prefix import Group, Sampling, packed, rollout, share, two_phase


def quantized(config: Qwen3Config, scale: Scale) -> Any:
    """A 4-bit model, made layer by layer on the device: the full model in 16 bits never exists."""
    import bitsandbytes
    from torch import nn

    model = built(config, scale.dtype, "meta")
    decoder = model.model

    def on_device(make: Callable[[], nn.Module]) -> nn.Module:
        with torch.device(scale.device):
            return make().to(scale.dtype)

    def four_bit(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                options = {"compute_dtype": scale.dtype, "quant_type": "nf4", "compress_statistics": True}
                small = bitsandbytes.nn.Linear4bit(child.in_features, child.out_features, bias=False, **options)
                small.weight = bitsandbytes.nn.Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                small.support_avx512bf16_for_cpu = False
                setattr(module, name, small.to(scale.device))
            else:
                four_bit(child)

    for i, layer in enumerate(decoder.layers):
        decoder.layers[i] = on_device(lambda layer=layer, i=i: type(layer)(config, i))
        four_bit(decoder.layers[i])
    size, words = config.hidden_size, config.vocab_size
    decoder.embed_tokens = on_device(lambda: nn.Embedding(words, size))
    decoder.norm = on_device(lambda: type(decoder.norm)(size))
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(scale.device)
    model.lm_head = on_device(lambda: nn.Linear(size, words, bias=False))
    model.is_loaded_in_4bit = True
    return model.requires_grad_(False)


def qlora(scale: Scale) -> None:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    config = qwen3(scale.large, scale, tied=False)
    model = quantized(config, scale)
    say("weights in 4 bits, the rest in 16", gb=allocated())
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    say("weights as `rlhf run --load-in-4bit` has them", gb=allocated())
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, adapter)
    share(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    bytes_of = sum(p.numel() * p.element_size() for p in trained)
    say("adapter, its gradients and optimizer", gb=4 * bytes_of / GB)
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * scale.dtype.itemsize
    for count in scale.groups:
        say(f"cache of {count} answers", gb=cache * (scale.prompt + count * scale.answer) / GB)
        with attempt(f"QLoRA, {count} answers"):
            step(model, optimizer, scale, count, ["packed", "two phases"])
    for part in ("as it is", "embeddings and head in 16 bits"):
        if part != "as it is":
            base = model.get_base_model()
            base.lm_head.to(scale.dtype)
            base.model.embed_tokens.to(scale.dtype)
        for limit in (8, 12):
            with attempt(f"QLoRA, {scale.groups[-1]} answers within {limit} GB, {part}"), limited(limit):
                step(model, optimizer, scale, scale.groups[-1], ["two phases"], f", within {limit} GB, {part}")
                break


@contextmanager
def limited(gigabytes: int) -> Iterator[None]:
    """As if the GPU had so much memory, part of which the CUDA context takes."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((gigabytes * GB - context) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def step(model: Any, optimizer: Any, scale: Scale, count: int, ways: list[str], note: str = "") -> None:
    """Rollouts of one prompt and a step on them; peaks are of all tensors of the process."""
    generator = torch.Generator().manual_seed(2)
    prompt = token_ids(scale.prompt, generator)
    half = torch.autocast(scale.device, torch.bfloat16, enabled=scale.dtype == torch.bfloat16)
    started = time.perf_counter()
    with half:
        sampling = Sampling(scale.answer, [model.config.vocab_size], seed=0)
        rollouts, peak = peak_of(lambda: rollout(model, [prompt], count, sampling))
    say(f"QLoRA, {count} answers: rollouts{note}", peak_gb=peak, seconds=time.perf_counter() - started)
    group = Group(prompt, [one.completion for one in rollouts])
    model.train()
    for way in ways:

        def train(way=way):
            with half:
                if way == "packed":
                    scored = packed.completion_logps(model, [group])
                else:
                    scored = two_phase.completion_logps(model, [group])
                advantages = torch.linspace(-1, 1, count, device=scale.device)[:, None]
                (-(scored.logps * advantages * scored.mask).sum() / scored.mask.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()

        train()
        before = allocated()
        started = time.perf_counter()
        _, peak = peak_of(train)
        found = {"peak_gb": peak, "activations_gb": peak - before, "seconds": time.perf_counter() - started}
        say(f"QLoRA, {count} answers: step, {way}{note}", ok=True, **found)
