"""The statistics, each worked out by hand."""

from __future__ import annotations

import random

import pytest
from rlhf_tools import statistics
from rlhf_tools.statistics import Pair, length_effect, length_note, win_rate

from rlhf_core.commands import Estimate, bootstrap_mean


def pairs(*outcomes: float, lengths: tuple[int, int] = (100, 100)) -> list[Pair]:
    """One pair a prompt: 1 won, 0.5 tied, 0 lost."""
    return [Pair(i, 0.5, outcome, *lengths) for i, outcome in enumerate(outcomes)]


def test_win_rate_by_hand():
    """Wins 3, ties 2, losses 1: (3 + 1) / 6. With a win and a loss added, 8 values: mean 5 / 8, variance
    (4·1 + 2·0.25) / 8 - (5 / 8)² = 0.5625 - 0.390625 = 0.171875, half width 1.96 · √(0.171875 / 8) = 0.2873.
    """
    found = win_rate(pairs(1, 1, 1, 0.5, 0.5, 0))
    assert (found.wins, found.ties, found.losses, found.prompts) == (3, 2, 1, 6)
    assert found.rate == pytest.approx(4 / 6)
    assert (found.low, found.high) == pytest.approx((0.625 - 0.2873, 0.625 + 0.2873), abs=1e-4)
    assert found.decided == 0


def test_the_interval_is_bonett_and_prices():
    """p12 = (wins + 1) / (n + 2), p21 = (losses + 1) / (n + 2); the difference of them, on the scale of a share."""
    won, tied, lost = 20, 12, 8
    n = won + tied + lost
    a, b = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = statistics.Z * ((a + b - (a - b) ** 2) / (n + 2)) ** 0.5
    found = win_rate(pairs(*[1] * won, *[0.5] * tied, *[0] * lost))
    assert (found.low, found.high) == pytest.approx(((1 + a - b - half) / 2, (1 + a - b + half) / 2))


def test_several_answers_to_one_prompt_count_as_one():
    """Two prompts of four samples each count as two prompts, not as eight."""
    many = win_rate([Pair(prompt, 0.0, 1.0, 9, 9) for prompt in (0, 1) for _ in range(4)])
    few = win_rate(pairs(1, 1))
    assert (many.low, many.high, many.prompts) == (few.low, few.high, 2)
    assert many.wins == 8


def test_ties_alone_are_even_with_an_interval_that_narrows():
    few, many = win_rate(pairs(*[0.5] * 8)), win_rate(pairs(*[0.5] * 64))
    assert few.rate == many.rate == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high


def test_a_clean_sweep_is_not_certain():
    found = win_rate(pairs(*[1] * 10))
    assert (found.rate, found.high) == (1.0, 1.0)
    assert 0.7 < found.low < 0.9
    assert found.decided == 1
    assert win_rate(pairs(*[0] * 10)).decided == -1


def test_scores_that_differ_by_rounding_tie():
    assert Pair(0, 0.1 + 0.2, 0.3, 1, 1).outcome == 0.5


def test_nothing_to_compare():
    assert win_rate([]) is None
    assert bootstrap_mean([], 0) is None
    assert length_effect([]).ratio is None


@pytest.mark.parametrize("ties", [0.0, 0.6])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_the_interval_contains_the_true_rate_about_95_times_in_100(rate, ties):
    rng = random.Random(1)
    true = ties / 2 + (1 - ties) * rate
    held = 0
    for _ in range(400):
        drawn = [0.5 if rng.random() < ties else float(rng.random() < rate) for _ in range(40)]
        found = win_rate(pairs(*drawn))
        held += found.low <= true <= found.high
    assert held / 400 > 0.92


def test_bootstrap_mean_is_of_the_prompts():
    assert bootstrap_mean([0.0] * 5, 0) == Estimate(0.0, 0.0, 0.0, 5)
    assert bootstrap_mean([2.0], 0) == Estimate(2.0, None, None, 1)
    found = bootstrap_mean([1.0, 2.0, 3.0, 4.0] * 10, 0)
    assert found.mean == 2.5
    # standard error √(1.25 / 40) = 0.1768, so about 2.5 ± 0.346
    assert (found.low, found.high) == pytest.approx((2.154, 2.846), abs=0.05)
    assert found == bootstrap_mean([1.0, 2.0, 3.0, 4.0] * 10, 0)


def test_length_by_hand():
    """90 to 100 is just alike, 89 is not. Of the two unlike pairs the longer wins one and ties one: 0.75."""
    given = [
        Pair(0, 0.0, 1.0, 100, 90),
        Pair(1, 0.0, 0.0, 100, 89),
        Pair(2, 0.0, 1.0, 100, 200),
        Pair(3, 1.0, 0.0, 0, 0),
    ]
    found = length_effect(given)
    assert found.ratio == pytest.approx(379 / 300)
    assert (found.like.wins, found.like.losses) == (1, 1)
    assert found.longer_wins == 0.75


# pairs of different length, pairs of similar length -> the note's end
NOTES = {
    "explains": ([1] * 40, [1, 0] * 8, "similar length (within 10%; 16 prompts) it wins 50% (27% to 73%): length may explain the difference."),
    "does not": ([1] * 20, [1] * 20, "length does not explain the difference."),
    "opposite": ([1] * 60, [0] * 12, "length explains the difference, which is the opposite at similar length."),
    "too few": ([1] * 40, [1] * 7, "Only 7 of 47 prompts have answers of similar length (within 10%): too few to tell whether length explains the win rate."),
    "unsure": ([1] * 40, [1] * 9 + [0] * 3, "too few to tell whether length explains the difference."),
    "hides": ([0] * 12, [1] * 12, "a difference that all answers together do not show."),
    "even": ([1, 0] * 10, [1, 0] * 10, "no clear difference there either."),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
def test_the_note_says_what_length_explains(case):
    unlike, like, end = NOTES[case]
    given = pairs(*unlike, lengths=(100, 300))
    given += [Pair(100 + i, 0.5, outcome, 100, 100) for i, outcome in enumerate(like)]
    note = length_note("B", win_rate(given), length_effect(given))
    assert note.startswith("B: its answers are ")
    assert " times as long" in note
    assert note.endswith(end)


def test_no_note_where_lengths_are_the_same():
    given = pairs(*[1] * 20, lengths=(100, 105))
    assert length_note("B", win_rate(given), length_effect(given)) is None
    shorter = pairs(*[1] * 20, lengths=(100, 50))
    assert length_note("B", win_rate(shorter), length_effect(shorter)).startswith("B: its answers are 50% as long")
