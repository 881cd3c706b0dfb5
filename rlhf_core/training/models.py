"""Models: what can be known before the weights load, and loading them.

Everything that a user can get wrong about a model (a path, a missing chat template, prompts that are too long) is found
from its configuration and tokenizer, which cost little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core import embedded
from rlhf_core.config import EMBEDDED, RunConfig
from rlhf_core.errors import UserError
from rlhf_core.method import TrainingOptions

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LORA_FROM = 1_000_000_000  # parameters


@dataclass(frozen=True)
class ModelInfo:
    """A model before its weights are loaded. `adapter` is the folder of a PEFT adapter that the run starts from."""

    path: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    adapter: str | None = None


def inspect(config: RunConfig) -> ModelInfo:
    """Read configuration and tokenizer. Raises `UserError` for a model that is not there or has no chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path, adapter = _locate(config.model)
    try:
        model_config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(adapter if adapter and _has_tokenizer(adapter) else path)
    except (OSError, ValueError, KeyError) as error:
        where = "is not a model folder" if Path(path).is_dir() else "is no folder here, and the Hub could not give it"
        raise UserError(f"--model {config.model} {where}: {str(error).strip().splitlines()[0]}") from error
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
    if tokenizer.chat_template is None:
        raise UserError(
            f"--model {config.model} has no chat template, so it can't be given messages. Use its instruction-tuned "
            "version, or give a template: --chat-template FILE"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model_config)
    return ModelInfo(path, model_config, tokenizer, empty.num_parameters(), adapter)


def _locate(model: str) -> tuple[str, str | None]:
    """(base model, adapter or None). A folder with an adapter names its base model."""
    if model == EMBEDDED:
        return str(embedded.MODEL), None
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise UserError(f"--model {model}: there is no such folder")
        return model, None
    if not (folder / "adapter_config.json").is_file():
        return str(folder), None
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise UserError(f"--model {model} is an adapter that does not name its base model")
    return base, str(folder)


def _has_tokenizer(folder: str) -> bool:
    return (Path(folder) / "tokenizer_config.json").is_file()


def _read_template(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--chat-template {file}: {error.strerror}") from error


def uses_lora(options: TrainingOptions, info: ModelInfo) -> bool:
    """What was asked for; else for large or quantized models, and for a run that starts from an adapter."""
    if options.lora is not None:
        return options.lora
    return bool(options.load_in_4bit or options.load_in_8bit or info.adapter or info.parameters >= LORA_FROM)


def load(info: ModelInfo, options: TrainingOptions) -> PreTrainedModel:
    """Load the weights, and the adapter that the run starts from: trained further with LoRA, merged without."""
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"dtype": weight_dtype(options, uses_lora(options, info))}
    if options.load_in_4bit or options.load_in_8bit:
        arguments |= {"quantization_config": _quantization(options, arguments["dtype"]), "device_map": {"": _device()}}
    model = AutoModelForCausalLM.from_pretrained(info.path, **arguments)
    if options.load_in_4bit or options.load_in_8bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if info.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, info.adapter, is_trainable=True)
        if not uses_lora(options, info):
            model = model.merge_and_unload().requires_grad_(True)
    return model


def new_adapter(info: ModelInfo, options: TrainingOptions) -> LoraConfig | None:
    """The adapter to train, unless there is none or the run starts from one."""
    if info.adapter or not uses_lora(options, info):
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules,
        task_type="CAUSAL_LM",
    )


def weight_dtype(options: TrainingOptions, lora: bool) -> torch.dtype:
    """`auto`: frozen weights in bfloat16 on a GPU that has it; weights that are trained in float32."""
    import torch

    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    return torch.bfloat16 if lora and gpu_has_bfloat16() else torch.float32


def gpu_has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _device() -> Any:
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


def limit_prompts(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int, rule: str
) -> list[dict[str, Any]]:
    """Apply `--overlong-prompts` to rows with a `prompt`. Raises `UserError` where the rule is `error`."""
    lengths = prompt_lengths(rows, tokenizer, limit)
    overlong = [i for i, length in enumerate(lengths) if length > limit]
    if not overlong:
        return rows
    if rule == "error":
        longest = max(lengths)
        raise UserError(
            f"{len(overlong)} of {len(rows)} prompts have more than --max-prompt-length {limit} tokens, the longest "
            f"{longest}. Allow --max-prompt-length {longest}, or say --overlong-prompts truncate (or drop)."
        )
    if rule == "drop":
        left = [row for i, row in enumerate(rows) if lengths[i] <= limit]
        if not left:
            raise UserError(f"every prompt has more than --max-prompt-length {limit} tokens")
        return left
    for i in overlong:
        rows[i]["prompt"] = _truncate(rows[i]["prompt"], tokenizer, limit)
    return rows


def prompt_lengths(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[int]:
    """Tokens of each rendered prompt. Where the bytes alone prove that it fits, their number stands in for it."""
    lengths = []
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        size = len(text.encode("utf-8"))  # no token covers less than a byte
        lengths.append(size if size <= limit else len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return lengths


def _truncate(prompt: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[dict[str, str]]:
    """Drop the oldest turns after the system message, two at a time, then cut the end of the last message."""
    system = prompt[:1] if prompt[0]["role"] == "system" else []
    turns = prompt[len(system) :]

    def length(messages: list[dict[str, str]]) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    while len(turns) > 2 and length([*system, *turns]) > limit:
        turns = turns[2:]
    last = turns[-1]
    ids = tokenizer(last["content"], add_special_tokens=False)["input_ids"]
    while length([*system, *turns]) > limit:
        excess = length([*system, *turns]) - limit
        ids = ids[: len(ids) - excess]
        if not ids:
            raise UserError(f"--max-prompt-length {limit} leaves no room beside the chat template and system message")
        turns = [*turns[:-1], {**last, "content": tokenizer.decode(ids, skip_special_tokens=True).rstrip("�")}]
    return [*system, *turns]
