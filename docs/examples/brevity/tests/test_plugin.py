"""The scores of right, wrong, empty, huge, malformed and repeated answers."""

from __future__ import annotations

import pytest
from rlhf_reward_brevity import brevity

from rlhf_core.testing import check_reward

# completion, score where the reference is Paris and limit is 50
CASES = {
    "right": ("<answer>Paris</answer>", 1.0),
    "right, with reasons": ("It lies on the Seine. <answer>paris.</answer>", 1.0),
    "right, with a label": ("<answer>\nCapital: Paris\nRiver: Seine\n</answer>", 1.0),
    "twice as long": ("<answer>Paris</answer>" + "." * 78, 0.5),
    "outside the answer": ("Paris", 0.0),
    "among other words": ("<answer>Paris or Rome</answer>", 0.0),
    "given twice": ("<answer>Paris</answer>" * 2, 0.0),
    "nested": ("<answer><answer>Paris</answer></answer>", 0.0),
    "wrong": ("<answer>London</answer>", 0.0),
    "only the format": ("<answer></answer>", 0.0),
    "not closed": ("<answer>Paris", 0.0),
    "empty": ("", 0.0),
    "huge": ("<answer>" * 100_000, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_scores(case):
    text, expected = CASES[case]
    assert brevity([text], ["Paris"], limit=50) == [expected]


def test_a_row_without_a_reference_is_left_out():
    assert brevity(["Paris", "Paris"], [None, ""]) == [None, None]


def test_conforms():
    """The rules of every reward, and the cases of rlhf_reward_brevity_golden.jsonl."""
    check_reward("brevity")
