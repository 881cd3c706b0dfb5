"""Answers to held-out prompts, sampled before and after training with one seed, and what the rewards say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlhf_core.training.rewards import Batch

if TYPE_CHECKING:
    from rlhf_core.training.run import Run


@dataclass
class Evaluation:
    """Means over the held-out prompts. `length` is in tokens, `finished` the share that ended before the limit."""

    rewards: dict[str, float | None]
    length: float | None
    finished: float | None
    prompts: list[Any]
    answers: list[str]
    scores: list[dict[str, float | None]]


def evaluate(model: Any, run: Run) -> Evaluation:
    """Answer `run.held_out` once each, as in training, and score the answers."""
    prompts = [row["prompt"] for row in run.held_out]
    ids, finished = sample(model, run.tokenizer, prompts, run)
    texts = [run.rewards.decode(answer) for answer in ids]
    keys = [key for key in run.held_out[0] if key != "prompt"]
    columns = {key: [row.get(key) for row in run.held_out] for key in keys}
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    scored = run.rewards.evaluate(Batch(prompts, messages, ids, columns))
    return Evaluation(
        rewards={name: mean([s for s in column.scores if s is not None]) for name, column in scored.items()},
        length=mean([len(answer) for answer in ids]),
        finished=mean(finished),
        prompts=prompts,
        answers=texts,
        scores=[{name: column.scores[i] for name, column in scored.items()} for i in range(len(texts))],
    )


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[Any], run: Run) -> tuple[list[list[int]], list[bool]]:
    """One answer to each prompt: (token ids without padding, whether each ended by itself).

    The random state is put back afterwards, so that looking does not change the run.
    """
    options = run.options
    ends = end_tokens(model, tokenizer)
    size = options.per_device_train_batch_size * options.gradient_accumulation_steps
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    answers: list[list[int]] = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(options.seed)
        for start in range(0, len(prompts), size):
            inputs = tokenizer.apply_chat_template(
                list(prompts[start : start + size]),
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            ).to(model.device)
            output = model.generate(
                **inputs,
                do_sample=True,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=0,
                max_new_tokens=options.max_completion_length,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
            )
            answers += [_until_end(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
    model.train(was_training)
    return answers, [bool(answer) and answer[-1] in ends for answer in answers]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the model's own and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """`ids` up to and with the first end token."""
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: first + 1]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
