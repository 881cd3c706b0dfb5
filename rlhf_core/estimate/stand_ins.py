"""What a step does otherwise while it is measured: what would load files, read numbers or repeat itself.

Every name of another module that is replaced for that time is replaced here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from rlhf_core.estimate import sampling
from rlhf_core.estimate.hardware import Device
from rlhf_core.estimate.meter import ANSWERS, BETWEEN, Meter
from rlhf_core.estimate.quantized import bits_of, quantize
from rlhf_core.estimate.weightless import without_values
from rlhf_core.models import loading, precision, weights
from rlhf_core.prefix import (
    decoding,
    head,
    kernels,
    layout,
    logits,
    packed,
    padded,
    rollouts,
    self_check,
    sharing,
    two_phase,
)
from rlhf_core.prefix.groups import CompletionLogps, Group

WEIGHTS, OPTIMIZER = "weights", "optimizer states"
Patch = tuple[Any, str, Any]  # (where, the name, what it is for that time)


@contextmanager
def installed(meter: Meter, device: Device) -> Iterator[None]:
    """Within, models load without values, and the engine computes as on `device`."""
    with ExitStack() as stack:
        for patch in (*_of_models(meter, device), *_of_engine(meter, device), *_of_kernels(device)):
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


def _of_models(meter: Meter, device: Device) -> list[Patch]:
    return [
        (PreTrainedModel, "from_pretrained", classmethod(functools.partial(_load, meter))),
        (torch.cuda, "is_available", lambda: False),  # this process computes nothing on it
        (torch.accelerator, "is_available", lambda *_, **__: False),
        (precision, "gpu_has_bfloat16", lambda: device.is_gpu and device.bfloat16),
        (loading, "frozen_dtype", lambda: device.frozen_dtype),
        *((module, "device", lambda: torch.device("cpu")) for module in (precision, loading)),
        (loading, "bitsandbytes_config", lambda options, _: 4 if options.load_in_4bit else 8),
        (weights, "refuse_not_finite", lambda *_: None),
    ]


def _of_engine(meter: Meter, device: Device) -> list[Patch]:
    masks: dict[Any, Any] = {}
    job, cache = two_phase.Job, decoding.DecodingCache
    kernel = kernels.KERNELS["cuda" if device.is_gpu else "cpu"]
    return [
        (self_check, "_compared", functools.partial(_tried, meter)),
        (logits, "measured", logits.usual),
        (sharing, "free_bytes", lambda _: max(0, device.memory - meter.total)),
        (head, "_gpu_memory", lambda _: device.memory if device.is_gpu else None),
        (layout, "kernel_for", lambda *_: kernel),
        (decoding, "rollout", functools.partial(sampling.shared, meter)),
        (decoding, "free_bytes", lambda _: max(0, device.memory - meter.total)),
        (cache, "_allocate", sampling.counted_as_cache(meter, cache._allocate)),
        (GenerationMixin, "generate", _method(_generate, meter, GenerationMixin.generate)),
        (rollouts, "continuing_disagrees", lambda *_: None),
        (rollouts, "_continuous", functools.partial(sampling.continuous, meter)),
        (rollouts, "_recomputed", functools.partial(sampling.recomputed, meter)),
        *(
            (way, "completion_logps", functools.partial(_once, meter, masks, way.completion_logps))
            for way in (packed, two_phase, padded)
        ),
        (job, "values", _method(_values, meter, job.values)),
        (job, "add_gradients", _method(_add_gradients, meter, job.add_gradients)),
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


def _load(meter: Meter, cls: Any, path: Any, *_: Any, **arguments: Any) -> Any:
    """`from_pretrained` of a model's class: the model without values, quantized to as many bits as the run asks for."""
    config = arguments.get("config") or cls.config_class.from_pretrained(path)
    config.num_labels = arguments.get("num_labels", config.num_labels)
    name = arguments.get("attn_implementation")
    more = {"attn_implementation": name} if name in ("eager", "sdpa") else {}  # others take what sdpa takes
    with torch.device("meta"):
        model = cls._from_config(config, dtype=arguments.get("dtype") or torch.float32, **more)
    model.eval()
    if bits := arguments.get("quantization_config") or bits_of(config):
        quantize(model, bits)
    without_values(model)
    for tensor in (*model.parameters(), *model.buffers()):
        meter.assign(tensor, WEIGHTS)
    return (model, {"missing_keys": []}) if arguments.get("output_loading_info") else model


# The engine


@torch.no_grad()
def _tried(meter: Meter, model: Any, longest: int | None, ours: self_check.Values, *_: Any) -> str | None:
    """In place of comparing a faster way with each row alone: whether it fails."""
    plain = packed.unwrap(model)
    tokens = min(self_check.LONGEST, longest or self_check.LONGEST)
    with meter.during(BETWEEN, repeat=0), packed.evaluating(model):
        try:
            ours(model, self_check.distinct_groups(plain.get_input_embeddings().weight.shape[0], tokens))
        except self_check.FAILURES as error:
            return str(error)
    return None


def _once(meter: Meter, masks: dict[Any, Any], compute: Callable[..., Any], model: Any, groups: Any, **how: Any) -> Any:
    """A pass without gradient over groups of the same lengths is measured once."""
    if torch.is_grad_enabled() or not meter.repeat:
        return compute(model, groups, **how)
    phase = "log-probabilities" if meter.sampling == ANSWERS else meter.sampling
    key = compute.__module__, id(model), tuple(map(_lengths, groups)), bool(how.get("hidden")), _adapters(model)

    def computed() -> list[Tensor | None]:
        scored = compute(model, groups, **how)
        masks[key] = scored.mask
        return [scored.logps, scored.entropies, scored.hidden]

    with meter.during(phase):
        logps, entropies, hidden = meter.once(key, computed)
    return CompletionLogps(logps, entropies, masks[key], hidden)


def _values(meter: Meter, compute: Callable[..., Any], job: two_phase.Job, group: Group) -> Any:
    """Groups of the same lengths take as much."""
    if torch.is_grad_enabled() or not meter.repeat:
        return compute(job, group)
    key = "values", id(job.model), _lengths(group), _adapters(job.model)
    return [two_phase.Values(*values) for values in meter.once(key, lambda: compute(job, group))]


def _add_gradients(
    meter: Meter, compute: Callable[..., None], job: two_phase.Job, group: Group, grads: Any, weights: Any, totals: Any
) -> None:
    """Of several groups each takes as much, if the sums that they add to are there from the first on."""
    if len(job.groups) == 1:
        return compute(job, group, grads, weights, totals)
    if all(total is None for total in totals):
        totals[:] = map(torch.zeros_like, weights)
    key = "gradients", id(job.model), _lengths(group)
    meter.once(key, lambda: compute(job, group, grads, weights, totals))


def _lengths(group: Group) -> tuple[int, ...]:
    return len(group.prompt), *map(len, group.completions)


def _adapters(model: Any) -> Any:
    """Which adapters act."""
    first = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    return None if first is None else (first.disable_adapters, tuple(first.active_adapters))


def _generate(
    meter: Meter,
    compute: Callable[..., Any],
    model: Any,
    inputs: Any = None,
    generation_config: Any = None,
    **more: Any,
) -> Tensor:
    return sampling.generate(meter, compute, model, inputs, generation_config, more)


def _method(replacement: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """A method that calls `replacement` with more arguments before its own."""
    return lambda *args, **kwargs: replacement(*first, *args, **kwargs)
