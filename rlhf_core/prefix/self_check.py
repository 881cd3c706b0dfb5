"""Whether a model computes the same with shared prompts as without: a small group, both ways, before the first one.

Ours is compared with the padded computation under the attention implementation that the model came with. How far they
may be apart is measured: as a multiple of what rounding the embeddings once more does to the padded computation. So it
follows from the model and from the precision that it computes in, and a wrong attention is far beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from rlhf_core.prefix import attention, packed, padded
from rlhf_core.prefix.groups import Group
from rlhf_core.prefix.packed import evaluating, unwrap

LONGEST = 48  # tokens of a prompt with its completion
ROUNDINGS = 3  # that results may be apart; right ones are one at most, with weights of any spread and up to 24 layers
QUANTIZED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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


@torch.no_grad()
def disagreement(model: Any, longest: int | None) -> str | None:
    """What is different with shared prompts, or None. `longest`: tokens that a row may have at most, if any."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    plain = unwrap(model)
    groups = distinct_groups(plain.config.get_text_config().vocab_size, min(LONGEST, longest or LONGEST))
    # Results are in float32, whatever the weights are in.
    eps = max(torch.finfo(dtype).eps for dtype in (compute_dtype(plain), torch.float32))
    try:
        with evaluating(model):
            ours = _values(model, packed, groups)
            with attention.set_aside(plain):
                theirs = _values(model, padded, groups)
                with plain.get_input_embeddings().register_forward_hook(_rounding(eps)):
                    rounded = _values(model, padded, groups)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    apart = (ours - theirs).abs().max().item()
    rounding = (rounded - theirs).abs().max().item() + torch.finfo(torch.float32).eps * theirs.abs().max().item()
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


def _values(model: Any, way: Any, groups: list[Group]) -> Tensor:
    """Log-probabilities, or states where there is no head, by `packed` or `padded`; 0 where there is no token."""
    if unwrap(model).get_output_embeddings() is not None:
        return way.completion_logps(model, groups).logps.double()
    found = way.completion_hidden(model, groups)
    return (found.states * pad(found.mask, (1, 0), value=1)[..., None]).double()


def _rounding(eps: float) -> Callable[..., Tensor]:
    """A hook that makes each number of a module's output `eps` of itself larger or smaller, at random."""
    generator = torch.Generator().manual_seed(0)

    def rounded(module: Any, inputs: Any, output: Tensor) -> Tensor:
        signs = torch.randint(2, output.shape, generator=generator).to(output) * 2 - 1
        return output * (1 + eps * signs)

    return rounded
