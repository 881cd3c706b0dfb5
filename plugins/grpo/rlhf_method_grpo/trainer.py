"""The overrides of TRL's private methods, each with its reason and a test that fails when TRL changes."""

from __future__ import annotations

import functools
import logging
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from rlhf_core import ChatTemplate, RewardRuntime, phase
from rlhf_core.prefix import Group, Sampling, completion_logps, on_device, own_generation_config, rollout, stacked
from rlhf_core.vllm import guard

log = logging.getLogger("rlhf")


class SharedPrefixGRPOTrainer(GRPOTrainer):
    """TRL's trainer with two changes.

    Prompts are computed once for their group, where the model can share them: in rollouts, in old and reference
    log-probabilities, and in the loss; where it can't, completions are padded on the right, which is right for more
    models than TRL's padding on the left. What only TRL's code can do (tools, an entropy bonus, …) is left to it, and
    the reason is logged once. And a resumed run sees the prompts in the order of a run that was never stopped: TRL
    shuffles all epochs with one generator that every start creates anew, so a run resumed in its second epoch would
    repeat the first one's order. `epochs_done` orders are drawn and discarded first.
    """

    epochs_done = 0
    rollouts = "auto"
    template: ChatTemplate | None = None  # renders the prompts, as everywhere in the run
    shown_tools: list[Any] = []  # noqa: RUF012 - of the prompts that are answered now, replaced for each batch
    rewards: RewardRuntime | None = None  # of the run, whose samples are told their advantages
    sampled_logps: list[list[float]] | None = None  # of the rollouts, until they are used as old log-probabilities

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.use_vllm:
            server = self.args.vllm_server_base_url if self.vllm_mode == "server" else None
            guard(self.vllm_generation, self.model, self.eos_token_ids, server)
        if self.args.cast_lm_head_to_fp32:
            for model in filter(None, (self.model, self.ref_model)):
                _keep_in_float32(self.accelerator.unwrap_model(model).get_output_embeddings())

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if sampler.shuffle:
            for _ in range(self.epochs_done):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return sampler

    def _tokenize_prompts(self, prompts):
        if self.template is None:
            return super()._tokenize_prompts(prompts)
        return [self.template.prompt_ids(*one) for one in zip(prompts, self.shown_tools, strict=True)], None, {}

    def _generate_and_score_completions(self, inputs):
        self.shown_tools = [row.get("tools") for row in inputs]
        scored = super()._generate_and_score_completions(inputs)
        if self.rewards is not None:
            self.rewards.samples.advantages(scored["advantages"].tolist())
        return scored

    @phase("sampling")
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        if self.rollouts not in ("auto", "shared", "continuous") or images is not None or self._sampled_by_trl:
            with own_generation_config(self.accelerator.unwrap_model(self.model)):
                return super()._generate_single_turn(
                    prompt_ids, images, multimodal_fields, num_generations, has_tool_images
                )
        sampling = Sampling(
            self.max_completion_length,
            self.eos_token_ids,
            self.temperature,
            self.top_p,
            self.top_k or 0,
            self.min_p or 0.0,
            self.repetition_penalty,
        )
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            rollouts = rollout(model, prompt_ids, 1, sampling, self.rollouts)
        if self.model.training and self._old_logps_are_needed() and self._sampling_is_exact():
            self.sampled_logps = [one.logps for one in rollouts]
        return [one.completion for one in rollouts], None

    @functools.cached_property
    def _sampled_by_trl(self) -> bool:
        """Whether TRL's code samples the answers, because a setting needs it."""
        reasons = {
            "generation_kwargs are set": self.args.generation_kwargs,
            "cache_implementation is set": self.args.cache_implementation,
            "the model calls tools": self.tools,
            "parameters are sharded": self._sharded,
        }
        return _warned("answers are sampled by TRL, which computes the prompt again for each answer", reasons)

    @functools.cached_property
    def _sharded(self) -> bool:
        deepspeed = self.args.deepspeed_plugin
        return self.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)

    @functools.cached_property
    def _scored_by_trl(self) -> bool:
        """Whether TRL's code computes log-probabilities and entropies, because a setting needs it."""
        reasons = {
            "the entropy bonus needs the gradient of entropies": self._entropy_bonus_enabled,
            "cast_lm_head_to_fp32 is set": self.args.cast_lm_head_to_fp32,
            "parameters are sharded": self._sharded,
        }
        return _warned(
            "log-probabilities are computed by TRL, which computes the prompt again for each answer", reasons
        )

    def _old_logps_are_needed(self) -> bool:
        """TRL's condition: an optimizer step comes between sampling and a part of the loss."""
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0

    def _sampling_is_exact(self) -> bool:
        """Whether sampling computes the same numbers as training, up to float32's precision."""
        model = self.accelerator.unwrap_model(self.model)
        dropout = any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
        plain = model.dtype == torch.float32 and not self.accelerator.mixed_precision.startswith(("bf", "fp"))
        return plain and not dropout

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False,
        compute_aux_loss=False, **images,
    ):  # fmt: skip
        if self.sampled_logps is not None and not torch.is_grad_enabled():
            # The first pass without gradient after a rollout computes the old log-probabilities.
            logps, self.sampled_logps = self.sampled_logps, None
            return _in_width(stacked(logps, device=input_ids.device), logits_to_keep), None, None
        groups, order = grouped(input_ids, attention_mask, logits_to_keep)
        text_only = not compute_aux_loss and all(value is None for value in images.values())
        scored = None
        if text_only and groups and not self._scored_by_trl:
            with self.accelerator.autocast():
                scored = completion_logps(model, groups, temperature=self.temperature)
        if scored is None:
            batch = (input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
            return super()._get_per_token_logps_and_entropies(model, *batch, **images)
        rows = on_device(order, input_ids.device)
        empty = scored.logps.new_zeros(len(input_ids), logits_to_keep)
        logps = empty.index_copy(0, rows, _in_width(scored.logps, logits_to_keep))
        entropies = empty.index_copy(0, rows, _in_width(scored.entropies, logits_to_keep)) if compute_entropy else None
        return logps, entropies, None

    def _prepare_inputs(self, generation_batch):
        """TRL shuffles single answers; here full groups are shuffled, so that a prompt is in one forward pass."""
        every = self.args.steps_per_generation * self.num_iterations
        if not self.model.training or self.args.steps_per_generation == 1 or self._loss_depends_on_micro_batches():
            return super()._prepare_inputs(generation_batch)
        if self._step % every == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            size = len(scored["prompt_ids"])
            groups = torch.arange(size).split(self.num_generations)
            order = torch.cat([groups[i] for i in torch.randperm(len(groups))])
            shuffled = {key: _in_order(value, order) for key, value in scored.items()}
            self._buffered_inputs = split_tensor_dict(shuffled, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _loss_depends_on_micro_batches(self) -> bool:
        """Whether the loss of a step depends on how its answers are divided into forward passes."""
        return self.loss_type == "bnpo" or self.top_entropy_quantile < 1 or self._entropy_bonus_enabled or self._is_vlm


class SyncedReference(TrainerCallback):
    """Keeps in each checkpoint the reference that `sync_ref_model` moves towards the trained model."""

    FILE = "reference.safetensors"

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def on_save(self, args, state, control, **kwargs):
        if args.should_save:
            save_model(self.model, str(Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE))

    def load(self, checkpoint: Path) -> None:
        load_model(self.model, checkpoint / self.FILE)


def _keep_in_float32(head: Any) -> None:
    """Under autocast too, which TRL turns off where it scores answers and not where they are sampled."""
    head.forward = torch.autocast(head.weight.device.type, enabled=False)(head.forward)


def grouped(input_ids, attention_mask, completion_width: int) -> tuple[list[Group], list[int]]:
    """(groups of the rows that have a completion, the row of each completion in the order of the groups). The device is
    read twice: tokens, and mask.
    """
    split = input_ids.shape[1] - completion_width
    rows: dict[tuple[int, ...], list[int]] = {}
    completions = []
    for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        prompt, completion = ([*compress(ids[part], mask[part])] for part in (slice(split), slice(split, None)))
        completions.append(completion)
        if completion:
            rows.setdefault(tuple(prompt), []).append(row)
    groups = [Group(prompt, [completions[row] for row in members]) for prompt, members in rows.items()]
    return groups, [row for members in rows.values() for row in members]


def _in_width(values: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, width), with 0 behind."""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _in_order(value, order):
    if value is None or (isinstance(value, torch.Tensor) and value.ndim == 0):
        return value
    return value[order] if isinstance(value, torch.Tensor) else [value[i] for i in order]


def _warned(what: str, reasons: dict[str, object]) -> bool:
    """Whether any reason holds. If so, they are logged."""
    holding = [reason for reason, holds in reasons.items() if holds]
    if holding:
        log.warning("%s: %s", what, ", ".join(holding))
    return bool(holding)
