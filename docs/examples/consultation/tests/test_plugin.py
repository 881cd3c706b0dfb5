"""What a row becomes, and the rows that are refused."""

from __future__ import annotations

import pytest
from rlhf_formatter_consultation import convert

from rlhf_core.testing import check_formatter

COLD = {"complaint": "Sneezing.", "advice": "Rest."}


def test_a_row_becomes_a_question_with_its_answer():
    example = convert({**COLD, "diagnosis": "cold"})
    assert example.prompt == [{"role": "user", "content": "Sneezing."}]
    assert example.completion == [{"role": "assistant", "content": "Rest."}]
    assert example.answer == "cold"


def test_a_row_without_a_diagnosis_has_no_reference():
    assert convert(COLD).answer is None


BAD = {
    "empty complaint": ({"complaint": " "}, "complaint is not text"),
    "no advice": ({"advice": None}, "advice is not text"),
    "a number": ({"advice": 3}, "advice is not text: 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_can_not_be_converted_says_why(case):
    values, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        convert({**COLD, **values})


def test_conforms():
    """The rules of every formatter, on the rows of rlhf_formatter_consultation_examples.jsonl."""
    check_formatter("consultation")
