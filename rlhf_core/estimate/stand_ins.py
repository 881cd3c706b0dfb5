"""What a step does otherwise while it is measured: what would load files, read numbers or repeat itself.

Every name of another module that is replaced for that time is replaced here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.estimate.hardware import Device
from rlhf_core.estimate.meter import Meter
from rlhf_core.estimate.weightless import Weightless, without_values
from rlhf_core.models import loading, precision, weights
from rlhf_core.prefix import attention, decoding, kernels, packed, padded, rollouts, sharing, two_phase
from rlhf_core.prefix.groups import CompletionLogps, Rollout, Sampling
from rlhf_core.prefix.sampler import Sampler

WEIGHTS, CACHE, OPTIMIZER = "weights", "KV cache", "optimizer states"
Patch = tuple[Any, str, Any]  # (where, the name, what it is for that time)


@contextmanager
def installed(meter: Meter, device: Device, options: Any) -> Iterator[None]:
    """Within, models load without values, and the engine computes as on `device`."""
    with ExitStack() as stack:
        for patch in (*_of_models(meter, device, options), *_of_engine(meter, device), *_of_kernels(device)):
            stack.enter_context(_replaced(*patch))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _of_models(meter: Meter, device: Device, options: Any) -> list[Patch]:
    return [
        (PreTrainedModel, "from_pretrained", classmethod(functools.partial(_load, meter, options))),
        (torch.cuda, "is_available", lambda: False),  # this process computes nothing on it
        (torch.accelerator, "is_available", lambda *_, **__: False),
        (precision, "gpu_has_bfloat16", lambda: device.is_gpu and device.bfloat16),
        (loading, "gpu_has_bfloat16", lambda: device.is_gpu and device.bfloat16),
        (loading, "bitsandbytes_config", lambda options, dtype: None),
        (weights, "refuse_not_finite", lambda *_: None),
    ]


def _of_engine(meter: Meter, device: Device) -> list[Patch]:
    seen: dict[Any, tuple[CompletionLogps, list[float]]] = {}
    cache = decoding.DecodingCache
    kernel = kernels.KERNELS["cuda" if device.is_gpu else "cpu"]
    return [
        (sharing, "checked", lambda *_: None),  # its checks compare numbers
        (rollouts, "checked", lambda *_: None),
        (sharing, "_free_bytes", lambda _: max(0, device.memory - meter.total)),
        (attention, "kernel_for", lambda *_: kernel),
        (decoding, "rollout", functools.partial(_rollout, meter)),
        (cache, "with_capacity", _counted_as_cache(meter, cache.with_capacity)),
        (rollouts, "_generate", functools.partial(_generate, meter, rollouts._generate)),
        *(
            (way, "completion_logps", functools.partial(_once, meter, seen, way.completion_logps))
            for way in (packed, two_phase, padded)
        ),
    ]


def _of_kernels(device: Device) -> list[Patch]:
    """TRL's kernels, which on a GPU work in place."""
    from trl.kernels import chunked_logprob

    if not device.is_gpu:
        return []
    in_place = dict.fromkeys(("_forward_tile", "_backward_tile"), lambda *_, **__: None)
    return [(chunked_logprob, name, value) for name, value in {**in_place, "_addmm_fp32": _added}.items()]


def _added(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b` in float32, without a copy of either in it."""
    total.addmm_(a, b) if total.dtype == a.dtype else total.add_(1)


# Models


def _load(meter: Meter, options: Any, cls: Any, path: Any, *_: Any, **arguments: Any) -> Any:
    """`from_pretrained` of a model's class: the model without values, quantized as the options say."""
    config = arguments.get("config") or cls.config_class.from_pretrained(path)
    config.num_labels = arguments.get("num_labels", config.num_labels)
    name = arguments.get("attn_implementation")
    more = {"attn_implementation": name} if name in ("eager", "sdpa") else {}  # others take what sdpa takes
    with torch.device("meta"):
        model = cls._from_config(config, dtype=arguments.get("dtype") or torch.float32, **more)
    model.eval()
    if options.quantized:
        quantize(model, 4 if options.load_in_4bit else 8)
    without_values(model)
    for tensor in (*model.parameters(), *model.buffers()):
        meter.assign(tensor, WEIGHTS)
    return (model, {"missing_keys": []}) if arguments.get("output_loading_info") else model


def quantize(model: Any, bits: int) -> None:
    """Replace the linear layers that bitsandbytes would quantize: all but the output layer."""
    output = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child is not output and name not in ("score", "lm_head"):
                setattr(module, name, Quantized(child, bits))
    model.is_quantized, model.is_loaded_in_4bit, model.is_loaded_in_8bit = True, bits == 4, bits == 8
    model.hf_quantizer = SimpleNamespace(is_trainable=True)


class Quantized(nn.Linear):
    """A linear layer with the storage of bitsandbytes' NF4 with double quantization (4 bits a weight, a byte for each
    64, and 4 bytes for each 256 of those) or of its 8 bits (a byte a weight, 4 bytes for each row). A product makes a
    copy of the weights in the type of its input, which is free again at once.

    Dettmers et al., 2023, section 3: https://arxiv.org/abs/2305.14314
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count, meta = linear.weight.numel(), torch.device("meta")
        if bits == 4:
            stored, scales = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device=meta), -(-count // 64)
            self.register_buffer("absmax", torch.empty(scales, dtype=torch.uint8, device=meta))
            self.register_buffer("nested", torch.empty(-(-scales // 256), device=meta))
        else:
            stored = torch.empty(linear.weight.shape, dtype=torch.int8, device=meta)
            self.register_buffer("absmax", torch.empty(self.out_features, device=meta))
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        output = _Product.apply(x.to(kind), self)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantized) -> Tensor:
        ctx.layer = layer
        return x @ _dequantized(layer, x.dtype).t()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad_output @ _dequantized(ctx.layer, grad_output.dtype), None


def _dequantized(layer: Quantized, dtype: torch.dtype) -> Tensor:
    return layer.weight.new_empty(layer.out_features, layer.in_features, dtype=dtype)


def step_of_8_bit_optimizer(optimizer: Any, meter: Meter) -> None:
    """The states of bitsandbytes' 8-bit optimizers: two bytes a weight, and 4 for each block of 256, in both."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            small = parameter.numel() < 4096  # which it keeps in float32
            kind, blocks = (torch.float32, 0) if small else (torch.uint8, -(-parameter.numel() // 256))
            sizes = {"state1": (parameter.numel(), kind), "state2": (parameter.numel(), kind)}
            sizes |= {"absmax1": (blocks, torch.float32), "absmax2": (blocks, torch.float32)}
            optimizer.state[parameter] = {n: parameter.new_zeros(size, dtype=kind) for n, (size, kind) in sizes.items()}


# The engine


def _once(meter: Meter, seen: dict[Any, Any], compute: Callable[..., Any], model: Any, groups: Any, **how: Any) -> Any:
    """A pass without gradient over groups of the same lengths is measured once; more of them only take time."""
    if torch.is_grad_enabled():
        return compute(model, groups, **how)
    lengths = tuple((len(group.prompt), *map(len, group.completions)) for group in groups)
    key = compute.__module__, id(model), lengths, bool(how.get("hidden")), _adapters(model)
    if key not in seen:
        with meter.during("log-probabilities"):
            before = meter.phase.spent()
            scored = compute(model, groups, **how)
            seen[key] = scored, meter.phase.spent(before)
        return scored
    scored, spent = seen[key]
    meter.spend("log-probabilities", spent)
    states = None if scored.hidden is None else scored.hidden.clone()
    return CompletionLogps(scored.logps.clone(), scored.entropies.clone(), scored.mask, states)


def _adapters(model: Any) -> Any:
    """Which adapters act."""
    first = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    return None if first is None else (first.disable_adapters, tuple(first.active_adapters))


@torch.no_grad()
def _rollout(meter: Meter, model: Any, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[Rollout]:
    """The prompts' pass, then the token in the middle of answers that are all as long as they may be, which stands for
    those before the last, and the last.
    """
    length = sampling.max_new_tokens
    sampler = Sampler(replace(sampling, eos_token_ids=(), max_new_tokens=length + 1, seed=0))
    rows = sampler.rows([prompt for prompt in prompts for _ in range(n)])
    rounds = max(1.0, len(rows) / decoding.MAX_ROWS)
    with meter.during(meter.sampling), packed.evaluating(model):
        batch = decoding.Batch(model, sampler)
        with meter.during(meter.name, repeat=rounds):
            batch.enter(rows[: decoding.MAX_ROWS])
        _assign(meter, batch.cache.prompts)
        for tokens, repeat in ((length // 2, length - 2), (length - 1, 1)):
            if tokens < 1 or repeat < 1:
                continue
            for row in batch.rows:
                row.tokens = [meter.token] * (tokens - 1)
            capacity = (-(-tokens // decoding.GROWTH) - 1) * decoding.GROWTH  # before it grows
            for layer, (keys, values) in batch.cache.prompts.items():
                shape = len(batch.rows), keys.shape[1], capacity, keys.shape[3]
                batch.cache.completions[layer] = keys.new_zeros(shape), values.new_zeros(shape)
            _assign(meter, batch.cache.completions)
            with meter.during(meter.name, repeat=repeat * rounds):
                batch.step()
    return _answers(meter, [row.prompt for row in rows], length)


def _answers(meter: Meter, prompts: Sequence[Sequence[int]], length: int) -> list[Rollout]:
    return [Rollout(list(p), [meter.token] * length, [-1.0] * length, finished=False) for p in prompts]


def _counted_as_cache(meter: Meter, compute: Callable[..., Any]) -> Callable[..., Any]:
    def with_capacity(cache: Any, layer: int, key: Tensor) -> tuple[Tensor, Tensor]:
        pair = compute(cache, layer, key)
        _assign(meter, {layer: pair})
        return pair

    return with_capacity


def _assign(meter: Meter, cache: Any) -> None:
    for pair in cache.values():
        for tensor in pair:
            meter.assign(tensor, CACHE)


def _generate(meter: Meter, compute: Callable[..., Any], model: Any, rows: Any, sampling: Sampling) -> list[list[int]]:
    """The first two tokens by `generate`. The others take as long as the second; the cache of all tokens is the size of
    keys and values, 2 × layers × heads × size × tokens × rows, of layers that keep them.
    """
    spent: list[list[float]] = []
    with meter.during(meter.sampling):
        for tokens in (1, 2):
            before = meter.phase.spent()
            compute(model, rows, replace(sampling, max_new_tokens=tokens, eos_token_ids=(meter.token + 1,)))
            spent.append(meter.phase.spent(before))
        length = sampling.max_new_tokens
        one = [max(0.0, second - first) for first, second in zip(*spent, strict=True)]
        meter.spend(
            meter.name, [value * max(0, length - 2) - first for value, first in zip(one, spent[0], strict=True)]
        )
        size = cache_bytes(packed.unwrap(model), max(map(len, rows)) + length) * len(rows)
        held = Weightless(torch.empty(size, dtype=torch.uint8, device="meta"))
        meter.assign(held, CACHE)
        del held
    return [[meter.token] * length for _ in rows]


def cache_bytes(model: Any, tokens: int) -> int:
    """Of the keys and values of a row."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads  # probed: not all families have them
    heads = getattr(config, "num_key_value_heads", None) or heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or tokens
    kept = {"full_attention": tokens, "sliding_attention": min(tokens, window)}
    return sum(2 * heads * size * kept.get(kind, 0) for kind in kinds) * model.dtype.itemsize
