"""The weights that a run trains: in which type, without which dropout, and whether its steps can change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rlhf_core.models.reference import REFERENCE_ADAPTER

if TYPE_CHECKING:
    from peft import PeftModel

    from rlhf_core.training.run import Run


def use_float32(trainer: Any, run: Run) -> None:
    """Give adapters, what is trained beside them, the frozen copies of them, and a score head the type float32.

    In bfloat16 an update under 1/256 of its weight is lost, and most are. TRL rounds the adapters of quantized
    models to it, PEFT what is trained whole beside an adapter; of an adapter that the run started from the values are
    read again. ZeRO-3 gathers weights of one type only: https://github.com/deepspeedai/DeepSpeed/issues/8072
    """
    from peft import PeftModel

    adapted = [module for module in trainer.model.modules() if isinstance(module, PeftModel)]
    if adapted:
        plugin = trainer.args.deepspeed_plugin
        one_type = plugin is not None and plugin.zero_stage == 3 and not run.options.quantized
        kind = run.model.dtype if one_type else torch.float32
        named = trainer.model.named_parameters()
        copies = REFERENCE_ADAPTER in adapted[0].peft_config
        parts = [(name.split("."), parameter) for name, parameter in named]
        kept = [p for name, p in parts if p.requires_grad or (copies and REFERENCE_ADAPTER in name)]
    elif run.info.task == "sequence_classification" and run.config.distributed == "ddp":
        kind, kept = torch.float32, [*trainer.model.score.parameters()]
    else:
        return
    rounded = [parameter for parameter in kept if parameter.dtype != kind]
    for parameter in rounded:
        parameter.data = parameter.data.to(kind)
    if rounded and run.info.adapter:
        for model in adapted:
            _read_again(model, run.info.adapter)
    if run.info.task == "sequence_classification":  # whose head may now have another type than the states it reads
        for head in _score_heads(trainer.model):
            head.register_forward_pre_hook(_cast_inputs)


def _read_again(model: PeftModel, folder: str) -> None:
    """Give the adapter of `model`, and the frozen copy of it, the values of the adapter in `folder`."""
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    saved = load_peft_weights(folder)  # without a score head, where it was no reward model's
    for name in model.peft_config:
        set_peft_model_state_dict(model, {**get_peft_model_state_dict(model, adapter_name=name), **saved}, name)


def save_tied_once(model: torch.nn.Module) -> None:
    """Let a saved model hold a weight that is tied to another once. Several processes gather each weight by itself, and
    transformers, which compares places in memory, would no longer see that they are the same.
    """
    from rlhf_core.prefix import unwrap

    plain = unwrap(model)
    weight = plain.get_parameter_or_buffer
    twice = [name for name, source in plain.all_tied_weights_keys.items() if weight(name) is weight(source)]
    plain._keys_to_ignore_on_save = {*(plain._keys_to_ignore_on_save or ()), *twice}


def score_in_float32(model: torch.nn.Module) -> None:
    """Let a reward model compute its scores in float32, as in training: in bfloat16 those from 4 to 8 are multiples of
    1/32, so that answers which differ tie.
    """
    for head in _score_heads(model):
        head.float().register_forward_pre_hook(_cast_inputs)


def _score_heads(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """Of the model and of its adapter."""
    named = model.named_modules()
    return [module for name, module in named if isinstance(module, torch.nn.Linear) and "score" in name.split(".")]


def _cast_inputs(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.to(next(module.parameters()).dtype) for value in inputs)


def switch_off_dropout(model: torch.nn.Module, *, adapters: bool) -> None:
    """Set every dropout of `model` to 0; with `adapters` also that of its adapters."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and (adapters or "lora_dropout" not in name):
            module.p = 0.0


@torch.no_grad()
def share_too_large(model: torch.nn.Module, rate: float) -> float:
    """The share of the trained weights that a step of `rate` leaves as they are."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    unmoved = torch.stack([(parameter + rate == parameter).sum() for parameter in trained]).sum()
    return unmoved.item() / sum(parameter.numel() for parameter in trained)
