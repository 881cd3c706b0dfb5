"""Models: reading configuration and tokenizer, which shows every user mistake at little cost, and loading weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, listed
from rlhf_core.inputs import library_errors, path_of, read_text
from rlhf_core.method import TrainingOptions
from rlhf_core.models import checks, files, weights
from rlhf_core.models.adapters import add_adapter, merged, new_adapter, uses_lora
from rlhf_core.models.checks import Task
from rlhf_core.models.context import max_tokens
from rlhf_core.models.multimodal import freeze_other_parts, other_parts
from rlhf_core.models.precision import bitsandbytes_config, device, frozen_dtype, quantization_of, weight_dtype
from rlhf_core.models.resolve import ModelReference, find, quiet_libraries, scores
from rlhf_core.models.template import end_answers
from rlhf_core.models.tokenizer import check_tokenizer
from rlhf_core.unused import SPLIT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelInfo:
    """A model before its weights are loaded. `adapter` is the folder of a PEFT adapter that the run starts from.

    `reference` is where it is from and whether its code may run. `task` is what the method trains: a `causal_lm`, or a
    `sequence_classification` model with one score. `empty` is the model without weights, `quantized` how its weights
    are quantized when they load as they are in the files, `complete` whether the files were seen to hold all weights,
    `called` its name in messages, `template` that of its chat template, and `warnings` are for the user.
    """

    path: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    adapter: str | None = None
    task: Task = "causal_lm"
    empty: PreTrainedModel | None = None
    quantized: str | None = None
    complete: bool = False
    called: str = ""
    template: str = "the chat template"
    warnings: tuple[str, ...] = ()
    reference: ModelReference = field(kw_only=True)

    @property
    def max_tokens(self) -> int | None:
        return max_tokens(self.config)


def inspect(
    reference: ModelReference, task: Task = "causal_lm", *, chat_template: str | None = None, needs_head: bool = False
) -> ModelInfo:
    """Read configuration and tokenizer, and check what the files hold. `chat_template` is a file with one, for a model
    that has none; `needs_head`: the model must have been trained to score.

    Raises `UserError` for a model that does not exist, that is of another kind, not complete or without chat template.
    """
    info = read(reference, task, needs_head=needs_head)
    tokenizer = info.tokenizer
    if chat_template is not None:
        tokenizer.chat_template = read_text(path_of(chat_template, "--chat-template"), "--chat-template")
    if tokenizer.chat_template is None:
        raise UserError(
            f"{reference.base_called} has no chat template, so it can't read messages. Use its instruction-tuned "
            "version, or give it a template: as chat_template.jinja in its folder, or with --chat-template FILE of "
            "rlhf run and rlhf chat"
        )
    shown = f"of {reference.called}" if chat_template is None else chat_template
    return replace(info, template=f"the chat template {shown}")


def read(reference: ModelReference, task: Task = "causal_lm", *, needs_head: bool = False) -> ModelInfo:
    """The same for a model that need not read messages."""
    called, config = reference.base_called, files.read_config(reference)
    empty = checks.without_weights(config, task, reference)
    checks.check_kind(reference, empty, config, needs_head=needs_head)
    tokenizer = files.read_tokenizer(reference)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    warnings = [reference.moved] if reference.moved else []
    held, quantizer = weights.read_weights(reference.base, called), quantization_of(config, called)
    in_adapter, complete = reference.adapter is not None, held is not None and quantizer is None
    if held is not None and complete:
        warnings += checks.check_files(empty, held, called, new_head=_new_head(config, in_adapter))
    if held is not None and quantizer is not None:
        method = quantizer.quantization_config.quant_method
        weights.check_quantized(held, str(getattr(method, "value", method)), called)
    if in_adapter:
        warnings += checks.check_adapter(empty, reference, task, needs_head=needs_head)
    if parts := other_parts(empty):
        warnings.append(f"{called} reads more than text: its text model is trained, {listed(parts)} stays as it is")
    warnings += check_tokenizer(empty, tokenizer, reference.called)
    files.read_generation_config(reference.base, called)
    return ModelInfo(
        path=reference.base,
        config=config,
        tokenizer=tokenizer,
        parameters=empty.num_parameters(),
        adapter=reference.path if in_adapter else None,
        task=task,
        empty=empty,
        quantized=_quantized_as(quantizer),
        complete=complete,
        called=reference.called,
        warnings=tuple(warnings),
        reference=reference,
    )


def _new_head(config: PreTrainedConfig, in_adapter: bool) -> bool:
    """Whether a score head need not be in the files: it is in the adapter, or is begun."""
    return in_adapter or not any(map(scores, config.architectures or []))


def _quantized_as(quantizer: Any) -> str | None:
    """The method, unless the weights are computed back when they load."""
    # Probed: only some methods can do that.
    if quantizer is None or getattr(quantizer.quantization_config, "dequantize", False):
        return None
    method = quantizer.quantization_config.quant_method
    return str(getattr(method, "value", method))


def check_options(info: ModelInfo, options: TrainingOptions, distributed: str = "ddp") -> None:
    """Raise `UserError` for options of loading and of LoRA that do not fit the model."""
    import torch

    if distributed in SPLIT and info.adapter and not uses_lora(options, info):
        raise UserError(
            f"--no-lora merges the adapter {info.called} into the weights, which can't be done where these are split "
            f"between processes (--distributed {distributed}): write a merged model first (rlhf merge), and train that"
        )
    if info.quantized and options.quantized:
        raise UserError(
            f"{info.called} is quantized already ({info.quantized}): leave out --load-in-4bit and --load-in-8bit"
        )
    if info.quantized and not uses_lora(options, info):
        raise UserError(
            f"{info.called} is quantized ({info.quantized}): its weights can't be trained, leave out --no-lora"
        )
    if info.quantized and not quantization_of(info.config, info.called).is_trainable:
        raise UserError(
            f"{info.called} is quantized ({info.quantized}), which transformers can't train, not even an adapter on "
            "it. Use the model that it was made from, with --load-in-4bit to save memory"
        )
    if (name := options.attn_implementation) is not None:
        if name == "flex_attention" and not torch.accelerator.is_available():
            raise UserError(f"--attn-implementation {name} needs a GPU: it is compiled for each length of a row")
        checks.without_weights(info.config, info.task, info.reference, name)
    adapter = new_adapter(info, options)
    if adapter is not None and info.empty is not None:
        largest = max(max(weight.shape, default=0) for weight in info.empty.parameters())
        if options.lora_r > largest:
            raise UserError(f"--lora-r {options.lora_r}: the model's largest layer has a dimension of {largest}")
        names = options.lora_target_modules
        given = f"--lora-target-modules {names if isinstance(names, str) else ','.join(names)}"
        checks.check_targets(info.empty, adapter, given)
    if info.adapter and info.empty is not None:
        _check_trained(info, options)


def _check_trained(info: ModelInfo, options: TrainingOptions) -> None:
    """Raise `UserError` for an adapter that the run starts from, and that can't be trained further."""
    config: Any = files.read_adapter_config(str(info.adapter), info.called)
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UserError(f"{info.called} is an adapter of the type {kind}, which can't be trained further nor merged")
    # Probed: a field of LoRA alone.
    if getattr(config, "alora_invocation_tokens", None):
        raise UserError(f"{info.called} is an activated LoRA (alora_invocation_tokens), which rlhf can't train")
    if uses_lora(options, info):
        checks.check_output(info.empty, config, info.called)  # type: ignore[arg-type]


def load(info: ModelInfo, options: TrainingOptions) -> PreTrainedModel:
    """Load the weights, and the adapter that the run starts from: trained further with LoRA, merged without."""
    dtype = weight_dtype(options, uses_lora(options, info))
    arguments: dict[str, Any] = {"dtype": dtype, "attn_implementation": options.attn_implementation}
    quantized = options.quantized or info.quantized
    if options.quantized:
        arguments["quantization_config"] = bitsandbytes_config(options, dtype)
    if quantized:
        arguments["device_map"] = {"": device()}
    model = from_pretrained(info, arguments)
    if info.task == "causal_lm":
        end_answers(model, info.tokenizer)
    if quantized:
        model.requires_grad_(False)  # and no more: PEFT's preparation makes the embeddings of an 8B model 2.5 GB larger
        if device().type == "cpu":  # with bfloat16, bitsandbytes would repack 4-bit weights and lose a little each time
            import bitsandbytes

            for module in model.modules():
                if isinstance(module, bitsandbytes.nn.Linear4bit):
                    module.support_avx512bf16_for_cpu = False
    freeze_other_parts(model)
    if info.adapter:
        model = add_adapter(info, model, trainable=True)
        if not uses_lora(options, info):
            model = merged(model).requires_grad_(True)
            freeze_other_parts(model)
    if options.shares_prompts:
        from rlhf_core.prefix import share

        share(model)
    return model


def check_scorer(folder: str, *, trust_remote_code: bool = False) -> ModelInfo:
    """What `load_scorer` needs, without weights. Raises `UserError` for what is no reward model, or not complete."""
    with quiet_libraries():
        reference = find(folder, "path", trust_remote_code=trust_remote_code)
        return inspect(reference, "sequence_classification", needs_head=True)


def load_scorer(scorer: str | ModelInfo) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model, full or an adapter, on the fastest device there is, with its tokenizer. `scorer` is its
    folder, or what `check_scorer` returned.
    """
    from rlhf_core.models.trainable import score_in_float32

    info = check_scorer(scorer) if isinstance(scorer, str) else scorer
    info.tokenizer.padding_side = "right"
    model = from_pretrained(info, {"dtype": frozen_dtype()})
    if info.adapter:
        model = add_adapter(info, model, trainable=False)
    score_in_float32(model)
    return model.eval().to(device()), info.tokenizer


def from_pretrained(info: ModelInfo, arguments: dict[str, Any]) -> PreTrainedModel:
    scoring = info.task == "sequence_classification"
    if scoring:
        arguments = {**arguments, "num_labels": 1}
    with library_errors(f"{info.called}: {info.path} can't be loaded"):
        model, found = checks.auto_class(info.config, info.task).from_pretrained(
            info.path,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=info.reference.trust_remote_code,
            **arguments,
        )
    if not info.complete:
        head = {checks.HEAD} if scoring and _new_head(info.config, info.adapter is not None) else set()
        packed = {name for name in found["missing_keys"] if info.quantized and not name.endswith(".weight")}
        checks.refuse_missing(set(found["missing_keys"]) - head - packed, info.called)
    weights.refuse_not_finite(model.named_parameters(), info.called)
    if scoring:
        model.config.pad_token_id = info.tokenizer.pad_token_id  # the score is read at the last token before padding
    return model
