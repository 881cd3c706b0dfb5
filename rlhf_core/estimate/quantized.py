"""Layers and optimizer states with the storage of bitsandbytes', which can't be made without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from rlhf_core.estimate.meter import Meter


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


def step_of_8_bit_optimizer(optimizer: Any, meter: Meter) -> None:
    """The states of bitsandbytes' 8-bit optimizers: two bytes a weight, and 4 for each block of 256, in both."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            small = parameter.numel() < 4096  # which it keeps in float32
            kind, blocks = (torch.float32, 0) if small else (torch.uint8, -(-parameter.numel() // 256))
            sizes = {"state1": (parameter.numel(), kind), "state2": (parameter.numel(), kind)}
            sizes |= {"absmax1": (blocks, torch.float32), "absmax2": (blocks, torch.float32)}
            optimizer.state[parameter] = {n: parameter.new_zeros(size, dtype=kind) for n, (size, kind) in sizes.items()}
