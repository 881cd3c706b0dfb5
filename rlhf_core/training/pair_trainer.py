"""The trainer of every method that learns from pairs of a chosen and a rejected answer: a method supplies its loss.

    class SimPO(Method):
        name, data = "simpo", "preferences"
        def trainer(self, run):
            return PairTrainer.from_run(run, lambda pairs: simpo_loss(pairs, run.options.beta, run.options.gamma))

The loss is a pure function of `PairLogps` (a model that writes) or `PairScores` (a model that scores). It returns each
pair's loss and metrics. The prompt is computed once for both answers where the model allows it, and every pair of an
optimizer step weighs the same, however the step is divided into forward passes and processes.

Left out on purpose: losses that compare one pair of a batch with others, and the router's loss of mixtures of experts,
which a run says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments

from rlhf_core.models import loading
from rlhf_core.models.reference import ReferenceModel
from rlhf_core.models.trainable import switch_off_dropout
from rlhf_core.prefix import Group, completion_hidden, completion_logps, shares, stacked, unwrap
from rlhf_core.rewards.samples import append

if TYPE_CHECKING:
    from rlhf_core.training.run import Run


class PairLogps(NamedTuple):
    """The pairs of one forward pass. Each tensor is (pairs,), in float32.

    `chosen`, `rejected`: log-probabilities of the answers, summed over the assistant's tokens, in nats, differentiable.
    `*_tokens`: the number of those tokens, with the end token. `ref_*`: the log-probabilities under the frozen
    reference, without gradient; None without a reference.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None


@dataclass(frozen=True)
class Pair:
    """The prompt with the chosen answer and the rejected one, and which tokens of each have a loss (1, else 0)."""

    group: Group
    learned: tuple[list[int], list[int]]


class PairScores(NamedTuple):
    """The pairs of one forward pass: the scores of their answers, each (pairs,), differentiable."""

    chosen: Tensor
    rejected: Tensor


RECORDED = 8  # pairs of each logged step that samples.jsonl has

# -> (losses (pairs,), metrics by name, each (pairs,); the same names at every call)
PairLoss = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]


class PairTrainer(Trainer):
    """Trains on rows as `encode_pairs` makes them.

    `loss` gets `PairScores` if `scores` is true, which needs a model with a score head, else `PairLogps`, with the
    log-probabilities of `reference` if there is one. `args` need `remove_unused_columns=False`.
    """

    def __init__(
        self, *, loss: PairLoss, reference: ReferenceModel | None = None, scores: bool = False, **arguments: Any
    ) -> None:
        super().__init__(**arguments, data_collator=collate_pairs, compute_metrics=self._held_out_means)
        self.model_accepts_loss_kwargs = False  # so that the loss is divided by the accumulation steps
        self.pair_loss, self.reference, self.scores = loss, reference, scores
        self.metric_names: list[str] = []
        self.record: Callable[[int, list[Pair], list[dict[str, float]]], None] | None = None  # step, pairs, metrics
        self._last: tuple[list[Pair], Tensor] | None = None  # the last pass's
        self._sums: Tensor | None = None  # of each metric since the last line of metrics, then the number of pairs
        if reference is not None:
            reference.prepare(self.accelerator)

    @classmethod
    def from_run(cls, run: Run, loss: PairLoss, *, reference: bool = False) -> PairTrainer:
        """The trainer of a method's `trainer(run)`. The frozen reference, if any, is the model as it is now."""
        from rlhf_core.data.encoding import encode_pairs

        if reference:
            ReferenceModel.check(run)
        rows, limit = run.options.per_device_train_batch_size, run.options.max_completion_length
        args = run.arguments(TrainingArguments, per_device_eval_batch_size=rows, remove_unused_columns=False)
        model, held_out, frozen = _trainable(run), run.held_out, None
        if reference:
            load = functools.partial(loading.load, run.info, run.options)
            frozen = ReferenceModel(model, fresh_adapter=run.peft_config is not None, load=load)
        trainer = cls(
            loss=loss,
            reference=frozen,
            scores=run.info.task == "sequence_classification",
            model=model,
            args=args,
            train_dataset=encode_pairs(run.train_rows, run.template, limit),
            eval_dataset=encode_pairs(held_out, run.template, limit) if held_out else None,
            processing_class=run.tokenizer,
        )
        if trainer.is_world_process_zero():
            trainer.record = functools.partial(record_pairs, run.folder, run.template.decode)
        return trainer

    def losses(self, model: Any, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        """(losses (pairs,), metrics (pairs, metrics) without gradient) by one pass of `model`."""
        with self.accelerator.autocast():  # or only the model's own forward would be in mixed precision
            if self.scores:
                losses, metrics = self.pair_loss(pair_scores(model, [pair.group for pair in pairs]))
            else:
                logps, entropy = pair_logps(model, pairs, self.reference)
                losses, metrics = self.pair_loss(logps)
                metrics = {**metrics, "entropy": entropy}
        metrics = {"loss": losses, **metrics}
        self.metric_names = list(metrics)
        return losses, torch.stack([value.detach().float() for value in metrics.values()], dim=1)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The forward passes of a step, with its number of pairs in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(float(sum(map(len, batches))), device=device)
        return batches, self.accelerator.reduce(pairs, "sum")

    def compute_loss(self, model, inputs: list[Pair], return_outputs=False, num_items_in_batch=None):
        """This pass's part of the mean over the pairs of the step; its own mean if their number is not given."""
        losses, measured = self.losses(model, inputs)
        sums = torch.cat([measured.sum(0), measured.new_tensor([len(measured)])])
        self._sums = sums if self._sums is None else self._sums + sums
        self._last = inputs, measured
        if num_items_in_batch is None:
            return losses.mean()
        # The trainer divides by the passes of this step, and averaging gradients over processes by their number.
        return losses.sum() * self.current_gradient_accumulation_steps * self.args.world_size / num_items_in_batch

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the metrics of each pair, so that means are exact for any division into passes and processes."""
        with torch.no_grad():
            _, measured = self.losses(model, inputs)
        return None, measured, measured  # labels, or the trainer skips `compute_metrics`

    def _held_out_means(self, evaluated: EvalPrediction) -> dict[str, float]:
        return dict(zip(self.metric_names, evaluated.predictions.mean(0).tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a line of training metrics the means over all pairs, in all processes, since the last line."""
        if "loss" in logs and self._sums is not None:
            *sums, pairs = self.accelerator.reduce(self._sums, "sum").tolist()
            self._sums = None
            logs = {**{name: total / pairs for name, total in zip(self.metric_names, sums, strict=True)}, **logs}
            if self.record is not None and self._last is not None:
                shown, values = self._last[0][:RECORDED], self._last[1][:RECORDED].tolist()
                metrics = [dict(zip(self.metric_names, row, strict=True)) for row in values]
                self.record(self.state.global_step, shown, metrics)
        super().log(logs, start_time)


def record_pairs(
    folder: Path,
    decode: Callable[[Sequence[int]], str],
    step: int,
    pairs: Sequence[Pair],
    metrics: Sequence[dict[str, float]],
) -> None:
    """Add pairs with their metrics to the run's samples.jsonl."""
    lines = []
    for pair, values in zip(pairs, metrics, strict=True):
        chosen, rejected = pair.group.completions
        texts = {"prompt": decode(pair.group.prompt), "chosen": decode(chosen), "rejected": decode(rejected)}
        lines.append({"step": step, **texts, "tokens": [len(chosen), len(rejected)], "metrics": values})
    append(folder / "samples.jsonl", lines)


def collate_pairs(rows: list[dict[str, list[int]]]) -> list[Pair]:
    """Rows of `encode_pairs` as pairs. Without a mask, all tokens of the answer are learned."""

    def learned(row: dict[str, list[int]], side: str) -> list[int]:
        return row.get(f"{side}_mask") or [1] * len(row[f"{side}_ids"])

    return [
        Pair(
            Group(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]),
            (learned(row, "chosen"), learned(row, "rejected")),
        )
        for row in rows
    ]


def pair_logps(model: Any, pairs: list[Pair], reference: ReferenceModel | None) -> tuple[PairLogps, Tensor]:
    """(the log-probabilities of both answers, mean entropy of a token's distribution (pairs,) in nats)."""
    groups = [pair.group for pair in pairs]
    learned = stacked([mask for pair in pairs for mask in pair.learned], device=unwrap(model).device)
    frozen: tuple[Tensor, ...] = ()
    if reference is not None:
        with reference() as frozen_model:
            ref_logps = (completion_logps(frozen_model, groups).logps * learned).sum(1)
        frozen = (ref_logps[0::2], ref_logps[1::2])
    scored = completion_logps(model, groups)
    logps, tokens, entropies = (
        values.sum(1) for values in (scored.logps * learned, learned, scored.entropies * learned)
    )
    entropy = (entropies[0::2] + entropies[1::2]) / (tokens[0::2] + tokens[1::2])
    return PairLogps(logps[0::2], logps[1::2], tokens[0::2], tokens[1::2], *frozen), entropy


def pair_scores(model: Any, groups: list[Group]) -> PairScores:
    """The scores of both answers, read as in transformers, at the last token that is not the padding token."""
    padding = unwrap(model).config.pad_token_id
    groups = [_without_padding_at_the_end(group, padding) for group in groups]
    answers = [list(answer) for group in groups for answer in group.completions]
    head = getattr(unwrap(model), "score", None)  # which some families call otherwise, and compute otherwise
    if head is not None and shares(model, groups):
        states = completion_hidden(model, groups).states  # (answers, 1 + longest, hidden size), the prompt's last first
        last = [max((i + 1 for i, token in enumerate(answer) if token != padding), default=0) for answer in answers]
        read = states[torch.arange(len(answers), device=states.device), torch.tensor(last, device=states.device)]
        kind = [*head.parameters()][-1].dtype  # of the adapter's head, which PEFT puts behind the base's
        with torch.autocast(read.device.type, enabled=False):  # which would round scores to half precision
            scores = head(read.to(kind))[:, 0]
    else:
        rows = [[*group.prompt, *answer] for group in groups for answer in group.completions]
        ids = stacked(rows, fill=padding, device=unwrap(model).device)
        mask = stacked([[1] * len(row) for row in rows], device=ids.device)
        scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return PairScores(scores[0::2], scores[1::2])


def _without_padding_at_the_end(group: Group, padding: int | None) -> Group:
    """The same rows, with padding tokens at the prompt's end moved to the answers: no score may be read at them."""
    end = len(group.prompt)
    while end > 1 and group.prompt[end - 1] == padding:
        end -= 1
    return Group(group.prompt[:end], [[*group.prompt[end:], *answer] for answer in group.completions])


def _trainable(run: Run) -> Any:
    """The run's model, with a new adapter if there is to be one. The model's own dropout is off, as in TRL's trainers
    for pairs: it would be noise in the difference of the two answers. The adapter's, `--lora-dropout`, acts.
    """
    from peft import get_peft_model

    model = run.model
    switch_off_dropout(model, adapters=False)
    return model if run.peft_config is None else get_peft_model(model, run.peft_config)
