"""Some inputs for each property, the same ones in every run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.properties import PROPERTIES, holds, row_is_read

FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", PROPERTIES)
def test_holds_for_whatever_it_is_given(name):
    holds(name, FEW)


def test_half_of_a_character_in_a_column_that_is_no_text_is_read():
    """Found by `benchmarks/fuzz.py`."""
    row_is_read((None, {"instruction": "What helps?", "input": "", "output": "Rest.", "tools": "\ud800"}))
