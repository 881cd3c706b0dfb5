"""Agreement of judges, with numbers that are worked out by hand or published."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from rlhf_core.reward_report import agreement as a


def test_cohens_kappa():
    """Two judges who both say yes 20 times, both no 15 times, and differ 5 and 10 times: 0.7 observed, 0.5 by chance."""
    one = [1] * 25 + [-1] * 25
    other = [1] * 20 + [-1] * 5 + [1] * 10 + [-1] * 15
    assert a.cohen_kappa(one, other) == pytest.approx(0.4)
    assert a.cohen_kappa([1, 1], [1, 1]) is None
    assert a.cohen_kappa([1, -1], [-1, 1]) == -1
    assert a.cohen_kappa([], []) is None


def kappa_by_formula(one: list[int], other: list[int]) -> Fraction:
    """(p_o - p_e) / (1 - p_e) over the table of counts, as textbooks have it."""
    n = len(one)
    table = {
        (i, j): sum((x, y) == (i, j) for x, y in zip(one, other, strict=True)) for i in (-1, 0, 1) for j in (-1, 0, 1)
    }
    observed = Fraction(sum(table[i, i] for i in (-1, 0, 1)), n)
    expected = sum(
        Fraction(sum(table[i, j] for j in (-1, 0, 1)), n) * Fraction(sum(table[j, i] for j in (-1, 0, 1)), n)
        for i in (-1, 0, 1)
    )
    return (observed - expected) / (1 - expected)


def test_cohens_kappa_with_ties_is_that_of_the_formula():
    one = [1, 0, -1, 1, 1, 0, -1, -1, 0, 1, 1, -1]
    other = [1, 0, -1, -1, 1, 1, -1, 0, 0, 1, -1, -1]
    assert a.cohen_kappa(one, other) == pytest.approx(float(kappa_by_formula(one, other)))


def test_krippendorffs_alpha_is_the_published_one():
    """Example C of Krippendorff (2011): four observers, twelve units, values missing: 0.743."""
    observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]
    assert len(units) == 12
    assert a.krippendorff_alpha(units) == pytest.approx(0.743, abs=0.0005)
    assert a.krippendorff_alpha([[1, 1], [1, 1]]) is None  # of one class
    assert a.krippendorff_alpha([[1], [0]]) is None
    assert a.krippendorff_alpha([[1, 1], [-1, -1]]) == 1


def test_wilsons_interval():
    """Of 8 in 10: 0.490 to 0.943 (Wilson's formula); it stays within 0 and 1, and is none of none."""
    low, high = a.wilson(8, 10)
    z, p, n = 1.959963984540054, 0.8, 10
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert a.wilson(10, 10)[1] == pytest.approx(1.0)
    assert a.wilson(0, 0) is None


def test_agreement_with_and_without_ties():
    human = [1, 1, -1, 0, 0, None, 1]
    judge = [1, -1, -1, 0, 1, 1, 0]
    found = a.agreement(human, judge)
    assert (found["with_ties"]["pairs"], found["with_ties"]["agree"]) == (6, 3)
    assert (found["without_ties"]["pairs"], found["without_ties"]["agree"]) == (3, 2)
    assert found["ties"] == [2, 2]
    # by chance: 1 is 3/6 and 2/6 (human 1, 1, 1; judge 1, 1), -1 is 1/6 and 2/6, a tie 2/6 and 2/6
    assert found["with_ties"]["kappa"] == pytest.approx((3 / 6 - 12 / 36) / (1 - 12 / 36))
    alike = a.agreement([1] * 100, [1] * 80 + [-1] * 20, ["one prompt"] * 100)
    apart = a.agreement([1] * 100, [1] * 80 + [-1] * 20)
    assert alike["prompts"] == 1
    assert alike["with_ties"]["low"] < apart["with_ties"]["low"] < 0.8
    assert a.agreement([], [])["with_ties"]["accuracy"] is None


def test_length_and_position():
    lengths = [(10, 5), (10, 5), (5, 10), (7, 7), (1, 2)]
    found = a.length_bias([1, -1, -1, 1, 0], lengths)
    assert (found["count"], found["share"]) == (3, pytest.approx(2 / 3))
    shown = a.first_shown_bias([1, -1, -1, 0, None], [1, 1, -1, 1, 1])
    assert (shown["count"], shown["share"]) == (3, pytest.approx(2 / 3))
    # Each from the first answer's side; the second number is of the order in which the second answer came first.
    orders = a.order_bias([(1.0, 1.0), (1.0, -1.0), (-0.5, 1.0), (0.0, -2.0), (3.0, -1.0), (None, 1.0)])
    assert orders["orders_differ"]["count"] == 5
    assert orders["orders_differ"]["share"] == pytest.approx(4 / 5)
    assert orders["opposite"] == 3
    # Decided: all but the 0. Shown first and won: the first of rows 1, 2 and 5, the second of rows 2, 4 and 5.
    assert orders["first_shown_wins"]["share"] == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([1, 1, -1], 1),
        ([1, -1], None),
        ([0, 0, 1], 0),
        ([1, 0, -1], None),
        ([], None),
        ([-1], -1),
        ([1, 1, 0, -1], None),
    ],
)
def test_majority(verdicts, expected):
    assert a.majority(verdicts) == expected
