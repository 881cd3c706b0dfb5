"""Evaluations between steps: they change nothing, find the best checkpoint, stop a run that gets no better, and go on as
they were after a kill.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.models.checkpoints import Best, find_named, write_best
from rlhf_core.training import best, evaluation
from rlhf_core.training.checkpoint import list_checkpoints

ROWS = [{"prompt": f"Symptom {i}?", "completion": f"Rest {i} hours."} for i in range(20)]
VALUES = {"method": "sft", "num_eval_prompts": 2, "max_completion_length": 4, "save_steps": 99, "save_total_limit": 1}

REWARD = """
import random
calls = 0

def falling(completions, **_):
    '''1 at first, then ever less: the first evaluation between steps is the best of those.'''
    global calls
    calls += 1
    return [1 / calls] * len(completions)

def noisy(completions, **_):
    return [random.random() for _ in completions]
"""


@pytest.fixture
def judged(go):
    """judged(option=…) -> (exit code, the run's folder) of a run whose second evaluation is its best."""
    Path("rewards.py").write_text(REWARD)
    shared = {"reward": "./rewards.py:falling", "eval_steps": 1, "keep_best": "reward"}
    return lambda **values: go(**{**shared, **values})


def lines(folder: Path, name: str = "evaluations.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def kept(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder / "checkpoints")]


def test_a_run_with_evaluations_is_the_run_without(judged, go):
    _, without = go(output_dir="without", max_steps=3)
    code, folder = judged(max_steps=3)
    assert code == 0
    assert weights(folder / "model") == weights(without / "model")
    found = lines(folder)
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    assert found[1].keys() >= {"metrics", "rewards", "reward", "length", "finished", "answers", "scores", "tokens"}
    assert found[0]["metrics"]["loss"] > found[-1]["metrics"]["loss"]
    logged = {line["step"]: line for line in lines(folder, "metrics.jsonl") if "eval_reward" in line}
    assert [line["eval_reward"] for line in logged.values()] == [line["reward"] for line in found]
    assert logged[2].keys() >= {"eval_rewards/falling/mean", "eval_completions/mean_length"}
    assert [line["step"] for line in lines(folder, "metrics.jsonl") if "eval_loss" in line] == [0, 1, 2, 3]
    assert kept(folder) == ["checkpoint-1", "checkpoint-3"], "the best is not among the --save-total-limit"


def test_a_run_that_gets_no_better_stops_and_its_model_is_the_best(judged, capsys):
    code, folder = judged(early_stop=2, final_model="best", max_steps=4)
    assert (code, kept(folder)) == (0, ["checkpoint-1", "checkpoint-3"])
    assert weights(folder / "model") == weights(folder / "checkpoints" / "checkpoint-1")
    said = capsys.readouterr().out
    assert "Stopped early after step 3: 2 evaluations without a better reward than" in said
    assert "out/model, of step 1. Best reward: " in said
    assert json.loads((folder / "evaluation.json").read_text())["after"]["reward"] == lines(folder)[1]["reward"]

    before = (folder / "evaluations.jsonl").read_bytes()
    assert judged(early_stop=2, final_model="best", max_steps=4, resume=True)[0] == 0, (
        "killed while its model was saved"
    )
    assert "It had stopped early already" in capsys.readouterr().out
    assert (folder / "evaluations.jsonl").read_bytes() == before

    assert judged(max_steps=4, resume=True)[0] == 0
    assert [line["step"] for line in lines(folder)] == [*range(5)]
    assert weights(folder / "model") == weights(folder / "checkpoints" / "checkpoint-4")


def test_a_run_that_is_killed_within_an_evaluation_goes_on_as_if_it_had_not(judged, monkeypatch):
    values = {"keep_best": "loss", "max_steps": 2, "save_steps": 1, "save_total_limit": 2}
    _, whole = judged(**values, output_dir="whole")
    real = evaluation._score

    def killed(result, rollouts, run):
        if len(lines(run.folder)) == 2:
            raise KeyboardInterrupt
        real(result, rollouts, run)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_score", killed)
        assert judged(**values)[0] == 130
    code, folder = judged(**values, resume=True)
    assert (code, kept(folder)) == (0, kept(whole))
    assert weights(folder / "model") == weights(whole / "model")
    assert [line["metrics"] for line in lines(folder)] == [line["metrics"] for line in lines(whole)]
    best_of = [(each / "checkpoints" / "best.json").read_text() for each in (folder, whole)]
    assert best_of[0] == best_of[1]


def test_an_evaluation_within_a_batch_of_answers_waits_for_its_end_and_draws_no_random_numbers(judged):
    values = {"method": "ppo", "num_ppo_epochs": 2, "num_mini_batches": 1, "max_steps": 5, "response_length": 4}
    values["reward"] = "./rewards.py:noisy"
    _, without = judged(**values, output_dir="without", eval_steps=None, keep_best=None)
    _, folder = judged(**values, eval_steps=3)
    assert [line["step"] for line in lines(folder)] == [0, 4, 5]
    assert weights(folder / "model") == weights(without / "model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"eval_steps": 2, "num_eval_prompts": 0},
            "--eval-steps has no effect: --num-eval-prompts 0 holds out no rows",
        ),
        ({"keep_best": "loss"}, "--keep-best has no effect: .* add --eval-steps N"),
        ({"eval_steps": 2, "early_stop": 2}, "--early-stop has no effect: .* add --keep-best METRIC"),
        ({"eval_steps": 2, "final_model": "best"}, "--final-model has no effect: .* add --keep-best METRIC"),
        ({"set": {"eval_strategy": "steps"}}, "--set eval_strategy: write --eval-steps N"),
        ({"eval_steps": 2, "keep_best": "los"}, "measure that. Did you mean 'loss'.* It measures loss, mean_token_acc"),
        ({"eval_steps": 2, "keep_best": "reward"}, "--keep-best reward: this run does not measure that"),
    ],
)
def test_what_would_have_no_effect_is_refused_before_weights_load(made_run, values, message):
    with pytest.raises(UserError, match=message):
        made_run(**values)


def test_evaluations_need_rows_and_a_metric_may_have_a_short_name():
    dpo = Catalog().load("methods", "dpo")[0]()
    options = dpo.Options(eval_steps=2, keep_best="accuracy")
    best.check(options, dpo, [], rows=1, prompts=False)
    assert best.name_of("accuracy", best.measured(dpo)) == "rewards/accuracies"
    with pytest.raises(UserError, match="--eval-steps 2 needs held-out rows, and there are none"):
        best.check(options, dpo, [], rows=0, prompts=False)


HISTORY = {
    0: {"loss": 9.0, "reward": 0.9},
    10: {"loss": 3.0, "reward": 0.5},
    20: {"loss": 1.0, "reward": 0.7},
    30: {"loss": 2.0, "reward": 0.7},
    40: {"loss": float("nan"), "reward": None},
}


def test_the_best_evaluation_is_the_first_of_the_highest_or_of_the_lowest_loss():
    every = [10, 20, 30, 40]
    assert best.find(HISTORY, "loss", every) == Best(step=20, metric="loss", value=1.0)
    assert best.find(HISTORY, "reward", every) == Best(step=20, metric="reward", value=0.7), "30 is as good, not better"
    assert best.find(HISTORY, "loss", [10, 30]).step == 30
    assert (
        best.find({1: {"weight_loss": 2.0}, 2: {"weight_loss": 1.0}}, "weight_loss", [1, 2], ["weight_loss"]).step == 1
    )
    assert best.find(HISTORY, "reward", [40, 50]) is None
    assert best.without_better(HISTORY, best.find(HISTORY, "loss", every)) == 2
    assert best.without_better(HISTORY, None) == 4, "that before training is none of them"


@pytest.fixture
def run_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for step in (5, 20, 100):
        (tmp_path / "run" / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
    return tmp_path / "run"


def test_a_checkpoint_is_named_by_its_step_last_or_best(run_folder):
    folder = run_folder / "checkpoints"
    assert find_named("run@20", "x").resolve() == folder / "checkpoint-20"
    assert find_named("run@last", "x").resolve() == folder / "checkpoint-100"
    with pytest.raises(UserError, match=r"kept no best one .* There are @5, @20, @100, @last$"):
        find_named("run@best", "x")
    write_best(folder, Best(step=20, metric="reward", value=0.5))
    assert find_named("run@best", "x").resolve() == folder / "checkpoint-20"
    with pytest.raises(UserError, match="There are @5, @20, @100, @last, @best$"):
        find_named("run@21", "x")
    shutil.rmtree(folder / "checkpoint-20")
    with pytest.raises(UserError, match="kept no best one"):
        find_named("run@best", "x")


def test_a_folder_of_that_name_wins_and_other_texts_are_no_checkpoints(run_folder):
    (run_folder.parent / "run@20").mkdir()
    assert find_named("run@20", "x") is None
    assert [find_named(text, "x") for text in ("run", "none@20", "@20", "owner/name")] == [None] * 4
