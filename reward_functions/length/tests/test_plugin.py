"""The range, scores outside of it, and what counts as length."""

from __future__ import annotations

import pytest
from rlhf_reward_length import Length

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind

# text, score with min=10, max=20, tolerance=10
CASES = {
    "shortest in range": ("a" * 10, 1.0),
    "longest in range": ("a" * 20, 1.0),
    "a little short": ("a" * 9, 0.9),
    "half the tolerance too long": ("a" * 25, 0.5),
    "at the end of the tolerance": ("a" * 30, 0.0),
    "far too long": ("a" * 1_000_000, 0.0),
    "empty": ("", 0.0),
    "only space": (" \n\t" * 10, 0.0),
    "padded with space": ("a" + " " * 18 + "b", 0.3),
    "space around": ("  " + "a" * 10 + "\n\n", 1.0),
    "Chinese": ("多喝热水，注意休息，早睡。", 1.0),
    "full-width space": ("\u3000" * 15, 0.0),
    "emoji": ("🩺" * 12, 1.0),
    "right to left": ("שלום " * 3, 1.0),
    "control characters": ("\x00" * 12, 1.0),
    "lone surrogate": ("\ud800" * 12, 1.0),
    "doubled": ("a" * 15 + "a" * 15, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_characters(case):
    text, expected = CASES[case]
    assert Length(min=10, max=20, tolerance=10)([text]) == [pytest.approx(expected)]


def test_without_a_minimum_nothing_is_too_short():
    assert Length(max=20)(["", "a"]) == [1.0, 1.0]


def test_an_empty_answer_gets_the_lowest_score_if_there_is_a_minimum():
    assert Length(min=10, max=20, tolerance=100)(["", "a"]) == [0.0, pytest.approx(0.91)]
    assert Length(min=1, tolerance=100)(["", "a"]) == [0.0, 1.0]


def test_the_least_tolerance_is_one():
    assert Length(max=2, tolerance=1)(["ab", "abc"]) == [1.0, 0.0]


def test_tokens_are_counted_with_the_end_token():
    score = Length(max=4, tolerance=2, unit="tokens")
    assert score(["", "", ""], completion_ids=[[1] * 4, [1] * 5, [1] * 9]) == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="unit=tokens needs completion_ids"):
        score([""])


def test_one_setting_is_dapos_overlong_punishment():
    """Equation 13 with a longest answer of 512 and a soft zone of 128: 0 up to 384, then down to -1 at 512."""
    score = Length(max=384, tolerance=128, unit="tokens", penalty=True)
    lengths = [0, 200, 384, 385, 448, 511, 512, 513, 5000]
    expected = [0.0 if n <= 384 else -1.0 if n > 512 else (384 - n) / 128 for n in lengths]
    assert score([""] * len(lengths), completion_ids=[[0] * n for n in lengths]) == pytest.approx(expected)


BAD = {
    "min above max": ("length:min=5,max=4", "needs 0 <= min <= max"),
    "below zero": ("length:min=-1", "needs 0 <= min <= max"),
    "no tolerance": ("length:tolerance=0", "needs a number above 0"),
    "unknown unit": ("length:unit=words", "unit=words"),
    "no number": ("length:max=long", "max=long"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_setting_is_refused_before_anything_loads(case):
    text, message = BAD[case]
    with pytest.raises(UserError, match=message):
        bind(RewardSpec.read(text), Catalog())


def test_it_is_found_by_its_entry_point():
    reward, entry = Catalog().load("rewards", "length")
    assert (entry.distribution, reward.range) == ("rlhf-reward-length", (-1.0, 1.0))
