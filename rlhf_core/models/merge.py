"""Merges an adapter into the weights of its base model.

The base is loaded unquantized in float32, also if it was quantized in training. The logits of a few fixed prompts are
compared: before merging, after it, and of the files that were written. These get the output's name only if all agree.

    rlhf merge RUN_OR_MODEL
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_core.errors import UserError
from rlhf_core.inputs import path_of
from rlhf_core.models import adapters
from rlhf_core.models.checkpoints import is_checkpoint, step
from rlhf_core.models.files import read_config
from rlhf_core.models.multimodal import copy_processor
from rlhf_core.models.resolve import ModelReference, find, quiet_libraries
from rlhf_core.outputs import new_folder, write_whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf_core.models.loading import ModelInfo

PROMPTS = ("What helps against a fever?", "咳嗽三天，可能是什么病？", "12 + 30 = 42, so 42 - 12 =", "<think>\n")
# Largest difference of the logits relative to their scale, by the type of the saved weights. In float32 only the order
# of the sums differs; otherwise each weight is rounded and the errors add up over layers.
ALLOWED = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


def merge_adapter(
    model: str, output: str | None = None, dtype: str = "auto", *, trust_remote_code: bool = False
) -> None:
    """Merge, compare, save and report it. Raises `UserError`, and then leaves nothing behind."""
    reference = find(model, trust_remote_code=trust_remote_code)
    path = Path(reference.path).resolve()
    beside = f"merged-{step(path)}" if is_checkpoint(path) else "merged"  # of the step; `merged` is of the run's model
    folder = reference.run / beside if reference.run else path.with_name(path.name + "-merged")
    folder = path_of(output, "--output") if output is not None else folder
    _refuse(reference)
    with quiet_libraries(), new_folder(folder, "--output") as part:
        from rlhf_core.ui.screen import Screen

        screen = Screen()
        with screen.working("Loading the base model and the adapter …"):
            info, merged, expected, difference = _merged(reference)
        if dtype == "auto":  # as the base model is published, if it is one of our types
            dtype = str(read_config(reference).dtype).removeprefix("torch.")
            dtype = dtype if dtype in ALLOWED else "float32"
        with screen.working("Saving, and reading it again …"):
            saved_difference = _save(merged, info.tokenizer, expected, reference, folder, part, dtype)
    screen.say(f"Merged   {reference.path} with its base model {reference.base}")
    for warning in info.warnings:
        screen.say(f"Warning  {warning}")
    screen.say(f"Logits   merged in float32 differ by {difference:.1e} of their scale (limit {ALLOWED['float32']:.0e})")
    screen.say(f"         as saved in {dtype} differ by {saved_difference:.1e} (limit {ALLOWED[dtype]:.0e})")
    screen.say(f"Model    {folder}")
    use = "run --method ppo --reward-model" if reference.is_reward_model else "chat"
    screen.say(f"Next     rlhf {use} {folder}", "bold")


def _refuse(reference: ModelReference) -> None:
    """Raise `UserError` for everything that can be wrong with the request, before torch is imported."""
    given = reference.called
    if reference.adapter is None:
        if not Path(reference.path).is_dir():
            raise UserError(f"{given}: there is no such folder here; download an adapter from the Hub first")
        raise UserError(f"{given}: nothing to merge, it is a full model already")
    kind = reference.adapter.get("peft_type")
    if kind in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "MULTITASK_PROMPT_TUNING", "CPT"):
        raise UserError(f"{given} is an adapter of the type {kind}, which adds no weights that could be merged")


def _merged(reference: ModelReference) -> tuple[ModelInfo, PreTrainedModel, list[torch.Tensor], float]:
    """(what the adapter is, merged model, logits before merging, difference after it); in float32, on the CPU."""

    info, base = _read(reference)
    if info.quantized:
        raise UserError(
            f"{reference.called}: the weights of its base model {reference.base} are quantized ({info.quantized}), and "
            "an adapter can't be added to them exactly. Merge it with the model that they were made from, by writing "
            f"that as base_model_name_or_path into {Path(reference.path) / 'adapter_config.json'}"
        )
    model = adapters.add_adapter(info, base, trainable=False).eval()
    tokenizer = info.tokenizer
    expected = _logits(model, tokenizer)
    try:
        merged = adapters.merged(model, safe_merge=True)
    except (ValueError, NotImplementedError) as error:  # not finite, or a kind of adapter that can't be merged
        raise UserError(f"{reference.path} can't be merged: {error}") from error
    return info, merged, expected, _compare(expected, _logits(merged, tokenizer), "float32", reference)


def _read(reference: ModelReference) -> tuple[ModelInfo, PreTrainedModel]:
    """The (base) model, of the kind that `reference` is."""
    import torch

    from rlhf_core.models import loading as models

    info = models.read(reference, "sequence_classification" if reference.is_reward_model else "causal_lm")
    return info, models.from_pretrained(info, {"dtype": torch.float32}).eval()


def _logits(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """For each prompt (tokens, vocabulary), or (1,) of a reward model."""
    import torch

    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].float() for row in ids]


def _compare(before: list[torch.Tensor], after: list[torch.Tensor], dtype: str, reference: ModelReference) -> float:
    """The largest difference, as a share of the largest logit. Raises `UserError` where it is not allowed."""
    scale = max(logits.abs().max().item() for logits in before)
    difference = max((a - b).abs().max().item() for a, b in zip(before, after, strict=True)) / (scale or 1.0)
    if not difference <= ALLOWED[dtype]:  # also where it is not a number
        hint = "" if dtype == "float32" else " Keep the weights exact: --dtype float32"
        raise UserError(
            f"{reference.path} can't be merged: in {dtype} the logits differ by {difference:.1e} of their scale, at "
            f"most {ALLOWED[dtype]:.0e} is allowed. Nothing was written.{hint}"
        )
    return difference


def _save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    expected: list[torch.Tensor],
    reference: ModelReference,
    output: Path,
    part: Path,
    dtype: str,
) -> float:
    """Write what will be `output` to `part`, read it again, and compare with the `expected` logits."""
    import torch
    from safetensors import SafetensorError

    try:
        model.to(getattr(torch, dtype)).save_pretrained(part)
        tokenizer.save_pretrained(part)
        copy_processor(reference.base, part)
        card = (
            f"---\nlibrary_name: transformers\ntags: [rlhf]\n---\n\n# {output.name}\n\nMerged with rlhf-core.\n\n"
            f"- base model: `{reference.base}`\n- adapter: `{reference.path}`\n- weights: {dtype}\n"
        )
        write_whole(part / "README.md", card)
        saved = _logits(_read(find(str(part), trust_remote_code=reference.trust_remote_code))[1], tokenizer)
        return _compare(expected, saved, dtype, reference)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output {output} can't be written: {error}") from error
