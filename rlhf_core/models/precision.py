"""The types of weights, quantized ones too, and the device that they load to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import library_errors
from rlhf_core.method import TrainingOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def weight_dtype(options: TrainingOptions, lora: bool) -> torch.dtype:
    """The type of the weights; `auto` is bfloat16 for frozen weights on a GPU that has it, otherwise float32."""
    import torch

    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    return torch.bfloat16 if lora and gpu_has_bfloat16() else torch.float32


def gpu_has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def device() -> torch.device:
    """The fastest device of this process."""
    from accelerate import PartialState

    return PartialState().device


def quantization_of(config: PreTrainedConfig, called: str) -> Any:
    """What loads weights that are quantized in their files. Raises `UserError` where that can't be done here."""
    from transformers.quantizers import AutoHfQuantizer

    # Probed: only quantized models have it.
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    method = given.get("quant_method", "?")
    with library_errors(f"{called} is quantized ({method}), which can't be loaded here"):
        found = AutoHfQuantizer.from_config(given, pre_quantized=True)
        found.validate_environment(device_map={"": device()})
    return found


def bitsandbytes_config(options: TrainingOptions, dtype: torch.dtype) -> Any:
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("4-bit and 8-bit weights need bitsandbytes: pip install 'rlhf-core[quantization]'")
    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
