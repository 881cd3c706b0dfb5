"""What a run settles before torch is imported leaves the user's own settings as they are."""

import os

import pytest

from rlhf_core.training import environment


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setattr(os, "environ", {})


@pytest.mark.parametrize(("cores", "expected"), [(0.0, None), (0.1, None), (1.0, "PASSIVE")])
def test_threads_sleep_where_other_programs_use_the_cores(cores, expected, monkeypatch):
    monkeypatch.setattr(environment, "_cores_in_use", lambda: cores)
    environment.prepare()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


def test_libraries_keep_little_memory(monkeypatch):
    monkeypatch.setattr(environment, "_cores_in_use", lambda: 0.0)
    environment.prepare()
    assert os.environ["MKL_DISABLE_FAST_MM"] == "1"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "16"


def test_what_is_set_stays(monkeypatch):
    monkeypatch.setattr(environment, "_cores_in_use", lambda: 2.0)
    given = {"OMP_WAIT_POLICY": "ACTIVE", "MKL_DISABLE_FAST_MM": "0", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}
    os.environ.update(given)
    environment.prepare()
    assert given.items() <= os.environ.items()
