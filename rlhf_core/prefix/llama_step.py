"""A decoding step written out for models whose layers are those of Llama (Qwen2, Qwen3, Mistral, …), with LoRA.

Module by module a layer is about a hundred operations, of which a GPU computes most in less time than it takes to
launch them. Here it is under forty: queries and keys are rotated together, norms are fused, adapters of the same states
are one product and are added in place. Names do not decide whether a model is computed rightly: `self_check.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from rlhf_core.prefix.attention import AttentionMetadata
from rlhf_core.prefix.logits import scaling_of
from rlhf_core.prefix.packed import unwrap

DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
HEADS = ["q_proj", "k_proj", "v_proj"]
ATTENTION, NORMS = {*HEADS, "o_proj"}, {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class LlamaStep:
    """`step(tokens (rows,), positions (rows,), metadata)` gives logits (rows, vocabulary), without gradient. It holds
    copies of the adapters, and of frozen weights that autocast would round at each step: made for one rollout.
    """

    def __init__(self, model: Any) -> None:
        decoder = unwrap(model).base_model
        kind = decoder.embed_tokens.weight.device.type
        autocast = torch.is_autocast_enabled(kind)
        self.dtype = torch.get_autocast_dtype(kind) if autocast else decoder.embed_tokens.weight.dtype
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.layers = [_Layer(layer, self.dtype) for layer in decoder.layers]
        self.head = _Products([unwrap(model).get_output_embeddings()], self.dtype)
        self.scaling = scaling_of(unwrap(model))

    def __call__(self, tokens: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        states = self.embed(tokens)
        cos, sin = self.rotary(states[:, None], positions[:, None])  # (rows, 1, size of a head)
        first, second = sin.chunk(2, dim=-1)
        rotation = cos, torch.cat([-first, second], dim=-1)
        for layer in self.layers:
            states = layer(states, rotation, metadata)
        return self.scaling.logits(self.head(_normal(self.norm, states))[0])


def is_like_llama(model: Any) -> bool:
    """Whether a model's modules have the names of Llama's, its adapters are plain, and nothing listens to the modules
    that are passed over. The embedding, to which gradient checkpointing listens, is called.
    """
    plain = unwrap(model)
    decoder, head = plain.base_model, plain.get_output_embeddings()
    if head is None or decoder is plain or not _children(decoder, DECODER):
        return False
    matrices = [head]
    for layer in decoder.layers:
        if not _children(layer, LAYER) or not _children(layer.mlp, MLP):
            return False
        if not (_children(layer.self_attn, ATTENTION) or _children(layer.self_attn, ATTENTION | NORMS)):
            return False
        matrices += [getattr(part, name) for part in (layer.self_attn, layer.mlp) for name in _matrices(part)]
        norms = [layer.input_layernorm, layer.post_attention_layernorm, *_norms(layer.self_attn)]
        if not all(hasattr(norm, "variance_epsilon") for norm in norms):  # other norms have another name for it
            return False
    parts = [decoder.embed_tokens, decoder.rotary_emb, *(layer.mlp.act_fn for layer in decoder.layers)]
    called = {module for part in parts for module in part.modules()}
    passed = [module for module in plain.modules() if module is not plain and module not in called]
    listened = any(module._forward_hooks or module._forward_pre_hooks for module in passed)
    replaced = any("forward" in vars(module) for module in passed)
    return not listened and not replaced and all(_base(matrix) is not None for matrix in matrices)


def _children(module: nn.Module, names: set[str]) -> bool:
    return {name for name, _ in module.named_children()} == names


def _matrices(part: nn.Module) -> list[str]:
    return [name for name, _ in part.named_children() if name.endswith("_proj")]


def _norms(attention: Any) -> list[Any]:
    return [module for name, module in attention.named_children() if name in NORMS]


def _base(module: Any) -> nn.Module | None:
    """The layer below its adapters; None for adapters that are more than two products added."""
    if not isinstance(module, LoraLayer):
        return module if isinstance(module, nn.Linear) else None
    plain = not module.merged and not module.lora_variant and isinstance(module.get_base_layer(), nn.Linear)
    for name in _active(module):
        pair = module.lora_A[name], module.lora_B[name]
        plain = plain and all(type(one) is nn.Linear and one.bias is None for one in pair)
    return module.get_base_layer() if plain else None


def _active(module: LoraLayer) -> list[str]:
    return [] if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]


class _Layer:
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before_attention, self.before_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self.number, self.scale, self.size = attention.layer_idx, attention.scaling, attention.head_dim
        self.heads = _Products([getattr(attention, name) for name in HEADS], dtype)
        self.output = _Products([attention.o_proj], dtype)
        self.gate_and_up = _Products([mlp.gate_proj, mlp.up_proj], dtype)
        self.down, self.activation = _Products([mlp.down_proj], dtype), mlp.act_fn
        self.queries, self.dtype = attention.q_proj.out_features // self.size, dtype
        self.head_norm: Tensor | None = None
        if norms := _norms(attention):  # one weight for each head of the queries, then of the keys
            counts = self.queries, attention.k_proj.out_features // self.size
            self.epsilon = norms[0].variance_epsilon
            weights = [norm.weight.expand(count, -1) for norm, count in zip(norms, counts, strict=True)]
            self.head_norm = torch.cat(weights).to(dtype)

    def __call__(self, states: Tensor, rotation: tuple[Tensor, Tensor], metadata: AttentionMetadata) -> Tensor:
        """(rows, width), what this layer makes of such."""
        query, key, value = self.heads(_normal(self.before_attention, states))
        turned = torch.cat([query, key], dim=-1).unflatten(-1, (-1, self.size))
        if self.head_norm is not None:
            turned = rms_norm(turned, (self.size,), None, self.epsilon).mul_(self.head_norm)
        cos, sin = rotation
        turned = torch.addcmul(turned * cos, turned.roll(self.size // 2, -1), sin).to(self.dtype)[:, :, None]
        value = value.unflatten(-1, (-1, 1, self.size))
        query, key = turned[:, : self.queries], turned[:, self.queries :]
        attended = metadata.attend(self.number, query, key, value, self.scale)
        states = states + self.output(attended.flatten(1))[0]
        gate, up = self.gate_and_up(_normal(self.before_mlp, states))
        return states + self.down(self.activation(gate).mul_(up))[0]


def _normal(norm: Any, states: Tensor) -> Tensor:
    return rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


class _Products:
    """What linear layers with adapters compute of the same states: each base, then all their adapters' first matrices
    as one, and the second ones added in place.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bases = [_product(_base(module), dtype) for module in modules]
        first, self.second, begin = [], [], 0
        for number, module in enumerate(modules):
            for name in _active(module) if isinstance(module, LoraLayer) else []:
                a, b = module.lora_A[name].weight, module.lora_B[name].weight
                first.append(a.to(dtype))
                part = slice(begin, begin := begin + len(a))
                self.second.append((number, part, (b * module.scaling[name]).to(dtype).t()))
        self.first = torch.cat(first) if first else None

    def __call__(self, states: Tensor) -> list[Tensor]:
        states = states.to(self.dtype)
        results = [base(states) for base in self.bases]
        if self.first is not None:
            inner = linear(states, self.first)
            for number, part, second in self.second:
                results[number].addmm_(inner[:, part], second)
        return results


def _product(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    # Quantized layers are linear ones, too; of weights that are trained autocast keeps a rounded copy itself.
    if type(module) is not nn.Linear or module.weight.dtype == dtype or module.weight.requires_grad:
        return module
    weight, bias = module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype)
    return lambda states: linear(states, weight, bias)
