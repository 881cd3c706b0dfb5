"""Attention of the few queries of a decoding step, without gradient, with its log-sum-exp: plain arithmetic, and flash
attention on CUDA, which is compared with it when heads of a shape are first seen, and left where they differ.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from rlhf_core.prefix.kernels import upcast

DECODES = {"cuda"}  # devices whose flash attention takes starts and lengths of keys that are on the device
_decodes: dict[tuple[Any, ...], bool] = {}
log = logging.getLogger("rlhf")


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp (rows, heads, queries)) of the few queries of a decoding step to all keys, without gradient.
    As many heads on both sides; `mask`: (rows, 1, 1, keys), added to the scores.
    """
    scores = (query @ key.transpose(-1, -2)).to(upcast(query.dtype)) * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def decodes_by_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `flash_decoding` agrees with plain arithmetic for heads like these, tried when they are first seen."""
    if query.device.type not in DECODES:
        return False
    kind = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    if kind not in _decodes:
        problem = _decoding_disagreement(query, key)
        if problem:
            log.warning("a sampled token's attention on %s is plain arithmetic, slowly: %s", query.device, problem)
        _decodes[kind] = problem is None
    return _decodes[kind]


def flash_decoding(
    query: Tensor, keys: Tensor, values: Tensor, starts: Tensor, key_starts: Tensor, used: Tensor, *,
    most: int, longest: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output (N, heads, size), log-sum-exp (heads, N)) of `query` (N, heads, size), of which runs attend to the same
    keys.

    `keys`, `values`: (places, heads, tokens, size). A run begins at its number in `starts` (runs + 1,), and attends to
    as many keys as `used` (runs,) says, from that in `key_starts` (runs + 1,) on, counted as tokens of one head. All
    are int32. `most`: queries that a run has at most, `longest`: keys.
    """
    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        *(query, _one_after_another(keys), _one_after_another(values), starts, key_starts, most, longest),
        *(0.0, False, False),
        scale=scale,
        seqused_k=used,
    )
    return output, lse


def _one_after_another(tensor: Tensor) -> Tensor:
    """(places, heads, tokens, size) as (tokens, heads, size), without a copy: a place's tokens begin at its number
    times heads × tokens.
    """
    places, heads, tokens, size = tensor.shape
    return tensor.as_strided((places * heads * tokens - (heads - 1) * tokens, heads, size), (size, tokens * size, 1))


def _decoding_disagreement(query: Tensor, key: Tensor) -> str | None:
    """What is wrong with the kernel on three random queries of two prompts, or None. They run together, as rows of a
    prompt do, and one by one."""
    generator = torch.Generator().manual_seed(0)
    shapes = (3, query.shape[1], query.shape[3]), (2, key.shape[1], 20, key.shape[3])
    q, k, v = (torch.randn(shape, generator=generator).to(query) for shape in (shapes[0], shapes[1], shapes[1]))
    spans = torch.tensor([[0, 2, 3], [0, 20 * key.shape[1], 0], [11, 20, 0]], dtype=torch.int32, device=query.device)
    starts = torch.arange(3, dtype=torch.int32, device=query.device)
    try:
        found = [flash_decoding(q, k, v, spans[0], spans[1], spans[2, :2], most=2, longest=20, scale=0.2)]
        # Single rows, for which there is another kernel.
        found.append(flash_decoding(q[1:], k, v, starts, spans[1], spans[2, :2], most=1, longest=20, scale=0.2))
    except RuntimeError as error:
        return str(error)
    apart, groups, size = 0.0, key.shape[1], key.shape[3]
    for row, (place, end) in enumerate(((0, 11), (0, 11), (1, 20))):
        given = q[row].reshape(1, groups, -1, size), k[place, None, :, :end], v[place, None, :, :end]
        one_query, one_key, one_value = (one.float() for one in given)
        expected, expected_lse = attend(one_query, one_key, one_value, None, 0.2)
        for (output, lse), first in zip(found, (0, 1), strict=True):
            if row >= first:
                apart = max(apart, (output[row - first] - expected.flatten(0, 2)).abs().max().item())
                apart = max(apart, (lse[:, row - first] - expected_lse.flatten()).abs().max().item())
    allowed = 16 * torch.finfo(query.dtype).eps + 64 * torch.finfo(torch.float32).eps
    return None if apart < allowed else f"its kernel is {apart:.2g} away from it"
