"""Some inputs for each property, the same ones in every run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.properties import PROPERTIES, holds

FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", PROPERTIES)
def test_holds_for_whatever_it_is_given(name):
    holds(name, FEW)
