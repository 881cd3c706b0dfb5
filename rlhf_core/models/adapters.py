"""Adapters: whether a run trains one, a new one, and one that was trained before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_core.inputs import library_errors
from rlhf_core.method import TrainingOptions
from rlhf_core.models.files import read_adapter_config
from rlhf_core.models.weights import refuse_not_finite

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from rlhf_core.models.loading import ModelInfo

LORA_FROM = 1_000_000_000  # parameters
ADAPTER_NAME = "default"  # PEFT's, of the one adapter that is loaded


def uses_lora(options: TrainingOptions, info: ModelInfo) -> bool:
    """What was asked for; else for large or quantized models, and for a run that starts from an adapter."""
    if options.lora is not None:
        return options.lora
    return bool(options.quantized or info.quantized or info.adapter or info.parameters >= LORA_FROM)


def new_adapter(info: ModelInfo, options: TrainingOptions) -> LoraConfig | None:
    """The adapter to add and train; None without LoRA, or if the run starts from an adapter."""
    if info.adapter or not uses_lora(options, info):
        return None
    from peft import LoraConfig

    scoring = info.task == "sequence_classification"
    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules,
        task_type="SEQ_CLS" if scoring else "CAUSAL_LM",
        modules_to_save=["score"] if scoring else None,
    )


def add_adapter(info: ModelInfo, model: PreTrainedModel, *, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    config = read_adapter_config(str(info.adapter), info.called)
    with library_errors(f"the adapter {info.adapter} does not fit {info.path}"):
        if trainable and info.task == "sequence_classification":
            model = _adapter_with_score(model, info)
        else:
            model = PeftModel.from_pretrained(
                model, info.adapter, is_trainable=trainable and not config.is_prompt_learning
            )
    adapted = [(name, weight) for name, weight in model.named_parameters() if ADAPTER_NAME in name.split(".")]
    refuse_not_finite(adapted, info.called)
    return model


def _adapter_with_score(model: PreTrainedModel, info: ModelInfo) -> PreTrainedModel:
    """`model` with the adapter of `info`, and the adapter's score head, or the model's where it has none."""
    from peft import get_peft_model, load_peft_weights, set_peft_model_state_dict

    folder = str(info.adapter)
    config: Any = read_adapter_config(folder, info.called)
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], False
    weights = {"base_model.model.score.weight": model.score.weight.detach(), **load_peft_weights(folder)}
    model = get_peft_model(model, config)
    set_peft_model_state_dict(model, weights)
    return model
