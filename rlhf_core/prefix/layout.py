"""Prompts and their completions in one row, and their attention.

A row is `[prompts without completions, prompts, completions]`, the completions in the order of their prompts, so that
whatever attends or is attended to stands side by side, and is sliced instead of gathered.

Prompts attend to themselves, and completions to themselves and to their prompt, as two ordinary attentions merged by
their log-sum-exp (as in Ring Attention, Liu et al., 2023: https://arxiv.org/abs/2310.01889); the backward of each is
given the merged result, which makes the sum of both exact.

In a layer with a sliding window, which may end within the prompt, each completion attends to the end of its prompt and
to itself as one sequence of keys, which is gathered for as long as the layer needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_core.prefix.kernels import Kernel, Sequences, kernel_for, send, upcast


class Layout:
    """`groups`: (tokens of a prompt, tokens of each of its completions), in the order in which they stand. `in_row`:
    the prompts stand in the row, too; else there is one, whose keys and values are given.
    """

    def __init__(self, groups: Sequence[tuple[int, Sequence[int]]], *, in_row: bool = True) -> None:
        self.in_row = in_row
        self.bare = [prompt for prompt, completions in groups if not completions]
        self.groups = [(prompt, list(completions)) for prompt, completions in groups if completions]
        self.prompts = [prompt for prompt, _ in self.groups]
        self.lengths = [length for _, completions in self.groups for length in completions]
        self.longest = max(prompt + max(completions, default=0) for prompt, completions in groups)
        self.first = sum(self.bare) if in_row else 0  # the first token of a prompt with completions
        self.before = self.first + sum(self.prompts) if in_row else 0  # the first token of a completion
        own = [*(self.bare + self.prompts if in_row else []), *self.lengths]
        self.own = Sequences(own, own, causal=True)
        self.prefix = Sequences([sum(lengths) for _, lengths in self.groups], self.prompts, causal=False)
        self._windowed: dict[int, Windowed] = {}

    def send(self, device: torch.device, window: int | None) -> None:
        """Have what the kernels need on the device before the first layer runs. `window`: of layers that have one."""
        if device.type == "cpu":  # whose kernels take the lengths themselves
            return
        several = [self.own, *([self.prefix] if self.lengths else [])]
        if window is not None and window < self.longest:
            windowed = self.windowed(window)
            several += [*([windowed.before] if self.before else []), *([windowed.completions] if self.lengths else [])]
        send(several, device)

    def windowed(self, window: int) -> Windowed:
        if window not in self._windowed:
            self._windowed[window] = Windowed(self, window)
        return self._windowed[window]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        prompt: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """All (1, heads, tokens, size). `prompt`: its keys and values, unless they stand in the row."""
        tensors = (query, key, value, *(prompt or (None, None)))
        given = [None if one is None else one.squeeze(0).transpose(0, 1) for one in tensors]
        if window is None or window >= self.longest:
            output = _Merged.apply(*given, self, scale)
        else:
            output = _Windowed.apply(*given, self.windowed(window), scale)
        return output.transpose(0, 1)[None]


class Windowed:
    """A layout under a window shorter than its longest prompt with a completion."""

    def __init__(self, layout: Layout, window: int) -> None:
        self.layout = layout
        self.tails = [min(prompt, window - 1) for prompt in layout.prompts]
        pairs = zip(self.tails, layout.groups, strict=True)
        self.sizes = [size for tail, (_, lengths) in pairs for length in lengths for size in (tail, length)]
        prompts = layout.bare + layout.prompts
        self.before = Sequences(prompts, prompts, causal=True, window=window)
        keys = [tail + own for tail, own in zip(self.sizes[::2], self.sizes[1::2], strict=True)]
        self.completions = Sequences(layout.lengths, keys, causal=True, window=window)

    def gathered(self, prompts: Tensor, own: Tensor) -> Tensor:
        """Keys or values of completions: each one's end of its prompt, and its own."""
        parts, ends, start = iter(own.split(self.layout.lengths)), [], 0
        for tail, (prompt, lengths) in zip(self.tails, self.layout.groups, strict=True):
            start += prompt
            ends += [prompts[start - tail : start]] * len(lengths)
        return torch.cat([part for end in ends for part in (end, next(parts))])

    def scattered(self, grad: Tensor, prompts: Tensor) -> Tensor:
        """The gradient of the completions' own, of one of `gathered`; the rest is added to that of the prompts."""
        parts = grad.split(self.sizes)
        ends, start = iter(parts[::2]), 0
        for tail, (prompt, lengths) in zip(self.tails, self.layout.groups, strict=True):
            start += prompt
            several = torch.stack([next(ends) for _ in lengths])
            prompts[start - tail : start].add_(several.sum(0, dtype=upcast(grad.dtype)))
        return torch.cat(parts[1::2])


class _Merged(torch.autograd.Function):
    """Of tensors (tokens, heads, size)."""

    @staticmethod
    def forward(ctx, query, key, value, prompt_key, prompt_value, layout: Layout, scale):
        kernel = kernel_for(query, key)
        output, lse = kernel.forward(query, key, value, layout.own, scale)
        if layout.lengths:
            rest, prompts = slice(layout.before, None), _prompts(layout, key, value, prompt_key, prompt_value)
            prefix, prefix_lse = kernel.forward(query[rest], *prompts, layout.prefix, scale)
            _merge(output[rest], lse[:, rest], prefix, prefix_lse)
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, prompt_key, prompt_value, output, lse = ctx.saved_tensors
        layout, kernel = ctx.layout, kernel_for(query, key)
        grads = kernel.backward(grad_output, query, key, value, output, lse, layout.own, ctx.scale)
        if not layout.lengths:
            return *grads, None, None, None, None
        rest, prompts = slice(layout.before, None), _prompts(layout, key, value, prompt_key, prompt_value)
        above = grad_output[rest], query[rest], *prompts, output[rest], lse[:, rest]
        by_query, *by_prompts = kernel.backward(*above, layout.prefix, ctx.scale)
        grads[0][rest].add_(by_query)
        if prompt_key is not None:
            return *grads, *by_prompts, None, None
        for grad, more in zip(grads[1:], by_prompts, strict=True):
            grad[_keys(layout)].add_(more)
        return *grads, None, None, None, None


class _Windowed(torch.autograd.Function):
    """Of tensors (tokens, heads, size)."""

    @staticmethod
    def forward(ctx, query, key, value, prompt_key, prompt_value, windowed: Windowed, scale):
        kernel = kernel_for(query, key)
        parts = []
        if windowed.layout.before:
            parts.append(kernel.forward(*_before(windowed, query, key, value), windowed.before, scale))
        if windowed.layout.lengths:
            given = _completions(windowed, query, key, value, prompt_key, prompt_value)
            parts.append(kernel.forward(*given, windowed.completions, scale))
        outputs, lses = zip(*parts, strict=True)
        output, lse = torch.cat(outputs), torch.cat(lses, dim=-1)
        ctx.save_for_backward(query, key, value, prompt_key, prompt_value, output, lse)
        ctx.windowed, ctx.scale = windowed, scale
        return output

    @staticmethod
    def backward(ctx, grad_output):
        query, key, value, prompt_key, prompt_value, output, lse = ctx.saved_tensors
        windowed, before = ctx.windowed, ctx.windowed.layout.before
        kernel: Kernel = kernel_for(query, key)
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        if before:
            given = _before(windowed, grad_output, query, key, value, output)
            parts = kernel.backward(*given, lse[:, :before], windowed.before, ctx.scale)
            for grad, part in zip(grads, parts, strict=True):
                grad[:before] = part
        if not windowed.layout.lengths:
            return *grads, None, None, None, None
        given = _completions(windowed, query, key, value, prompt_key, prompt_value)
        above = grad_output[before:], *given, output[before:], lse[:, before:]
        by_query, *by_keys = kernel.backward(*above, windowed.completions, ctx.scale)
        grads[0][before:] = by_query
        by_prompts = [None, None]
        if prompt_key is not None:
            by_prompts = [torch.zeros_like(prompt_key), torch.zeros_like(prompt_value)]
        for grad, prompts, part in zip(grads[1:], by_prompts, by_keys, strict=True):
            grad[before:] = windowed.scattered(part, grad[_keys(windowed.layout)] if prompts is None else prompts)
        return *grads, *by_prompts, None, None


def _keys(layout: Layout) -> slice:
    """The prompts that completions attend to, in the row or in what is given of them."""
    return slice(layout.first, layout.before) if layout.in_row else slice(None)


def _prompts(layout: Layout, key, value, prompt_key, prompt_value) -> list[Tensor]:
    """The keys and values of these prompts."""
    return [one[_keys(layout)] for one in ((key, value) if prompt_key is None else (prompt_key, prompt_value))]


def _before(windowed: Windowed, *tensors: Tensor) -> list[Tensor]:
    return [tensor[: windowed.layout.before] for tensor in tensors]


def _completions(windowed, query, key, value, prompt_key, prompt_value) -> tuple[Tensor, Tensor, Tensor]:
    """What completions attend by, and to."""
    layout = windowed.layout
    pairs = zip(_prompts(layout, key, value, prompt_key, prompt_value), (key, value), strict=True)
    keys, values = (windowed.gathered(prompts, own[layout.before :]) for prompts, own in pairs)
    return query[layout.before :], keys, values


def _merge(output: Tensor, lse: Tensor, prefix: Tensor, prefix_lse: Tensor) -> None:
    """An attention to other keys, into that of the same queries in `output` and `lse`."""
    weight = torch.sigmoid(prefix_lse - lse).t()[..., None].to(output.dtype)
    output.lerp_(prefix, weight)
    torch.logaddexp(lse, prefix_lse, out=lse)
