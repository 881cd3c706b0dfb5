"""torch's flash attention for CUDA on a CPU, with the checks of its C++ on what it is given.

    with flash.emulated():
        ...  # the engine computes as on CUDA, in bfloat16

After aten's `mha_varlen_fwd` and `mha_varlen_bwd`: heads of up to 256 numbers, a multiple of 8, beside each other in
memory; float16 or bfloat16; int32 starts, contiguous, of all tokens; causal masks and windows aligned at the last query
and the last key. Scores are computed in float32, results rounded to the type of the inputs. Where no sequence has more
than one query and heads are grouped, each has exactly one: its heads are taken for queries.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch

from rlhf_core.prefix import decoding_kernels, kernels

calls: Counter[str] = Counter()


@contextmanager
def emulated():
    calls.clear()
    overrides = torch.library.Library("aten", "IMPL")  # until `_destroy`
    with pytest.MonkeyPatch.context() as patch:
        overrides.impl("_flash_attention_forward", forward, "CPU")
        overrides.impl("_flash_attention_backward", backward, "CPU")
        patch.setitem(kernels.KERNELS, "cpu", kernels.KERNELS["cuda"])
        patch.setattr(kernels, "_checked", {})
        patch.setattr(decoding_kernels, "DECODES", {"cpu"})
        patch.setattr(decoding_kernels, "_decodes", {})
        yield calls
    overrides._destroy()


def forward(
    query, key, value, starts_q, starts_k, max_q, max_k, dropout, causal, debug, *, scale=None,
    window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None, block_table=None, num_splits=None,
):  # fmt: skip
    if seqused_k is None:
        _check(query, key, value, starts_q, starts_k, max_q, max_k)
        sequences = _sequences(starts_q, starts_k)
    else:
        sequences = _used(query, key, value, starts_q, starts_k, max_q, max_k, seqused_k)
    if max_q == 1 and query.shape[1] > key.shape[1] and window_size_left is None and len(query) != len(starts_q) - 1:
        raise RuntimeError(f"shape '[{len(starts_q) - 1}, …]' is invalid for {len(query)} queries")
    assert dropout == 0.0
    assert not debug
    calls["forward"] += 1
    output = torch.full_like(query, torch.nan)
    lse = torch.full(query.shape[1::-1], torch.nan)
    for (a, b), (c, d) in sequences:
        scores = _scores(query[a:b], key[c:d], causal, window_size_left, window_size_right, scale)
        lse[:, a:b] = scores.logsumexp(-1)
        weights = (scores - lse[:, a:b, None]).exp()
        output[a:b] = torch.einsum("hqk,khd->qhd", weights, _each(value[c:d], query)).to(query.dtype)
    state = torch.zeros(2, dtype=torch.uint64)
    return output, lse, state, torch.empty(0), torch.empty(0, dtype=query.dtype)


def backward(
    grad_output, query, key, value, output, lse, starts_q, starts_k, max_q, max_k, dropout, causal, state, unused, *,
    scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    _check(query, key, value, starts_q, starts_k, max_q, max_k)
    assert grad_output.dtype == output.dtype == query.dtype
    assert grad_output.shape == output.shape == query.shape
    assert grad_output.stride(-1) == output.stride(-1) == 1
    assert lse.dtype == torch.float32
    assert lse.shape == query.shape[1::-1]
    assert lse.is_contiguous()
    assert state.dtype == torch.uint64
    calls["backward"] += 1
    grads = [torch.full_like(tensor, torch.nan) for tensor in (query, key, value)]
    for (a, b), (c, d) in _sequences(starts_q, starts_k):
        scores = _scores(query[a:b], key[c:d], causal, window_size_left, window_size_right, scale)
        weights, above = (scores - lse[:, a:b, None]).exp(), grad_output[a:b].float()
        by_weights = torch.einsum("qhd,khd->hqk", above, _each(value[c:d], query))
        by_scores = weights * (by_weights - (above * output[a:b].float()).sum(-1).t()[..., None]) * scale
        grads[0][a:b] = torch.einsum("hqk,khd->qhd", by_scores, _each(key[c:d], query)).to(query.dtype)
        for grad, part in zip(
            grads[1:],
            (
                torch.einsum("hqk,qhd->khd", by_scores, query[a:b].float()),
                torch.einsum("hqk,qhd->khd", weights, above),
            ),
            strict=True,
        ):
            grad[c:d] = part.unflatten(1, (key.shape[1], -1)).sum(2).to(key.dtype)
    return tuple(grads)


def _check_tensors(query, key, value):
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError("query and key must have the same dtype")
    if query.shape[2] % 8 or query.shape[2] > 256:
        raise RuntimeError("FlashAttention needs heads of up to 256 numbers, a multiple of 8")
    assert query.dim() == key.dim() == value.dim() == 3
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert query.shape[1] % key.shape[1] == 0
    assert key.shape == value.shape


def _check(query, key, value, starts_q, starts_k, max_q, max_k):
    _check_tensors(query, key, value)
    for starts, tensor, longest in ((starts_q, query, max_q), (starts_k, key, max_k)):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        lengths = starts.diff()
        assert int(starts[0]) == 0
        assert int(starts[-1]) == len(tensor)
        assert lengths.min() > 0
        assert lengths.max() == longest
    assert len(starts_q) == len(starts_k)


def _used(query, key, value, starts_q, starts_k, max_q, max_k, used):
    """Sequences whose keys begin anywhere and end by a length of their own; there may be empty ones of queries."""
    _check_tensors(query, key, value)
    for starts in (starts_q, starts_k, used):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
    assert len(starts_q) == len(starts_k) == len(used) + 1
    ends = [(c, c + count) for c, count in zip(starts_k.tolist(), used.tolist(), strict=False)]
    found = [(one, keys) for one, keys in zip(pairwise(starts_q.tolist()), ends, strict=True) if one[0] < one[1]]
    assert sum(b - a for (a, b), _ in found) == len(query)
    assert all(b - a <= max_q and 0 < d - c <= max_k and d <= len(key) for (a, b), (c, d) in found)
    return found


def _sequences(starts_q, starts_k):
    return zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True)


def _each(tensor, query):
    """Of grouped heads, in float32."""
    return tensor.float().repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _scores(query, key, causal, left, right, scale):
    scores = torch.einsum("qhd,khd->hqk", query.float(), _each(key, query)) * scale
    behind = len(key) - len(query)
    left, right = (-1 if size is None else size for size in (left, right))
    right = 0 if causal else right
    sees = torch.ones(len(query), len(key), dtype=torch.bool)
    if right >= 0:
        sees = sees.tril(behind + right)
    if left >= 0:
        sees = sees.triu(behind - left)
    return scores.masked_fill(~sees, -torch.inf)
