"""Adapters: whether a run trains one, a new one, and one that was trained before."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from rlhf_core.inputs import library_errors
from rlhf_core.method import TrainingOptions
from rlhf_core.models.files import read_adapter_config
from rlhf_core.models.multimodal import outside_text
from rlhf_core.models.weights import refuse_not_finite

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
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
        exclude_modules=None if info.empty is None else outside_text(info.empty),
        task_type="SEQ_CLS" if scoring else "CAUSAL_LM",
        modules_to_save=["score"] if scoring else None,
    )


def for_scores(config: PeftConfig, model: PreTrainedModel) -> PeftConfig:
    """An adapter's configuration in a reward model: the score head is trained whole, as what else was so is."""
    # Probed: only some kinds of adapters have it.
    names = [*(getattr(config, "modules_to_save", None) or []), "score"]
    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    scoring: Any = copy.copy(config)
    scoring.task_type = "SEQ_CLS"
    scoring.modules_to_save = [name for name in dict.fromkeys(names) if name.rpartition(".")[2] in parts]
    return scoring


def merged(model: Any, **options: Any) -> PreTrainedModel:
    """A `PeftModel`'s base with the adapter in its weights. Embeddings of which only one side is adapted, or each by
    itself, are no longer tied to the output layer.
    """
    import torch
    from peft.tuners.trainable_tokens import TrainableTokensLayer  # which keeps tied ones tied
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    plain = [layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers]
    adapted = any(isinstance(at, BaseTunerLayer) and not isinstance(at, TrainableTokensLayer) for at in layers)
    if adapted and plain[1] is not None and plain[1].weight is plain[0].weight:
        plain[1].weight = torch.nn.Parameter(plain[1].weight.detach().clone())
        base.config.tie_word_embeddings = False
    return model.merge_and_unload(**options)


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
    config = for_scores(config, model)
    config.inference_mode = False
    weights = {"base_model.model.score.weight": model.score.weight.detach(), **load_peft_weights(folder)}
    model = get_peft_model(model, config)
    set_peft_model_state_dict(model, weights)
    return model
