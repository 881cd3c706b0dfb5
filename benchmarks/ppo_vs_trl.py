"""PPO beside TRL's: the numbers with which `plugins/ppo/tests/test_reference.py` compares ours, and time and memory.

    python -m venv ELSEWHERE && ELSEWHERE/bin/pip install trl==1.12.0
    python -m benchmarks.ppo_vs_trl fixture --trl-python ELSEWHERE/bin/python
    python -m benchmarks.ppo_vs_trl time --trl-python ELSEWHERE/bin/python [--rounds 5]

TRL 1.12 is the last version with a PPO trainer, so it needs a separate environment (`ppo_in_trl.py` runs there). `time`
compares an update: sample answers, score them, train on them for a few epochs. Equal work: the same shape of model,
prompts, answers, epochs and minibatches, and a plain function for a reward. TRL always has a separate value model; ours
is measured with one as well (`separate`), and with its default, a head on the policy (`shared`). The processes take
turns and the ratio within each round counts, so that other work on the machine affects all of them alike. Processor
seconds are given beside wall-clock seconds: they are more reliable on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.record import record

IN_TRL = Path(__file__).with_name("ppo_in_trl.py")
FIXTURE = Path(__file__).parents[1] / "plugins" / "ppo" / "tests" / "trl_ppo.json"
WORK = {"vocabulary": 8192, "layers": 8, "hidden": 512, "prompt": 256, "answers": 8, "answer": 64}
WORK |= {"epochs": 4, "minibatches": 1}


def in_trl(python: str, *arguments: str) -> Any:
    """What `ppo_in_trl.py` prints, run by the Python of the other environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(IN_TRL), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def make_fixture(python: str) -> None:
    result = in_trl(python, "numbers")
    lines = [json.dumps(case) for case in result.pop("cases")]
    head = json.dumps(result)[1:-1]
    FIXTURE.write_text("{" + head + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    print(f"written to {FIXTURE}")


def ours(work: dict[str, Any]) -> dict[str, Any]:
    """As `ppo_in_trl.timed`, with our trainer; `work["value_model"]` is `shared` or `separate`."""

    import torch
    from rlhf_method_ppo import PPO
    from rlhf_method_ppo.policy import PolicyWithValue
    from rlhf_method_ppo.trainer import PPOTrainer
    from transformers import Qwen3ForCausalLM, TrainerCallback, TrainingArguments

    from benchmarks import ppo_in_trl as same
    from rlhf_core import ReferenceModel
    from rlhf_core.prefix import share

    ends: list[tuple[float, float]] = []
    steps_each = work["epochs"] * work["minibatches"]

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % steps_each == 0:
                ends.append((time.perf_counter(), time.process_time()))

    start = same.resident_mb()
    torch.manual_seed(0)
    policy = Qwen3ForCausalLM(same.medium(work["vocabulary"], work["layers"], work["hidden"]))
    policy.generation_config.eos_token_id = None
    share(policy)
    rows = work["answers"] // work["minibatches"]
    options = PPO.Options(
        max_completion_length=work["answer"],
        num_ppo_epochs=work["epochs"],
        num_mini_batches=work["minibatches"],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        value_model=work["value_model"],
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps_each * (work["updates"] + 1),
            per_device_train_batch_size=rows,
            learning_rate=1e-6,
            **{"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True},
            **{"remove_unused_columns": False, "logging_steps": 1000},
        )
        trainer = PPOTrainer(
            options=options,
            reference=ReferenceModel(policy, fresh_adapter=False),
            rewards=SimpleNamespace(
                decode=str, score=lambda batch: [same.score_of(ids) for ids in batch.completion_ids]
            ),
            model=PolicyWithValue(policy, separate=work["value_model"] == "separate"),
            args=arguments,
            train_dataset=[
                {"prompt": prompt} for prompt in same.prompts_of(work["answers"], work["prompt"], work["vocabulary"])
            ],
            # The end token is none of the vocabulary: every answer has the same length, as in TRL.
            template=SimpleNamespace(prompt_ids=list),
            processing_class=SimpleNamespace(eos_token_id=work["vocabulary"]),
            callbacks=[Clock()],
        )
        before = same.resident_mb()
        trainer.train()
    return {
        **same.medians(ends),
        "over_start_mb": same.peak_mb() - start,
        "over_models_mb": same.peak_mb() - before,
    }


def compare(python: str, work: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Medians, and ratios TRL / ours of the processes of each round, which take turns in starting first."""
    found: dict[str, list[dict[str, Any]]] = {"trl": [], "separate": [], "shared": []}
    for number in range(rounds):
        first = number % len(found)
        for side in [*found, *found][first : first + len(found)]:
            if side == "trl":
                result = in_trl(python, "time", json.dumps(work))
            else:
                given = json.dumps({**work, "value_model": side})
                command = [sys.executable, "-m", "benchmarks.ppo_vs_trl", "ours", given]
                result = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            found[side].append(result)
            print(number, side, {name: round(value, 2) for name, value in result.items()}, flush=True)
    figures: dict[str, Any] = {}
    for name in found["trl"][0]:
        figures[name] = {side: round(statistics.median(one[name] for one in found[side]), 2) for side in found}
        for side in ("separate", "shared"):
            ratios = [trl[name] / our[name] for trl, our in zip(found["trl"], found[side], strict=True)]
            figures[name][f"trl/{side}"] = round(statistics.median(ratios), 2)
            figures[name][f"trl/{side}, from to"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fixture", "time", "ours"], help="ours: one measurement, started by `time`")
    parser.add_argument("work", nargs="?", help="of `ours`, as JSON")
    parser.add_argument("--trl-python", help="the Python of an environment with TRL 1.12")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side")
    parser.add_argument("--updates", type=int, default=2, help="updates to time in each process, after one that is not")
    given = parser.parse_args()
    if given.what == "ours":
        print(json.dumps(ours(json.loads(given.work))))
        return
    if given.trl_python is None or not Path(given.trl_python).exists():
        parser.error("--trl-python: the path of a Python that has TRL 1.12 is needed")
    if given.what == "fixture":
        make_fixture(given.trl_python)
        return
    figures = compare(given.trl_python, {**WORK, "updates": given.updates}, given.rounds)
    print(json.dumps(figures, indent=2))
    record("ppo_vs_trl", {"work": WORK, "rounds": given.rounds, **figures})


if __name__ == "__main__":
    main()
