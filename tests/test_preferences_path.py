"""From prompts to a better model, as the guide has it: pairs are made, looked at, trained on, and the models compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_core.cli import rlhf
from tests.endpoint_server import EndpointServer
from tests.gullible import Judge

VOWELS = """
def vowels(completions: list[str], **_):
    return [sum(letter in "aeiou" for letter in text) / 20 for text in completions]
"""
SHORT = "--max-steps 2 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --num-eval-prompts 1"


def rlhf_(*words: str) -> str:
    """What a command that must succeed prints."""
    done = CliRunner().invoke(rlhf, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def walk(judge: list[str]) -> dict:
    """make, inspect, DPO, compare; returns comparison.json."""
    few = ["--data", "builtin", "--prompts", "8"]
    rlhf_("preferences", "make", *few, "--model", "builtin", "--n", "3", *judge, "--output", "pairs.jsonl")
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert len(pairs) > 3
    assert all(pair["response_chosen"] != pair["response_rejected"] for pair in pairs)
    assert f"{len(pairs)} rows, for methods that need preferences" in rlhf_("data", "inspect", "pairs.jsonl")
    rlhf_("run", "--method", "dpo", "--data", "pairs.jsonl", "--output-dir", "dpo", *SHORT.split())
    asked = ["--data", "builtin", "--prompts", "2", "--output", "compared"]
    rlhf_("compare", "builtin", "dpo", *asked, "--judge" if judge[0] == "--pairwise" else "--reward", judge[-1])
    return json.loads(Path("compared/comparison.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "endpoint"])
def test_from_prompts_to_a_better_model(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if kind == "reward":
        (tmp_path / "rewards.py").write_text(VOWELS)
        result = walk(["--judge", "./rewards.py:vowels"])
        assert set(result["results"]["sampled"]["models"]["dpo"]["rewards"]) == {"vowels"}
        return
    with EndpointServer(Judge(lambda question, answer: len(set(answer)) / 100)) as server:
        result = walk(["--pairwise", "--judge", f"judge:model=loopback,base_url={server.url},prices=1/1"])
        assert len(server.requests) > 12
    judged = result["results"]["sampled"]["against_baseline"]["dpo"]["judged"]
    assert (judged["orders_differ"]["share"], judged["failed"]) == (0.0, 0)
    assert json.loads(Path("pairs.sheet.json").read_text())["judge"]
