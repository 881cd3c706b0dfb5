"""A decoding step on a CPU, written out for models that are made like Llama.

Module by module, a token of a small model takes longer for the calls than for the arithmetic (docs/lab-notes.md). Here
a layer is some thirty operations. A model's first step is computed both ways; if they differ, all steps go through its
modules.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from rlhf_core.prefix.attention import Path
from rlhf_core.prefix.checkpointing import is_like_llama
from rlhf_core.prefix.few_rows import Product
from rlhf_core.prefix.shared import call, unwrap

TOLERANCE = 1e-3  # of logits, in the mean
log = logging.getLogger("rlhf")
_agreed: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Step:
    """`step(tokens (rows,), positions (rows, 1), path)` gives logits (rows, vocabulary). `computed`: what the linear
    layers of `model` compute, from `on_few_rows`, and for as long as that holds.
    """

    def __init__(self, model: Any, computed: Mapping[nn.Module, Product]) -> None:
        self.model = model
        plain = unwrap(model)
        self.layers = _Layers(plain, computed) if _can_be_written_out(plain, computed) else None

    @property
    def outputs(self) -> list[Tensor]:
        """After each layer (rows, width), in the last step; none if it went through the model's modules."""
        return self.layers.outputs if self.layers and _agreed.get(unwrap(self.model)) else []

    def __call__(self, tokens: Tensor, positions: Tensor, path: Path) -> Tensor:
        plain = unwrap(self.model)
        if self.layers is None:
            return self._by_modules(tokens, positions, path)
        if plain not in _agreed:
            expected = self._by_modules(tokens, positions, path)
            _agreed[plain] = _agrees(self.layers, tokens, positions, path, expected)
        # The first step is computed once more, since what was computed last is what the path has kept of it.
        step = self.layers.logits if _agreed[plain] else self._by_modules
        return step(tokens, positions, path)

    def _by_modules(self, tokens: Tensor, positions: Tensor, path: Path) -> Tensor:
        return call(self.model, tokens[:, None], positions, path).logits[:, 0]


def _can_be_written_out(model: Any, computed: Mapping[nn.Module, Product]) -> bool:
    """Whether it is of a known family, in transformers' own code, what all its matrices compute is known, and nothing
    else listens or computes in the modules that are passed over.
    """
    if not is_like_llama(model):
        return False
    matrices = [matrix for layer in model.base_model.layers for matrix in _matrices(layer)]
    passed = [module for module in model.modules() if module not in computed and not isinstance(module, nn.Embedding)]
    return (
        all(matrix in computed for matrix in [*matrices, model.get_output_embeddings()])
        and not any(module._forward_hooks or module._forward_pre_hooks for module in [*passed, *computed])
        and not any("forward" in vars(module) for module in passed if module is not model)  # whose logits are compared
    )


def _matrices(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    heads = [attention.q_proj, attention.k_proj, attention.v_proj]
    return [*heads, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


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
    def __init__(self, model: Any, computed: Mapping[nn.Module, Product]) -> None:
        decoder = model.base_model
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.layers = [_Layer(layer, computed) for layer in decoder.layers]
        self.head = computed[model.get_output_embeddings()]
        self.outputs: list[Tensor] = []

    def logits(self, tokens: Tensor, positions: Tensor, path: Path) -> Tensor:
        states = self.embed(tokens)
        cos, sin = self.rotary(states, positions)  # (rows, 1, size of a head)
        first, second = sin.chunk(2, dim=-1)
        rotation = cos, torch.cat([-first, second], dim=-1)
        self.outputs = []
        for number, layer in enumerate(self.layers):
            states = layer.after(states, rotation, number, path)
            self.outputs.append(states)
        return self.head(_normal(self.norm, states))


class _Layer:
    def __init__(self, layer: Any, computed: Mapping[nn.Module, Product]) -> None:
        attention = layer.self_attn
        self.before_attention, self.before_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self.size, self.scale, self.activation = attention.head_dim, attention.scaling, layer.mlp.act_fn
        matrices = [computed[matrix] for matrix in _matrices(layer)]
        self.query, self.key, self.value, self.output, self.gate, self.up, self.down = matrices
        self.queries = attention.config.num_attention_heads
        self.head_norm = None
        if hasattr(attention, "q_norm"):  # one weight for each head of the queries, then of the keys
            counts = self.queries, attention.config.num_key_value_heads
            norms = zip((attention.q_norm, attention.k_norm), counts, strict=True)
            self.head_norm = torch.cat([norm.weight.expand(count, -1) for norm, count in norms])
            self.epsilon = attention.q_norm.variance_epsilon

    def after(self, states: Tensor, rotation: tuple[Tensor, Tensor], number: int, path: Path) -> Tensor:
        """(rows, width), what this layer makes of such."""
        normal = _normal(self.before_attention, states)
        turned = torch.cat([self.query(normal), self.key(normal)], dim=-1).unflatten(-1, (-1, self.size))
        if self.head_norm is not None:
            turned = rms_norm(turned, (self.size,), None, self.epsilon).mul_(self.head_norm)
        cos, sin = rotation
        turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, -1), sin)[:, :, None]
        value = self.value(normal).unflatten(-1, (-1, 1, self.size))
        attended = path.attend(number, turned[:, : self.queries], turned[:, self.queries :], value, self.scale)
        states = states + self.output(attended.flatten(1))
        normal = _normal(self.before_mlp, states)
        return states + self.down(self.activation(self.gate(normal)).mul_(self.up(normal)))


def _normal(norm: Any, states: Tensor) -> Tensor:
    return rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)
