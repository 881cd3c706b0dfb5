"""With every connection that leaves the machine refused, each command works on local inputs, and none is tried."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlhf_core
from rlhf_core import environment
from rlhf_core.cli import rlhf
from rlhf_core.doctor import asking
from rlhf_core.doctor.probes import PROBES
from rlhf_core.pipeline import running
from rlhf_core.testing import commands as checking
from rlhf_core.testing.__main__ import examine
from rlhf_core.testing.sandbox import no_network

COMMANDS = {
    "listings": ["plugins"],
    "show": ["methods", "show", "grpo"],
    "freeze": ["plugins", "freeze"],
    "run": [
        "run",
        "--method",
        "grpo",
        "--reward",
        "length",
        "--data",
        "d.jsonl",
        "--output-dir",
        "out",
        "--max-steps",
        "1",
        "--num-generations",
        "2",
        "--per-device-train-batch-size",
        "2",
        "--gradient-accumulation-steps",
        "1",
        "--max-completion-length",
        "4",
        "--num-eval-prompts",
        "1",
        "--model",
    ],
    "runs": ["runs", "."],
    "data": ["data", "inspect", "d.jsonl", "--model"],
    "score": ["score", "d.jsonl", "--reward", "length"],
    "pipeline": ["pipeline", "orpo", "--data", "d.jsonl", "--only", "sft", "--output-dir", "p", "--dry-run", "--model"],
    "merge": ["merge", "adapter"],
    "doctor": ["doctor"],
    "plugins check": ["plugins", "check", "prompt_completion"],
    "chat": ["chat", "--max-new-tokens", "4"],
    "compare": [
        "compare",
        "--data",
        "d.jsonl",
        "--prompts",
        "2",
        "--max-completion-length",
        "4",
        "--output",
        "c",
        "a=A",
    ],
}


MODULES = [
    info.name for info in pkgutil.walk_packages(rlhf_core.__path__, "rlhf_core.") if "templates" not in info.name
]


def test_no_module_reaches_for_the_network_when_it_is_imported():
    calls: set[str] = set()
    with no_network(calls):
        for name in MODULES:
            if not name.endswith("__main__"):
                importlib.import_module(name)
    assert calls == set()


def test_libraries_are_told_to_send_no_telemetry(monkeypatch):
    for name in environment.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_QUIET", "false")  # what the user has set stays
    environment.prepare()
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
        assert os.environ[name].lower() in ("1", "true")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["WANDB_QUIET"] == "false"


@pytest.mark.parametrize("tracker", ["mlflow", "trackio"])
def test_trackers_that_write_to_local_files_send_nothing(tracker, tiny_model, tmp_path, monkeypatch):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text("\n".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) for i in range(4)))
    calls: set[str] = set()
    with no_network(calls):
        done = CliRunner().invoke(rlhf, [*COMMANDS["run"], str(tiny_model), "--report-to", tracker])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert calls == set()


def ask_here(question: str) -> asking.Answer:
    probe, *arguments = json.loads(question)
    return asking.Answer(PROBES[probe](*arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_local_inputs_need_no_network(command, tiny_model, tmp_path, monkeypatch):
    """What a pipeline, `doctor` and `plugins check` start in processes of their own runs here, where sockets are closed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "run_process", lambda words: CliRunner().invoke(rlhf, words).exit_code)
    monkeypatch.setattr(checking, "examine_in_process", examine)
    monkeypatch.setattr(asking.Asking, "_ask", lambda _, question: ask_here(question))
    if command == "merge":
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        get_peft_model(model, LoraConfig(target_modules="all-linear")).save_pretrained("adapter")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained("adapter")
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(4)]
    Path("d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [word.replace("=A", f"={tiny_model}") for word in COMMANDS[command]]
    arguments += [str(tiny_model)] * (command in ("run", "data", "pipeline", "chat", "compare"))
    calls: set[str] = set()
    with no_network(calls):
        done = CliRunner().invoke(rlhf, arguments, input="hello\n")
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert calls == set()
