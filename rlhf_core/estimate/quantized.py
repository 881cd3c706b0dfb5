"""Layers and optimizer states with the storage of bitsandbytes', which can't be made without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from rlhf_core.errors import UserError


def bits_of(config: Any) -> int | None:
    """To which a model's weights are quantized in its files. Raises `UserError` for layers that are not known here."""
    given = config.to_dict().get("quantization_config")
    if not given:
        return None
    method = getattr(given["quant_method"], "value", given["quant_method"])
    if method != "bitsandbytes":
        raise UserError(f"a model whose weights are quantized ({method}) can't be estimated, unless by bitsandbytes")
    return 4 if given.get("load_in_4bit") else 8


def quantize(model: Any, bits: int) -> None:
    """Replace the linear layers that transformers would let bitsandbytes quantize: not those of fused experts, which
    are no layers, nor the output layer.
    """
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and should_convert_module(name, kept):
            model.set_submodule(name, Quantized(module, bits))
    model.is_quantized, model.is_loaded_in_4bit, model.is_loaded_in_8bit = True, bits == 4, bits == 8
    model.hf_quantizer = _Quantizer(None)


class _Quantizer(HfQuantizer):
    """Of layers that are quantized already."""

    is_trainable = True

    def is_serializable(self) -> bool:
        return True


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


def step_of_bitsandbytes(optimizer: Any) -> None:
    """The states of bitsandbytes' optimizers: one, two or three numbers a weight, each of 4 bytes, or of one and 4 for
    each block of 256.
    """
    from bitsandbytes.optim.optimizer import Optimizer1State

    name = type(optimizer).__name__
    states = 3 if name.startswith(("AdEMAMix", "PagedAdEMAMix")) else 1 if isinstance(optimizer, Optimizer1State) else 2
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            count = parameter.numel()
            small = optimizer.args.optim_bits == 32 or count < 4096  # which it keeps in float32
            kind, blocks = (torch.float32, 0) if small else (torch.uint8, -(-count // 256))
            made = {f"state{i}": parameter.new_zeros(count, dtype=kind) for i in range(states)}
            made |= {f"absmax{i}": parameter.new_zeros(blocks, dtype=torch.float32) for i in range(states)}
            optimizer.state[parameter] = made
