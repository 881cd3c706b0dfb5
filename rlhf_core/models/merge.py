"""An adapter put into the weights of its base model, so that what was trained is one model like any other.

The base is loaded unquantized in float32, also where it was quantized in training. The logits of a few fixed prompts
are compared three times over: adapter beside the base, adapter in the weights, and the files that were written. Nothing
stands under the output's name before all of them agree.

    rlhf merge RUN_OR_MODEL
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.config import BUILTIN
from rlhf_core.errors import UserError
from rlhf_core.models.resolve import Target, find, quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = ("What helps against a fever?", "咳嗽三天，可能是什么病？", "12 + 30 = 42, so 42 - 12 =", "<think>\n")
# Largest difference of the logits relative to their scale, by the type of the saved weights. In float32 only the order
# of the sums differs; else each weight is rounded (by 2^-9 and 2^-12 of it at most) and the errors add up over layers.
ALLOWED = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


def merge_adapter(model: str, output: str | None = None, dtype: str = "auto") -> None:
    """Merge, compare, save and say so. Raises `UserError`; whatever it raises, nothing is left behind."""
    target = find(model)
    folder = Path(output).expanduser() if output else _default_output(target)
    _refuse(model, target, folder)
    with quiet_libraries():
        from rlhf_core.ui.screen import Screen

        screen = Screen()
        with screen.working("Loading the base model and the adapter …"):
            merged, tokenizer, said, difference = _merged(target)
        dtype = _saved_dtype(merged, dtype)
        with screen.working("Saving, and reading it again …"):
            saved_difference = _save(merged, tokenizer, said, target, folder, dtype)
    assert target.adapter is not None
    screen.say(f"Merged   {target.model} into {target.adapter['base_model_name_or_path']}")
    screen.say(f"Logits   in float32 the same to {difference:.1e} of their scale (at most {ALLOWED['float32']:.0e})")
    screen.say(f"         as saved in {dtype} to {saved_difference:.1e} (at most {ALLOWED[dtype]:.0e})")
    screen.say(f"Model    {folder}")
    screen.say(f"Go on    {_next_command(target, folder)}", "bold")


def _default_output(target: Target) -> Path:
    folder = Path(target.model).resolve()
    return target.run / "merged" if target.run else folder.with_name(folder.name + "-merged")


def _refuse(given: str, target: Target, output: Path) -> None:
    """Everything that can be wrong with what was asked for, before torch is imported."""
    if target.adapter is None:
        if target.model != BUILTIN and not Path(target.model).is_dir():
            raise UserError(f"{given}: there is no such folder here; an adapter on the Hub has to be downloaded first")
        raise UserError(f"{given}: nothing to merge, it is a whole model already")
    if output.exists() or output.is_symlink():
        raise UserError(f"--output {output} exists already. Give another folder, or remove it")
    kind = target.adapter.get("peft_type")
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "MULTITASK_PROMPT_TUNING", "CPT"):
        raise UserError(f"{given} is an adapter of the type {kind}, which adds no weights that could be merged")


def _merged(target: Target) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[torch.Tensor], float]:
    """(model with the adapter in its weights, tokenizer, logits beside the adapter, how far the two are apart)."""
    model, tokenizer = _load(target)
    said = _logits(model, tokenizer)
    try:
        model = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:  # not finite, or a kind of adapter that stays beside
        raise UserError(f"{target.model} can't be merged: {error}") from error
    difference = _difference(said, _logits(model, tokenizer))
    _check(difference, "float32", f"{target.model} can't be merged: with the adapter in the weights")
    return model, tokenizer, said, difference


def _load(target: Target) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base model in float32 on the CPU, where the most memory is, with the adapter beside its weights."""
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    assert target.adapter is not None
    base = target.adapter["base_model_name_or_path"]
    path = target.model if (Path(target.model) / "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = _from_pretrained(base, target, tokenizer)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"the base model {base} can't be loaded: {_first_line(error)}") from error
    try:
        return PeftModel.from_pretrained(model, target.model).eval(), tokenizer
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the adapter {target.model} does not fit {base}: {_first_line(error)}") from error


def _from_pretrained(path: str, target: Target, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    import torch

    from rlhf_core.models import loading as models

    task: models.Task = "sequence_classification" if target.is_reward_model else "causal_lm"
    return models.from_pretrained(path, task, tokenizer, {"dtype": torch.float32}).eval()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def _logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Of each prompt (tokens, vocabulary), or (1, 1) of a reward model."""
    import torch

    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].float() for row in ids]


def _difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest logit."""
    scale = max(logits.abs().max().item() for logits in before)
    return max((a - b).abs().max().item() for a, b in zip(before, after, strict=True)) / (scale or 1.0)


def _check(difference: float, dtype: str, what: str, hint: str = "") -> None:
    if not difference <= ALLOWED[dtype]:  # also where it is not a number
        raise UserError(
            f"{what} the logits differ by {difference:.1e} of their scale, at most {ALLOWED[dtype]:.0e} is allowed. "
            f"Nothing was written.{hint}"
        )


def _saved_dtype(model: PreTrainedModel, asked: str) -> str:
    """What was asked for; `auto` is the type in which the base model was published, where that is one of ours."""
    if asked != "auto":
        return asked
    from transformers import AutoConfig

    published = str(AutoConfig.from_pretrained(model.config._name_or_path).dtype).removeprefix("torch.")
    return published if published in ALLOWED else "float32"


def _save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    said: list[torch.Tensor],
    target: Target,
    output: Path,
    dtype: str,
) -> float:
    """Write under a name of its own, read it again, compare with what the adapter `said`, and only then rename."""
    import torch
    from safetensors import SafetensorError

    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        model.to(getattr(torch, dtype)).save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(_card(target, output, dtype), encoding="utf-8")
        difference = _difference(said, _logits(_from_pretrained(str(part), target, tokenizer), tokenizer))
        hint = "" if dtype == "float32" else " Keep the weights exact: --dtype float32"
        _check(difference, dtype, f"{target.model} can't be merged: as saved in {dtype}", hint)
        part.rename(output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output {output} can't be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return difference


def _card(target: Target, output: Path, dtype: str) -> str:
    assert target.adapter is not None
    base = target.adapter["base_model_name_or_path"]
    return (
        f"---\nlibrary_name: transformers\ntags: [rlhf]\n---\n\n# {output.name}\n\nMerged with rlhf-core.\n\n"
        f"- base model: `{base}`\n- adapter: `{target.model}`\n- weights: {dtype}\n"
    )


def _next_command(target: Target, output: Path) -> str:
    return f"rlhf run --method ppo --reward-model {output}" if target.is_reward_model else f"rlhf chat {output}"
