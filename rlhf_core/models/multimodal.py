"""Models that read images or sound, too (Qwen-VL, Qwen3.5, Gemma 3, Mistral 3, …), trained with text: the whole model
loads and is saved, adapters and gradients go to its text model alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.outputs import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Files beside a tokenizer with which transformers reads images and sound; training with text does not change them.
PROCESSOR_FILES = (
    *("processor_config.json", "preprocessor_config.json", "image_processor_config.json"),
    *("video_preprocessor_config.json", "feature_extractor_config.json"),
)


def is_whole(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration is one that reads images and writes: its files are of such a class, or
    transformers has none that reads text alone.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or config.is_encoder_decoder:
        return False
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)].__name__
    return type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or whole in (config.architectures or [])


def other_parts(model: PreTrainedModel) -> list[str]:
    """The names of modules beside the text model, as `model.visual`; none in a model that reads text alone."""
    if model.config.get_text_config() is model.config or model.config.is_encoder_decoder:
        return []
    text, names = model.get_decoder(), {module: name for name, module in model.named_modules()}
    parent, _, own = names[text].rpartition(".")
    return [f"{parent}.{name}".strip(".") for name, _ in model.get_submodule(parent).named_children() if name != own]


def outside_text(model: PreTrainedModel) -> str | None:
    """A pattern of the names of all modules that no adapter is to stand in, or None."""
    parts = other_parts(model)
    return rf"(?:{'|'.join(map(re.escape, parts))})\..*" if parts else None


def freeze_other_parts(model: PreTrainedModel) -> None:
    for name in other_parts(model):
        model.get_submodule(name).requires_grad_(False)


def copy_processor(source: str | Path, folder: Path) -> None:
    """Copy what reads images and sound for a model to where it is saved, if the model that it was made from has it."""
    for name in PROCESSOR_FILES:
        if (Path(source) / name).is_file():
            write_whole(folder / name, (Path(source) / name).read_text(encoding="utf-8"))
