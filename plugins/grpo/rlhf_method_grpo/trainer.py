"""The places where GRPO touches what TRL keeps private, each with its reason and a test that fails when it moves."""

from __future__ import annotations

import torch
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from rlhf_core.prefix import Group, Sampling, completion_logps, rollout, shares


class SharedPrefixGRPOTrainer(GRPOTrainer):
    """TRL's trainer with two changes.

    Prompts are computed once for their group, where the model can share them: in rollouts, in old and reference
    log-probabilities, and in the loss. And the order of prompts after `--resume` is that of the run that was never
    stopped: TRL shuffles each epoch with one generator, made anew at every start, so a run resumed in its second epoch
    would see the first one's order again. `epochs_done` orders are drawn and thrown away first.
    """

    epochs_done = 0
    rollouts = "shared"
    sampled_logps: list[list[float]] | None = None  # of the rollouts, until they have served as old log-probabilities

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if sampler.shuffle:
            for _ in range(self.epochs_done):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return sampler

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        if self.rollouts not in ("shared", "continuous") or images is not None or self.args.generation_kwargs:
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
        rollouts = rollout(model, prompt_ids, 1, sampling, self.rollouts)
        if self.model.training and self._sampling_is_exact() and self._old_logps_are_needed():
            self.sampled_logps = [one.logps for one in rollouts]
        return [one.completion for one in rollouts], None

    def _old_logps_are_needed(self) -> bool:
        """TRL's condition: an optimizer step will come between the sampling and some of its loss."""
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) != 0

    def _sampling_is_exact(self) -> bool:
        """Whether sampling computes the same numbers as training, up to float32's precision."""
        model = self.accelerator.unwrap_model(self.model)
        dropout = any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
        plain = model.dtype == torch.float32 and not self.accelerator.mixed_precision.startswith(("bf", "fp"))
        return plain and not dropout and self.repetition_penalty == 1

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False,
        compute_aux_loss=False, **images,
    ):  # fmt: skip
        if self.sampled_logps is not None and not torch.is_grad_enabled():
            # The first pass without gradient after a rollout is that of the old log-probabilities.
            logps, self.sampled_logps = self.sampled_logps, None
            filled = [[*row, *[0.0] * (logits_to_keep - len(row))] for row in logps]
            return torch.tensor(filled, device=input_ids.device), None, None
        groups, places = grouped(input_ids, attention_mask, logits_to_keep)
        text_only = not compute_aux_loss and all(value is None for value in images.values())
        if not (text_only and groups and not self._entropy_bonus_enabled and shares(model, groups)):
            batch = (input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
            return super()._get_per_token_logps_and_entropies(model, *batch, **images)
        with self.accelerator.autocast():
            scored = completion_logps(model, groups, temperature=self.temperature)
        there = scored.mask.bool()
        rows = torch.tensor(places, device=there.device)[:, None].expand_as(there)[there]
        columns = there.nonzero()[:, 1]
        empty = scored.logps.new_zeros(len(input_ids), logits_to_keep)
        logps = empty.index_put((rows, columns), scored.logps[there])
        entropies = empty.index_put((rows, columns), scored.entropies[there]) if compute_entropy else None
        return logps, entropies, None

    def _prepare_inputs(self, generation_batch):
        """As TRL's, which shuffles single answers; here whole groups, so that their prompt is in one forward pass."""
        every = self.args.steps_per_generation * self.num_iterations
        apart = self.loss_type == "bnpo"  # whose loss depends on which answers share a forward pass
        if not self.model.training or self.args.steps_per_generation == 1 or apart or self.num_generations == 1:
            return super()._prepare_inputs(generation_batch)
        if self._step % every == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(generation_batch)
            size = len(scored["prompt_ids"])
            groups = torch.arange(size).split(self.num_generations)
            order = torch.cat([groups[i] for i in torch.randperm(len(groups))])
            shuffled = {key: _in_order(value, order) for key, value in scored.items()}
            self._buffered_inputs = split_tensor_dict(shuffled, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]


def grouped(input_ids, attention_mask, completion_width: int) -> tuple[list[Group], list[int]]:
    """(groups of the rows that have a completion, the row of each completion in the order of the groups)."""
    split = input_ids.shape[1] - completion_width
    there = attention_mask.bool()
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, mask) in enumerate(zip(input_ids[:, :split], there[:, :split], strict=True)):
        if there[row, split:].any():
            rows.setdefault(tuple(ids[mask].tolist()), []).append(row)
    completions = [ids[mask].tolist() for ids, mask in zip(input_ids[:, split:], there[:, split:], strict=True)]
    groups = [Group(prompt, [completions[row] for row in members]) for prompt, members in rows.items()]
    return groups, [row for members in rows.values() for row in members]


def _in_order(value, order):
    if value is None or (isinstance(value, torch.Tensor) and value.ndim == 0):
        return value
    return value[order] if isinstance(value, torch.Tensor) else [value[i] for i in order]
