"""What TRL's PPO trainer computes on a fixed batch, and the time that it takes. TRL 1.12 is the last version that has
one.

It runs in a separate environment (`pip install trl==1.12.0`), started by `python -m benchmarks.ppo_vs_trl`, and so
imports nothing of this project. It prints one line of JSON.

    TRL_PYTHON benchmarks/ppo_in_trl.py numbers
    TRL_PYTHON benchmarks/ppo_in_trl.py time '{"updates": 3, …}'
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

PAD, END = 0, 1
TINY = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64, "tie_word_embeddings": True}
SCORES = [0.7, -0.4, 1.3, 0.2]
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 2], [3, 4, 5, 9], [8, 2, 3, 6]]
ANSWERS = {
    "full": [[3, 7, 4, 9, 2], [5, 5, 8, 2, END], [10, 2, 6, 7, 3], [4, 11, 9, 8, END]],
    "ended": [[3, 7, 4, 9, 2], [5, END, PAD, PAD, PAD], [10, 2, 6, END, PAD], [4, 11, 9, 8, END]],
}
OPTIONS = {"kl_coef": 0.3, "gamma": 0.97, "lam": 0.9, "cliprange": 0.1, "cliprange_value": 0.05, "vf_coef": 0.4}
OPTIONS |= {"temperature": 0.9, "missing_eos_penalty": 1.0}
LEARNING_RATE = 0.2  # of plain gradient descent: large, so that the second step meets both clips


def fill(model: nn.Module, seed: float) -> nn.Module:
    """Weights by a formula, so that no file of weights is needed."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            waves = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + seed) + i + seed)
            parameter.copy_((0.5 * waves + (1.0 if parameter.ndim == 1 else 0.0)).view_as(parameter))
    return model.double().eval()


def tiny_policy(seed: float) -> nn.Module:
    return fill(Qwen3ForCausalLM(Qwen3Config(**TINY)), seed)


def tiny_value_model(seed: float) -> nn.Module:
    return fill(Qwen3ForSequenceClassification(Qwen3Config(**TINY, num_labels=1, pad_token_id=PAD)), seed)


class Scores(nn.Module):
    """What TRL takes for a reward model: its score of a row is `function(row)`."""

    base_model_prefix = "backbone"

    def __init__(self, function) -> None:
        super().__init__()
        self.backbone = self.score = self._call
        self.function = function

    def _call(self, states=None, input_ids=None, **_: Any) -> Any:
        if input_ids is None:
            return states
        scores = torch.tensor([self.function(row) for row in input_ids.tolist()], dtype=torch.float64)
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1)])


def make_trainer(folder: str, policy, reference, value_model, scores, prompts, callbacks=(), optimizer=None, **options):
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    arguments = PPOConfig(
        **{"output_dir": folder, "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no"},
        **{"num_sample_generations": 0, "disable_tqdm": True, "logging_steps": 1000},
        **options,
    )
    rows = Dataset.from_dict({"input_ids": prompts})
    schedule = optimizer and torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    return PPOTrainer(
        arguments,
        SimpleNamespace(pad_token_id=PAD, eos_token_id=END),
        model=policy,
        ref_model=reference,
        reward_model=Scores(scores),
        value_model=value_model,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])},
        optimizers=(optimizer, schedule),
        callbacks=list(callbacks),
    )


# Numbers


def numbers(case: str, estimator: str, whiten_rewards: bool) -> dict[str, Any]:
    """One update of two epochs on fixed answers; what the trainer's variables hold meanwhile."""
    from trl.experimental.ppo import ppo_trainer

    policy, value_model = tiny_policy(0.0), tiny_value_model(0.5)
    trained = [*policy.parameters(), *value_model.parameters()]
    copies = 2 if whiten_rewards else 1  # TRL whitens eight rows at least
    prompts, answers = PROMPTS * copies, ANSWERS[case] * copies
    score = {tuple(p + a): s for p, a, s in zip(PROMPTS, ANSWERS[case], SCORES, strict=True)}
    found: dict[str, Any] = {"steps": []}

    def generation(model, queries, *_):
        given = [answers[prompts.index(query)] for query in queries.tolist()]
        rows = torch.cat([queries, torch.tensor(given)], dim=1)
        logits = ppo_trainer.forward(model, rows, PAD).logits[:, len(PROMPTS[0]) - 1 : -1]
        return rows, logits / OPTIONS["temperature"]

    def whitened(values, mask, shift_mean=True):
        if shift_mean:  # of advantages; all that is computed once per rollout is in the caller's variables by now
            variables = sys._getframe(1).f_locals
            names = ("responses", "logprobs", "ref_logprobs", "values", "scores", "rewards", "returns")
            found.update({name: numbers_of(variables[name]) for name in names}, advantages=numbers_of(values))
        result = whiten(values, mask, shift_mean)
        if shift_mean:
            found["whitened"] = numbers_of(result * mask)
        return result

    with tempfile.TemporaryDirectory() as folder:
        batch = {"per_device_train_batch_size": len(prompts), "gradient_accumulation_steps": 1, "num_ppo_epochs": 2}
        trainer = make_trainer(
            *(folder, policy, tiny_policy(0.02), value_model, lambda row: score[tuple(row)], prompts),
            optimizer=torch.optim.SGD(trained, lr=LEARNING_RATE),
            total_episodes=len(prompts),
            response_length=len(answers[0]),
            stop_token_id=END,
            kl_estimator=estimator,
            whiten_rewards=whiten_rewards,
            **batch,
            **OPTIONS,
        )
        backward = trainer.accelerator.backward

        def recorded(loss):
            backward(loss)
            variables = sys._getframe(1).f_locals
            clipped = (variables["vf_losses2"] > variables["vf_losses1"]) & ~variables["padding_mask_p1"][
                variables["micro_batch_inds"]
            ]
            order = torch.tensor(variables["micro_batch_inds"]).argsort()
            found["steps"].append(
                {
                    **{"policy_loss": variables["pg_loss"].item(), "value_loss": variables["vf_loss"].item()},
                    **{"loss": loss.item(), "values_clipped": int(clipped.sum())},
                    "ratios_clipped": int((variables["pg_losses2"] > variables["pg_losses"]).sum()),
                    "logprobs": numbers_of(variables["new_logprobs"][order]),
                    "values": numbers_of(variables["vpred"][order]),
                    "policy_gradients": gradients(policy),
                    "value_gradients": gradients(value_model),
                }
            )

        generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten
        ppo_trainer.batch_generation, ppo_trainer.masked_whiten = generation, whitened
        trainer.accelerator.backward = recorded
        try:
            trainer.train()
        finally:
            ppo_trainer.batch_generation, ppo_trainer.masked_whiten = generate, whiten
    return {"case": case, "kl_estimator": estimator, "whiten_rewards": whiten_rewards, **found}


def numbers_of(tensor: torch.Tensor) -> list[Any]:
    return [numbers_of(part) for part in tensor] if tensor.ndim else short(tensor.item())


def short(value: float) -> float:
    """Nine digits: more than float32 has."""
    return value if isinstance(value, int) else float(f"{value:.9g}")


def gradients(model: nn.Module) -> dict[str, list[float]]:
    """(length, sum against fixed waves) of each gradient: two numbers that a wrong gradient does not have by chance."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.flatten()
        waves = torch.cos(torch.arange(gradient.numel(), dtype=gradient.dtype) * 0.7)
        found[name] = [short(gradient.norm().item()), short((gradient * waves).sum().item())]
    return found


# Time


def medium(vocabulary: int, layers: int, hidden: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def score_of(tokens: list[int]) -> float:
    """The plain function that both trainers use for a reward: the share of even tokens."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def prompts_of(count: int, length: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, vocabulary, (count, length), generator=generator).tolist()


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def timed(work: dict[str, int]) -> dict[str, Any]:
    """Wall and processor seconds of an update, the median without the first, and memory."""
    from transformers import TrainerCallback

    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append((time.perf_counter(), time.process_time()))

    start = resident_mb()
    torch.manual_seed(0)
    config = medium(work["vocabulary"], work["layers"], work["hidden"])
    policy, reference = Qwen3ForCausalLM(config), Qwen3ForCausalLM(config)
    reference.load_state_dict(policy.state_dict())
    config.num_labels = 1
    value_model = Qwen3ForSequenceClassification(config)
    count = work["answers"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            *(folder, policy, reference, value_model, lambda row: score_of(row[work["prompt"] :])),
            prompts_of(count, work["prompt"], work["vocabulary"]),
            callbacks=[Clock()],
            total_episodes=count * (work["updates"] + 1),
            response_length=work["answer"],
            num_ppo_epochs=work["epochs"],
            num_mini_batches=work["minibatches"],
            per_device_train_batch_size=count,
            gradient_accumulation_steps=1,
            learning_rate=1e-6,
            temperature=1.0,
        )
        before = resident_mb()
        trainer.train()
    return {
        **medians(ends),
        "over_start_mb": peak_mb() - start,
        "over_models_mb": peak_mb() - before,
    }


def medians(ends: list[tuple[float, float]]) -> dict[str, float]:
    """Of the time between the ends of updates, as (wall, processor) clocks had them."""
    clocks = zip(*ends, strict=True)
    wall, processor = (statistics.median(b - a for a, b in pairwise(clock)) for clock in clocks)
    return {"update_s": wall, "update_cpu_s": processor}


def main() -> None:
    import importlib.metadata

    if sys.argv[1] == "numbers":
        cases = [("full", "k1", False), ("full", "k3", True), ("ended", "k1", False)]
        versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
        given = {"shape": TINY, "prompts": PROMPTS, "options": OPTIONS, "learning_rate": LEARNING_RATE, "end": END}
        result = {"made_by": versions, **given, "cases": [numbers(*case) for case in cases]}
    else:
        result = timed(json.loads(sys.argv[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
