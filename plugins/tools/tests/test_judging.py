"""Win rates by a judge: both orders, from the second model's side; what failed is no tie."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from rlhf_tools import judging, page, table
from rlhf_tools.results import Answer

from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.commands import Comparison
from rlhf_core.errors import UserError

JUDGE = """
from rlhf_core import Reward, RunStopped

def score(completions, **_):
    return [0.0] * len(completions)

async def longer(function, prompts, first, second):
    return [float(len(a) - len(b)) for a, b in zip(first, second)]

async def spent(function, prompts, first, second):
    raise RunStopped("max_calls=0 calls are made")

def dear(function, planned):
    return f"{planned.comparisons} calls, {planned.answers} answers"

judge = Reward(score, pairwise=longer, before_run=dear, name="judge")
poor = Reward(score, pairwise=spent, name="poor")
"""


def answers(*groups):
    return [[Answer(text, len(text), True) for text in group] for group in groups]


def test_the_verdicts_are_counted_from_the_other_models_side():
    rows = judging._rows(answers(["a"], ["bb"], ["c"], ["d"]), answers(["aaa"], ["b"], ["c"], ["dd"]))
    assert rows[0] == (0, "a", "aaa")
    found = [
        Comparison(1, (1, 1)),
        Comparison(-1, (-1, -2)),
        Comparison(0, (1, -1)),
        Comparison(None, (1, None), "OSError: x"),
    ]
    result = judging.summary("new", rows, found)
    assert (result["win_rate"]["wins"], result["win_rate"]["ties"], result["win_rate"]["losses"]) == (1, 1, 1)
    assert result["orders_differ"]["share"] == pytest.approx(1 / 3)
    # what was read first won in the first order of 1, the second of -1, and in both of the third: 4 of 6
    assert result["first_shown_wins"]["share"] == pytest.approx(4 / 6)
    assert (result["failed"], result["error"]) == (1, "OSError: x")


def test_a_judge_that_goes_by_the_order_is_said_so():
    rows = judging._rows(answers(*["a"] * 4), answers(*["b"] * 4))
    result = judging.summary("new", rows, [Comparison(0, (1, -1))] * 4)
    assert result["win_rate"]["rate"] == 0.5
    notes = table.notes({"against_baseline": {"new": {"note": None, "judged": result}}})
    assert notes == [
        "new: the judge says the same in both orders in only 0% of the pairs; what it reads first wins 100%. Where the orders disagree it is a tie."
    ]


def test_compare_asks_the_judge_both_ways_and_writes_it_down(tiny_model, tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    given = ["compare", f"a={tiny_model}", f"b={tiny_model}", "--prompts", "3", "--max-completion-length", "8"]
    given += ["--judge", f"{tmp_path}/judge.py:judge", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(rlhf, given, catch_exceptions=False)
    assert "judge: 12 calls, 24 answers" in done.output
    assert "wins by the judge" in done.output
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    judged = result["results"]["greedy"]["against_baseline"]["b"]["judged"]
    assert (judged["win_rate"]["ties"], judged["orders_differ"]["share"]) == (3, 0.0)  # the same model twice
    assert "by the judge" in page.render(result)
    stopped = CliRunner().invoke(
        rlhf, [*given[:-4], "--judge", f"{tmp_path}/judge.py:poor", "--output", str(tmp_path / "two")]
    )
    assert "max_calls=0" in str(stopped.exception)
    assert (tmp_path / "two" / "comparison.json").is_file()


def test_a_reward_that_only_scores_is_no_judge():
    with pytest.raises(UserError, match="can't compare"):
        judging.bind_judge("length", Catalog())
