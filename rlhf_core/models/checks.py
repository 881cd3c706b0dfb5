"""Whether a model is of the kind that is asked for, and whether its files hold all of it: found before weights load.

transformers and PEFT fill weights that a file does not have with random numbers and go on. Here they load the names and
shapes that the files have into a model without storage, so that what is missing is found by their own rules.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_core.errors import UserError, did_you_mean, listed
from rlhf_core.inputs import library_errors
from rlhf_core.models.adapters import for_scores
from rlhf_core.models.files import (
    ADAPTER_CONFIG,
    CONFIG,
    code_of,
    read_adapter_config,
    refuse_code,
    refuse_kernel,
)
from rlhf_core.models.multimodal import is_whole
from rlhf_core.models.resolve import ModelReference, quiet_libraries, scores
from rlhf_core.models.weights import Weights, is_float, read_adapter_weights

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedConfig, PreTrainedModel

Task = Literal["causal_lm", "sequence_classification"]
HEAD = "score.weight"
# (a field of the configuration, its value in a model each of whose tokens sees those after it)
BIDIRECTIONAL = (
    *(("is_decoder", False), ("is_causal", False), ("causal", False), ("attn_type", "bi")),
    *(("use_bidirectional_attention", True), ("use_bidirectional_attention", "all")),
)
ALWAYS_CAUSAL = ("gpt_neox", "gpt_neox_japanese")  # they have `is_decoder` and don't read it


def auto_class(config: PreTrainedConfig, task: Task) -> Any:
    """transformers' class that finds the model's."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification

    if task == "sequence_classification":
        return AutoModelForSequenceClassification
    return AutoModelForImageTextToText if is_whole(config) else AutoModelForCausalLM


def without_weights(
    config: PreTrainedConfig, task: Task, reference: ModelReference, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The model on the meta device. Raises `UserError` if transformers has none for this task, or not with the
    attention that is asked for.
    """
    import torch
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    causal, called, auto = task == "causal_lm", reference.base_called, auto_class(config, task)
    known = MODEL_FOR_CAUSAL_LM_MAPPING if causal else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if causal and is_whole(config):
        known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    settings = {"auto_map": getattr(config, "auto_map", None)}  # probed: of models with code of their own
    if type(config) not in known:
        what = "that writes" if causal else "with a score head"
        why = f"is of the type {config.model_type}: transformers has no such model {what}"
        refuse_code(reference, settings, auto.__name__, f"it {why}")
        if not code_of(settings, auto.__name__):
            raise UserError(f"{called} {why}")
    asked = attn_implementation is not None
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    attentions = [attn_implementation] if asked else [part._attn_implementation for part in parts if part is not None]
    where = f"--attn-implementation {attn_implementation}" if asked else called
    for attention in attentions:
        # Probed: few classes name what they take instead of flash attention.
        instead = getattr(known.get(type(config), None), "_compatible_flash_implementations", None)
        refuse_kernel(
            reference, attention, where if asked else f"{called}: attn_implementation in its {CONFIG}", instead
        )
    config = copy.deepcopy(config)
    if not causal:
        config.num_labels = 1
    arguments = {"attn_implementation": attn_implementation} if asked else {}
    with library_errors(f"{where} can't be built"), torch.device("meta"):
        return auto.from_config(config, trust_remote_code=reference.trust_remote_code, **arguments)


def check_kind(
    reference: ModelReference, empty: PreTrainedModel, config: PreTrainedConfig, *, needs_head: bool
) -> None:
    """Raise `UserError` for a model of another kind than `empty`. `needs_head`: it must have been trained to score."""
    called, names = reference.called, list(config.architectures or [])
    trained = reference.adapter.get("task_type") if reference.adapter else None
    built = type(empty).__name__
    if built.endswith("ForSequenceClassification"):
        if needs_head and not (trained == "SEQ_CLS" or (trained is None and any(map(scores, names)))):
            what = "an adapter of a model that writes" if reference.adapter else ", ".join(names) or "of no known kind"
            raise UserError(
                f"{called} is no reward model ({what}): it has no score head. Train one: --method reward_model"
            )
        if not needs_head and "score" not in dict(empty.named_children()):
            raise UserError(f"{called} ({config.model_type}) has no linear layer `score` to train")
        return
    if trained not in (None, "CAUSAL_LM") or (reference.adapter is None and any(map(scores, names))):
        what = f"an adapter of the task {trained}" if reference.adapter else ", ".join(names)
        use = " --reward-model uses it" if reference.is_reward_model else ""
        raise UserError(f"{called} is no model that writes ({what}): it scores or labels texts.{use}")
    if config.is_encoder_decoder and built not in names:
        raise UserError(
            f"{reference.base_called} is an encoder-decoder model ({config.model_type}), which rlhf does not train"
        )
    reads_decoder = hasattr(type(config), "is_decoder") and config.model_type not in ALWAYS_CAUSAL
    for field, value in BIDIRECTIONAL:
        # Probed: each is a field of some configurations only.
        if getattr(empty.config, field, None) == value and (field != "is_decoder" or reads_decoder):
            raise UserError(
                f"{reference.base_called} is an encoder ({config.model_type}, {field}: {value} in its config.json): "
                "each of its tokens sees those after it, so it can't write"
            )


def check_files(empty: PreTrainedModel, weights: Weights, called: str, *, new_head: bool) -> list[str]:
    """Compare the weights of `empty` with those in the files; return warnings. `new_head`: a score head may be missing.

    Raises `UserError` with the names of weights that are missing, or of another shape or type.
    """
    import torch

    names = [name for name, _ in empty.named_parameters()]
    own = {*names, *(name.partition(".")[2] for name in names)}  # base models have no prefix in their files
    for name, (_, dtype) in sorted(weights.items()):
        if not is_float(dtype) and name in own:
            raise UserError(
                f"{called}: {name} is of the type {dtype} in its file, and its {CONFIG} says not how to read it"
            )
    files = {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}
    with library_errors(f"{called} can't be loaded"), quiet_libraries():
        _, found = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=files,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    for name, in_file, in_model in sorted(found["mismatched_keys"]):
        if name == HEAD and not new_head:
            raise UserError(f"{called} has a head of {in_file[0]} values, and a reward model has one score")
        if name != HEAD:
            raise UserError(f"{called}: {name} is {list(in_file)} in its file, and {list(in_model)} by its config.json")
    refuse_missing(set(found["missing_keys"]) - ({HEAD} if new_head else set()), called)
    heads = {"lm_head.weight"} if type(empty).__name__.endswith("ForSequenceClassification") else set()
    unused = set(found["unexpected_keys"]) - heads
    layers = {name.rpartition(".")[0] for name in own}
    parts = {name for name in unused if name.endswith((".weight", ".bias")) and name.rpartition(".")[0] in layers}
    if parts:
        raise UserError(
            f"{called}: {listed(parts)} in its files is not used by {type(empty).__name__}, which would compute "
            f"something else. Does its {CONFIG} (model_type) fit the weights?"
        )
    return [f"{called}: {listed(unused)} in its files is not used by {type(empty).__name__}"] if unused else []


def refuse_missing(names: Collection[str], called: str) -> None:
    """Raise `UserError` if weights are missing."""
    if names:
        raise UserError(
            f"{called} is not complete: its files have no {listed(names)}, which transformers would fill with random "
            "numbers. Does its config.json (architectures, tie_word_embeddings, number of layers) fit the weights?"
        )


def check_adapter(empty: PreTrainedModel, reference: ModelReference, task: Task, *, needs_head: bool) -> list[str]:
    """Compare what the adapter's configuration makes of `empty` with the adapter's file; return warnings."""
    from peft import get_peft_model_state_dict

    folder, called = Path(reference.path), reference.called
    config = read_adapter_config(folder, called)
    weights = read_adapter_weights(folder, called)
    for name, (_, dtype) in sorted(weights.items()):
        if not is_float(dtype):
            raise UserError(f"{called}: {name} is of the type {dtype} in its file, which is no weight of an adapter")
    if config.is_prompt_learning:
        return []
    if task == "sequence_classification":
        config = for_scores(config, empty)
    with library_errors(f"{called} does not fit {reference.base}"), quiet_libraries():
        model = with_adapter(empty, config)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    base = {f"base_model.model.{name}": weight for name, weight in empty.state_dict().items()}
    for name, (shape, _) in sorted(weights.items()):
        weight = expected.get(name, base.get(name))
        if weight is not None and list(weight.shape) != shape:
            hint = ". Was it trained with added tokens? Its base model has to have them too" if "embed" in name else ""
            raise UserError(
                f"{called} does not fit {reference.base}: {name} is {shape} in the adapter, and {list(weight.shape)} "
                f"in the model{hint}"
            )
    head = f"base_model.model.{HEAD}"
    missing = expected.keys() - weights.keys() - (set() if needs_head or reference.is_reward_model else {head})
    if missing:
        raise UserError(f"{called} is not complete: its file has no {listed(missing)}")
    unused = weights.keys() - expected.keys() - base.keys()
    beside = [".base_layer.", *([".lm_head."] if task == "sequence_classification" else [])]  # saved with it
    if left_out := {n for n in unused if n.startswith("base_model.") and not any(part in n for part in beside)}:
        raise UserError(
            f"{called} does not fit {reference.base}: {listed(left_out)} in its file would not be used. Do "
            f"target_modules and layers_to_transform in its {ADAPTER_CONFIG} fit the file, and is this its base model?"
        )
    return [f"{called}: {listed(unused)} in its file is not used"] if unused else []


def with_adapter(empty: PreTrainedModel, config: PeftConfig) -> Any:
    """A copy of a model without weights, with an adapter."""
    from peft import LoraConfig, get_peft_model

    if isinstance(config, LoraConfig):
        config = copy.deepcopy(config)
        config.init_lora_weights = True  # others compute with the model's weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the weights have loaded, and are logged then
        return get_peft_model(copy.deepcopy(empty), config, low_cpu_mem_usage=True)


def check_targets(empty: PreTrainedModel, config: PeftConfig, called: str) -> None:
    """Raise `UserError` for a name in `--lora-target-modules` that is no module, one that PEFT can't adapt, or the
    output layer.
    """
    names = config.target_modules
    listed = names.split(",") if isinstance(names, str) else sorted(names)
    modules = [f".{name}" for name, _ in empty.named_modules() if name]
    layers = f"The model's layers: {', '.join(_layers(empty))}"
    for name in [] if names == "all-linear" else listed:
        if not any(module.endswith(f".{name}") for module in modules):
            hint = did_you_mean(name, {module.rpartition(".")[2] for module in modules})
            raise UserError(f"--lora-target-modules {name}: the model has no such module.{hint or f' {layers}'}")
    try:
        with library_errors(f"--lora-target-modules {','.join(listed)}: PEFT can't adapt that"), quiet_libraries():
            adapted = with_adapter(empty, config)
    except UserError as error:
        raise UserError(f"{error}. {layers}") from error
    _refuse_output(adapted, called)


def check_output(empty: PreTrainedModel, config: PeftConfig, called: str) -> None:
    """Raise `UserError` for an adapter on the output layer."""
    config = copy.copy(config)
    config.task_type = None  # a reward model may start from the adapter of a model that writes
    with quiet_libraries():
        _refuse_output(with_adapter(empty, config), called)


def _refuse_output(adapted: Any, called: str) -> None:
    """Raise `UserError` for an adapter on the output layer, whose weights TRL's trainers read past it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = adapted.get_output_embeddings()
    if isinstance(layer, BaseTunerLayer):
        raise UserError(
            f"{called}: an adapter on the output layer can't be trained: log-probabilities are read from that "
            "layer's weights alone. Leave it out of the target modules"
        )


def _layers(empty: PreTrainedModel) -> list[str]:
    """The last parts of the names of layers, which `--lora-target-modules` may name."""
    output = empty.get_output_embeddings()
    named = [(name, module) for name, module in empty.named_modules() if module is not output]
    layers = {name.rpartition(".")[2] for name, module in named if hasattr(module, "weight")}
    return sorted(name for name in layers if "norm" not in name and not name.isdigit())
