"""Two answers compared in both orders: a judge that goes by the order is a tie, and a failure is never a verdict."""

from __future__ import annotations

import pytest

from rlhf_core.errors import RunStopped, UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.method import TrainingOptions
from rlhf_core.reward import Planned, Reward
from rlhf_core.rewards.before_run import said_before
from rlhf_core.rewards.binding import BoundReward, read_signature
from rlhf_core.rewards.pairwise import Comparison, compare_answers


def score(completions, **_):
    return [0.0] * len(completions)


def bound(**fields) -> BoundReward:
    return BoundReward("judge", 1.0, Reward(score, **fields), RewardSpec("judge"), read_signature(score), score, {})


PROMPTS = [[{"role": "user", "content": text}] for text in "abcde"]


async def longer(function, prompts, first, second):
    assert function is score
    return [
        len(a) - len(b) if a != "?" and b != "?" else ValueError("unreadable")
        for a, b in zip(first, second, strict=True)
    ]


async def first_read(function, prompts, first, second):
    return [1.0] * len(prompts)


async def wrong_number(function, prompts, first, second):
    return [1.0]


async def raises(function, prompts, first, second):
    raise OSError("gone")


async def not_a_number(function, prompts, first, second):
    return [float("nan"), "1", True, None, 0.5]


async def spent(function, prompts, first, second):
    return [1.0, *[RunStopped("max_calls=1")] * 4]


def test_both_orders_are_seen_from_the_first_answer():
    first, second = ["aaa", "a", "aa", "?", "aaaa"], ["a", "aaa", "aa", "aa", "a"]
    found = compare_answers(bound(pairwise=longer), PROMPTS, first, second)
    assert [one.verdict for one in found] == [1, -1, 0, None, 1]
    assert found[0] == Comparison(1, (2, 2))
    assert found[1].orders == (-2, -2)
    assert found[3].error == "ValueError: unreadable"
    assert [one.agree for one in found] == [True, True, True, None, True]


def test_a_reward_that_logs_what_it_spends_is_heard():
    async def logs(function, prompts, first, second, *, log_metric):
        log_metric("judge/cost", 0.5)
        return [0.0] * len(prompts)

    spent: dict[str, float] = {}
    compare_answers(bound(pairwise=logs), PROMPTS, ["x"] * 5, ["y"] * 5, log_metric=spent.__setitem__)
    assert spent == {"judge/cost": 0.5}


def test_a_judge_that_goes_by_the_order_says_nothing():
    found = compare_answers(bound(pairwise=first_read), PROMPTS, ["x"] * 5, ["y"] * 5)
    assert {(one.verdict, one.orders, one.agree) for one in found} == {(0, (1.0, -1.0), False)}


@pytest.mark.parametrize(
    ("pairwise", "says"), [(wrong_number, "returned 1 verdicts for 5 pairs"), (raises, "OSError: gone")]
)
def test_a_call_that_fails_fails_all_of_its_pairs(pairwise, says):
    found = compare_answers(bound(pairwise=pairwise), PROMPTS, ["x"] * 5, ["y"] * 5)
    assert all(one.verdict is None and says in one.error for one in found)


def test_what_is_no_number_is_no_verdict():
    found = compare_answers(bound(pairwise=not_a_number), PROMPTS, ["x"] * 5, ["y"] * 5)
    assert ["finite" in (one.error or "") for one in found] == [True, True, False, True, False]


def test_a_budget_that_is_spent_ends_the_comparison():
    with pytest.raises(RunStopped, match="max_calls=1"):
        compare_answers(bound(pairwise=spent), PROMPTS, ["x"] * 5, ["y"] * 5)


def test_progress_is_told_and_a_reward_that_only_scores_is_refused():
    done: list[int] = []
    many = PROMPTS * 60
    compare_answers(bound(pairwise=longer), many, ["x"] * 300, ["yy"] * 300, done.append)
    assert done == [256, 300]
    with pytest.raises(UserError, match="can't compare"):
        compare_answers(bound(), PROMPTS, ["x"] * 5, ["y"] * 5)


def test_what_a_reward_says_before_a_run_and_its_refusal():
    planned = Planned(PROMPTS, 640, 32, 4)

    def refuse(function, planned):
        raise UserError("there is no key")

    says = bound(before_run=lambda function, planned: f"{planned.answers} calls")
    assert said_before([bound(), says], planned) == [("Reward", "judge: 640 calls")]
    with pytest.raises(UserError, match="reward 'judge': there is no key"):
        said_before([bound(before_run=refuse)], planned)
    with pytest.raises(ValueError, match="before_run needs isolation='inline'"):
        Reward(score, isolation="process", before_run=refuse)


@pytest.mark.parametrize(
    ("name", "given", "answers"),
    [
        ("grpo", {"max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 160),
        (
            "grpo",
            {"max_steps": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
            80,
        ),
        ("grpo", {"num_train_epochs": 2, "num_generations": 4}, 800),
        (
            "ppo",
            {"max_steps": 12, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_ppo_epochs": 4},
            24,
        ),
        ("ppo", {"total_episodes": 77}, 77),
        ("dpo", {"max_steps": 10}, 0),
    ],
)
def test_how_many_answers_a_run_will_score(name, given, answers):
    from rlhf_core.catalog import Catalog

    method = Catalog().load("methods", name)[0]()
    options: TrainingOptions = method.Options(**given)
    assert method.scored_answers(options, 100, 2) == answers


def test_score_says_what_it_costs_and_a_budget_that_ends_is_told_after_what_was_scored(tmp_path):
    from click.testing import CliRunner

    from rlhf_core.cli import rlhf

    (tmp_path / "judge.py").write_text(
        "from rlhf_core import Reward, RunStopped\n"
        "def score(completions, **_): return [0.5, *[RunStopped('max_calls=1')] * (len(completions) - 1)]\n"
        "judge = Reward(score, before_run=lambda function, planned: f'{planned.answers} calls', name='judge')\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completions": ["b", "c"]}\n' * 2)
    done = CliRunner().invoke(rlhf, ["score", str(tmp_path / "rows.jsonl"), "--reward", f"{tmp_path}/judge.py:judge"])
    assert isinstance(done.exception, RunStopped)
    assert "judge: 4 calls" in done.output
    assert "scored                1, not applicable 0, errors 3" in done.output


@pytest.mark.parametrize(
    ("name", "given", "answers"),
    [
        ("grpo", {"max_steps": 10, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, 80 + 2 * 3),
        (
            "grpo",
            {"max_steps": 10, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "eval_steps": 4},
            80 + 4 * 3,
        ),
        (
            "grpo",
            {
                "num_train_epochs": 2,
                "num_generations": 4,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "eval_steps": 40,
            },
            800 + 4 * 3,
        ),
        (
            "grpo",
            {
                "num_train_epochs": 2,
                "num_generations": 4,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "num_iterations": 2,
                "eval_steps": 40,
            },
            800 + 7 * 3,
        ),
        (
            "dpo",
            {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "eval_steps": 10,
            },
            4 * 3,
        ),
    ],
)
def test_what_a_run_will_ask_counts_every_evaluation(name, given, answers):
    """A hundred rows, three of them held out and answered before, after, and each time in between."""
    from types import SimpleNamespace

    from rlhf_core.catalog import Catalog
    from rlhf_core.training.run import say_before

    method = Catalog().load("methods", name)[0]()
    rows = [{"prompt": prompt} for prompt in PROMPTS * 20]
    run = SimpleNamespace(options=method.Options(**given), world_size=1, train_rows=rows, held_out=rows[:3])
    run.config = SimpleNamespace(num_processes=1, num_machines=1)
    says = bound(before_run=lambda function, planned: f"{planned.answers}")
    run.rewards = SimpleNamespace(rewards=[says])
    assert say_before(run, method) == [("Reward", f"judge: {answers}")]
