"""A decoding step on a CPU, written out for models that are made like Llama.

Module by module, a token of a small model takes longer for the calls than for the arithmetic (docs/lab-notes.md). Here
a layer is some thirty operations, and products leave their results where the next operation reads them. A model's first
step is computed both ways; if they differ, all steps go through its modules.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from rlhf_core.prefix.attention import Path
from rlhf_core.prefix.few_rows import ROWS, Blocks
from rlhf_core.prefix.shared import call, inner

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
TOLERANCE = 1e-3  # of logits, in the mean
log = logging.getLogger("rlhf")
_agreed: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Step:
    """`step(tokens (rows,), positions (rows, 1), path)` gives logits (rows, vocabulary). For as long as the weights of
    `model` stay where they are; `fast` are the linear layers that may be multiplied in blocks.
    """

    def __init__(self, model: Any, fast: Collection[nn.Module]) -> None:
        self.model = model
        self.layers = _Layers(inner(model)) if _can_be_written_out(inner(model), fast) else None

    def __call__(self, tokens: Tensor, positions: Tensor, path: Path) -> Tensor:
        plain = inner(self.model)
        if self.layers is None or len(tokens) > ROWS:
            return self._by_modules(tokens, positions, path)
        if plain not in _agreed:
            expected = self._by_modules(tokens, positions, path)
            _agreed[plain] = _agrees(self.layers, tokens, positions, path, expected)
        # The first step is computed once more, since what was computed last is what the path has kept of it.
        step = self.layers.logits if _agreed[plain] else self._by_modules
        return step(tokens, positions, path)

    def _by_modules(self, tokens: Tensor, positions: Tensor, path: Path) -> Tensor:
        return call(self.model, tokens[:, None], positions, path).logits[:, 0]


def _can_be_written_out(model: Any, fast: Collection[nn.Module]) -> bool:
    """Whether it is of a known family, in transformers' own code, all its matrices are plain, and nothing else listens
    or computes in the modules that are passed over.
    """
    if model.config.model_type not in FAMILIES or not type(model).__module__.startswith("transformers.models."):
        return False
    passed = [module for module in model.modules() if not isinstance(module, nn.Linear | nn.Embedding)]
    matrices = [_plain(matrix) for layer in model.base_model.layers for matrix in _matrices(layer)]
    return (
        all(matrix in fast for matrix in [*matrices, model.get_output_embeddings()])
        and not any(module._forward_hooks or module._forward_pre_hooks for module in [*passed, *matrices])
        and not any("forward" in vars(module) for module in passed)
    )


def _matrices(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    heads = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [*heads, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _plain(matrix: Any) -> Any:
    """The linear layer itself, where an adapter beside it is part of it."""
    return matrix.base_layer if getattr(matrix, "merged", False) else matrix


def _agrees(layers: _Layers, tokens: Tensor, positions: Tensor, path: Path, expected: Tensor) -> bool:
    try:
        apart = (layers.logits(tokens, positions, path) - expected).abs().mean().item()
        problem = None if apart < TOLERANCE else f"logits differ by {apart:.2g} in the mean"
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        log.warning("tokens are sampled through the model's own modules, which takes longer: %s", problem)
    return problem is None


class _Layers:
    def __init__(self, model: Any) -> None:
        decoder = model.base_model
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self.head = Blocks.of(model.get_output_embeddings())

    def logits(self, tokens: Tensor, positions: Tensor, path: Path) -> Tensor:
        states = self.embed(tokens)
        cos, sin = (table[:, 0] for table in self.rotary(states, positions))
        first, second = sin.chunk(2, dim=-1)
        rotation = cos, torch.cat([-first, second], dim=-1)
        for number, layer in enumerate(self.layers):
            states = layer.after(states, rotation, number, path)
        return _side_by_side(self.head.times(_normal(self.norm, states)))


class _Layer:
    """A layer's matrices: those of queries, keys and values in blocks of a head each."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self.before_attention, self.before_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self.size, self.scale, self.activation = attention.head_dim, attention.scaling, layer.mlp.act_fn
        matrices = [_plain(matrix) for matrix in _matrices(layer)]
        self.heads = [Blocks.of(matrix, self.size) for matrix in matrices[:3]]
        self.output, self.gate, self.up, self.down = map(Blocks.of, matrices[3:])
        self.counts = [len(matrix.blocks) for matrix in self.heads]
        self.head_norm = None
        if hasattr(attention, "q_norm"):  # one weight for each head of the queries, then of the keys
            norms = zip((attention.q_norm, attention.k_norm), self.counts[:2], strict=True)
            self.head_norm = torch.cat([norm.weight.expand(count, 1, -1) for norm, count in norms])
            self.epsilon = attention.q_norm.variance_epsilon

    def after(self, states: Tensor, rotation: tuple[Tensor, Tensor], number: int, path: Path) -> Tensor:
        """(rows, width), what this layer makes of such."""
        queries, keys, _ = self.counts
        heads = states.new_empty(sum(self.counts), len(states), self.size)
        normal = _normal(self.before_attention, states)
        for matrix, place in zip(self.heads, heads.split(self.counts), strict=True):
            matrix.times(normal, out=place)
        turned = heads[: queries + keys]
        if self.head_norm is not None:
            turned = rms_norm(turned, (self.size,), None, self.epsilon).mul_(self.head_norm)
        cos, sin = rotation
        turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, -1), sin)
        query, key, value = (
            part.transpose(0, 1)[:, :, None] for part in (turned[:queries], turned[queries:], heads[queries + keys :])
        )
        attended = path.attend(number, query, key, value, self.scale)
        states = _plus(states, self.output.times(attended.reshape(len(states), -1)))
        normal = _normal(self.before_mlp, states)
        inner = self.activation(self.gate.times(normal)).mul_(self.up.times(normal))
        return _plus(states, self.down.times(_side_by_side(inner)))


def _normal(norm: Any, states: Tensor) -> Tensor:
    return rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


def _side_by_side(blocks: Tensor) -> Tensor:
    """(blocks, rows, size) as (rows, blocks * size)."""
    return blocks.transpose(0, 1).flatten(1)


def _plus(states: Tensor, blocks: Tensor) -> Tensor:
    """(rows, width), the sum of that and of (blocks, rows, size)."""
    return (states.view(len(states), len(blocks), -1) + blocks.transpose(0, 1)).view_as(states)
