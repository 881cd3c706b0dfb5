"""What a run settles before torch is imported leaves the user's own settings as they are."""

import os

from rlhf_core import environment


def test_what_is_set_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"HF_HUB_DISABLE_PROGRESS_BARS": "0"})
    environment.prepare()
    assert os.environ == {**environment.VARIABLES, "HF_HUB_DISABLE_PROGRESS_BARS": "0"}
