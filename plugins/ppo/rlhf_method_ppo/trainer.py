"""PPO as a `transformers.Trainer`: rollouts, rewards and advantages, then several epochs over them in minibatches.

The details follow "The N Implementation Details of RLHF with PPO" (Huang et al., 2023):
https://huggingface.co/blog/the_n_implementation_details_of_rlhf_with_ppo

Where vLLM samples, old log-probabilities are the trained model's, as with the other engines. Each token's policy loss
is multiplied by `importance_weights`; the value loss is not, as the KL term of TRL's GRPO is not.

Left out on purpose: sharded parameters (FSDP, ZeRO-3), since sampling and the value head need the full model; and the
router's loss of mixtures of experts, which a run says.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from rlhf_core.prefix import Group, Rollout, Sampling, completion_logps, eos_token_ids, evaluating, rollout, stacked
from rlhf_core.vllm import VLLM, importance_weights, mismatch
from rlhf_method_ppo import losses
from rlhf_method_ppo.batches import Experience, PromptBatches
from rlhf_method_ppo.policy import PolicyWithValue

KL_COEF_FILE = "kl_coef.txt"


class PPOTrainer(Trainer):
    """`options` are those of the method; `reference`, `rewards` and `template` those of the run.

    One batch of rollouts serves `num_ppo_epochs` × `num_mini_batches` optimizer steps, each of
    `gradient_accumulation_steps` forward passes of `per_device_train_batch_size` completions.
    """

    def __init__(self, *, options, reference, rewards, template, trust_remote_code=False, **arguments) -> None:
        super().__init__(**arguments)
        set_seed(self.args.seed, device_specific=True)  # or every process would sample with the same random numbers
        self.model_accepts_loss_kwargs = False  # so that the loss is divided by the accumulation steps
        self.options, self.reference, self.rewards, self.template = options, reference, rewards, template
        self.rewards.samples.wait_for_advantages = True
        self.kl_coef = options.kl_coef
        self.passes = 0  # forward passes since this process began
        self.minibatches: list[list[Experience]] = []
        self.metrics: dict[str, list[float | Tensor]] = defaultdict(list)  # since the last log
        self.vllm = None
        if options.rollouts == "vllm":
            engine = (self.model.policy, self.accelerator, self.processing_class, self.args, self._sampling())
            self.vllm = VLLM(*engine, rows=self.rollout_size, trust_remote_code=trust_remote_code)

    # Data: each process reads different prompts, a batch of rollouts at a time, repeated for every pass over them.

    @property
    def rollout_size(self) -> int:
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * self.options.num_mini_batches

    @property
    def steps_per_rollout(self) -> int:
        return self.options.num_ppo_epochs * self.options.num_mini_batches

    @property
    def passes_per_rollout(self) -> int:
        return self.steps_per_rollout * self.args.gradient_accumulation_steps

    def get_train_dataloader(self) -> DataLoader:
        batches = PromptBatches(
            len(self.train_dataset),
            self.rollout_size,
            self.passes_per_rollout,
            self.args.max_steps * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=list)

    def _prepare_inputs(self, rows):
        position = self.passes % self.passes_per_rollout
        if position == 0:
            experience = self._rollout(rows)
            self.minibatches = self._divide(experience)
        self.passes += 1
        step, part = divmod(position, self.args.gradient_accumulation_steps)
        return self.minibatches[step][part]

    # Rollouts

    def _rollout(self, rows: list[dict]) -> Experience:
        """Answer the prompts, score the answers, and compute what stays fixed while the policy is trained on them."""
        options, model, device = self.options, self.accelerator.unwrap_model(self.model), self.args.device
        rollouts = self._sample(model, rows)
        scores = self._score(rows, [one.completion for one in rollouts])
        groups = [Group(one.prompt, [one.completion]) for one in rollouts]
        mask = stacked([[1] * len(one.completion) for one in rollouts], device=device)
        logps, entropies, values, ref_logps = self._measure(model, groups, mask)
        weights = self._weights(logps, rollouts, mask)
        kl = losses.kl_penalty(logps, ref_logps, options.kl_estimator) * mask
        finished = torch.tensor([one.finished for one in rollouts], device=device)
        scored = torch.tensor([score is not None for score in scores], device=device)
        raw = torch.tensor([score or 0.0 for score in scores], device=device)
        total = raw - options.missing_eos_penalty * (~finished).float()
        rewards = losses.token_rewards(total, kl, mask, self.kl_coef)
        in_loss = [
            score is not None and (one.finished or not options.mask_truncated_completions)
            for one, score in zip(rollouts, scores, strict=True)
        ]
        loss_mask = mask * torch.tensor(in_loss, device=device)[:, None]
        if options.whiten_rewards:
            rewards = losses.whiten(rewards, loss_mask, *self._moments(rewards, loss_mask), shift_mean=False)
        advantages, returns = losses.gae(rewards, values, mask, options.gamma, options.lam)
        advantages = losses.whiten(advantages, loss_mask, *self._moments(advantages, loss_mask))
        self.rewards.samples.advantages(_means(advantages, loss_mask))

        self._record("val/num_eos_tokens", finished.float().sum()[None])
        self._record("val/explained_variance", losses.explained_variance(values, returns, loss_mask)[None])
        self._record("objective/entropy", entropies.sum(1))
        self._record("completions/mean_length", mask.sum(1).float())
        self._record("completions/clipped_ratio", (~finished).float())
        self._record("objective/rlhf_reward", (total - self.kl_coef * kl.sum(1))[scored])
        self._record_scores(raw, scored)
        self._record_kl(kl, mask)
        return Experience(groups, loss_mask, logps, values, advantages, returns, in_loss, weights)

    def _sampling(self) -> Sampling:
        options, model = self.options, self.accelerator.unwrap_model(self.model)
        ends = eos_token_ids(model.policy, self.processing_class)
        how = (options.temperature, options.top_p, options.top_k, options.min_p, options.repetition_penalty)
        return Sampling(options.max_completion_length, ends, *how)

    def _sample(self, model: PolicyWithValue, rows: list[dict]) -> list[Rollout]:
        prompts = [self.template.prompt_ids(row["prompt"], row.get("tools")) for row in rows]
        if self.vllm is not None:
            return self.vllm.rollout(prompts)
        with self.accelerator.autocast():
            return rollout(model.policy, prompts, 1, self._sampling(), self.options.rollouts)

    def _weights(self, logps: Tensor, rollouts: list[Rollout], mask: Tensor) -> Tensor | None:
        """What corrects the policy loss of answers that vLLM sampled; None for those of the model that trains."""
        if self.vllm is None or not self.args.vllm_importance_sampling_correction:
            return None
        sampled = stacked([one.logps for one in rollouts], device=mask.device)
        weights = importance_weights(logps, sampled, mask, self.args)
        for name, value in mismatch(logps, sampled, mask, weights, self.accelerator).items():
            self._record(name, value[None])
        return weights.expand_as(mask)

    def _record_scores(self, raw: Tensor, scored: Tensor) -> None:
        self._record("objective/scores", raw[scored])
        self._record("reward", raw[scored])
        everyone = self.accelerator.gather(torch.where(scored, raw, torch.nan))
        if len(everyone) > 1:
            self._record("frac_reward_zero_std", (len(everyone[~everyone.isnan()].unique()) < 2) * torch.ones(1))

    def _record_kl(self, kl: Tensor, mask: Tensor) -> None:
        """And adapt `kl_coef` to it, if it has a target."""
        options, of_completion = self.options, kl.sum(1)
        self._record("objective/kl", of_completion)
        self._record("kl", of_completion / mask.sum(1))
        self._record("objective/non_score_reward", -self.kl_coef * of_completion)
        self._record("objective/kl_coef", torch.tensor([self.kl_coef]))
        if options.target_kl is not None:
            everywhere = self.accelerator.gather(of_completion)
            self.kl_coef = losses.adapted_kl_coef(
                self.kl_coef, everywhere.mean().item(), options.target_kl, len(everywhere), options.kl_horizon
            )

    def _score(self, rows: list[dict], completions: list[list[int]]) -> list[float | None]:
        """Each answer's weighted sum of rewards; None if a reward failed or none applies."""
        trl = {"trainer_state": self.state, "log_metric": lambda name, value: self.metrics[name].append(value)}
        return self.rewards.score(self.rewards.batch(rows, completions, trl))

    @torch.no_grad()
    def _measure(self, model: PolicyWithValue, groups: list[Group], mask: Tensor) -> tuple[Tensor, ...]:
        """(log-probabilities, entropies, values, the reference's log-probabilities), in forward-sized parts."""
        size, temperature = self.args.per_device_train_batch_size, self.options.temperature
        results = [torch.zeros(mask.shape, device=mask.device) for _ in range(4)]
        with evaluating(model), self.accelerator.autocast():
            for start in range(0, len(groups), size):
                part = groups[start : start + size]
                measured = list(model(part, temperature))
                with self.reference() as reference:
                    measured.append(completion_logps(reference, part, temperature=temperature).logps)
                for result, values in zip(results, measured, strict=True):
                    result[start : start + len(part), : values.shape[1]] = values
        return tuple(result * mask for result in results)

    def _moments(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, unbiased variance) over the masked tokens of all processes."""
        kept = values.double()[mask.bool()]
        total, count = self.accelerator.reduce(torch.stack([kept.sum(), kept.new_tensor(len(kept))]), "sum")
        mean = total / count.clamp(min=1)
        squares = self.accelerator.reduce(((kept - mean) ** 2).sum(), "sum")  # in a second pass, which loses no digits
        return mean.float(), (squares / (count - 1).clamp(min=1)).float()

    def _divide(self, experience: Experience) -> list[list[Experience]]:
        """Forward-sized parts of every minibatch of every epoch, each epoch in a new order."""
        steps = []
        rows = self.args.per_device_train_batch_size
        per_step = rows * self.args.gradient_accumulation_steps
        for _ in range(self.options.num_ppo_epochs):
            order = torch.randperm(len(experience.groups)).tolist()
            for start in range(0, len(order), per_step):
                chosen = order[start : start + per_step]
                parts = [experience.rows(chosen[i : i + rows]) for i in range(0, len(chosen), rows)]
                count = sum(part.mask.sum() for part in parts).float()
                tokens = self.accelerator.reduce(count, "sum")
                for part in parts:
                    part.tokens = tokens
                steps.append(parts)
        return steps

    # Training

    def compute_loss(self, model, inputs: Experience, return_outputs=False, num_items_in_batch=None):
        """Policy loss plus `vf_coef` times value loss, a mean over the tokens of the minibatch in all processes."""
        options = self.options
        logps, entropies, values = model(inputs.groups, options.temperature)
        policy, policy_clipped = losses.policy_loss(
            logps, inputs.logps, inputs.advantages, options.cliprange, inputs.weights
        )
        value, value_clipped = losses.value_loss(values, inputs.values, inputs.returns, options.cliprange_value)
        # The trainer divides by the accumulation steps, and averaging gradients over processes by their number.
        scale = self.args.gradient_accumulation_steps * self.args.world_size / inputs.tokens.clamp(min=1)
        loss = ((policy + options.vf_coef * value) * inputs.mask).sum() * scale

        if inputs.in_loss is None or any(inputs.in_loss):
            log_ratio = (logps - inputs.logps).detach()
            measured = {
                "loss/policy_avg": policy,
                "loss/value_avg": value,
                "policy/clipfrac_avg": policy_clipped,
                "val/clipfrac_avg": value_clipped,
                "policy/approxkl_avg": 0.5 * log_ratio**2,
                "policy/entropy_avg": entropies,
                "val/ratio": log_ratio.exp(),
            }
            for name, values in measured.items():
                of_loss = torch.where(inputs.mask.bool(), values.detach().float(), 0.0)
                self.metrics[name].append(of_loss.sum() / inputs.mask.sum())  # read when it is logged
        return loss

    def _record(self, name: str, values: Tensor) -> None:
        self.metrics[name] += values.float().mean()[None].tolist() if values.numel() else []

    def _read(self) -> dict[str, list[float]]:
        """What was recorded since the last log, in one read from the device."""
        waiting = [value for values in self.metrics.values() for value in values if isinstance(value, Tensor)]
        numbers = iter(torch.stack(waiting).tolist() if waiting else [])
        return {
            name: [next(numbers) if isinstance(value, Tensor) else value for value in values]
            for name, values in self.metrics.items()
        }

    def log(self, logs, start_time=None) -> None:
        """Adds the means of what was recorded since the last log, in all processes."""
        recorded: dict[str, list[float]] = defaultdict(list)
        for part in gather_object([self._read()]):
            for name, values in part.items():
                recorded[name] += values
        self.metrics.clear()
        means = {name: sum(values) / len(values) for name, values in recorded.items() if values}
        if "val/ratio" in means:
            means["val/ratio_var"] = torch.tensor(recorded["val/ratio"]).var(correction=0).item()
        episodes = self.state.global_step * self.rollout_size * self.args.world_size
        means["episode"] = episodes // self.steps_per_rollout
        super().log({**logs, **means}, start_time)

    # Checkpoints: the policy as any model, with the value head and the KL coefficient beside it.

    def _save(self, output_dir=None, state_dict=None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save(folder)
        self.processing_class.save_pretrained(folder)
        (folder / KL_COEF_FILE).write_text(repr(self.kl_coef), encoding="utf-8")
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        folder = Path(resume_from_checkpoint)
        self.accelerator.unwrap_model(self.model).load(folder)
        self.kl_coef = float((folder / KL_COEF_FILE).read_text(encoding="utf-8"))


def _means(values: Tensor, mask: Tensor) -> list[float | None]:
    """The mean of each row's masked values; None without any."""
    counts = mask.sum(1)
    means = ((values * mask).sum(1) / counts.clamp(min=1)).tolist()
    return [mean if count else None for mean, count in zip(means, counts.tolist(), strict=True)]
