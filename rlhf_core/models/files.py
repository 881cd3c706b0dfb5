"""A model's folder as someone handed it over. What is text in it is read here first, and what transformers and PEFT
make of it is made here: an error of theirs is one message, and code that a model brings runs only where it is trusted.

Needs no torch until a configuration or a tokenizer is asked for.
"""

from __future__ import annotations

import importlib.util
import math
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError, did_you_mean, excerpt
from rlhf_core.inputs import LARGEST as LARGEST_INTEGER
from rlhf_core.inputs import library_errors, parse_json, read_text

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

    from rlhf_core.models.resolve import ModelReference

CONFIG, ADAPTER_CONFIG, TOKENIZER_CONFIG = "config.json", "adapter_config.json", "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
OBJECTS = (
    *(CONFIG, ADAPTER_CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG, "tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.json"),
)
READ = (".json", ".jinja", ".safetensors", ".model", ".txt")  # by transformers, PEFT and tokenizers
LARGEST = 256 << 20  # bytes of a file with a vocabulary
POINTER = b"version https://git-lfs"
# Keys of config.json, and the numbers that they may have: beyond them nothing can be built, or it computes no numbers.
BOUNDS = (
    (re.compile(r"num_labels"), 0, 1_000_000),
    (re.compile(r"hidden_size|vocab_size|num_hidden_layers"), 1, 2**31),
    (re.compile(r"(num_.*|n_)layers?"), 0, 1_000),  # a model of more is minutes in the making
    (re.compile(r"(num_.*|n_)(heads?|experts)"), 0, 100_000),
    (re.compile(r".*(dropout|pdrop|dropout_prob|dropout_rate)"), 0, 1),
    (re.compile(r".*(_eps|_epsilon)"), 0, 1),
    (re.compile(r"rope_theta|rotary_emb_base"), 1e-9, 1e30),
    (re.compile(r"factor"), 1e-9, 1e9),  # of rope_parameters
    (re.compile(r"(eos|bos|pad)_token_id"), -1, 2**31),
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
FLASH = {"2": "flash_attn", "3": "flash_attn_interface", "4": "flash_attn"}  # version of flash attention -> its package


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises `UserError`."""
    values = parse_json(read_text(file, limit=LARGEST), str(file))
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object")
    return values


def check_folder(folder: Path) -> None:
    """Raise `UserError` for what a library would stumble over in `folder`: no regular file, a file that Git LFS has not
    fetched, and one that does not hold what its name says.
    """
    with library_errors(f"{folder} can't be read"):
        files = sorted(file for file in folder.iterdir() if file.suffix in READ)
    for file in files:
        with library_errors(f"{file} can't be read"):
            mode = file.stat().st_mode
            if stat.S_ISDIR(mode) and file.name not in OBJECTS and file.suffix != ".safetensors":
                continue
            if not stat.S_ISREG(mode):
                raise UserError(f"{file} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
            with file.open("rb") as stream:
                pointer = stream.read(len(POINTER)) == POINTER
        if pointer:
            raise UserError(f"{file} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull, in that folder")
        if file.suffix == ".jinja":
            read_text(file)
        elif file.name in OBJECTS:
            values = read_object(file)
            if file.name == CONFIG:
                _check_values(values, file)


def _check_values(values: Mapping[str, Any], file: Path) -> None:
    """Raise `UserError` for values of config.json that transformers takes, and that can't be meant."""
    names = values.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{file}, architectures: {names!r} is not a list of names")
    key = "torch_dtype" if values.get("dtype") is None else "dtype"
    if values.get(key) not in (None, *DTYPES):
        raise UserError(f"{file}, {key}: {excerpt(repr(values[key]))} is none of {', '.join(DTYPES)}")
    for key, needed in (("return_dict", True), ("output_attentions", False)):
        if values.get(key, needed) is not needed:
            raise UserError(f"{file}, {key}: {excerpt(repr(values[key]))} changes what the model returns; remove it")
    for key, value in _numbers(values):
        last = key.rpartition(".")[2]
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{file}, {key}: {value} is not a number")
        for pattern, least, most in BOUNDS:
            if pattern.fullmatch(last) and not least <= value <= most:
                shown = f"{value:g}" if abs(value) <= LARGEST_INTEGER else excerpt(value, 40)
                raise UserError(f"{file}, {key}: {shown} is not between {least:g} and {most:,}")


def _numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Each number of a configuration with its key, those of parts (`text_config.hidden_size`) too."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key}.")
        elif isinstance(value, list):
            yield from ((f"{before}{key}", one) for one in value if isinstance(one, int | float))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{key}", value


def read_config(reference: ModelReference) -> PreTrainedConfig:
    """The configuration of the (base) model. Raises `UserError`."""
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, __version__

    called, path = reference.base_called, reference.base
    with library_errors(f"{called} {_problem(path)}"):
        values, _ = PreTrainedConfig.get_config_dict(path)
        kind = values.get("model_type")
        if kind not in CONFIG_MAPPING and isinstance(kind, str) and kind:
            refuse_code(reference, values, "AutoConfig", f"its type is {kind[:80]!r}, which transformers does not have")
            if not code_of(values, "AutoConfig"):
                raise UserError(
                    f"{called}: model_type {kind[:80]!r} in its {CONFIG} is none of transformers {__version__}."
                    f"{did_you_mean(kind[:80], CONFIG_MAPPING)}"
                )
        return AutoConfig.from_pretrained(path, trust_remote_code=reference.trust_remote_code)


def read_tokenizer(reference: ModelReference) -> PreTrainedTokenizerBase:
    """The tokenizer in an adapter's folder, otherwise the base model's. Raises `UserError`."""
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    path = reference.path if (Path(reference.path) / TOKENIZER_CONFIG).is_file() else reference.base
    with library_errors(f"{reference.called}: its tokenizer {_problem(path)}"):
        values = get_tokenizer_config(path)
        try:
            return AutoTokenizer.from_pretrained(path, trust_remote_code=reference.trust_remote_code)
        except ValueError:
            refuse_code(reference, values, "AutoTokenizer", "its tokenizer is none of transformers")
            raise


def read_generation_config(path: str, called: str) -> GenerationConfig | None:
    """The model's own settings of generation; None if it has no such file. Raises `UserError`."""
    from transformers import GenerationConfig

    with library_errors(f"{called}: its {GENERATION_CONFIG} can't be used"):
        try:
            config = GenerationConfig.from_pretrained(path)
        except OSError:
            return None
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(config, key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, int) and -1 <= one < 2**31 for one in ids):
            raise UserError(
                f"{called}: {key} in its {GENERATION_CONFIG} is {excerpt(repr(value))}, which is no token's id"
            )
    return config


def read_adapter_config(folder: str | Path, called: str) -> PeftConfig:
    """What an adapter is. Raises `UserError`."""
    from peft import PeftConfig

    with library_errors(f"{called}: its {ADAPTER_CONFIG} can't be used"):
        config = PeftConfig.from_pretrained(str(folder))
    # Probed: a field of LoRA alone. PEFT imports the module that `megatron_core` names.
    if getattr(config, "megatron_config", None) is not None:
        raise UserError(f"{called}: megatron_config in its {ADAPTER_CONFIG} names code to run, which rlhf does not")
    if config.peft_type == "LORA":
        _check_lora(config, f"{called}: in its {ADAPTER_CONFIG},")
    return config


def _check_lora(config: Any, where: str) -> None:
    """Raise `UserError` for values that PEFT takes, and with which an adapter does nothing or computes no numbers."""
    scales = {"lora_alpha": config.lora_alpha, **dict(config.alpha_pattern or {})}
    for name, value in scales.items():
        if isinstance(value, int | float) and not 0 < abs(value) <= 1e6:
            shown = name if name == "lora_alpha" else f"alpha_pattern of {excerpt(name, 40)}"
            raise UserError(f"{where} {shown} is {value:g}: the adapter's scale is above 0 and at most 1,000,000")
    if isinstance(config.lora_dropout, int | float) and not 0 <= config.lora_dropout < 1:
        raise UserError(f"{where} lora_dropout is {config.lora_dropout:g}: it is at least 0 and below 1")


def code_of(values: Mapping[str, Any], auto: str) -> str | None:
    """The code that a file's `auto_map` names for one of transformers' auto classes."""
    named = values.get("auto_map")
    if isinstance(named, Mapping):
        named = named.get(auto)
    elif auto != "AutoTokenizer":  # whose earlier form was a list
        return None
    names = [name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)]
    return names[0] if names else None


def refuse_code(reference: ModelReference, values: Mapping[str, Any], auto: str, why: str) -> None:
    """Raise `UserError` where a model brings code and is not trusted."""
    code = code_of(values, auto)
    if code and not reference.trust_remote_code:
        at = f"in {code.partition('--')[0]}" if "--" in code else f"in {reference.base}"
        raise UserError(
            f"{reference.called} brings code of its own ({code}, {at}), which is not run: {why}. Read that code, and "
            f"add --trust-remote-code if you trust it"
        )


def refuse_kernel(reference: ModelReference, attention: object, where: str, compatible: Any = None) -> None:
    """Raise `UserError` for an attention that transformers would load as code from the Hub, and that is not trusted.

    `compatible` are those that a class of models takes instead of flash attention.
    """
    named = list(attention.values()) if isinstance(attention, dict) else [attention]
    for name in [str(name) for name in named if name is not None]:
        flash = name.startswith("flash_attention_")
        missing = flash and importlib.util.find_spec(FLASH.get(name[-1], "flash_attn")) is None
        by_kernels = (missing or (flash and compatible)) and importlib.util.find_spec("kernels") is not None
        if ("/" in name or by_kernels) and not reference.trust_remote_code:
            raise UserError(
                f"{where}: {excerpt(name)} is code from the Hub, which is not run. Use an attention of transformers "
                "(sdpa, eager, or flash_attention_2 with the package flash-attn), or add --trust-remote-code"
            )


def _problem(path: str) -> str:
    local = Path(path).is_dir()
    return "can't be loaded" if local else "is not a folder here, and can't be loaded from the Hub"
