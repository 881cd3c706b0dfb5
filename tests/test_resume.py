"""What a resumed run relies on is checked before weights load: state, data, options; what may differ is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlhf_core.cli import rlhf
from rlhf_core.errors import UserError

ROWS = [{"prompt": f"Symptom {i}?", "chosen": f"Rest {i} hours.", "rejected": f"Run {i} miles."} for i in range(8)]
VALUES = {"method": "sft"}


@pytest.fixture
def stopped(go):
    """A run of four steps that was stopped after two."""
    _, folder = go()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    shutil.rmtree(folder / "model")
    return folder


def test_a_resumed_run_keeps_its_manifest(stopped, go, monkeypatch):
    before = (stopped / "manifest.json").read_text()
    monkeypatch.setattr("sys.argv", ["rlhf", "run", "--resume"])
    code, _ = go(resume=True)
    assert code == 0
    assert (stopped / "manifest.json").read_text() == before
    assert json.loads(before)["data"].keys() == {"source", "rows", "held_out", "sha256"}


@pytest.mark.parametrize("change", ["a row less", "another word", "another order"])
def test_other_data_is_refused(stopped, go, change):
    lines = Path("data.jsonl").read_text().splitlines()
    changed = {"a row less": lines[1:], "another word": [lines[0].replace("Rest", "Lie"), *lines[1:]]}
    Path("data.jsonl").write_text("\n".join(changed.get(change, lines[::-1])))
    with pytest.raises(UserError, match=r"the data is not what it was when the run began.*remove out/manifest.json"):
        go(resume=True)
    (stopped / "manifest.json").unlink()
    assert go(resume=True)[0] == 0


def test_other_held_out_rows_are_refused(go, write_jsonl):
    write_jsonl("look.jsonl", ROWS[:2])
    go(eval_data="look.jsonl", num_eval_prompts=2, max_steps=2)
    write_jsonl("look.jsonl", ROWS[2:4])
    with pytest.raises(UserError, match="the data is not what it was"):
        go(eval_data="look.jsonl", num_eval_prompts=2, max_steps=2, resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"learning_rate 0\.5 \(was 0\.001\)"),
        ({"weight_decay": 0.5}, r"weight_decay 0\.5 \(was 0\.0\)"),
        ({"set": {"adam_beta1": 0.5}}, r"set \{'adam_beta1': 0\.5\} \(was \{\}\)"),
        ({"max_steps": 40}, r"max_steps 40 \(was 4; the learning rate follows a schedule of that length\)"),
        ({"per_device_train_batch_size": 2}, "rows in an optimizer step 2 .was 4"),
    ],
)
def test_options_that_would_not_act_or_change_the_run_are_refused(stopped, go, changed, message):
    with pytest.raises(UserError, match=f"{message}.*another run: --model out/checkpoints/checkpoint-2"):
        go(resume=True, **changed)


def test_other_options_may_change(stopped, go, capsys):
    smaller = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert go(resume=True, logging_steps=2, save_steps=1, **smaller)[0] == 0
    assert yaml.safe_load((stopped / "config.yaml").read_text())["save_steps"] == 1
    assert "since the run began" not in capsys.readouterr().out


def test_a_run_with_a_constant_rate_can_be_made_longer(go):
    go(lr_scheduler_type="constant", max_steps=2)
    code, folder = go(lr_scheduler_type="constant", max_steps=4, resume=True)
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines if "loss" in line] == [1e-3] * 4


def test_a_checkpoint_without_the_optimizer_is_refused(stopped, go):
    (stopped / "checkpoints" / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="checkpoint-2 holds the weights alone.*--model out/checkpoints/checkpoint-2"):
        go(resume=True)


def test_other_versions_are_told(stopped, go, capsys):
    manifest = json.loads((stopped / "manifest.json").read_text())
    manifest["versions"]["trl"] = "0.1"
    manifest["plugins"][0] = "method sft: rlhf-method-sft 0.0.1"
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    assert go(resume=True)[0] == 0
    shown = capsys.readouterr().out
    assert "since the run began: method sft is rlhf-method-sft 0.1.0, was rlhf-method-sft 0.0.1" in shown
    assert "since the run began: trl is" in shown


def test_a_checkpoint_that_cant_be_loaded_is_one_message(stopped, go, capsys):
    (stopped / "checkpoints" / "checkpoint-2" / "optimizer.pt").write_bytes(b"half")
    code, _ = go(resume=True)
    shown = capsys.readouterr()
    assert code == 1
    assert "out/checkpoints/checkpoint-2 can't be loaded: it is damaged, or another version wrote it" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_resume_with_output_dir_is_the_run_in_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/newest", "chosen"):
        Path(name).mkdir(parents=True)
        (Path(name) / "config.yaml").write_text(f"method: sft\nmodel: no/{name}\n")
    said = CliRunner().invoke(rlhf, ["run", "--resume", "--output-dir", "chosen"])
    assert "no/chosen" in said.output + str(said.exception)
    said = CliRunner().invoke(rlhf, ["run", "--resume", "runs/newest", "--output-dir", "chosen"])
    assert "leave out --output-dir chosen" in said.output + str(said.exception)
