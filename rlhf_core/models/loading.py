"""Models: reading configuration and tokenizer, which shows every user mistake at little cost, and loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_core.errors import UserError, did_you_mean, first_line
from rlhf_core.method import TrainingOptions
from rlhf_core.models.resolve import ModelReference, find

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LORA_FROM = 1_000_000_000  # parameters
Task = Literal["causal_lm", "sequence_classification"]


@dataclass(frozen=True)
class ModelInfo:
    """A model before its weights are loaded. `adapter` is the folder of a PEFT adapter that the run starts from.

    `task` is what the method trains: a `causal_lm`, or a `sequence_classification` model with one score.
    """

    path: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    adapter: str | None = None
    task: Task = "causal_lm"
    modules: tuple[str, ...] = ()


def inspect(reference: ModelReference, task: Task = "causal_lm", *, chat_template: str | None = None) -> ModelInfo:
    """Read configuration and tokenizer. `chat_template` is a file with one, for a model that has none.

    Raises `UserError` for a model that does not exist or has no chat template.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(reference.base)
        tokenizer = load_tokenizer(reference)
    except (OSError, ValueError, KeyError) as error:
        local = Path(reference.base).is_dir()
        problem = "can't be loaded" if local else "is not a folder here, and can't be loaded from the Hub"
        raise UserError(f"{reference.base_called} {problem}: {first_line(error)}") from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--chat-template {chat_template}: {error.strerror}") from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"{reference.base_called} has no chat template, so it can't read messages. Use its instruction-tuned "
            "version, or give a template: --chat-template FILE"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    adapter = reference.path if reference.adapter else None
    modules = tuple(name for name, _ in empty.named_modules())
    return ModelInfo(reference.base, config, tokenizer, empty.num_parameters(), adapter, task, modules)


def check_modules(info: ModelInfo, options: TrainingOptions) -> None:
    """Raise `UserError` for a name in `lora_target_modules` that no module of the model has."""
    names = options.lora_target_modules
    if info.adapter or not uses_lora(options, info) or isinstance(names, str):
        return
    for name in names:
        if not any(f".{module}".endswith(f".{name}") for module in info.modules):
            known = {module.rpartition(".")[2] for module in info.modules}
            raise UserError(f"--lora-target-modules {name}: the model has no such module.{did_you_mean(name, known)}")


def load_tokenizer(reference: ModelReference) -> PreTrainedTokenizerBase:
    """The tokenizer in an adapter's folder, otherwise the base model's."""
    from transformers import AutoTokenizer

    own = (Path(reference.path) / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(reference.path if own else reference.base)


def max_tokens(config: PreTrainedConfig) -> int | None:
    """Tokens that a model reads at most, its answer included; None if there is no limit."""
    # Probed: some models have no such setting, and the configuration maps other names of it to this one.
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def uses_lora(options: TrainingOptions, info: ModelInfo) -> bool:
    """What was asked for; else for large or quantized models, and for a run that starts from an adapter."""
    if options.lora is not None:
        return options.lora
    return bool(options.quantized or info.adapter or info.parameters >= LORA_FROM)


def load(info: ModelInfo, options: TrainingOptions) -> PreTrainedModel:
    """Load the weights, and the adapter that the run starts from: trained further with LoRA, merged without."""
    dtype = weight_dtype(options, uses_lora(options, info))
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": options.attn_implementation}
    if options.quantized:
        arguments |= {"quantization_config": _quantization(options, dtype), "device_map": {"": device()}}
    model = from_pretrained(info.path, info.task, info.tokenizer, arguments)
    if options.quantized:
        model.requires_grad_(False)  # and no more: PEFT's preparation makes the embeddings of an 8B model 2.5 GB larger
        if device().type == "cpu":  # with bfloat16, bitsandbytes would repack 4-bit weights and lose a little each time
            import bitsandbytes

            for module in model.modules():
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    module.support_avx512bf16_for_cpu = False
    if info.adapter:
        from peft import PeftModel

        if info.task == "causal_lm":
            model = PeftModel.from_pretrained(model, info.adapter, is_trainable=True)
        else:
            model = _adapter_with_score(model, info.adapter)
        if not uses_lora(options, info):
            model = model.merge_and_unload().requires_grad_(True)
    if options.shares_prompts:
        from rlhf_core.prefix import share

        share(model)
    return model


def _adapter_with_score(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """`model` with the adapter in `folder`, and the adapter's score head, or the model's where it has none."""
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(folder)
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], False
    weights = {"base_model.model.score.weight": model.score.weight.detach(), **load_peft_weights(folder)}
    model = get_peft_model(model, config)
    set_peft_model_state_dict(model, weights)
    return model


def load_scorer(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model, full or an adapter, on the fastest device there is, with its tokenizer."""
    import torch

    reference = find(folder)
    tokenizer = load_tokenizer(reference)
    tokenizer.padding_side = "right"
    dtype = torch.bfloat16 if gpu_has_bfloat16() else torch.float32
    model = from_pretrained(reference.base, "sequence_classification", tokenizer, {"dtype": dtype})
    if reference.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, reference.path)
    return model.eval().to(device()), tokenizer


def from_pretrained(
    path: str, task: Task, tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any]
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        if task == "causal_lm":
            return AutoModelForCausalLM.from_pretrained(path, **arguments)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **arguments)
    except (ValueError, ImportError) as error:
        name = arguments.get("attn_implementation")
        if name is None or name not in str(error):
            raise
        raise UserError(f"--attn-implementation {name}: {first_line(error)}") from error
    model.config.pad_token_id = tokenizer.pad_token_id  # the score is read at the last token that is not padding
    return model


def new_adapter(info: ModelInfo, options: TrainingOptions) -> LoraConfig | None:
    """The adapter to add and train; None without LoRA, or if the run starts from an adapter."""
    if info.adapter or not uses_lora(options, info):
        return None
    from peft import LoraConfig

    scores = info.task == "sequence_classification"
    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules,
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        modules_to_save=["score"] if scores else None,
    )


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
    from accelerate import PartialState

    return PartialState().device


def _quantization(options: TrainingOptions, dtype: torch.dtype) -> Any:
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("4-bit and 8-bit weights need bitsandbytes: pip install 'rlhf-core[quantization]'")
    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
