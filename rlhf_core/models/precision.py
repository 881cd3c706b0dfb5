"""The types of weights, quantized ones too, and the device that they load to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_core.errors import UserError
from rlhf_core.inputs import library_errors
from rlhf_core.method import TrainingOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# The first that multiplies a few rows, as of a decoding step, with 4-bit weights without writing those out in full.
BITSANDBYTES = "0.50"
Options = TypeVar("Options", bound=TrainingOptions)


def weight_dtype(options: TrainingOptions, lora: bool) -> torch.dtype:
    """The type of the weights; `auto` is bfloat16 for frozen weights on a GPU that computes in it, otherwise float32.
    (`for_device` has made another type of it where it can't.)
    """
    import torch

    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    return torch.bfloat16 if lora and gpu_has_bfloat16() else torch.float32


def gpu_has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16. On older ones torch emulates it, many times slower."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def frozen_dtype() -> torch.dtype:
    """The type of weights that are not trained: bfloat16, on older GPUs float16, and on a CPU float32."""
    import torch

    if gpu_has_bfloat16():
        return torch.bfloat16
    return torch.float16 if torch.cuda.is_available() else torch.float32


def for_device(options: Options, frozen: torch.dtype) -> Options:
    """The options with `auto` resolved to float16 where that is the device's type of `frozen` weights and an adapter is
    trained on such. All weights are trained in float32.
    """
    import torch

    if options.dtype == "auto" and options.lora and frozen == torch.float16:
        return options.model_copy(update={"dtype": "float16"})
    return options


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
    import importlib.metadata

    from packaging.version import Version
    from transformers import BitsAndBytesConfig

    needed = f"4-bit and 8-bit weights need bitsandbytes {BITSANDBYTES} or newer"
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{needed}: pip install 'rlhf-core[quantization]'") from None
    if Version(version) < Version(BITSANDBYTES):
        raise UserError(f"{needed}, and {version} is installed: pip install -U 'rlhf-core[quantization]'")
    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def left_unquantized(model: PreTrainedModel | None, options: TrainingOptions, called: str) -> list[str]:
    """What bitsandbytes leaves as it is where it is asked to quantize: the experts that transformers holds in a tensor
    for all of a layer, and which are no linear layers.
    """
    if model is None or not options.quantized:
        return []
    fused = sum(weight.numel() for name, weight in model.named_parameters() if "experts" in name and weight.dim() == 3)
    if not fused:
        return []
    bits, share = 4 if options.load_in_4bit else 8, fused / model.num_parameters()
    return [
        f"--load-in-{bits}bit leaves {share:.0%} of the weights of {called} as they are: its experts are no linear "
        "layers in transformers, so bitsandbytes does not quantize them"
    ]
