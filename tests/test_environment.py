"""What a run settles before torch is imported leaves the user's own settings as they are."""

import gc
import logging
import os

import pytest

from rlhf_core import environment
from rlhf_core.errors import UserError


def test_what_is_set_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"HF_HUB_DISABLE_PROGRESS_BARS": "0"})
    logging.getLogger("bitsandbytes").setLevel(logging.DEBUG)
    environment.prepare()
    assert logging.getLogger("bitsandbytes").level == logging.ERROR
    assert os.environ == {**environment.VARIABLES, "HF_HUB_DISABLE_PROGRESS_BARS": "0"}


def test_garbage_is_looked_for_as_before_once_a_command_has_started():
    before = gc.get_threshold()
    with environment.starting():
        assert gc.get_threshold() > before
    assert gc.get_threshold() == before


@pytest.mark.parametrize("name", environment.VALUES)
def test_a_variable_that_a_library_can_not_read_is_named(monkeypatch, name):
    good = environment.VALUES[name][0]
    for value in (good, good.lower(), f"{good}:1"):
        monkeypatch.setattr(os, "environ", {name: value})
        environment.prepare()
    for value in ("nonsense", ""):
        monkeypatch.setattr(os, "environ", {name: value})
        with pytest.raises(UserError, match=f"the environment has {name}='{value}', which is none of {good}"):
            environment.prepare()
