"""A resumed run goes on as it began, from wherever it is: what it relies on is checked before weights load."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlhf_core.cli import rlhf
from rlhf_core.errors import UserError
from rlhf_core.training import checkpoint, launch
from rlhf_core.training.checkpoint import list_checkpoints

ROWS = [{"prompt": f"Symptom {i}?", "chosen": f"Rest {i} hours.", "rejected": f"Run {i} miles."} for i in range(8)]
VALUES = {"method": "sft"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return tmp_path_factory.mktemp("begun")


@pytest.fixture
def finished(go, begun):
    """A run of four steps with checkpoints at two and four. It is trained once, and copied for each test."""
    if not (begun / "out").exists():
        go(save_total_limit=9)
        shutil.copytree("out", begun / "out")
        go.trainers.clear()
    shutil.copytree(begun / "out", "out", dirs_exist_ok=True)
    return Path("out")


@pytest.fixture
def stopped(finished):
    """The same, stopped after two steps."""
    shutil.rmtree(finished / "checkpoints" / "checkpoint-4")
    shutil.rmtree(finished / "model")
    return finished


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def edit(file: Path, **values) -> None:
    """Change what a sealed checkpoint says of the run."""
    record = checkpoint.record(file)
    record.pop("files")
    checkpoint.seal(file, record.pop("step"), {**record, **values})


def rates(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] for line in lines if "loss" in line]


def test_a_resumed_run_keeps_its_manifest_and_ends_in_the_same_weights(stopped, go, begun):
    before = json.loads((stopped / "manifest.json").read_text())
    assert go(resume=True, save_total_limit=9)[0] == 0
    after = json.loads((stopped / "manifest.json").read_text())
    assert after.pop("memory").keys() == before.pop("memory").keys() == {"estimated_bytes", "resident_bytes"}
    assert after == before
    assert before["data"].keys() == {"source", "rows", "held_out", "sha256"}
    assert weights(stopped) == weights(begun / "out")


@pytest.mark.parametrize("change", ["a row less", "another word", "another order"])
def test_other_data_is_refused(stopped, go, change):
    lines = Path("data.jsonl").read_text().splitlines()
    changed = {"a row less": lines[1:], "another word": [lines[0].replace("Rest", "Lie"), *lines[1:]]}
    Path("data.jsonl").write_text("\n".join(changed.get(change, lines[::-1])))
    with pytest.raises(UserError, match=r"the data is not what it was when the run began.*--allow-changed data"):
        go(resume=True)


@pytest.mark.slow
def test_other_data_are_taken_if_that_is_allowed_and_noted(stopped, go, capsys):
    Path("data.jsonl").write_text("\n".join(Path("data.jsonl").read_text().splitlines()[::-1]))
    assert go(resume=True, allow_changed=["data", "seed"])[0] == 0
    assert "--allow-changed seed: it has not changed" in capsys.readouterr().out
    (note,) = json.loads((stopped / "manifest.json").read_text())["changed"]
    assert (note["step"], note["name"]) == (2, "data")
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-2")
    assert go(resume=True)[0] == 0  # its last checkpoint was made with these data


@pytest.mark.slow
def test_other_held_out_rows_are_refused(go, write_jsonl):
    values = {"eval_data": "look.jsonl", "num_eval_prompts": 2, "max_completion_length": 8, "max_steps": 2}
    write_jsonl("look.jsonl", ROWS[:2])
    go(**values)
    write_jsonl("look.jsonl", ROWS[2:4])
    with pytest.raises(UserError, match="the data is not what it was"):
        go(**values, resume=True)


# options -> what is said of them
REFUSED = [
    ({"learning_rate": 0.5}, r"learning_rate 0\.5 \(was 0\.001\)"),
    ({"weight_decay": 0.5}, r"weight_decay 0\.5 \(was 0\.0\)"),
    ({"set": {"adam_beta1": 0.5}}, r"adam_beta1 0\.5 \(was unset\)"),
    ({"per_device_train_batch_size": 2}, "per_device_train_batch_size 2 .was 4"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 2 .was 1"),
    ({"seed": 1}, "seed 1 .was 42"),
    ({"optim": "sgd"}, "optim sgd .was adamw_torch"),
    ({"dtype": "bfloat16"}, "dtype bfloat16 .was auto"),
    ({"lr_scheduler_type": "constant"}, "lr_scheduler_type constant .was cosine"),
    ({"max_grad_norm": 9}, "max_grad_norm 9.0 .was 1.0"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_options_that_change_the_run_are_refused_unless_allowed(stopped, go, changed, message):
    with pytest.raises(UserError, match=f"{message}.*another run: --model out/checkpoints/checkpoint-2, or go on"):
        go(resume=True, **changed)


def test_allowed_options_act_and_are_noted(stopped, go):
    changed = {"learning_rate": 2e-3, "weight_decay": 0.5, "set": {"adam_beta1": 0.5}, "seed": 7, "max_steps": 5}
    names = ["learning_rate", "weight_decay", "adam_beta1", "seed", "data"]
    assert go(resume=True, save_steps=1, allow_changed=names, **changed)[0] == 0
    optimizer = go.trainers[0].optimizer
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.999)}
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    warm = lambda t, steps: (1 + math.cos(math.pi * (t - 1) / (steps - 1))) / 2  # noqa: E731 - after a step of warm-up
    assert rates(stopped) == pytest.approx([0, 1e-3, *(2e-3 * warm(t, 5) for t in (2, 3, 4))])
    notes = json.loads((stopped / "manifest.json").read_text())["changed"]
    assert {note["name"]: note["now"] for note in notes if note["name"] != "data"} == {**changed.pop("set"), **changed}
    changed["set"] = {"adam_beta1": 0.5}
    assert go(resume=True, save_steps=1, **changed)[0] == 0  # they are the run's now


@pytest.mark.parametrize("changed", [{"lora": True}, {"method": "dpo"}])
def test_what_the_checkpoint_has_no_place_for_is_refused_always(stopped, go, changed):
    (name,) = changed
    with pytest.raises(UserError, match=rf"--allow-changed {name}: nothing of that name may change"):
        go(resume=True, allow_changed=[name], **changed)
    with pytest.raises(UserError, match=f"{name} .*was.*another run: --model out/checkpoints/checkpoint-2$"):
        go(resume=True, **changed)


def test_what_changes_nothing_that_is_learned_may_change(stopped, go, capsys, begun):
    assert go(resume=True, logging_steps=2, save_steps=1, save_total_limit=1)[0] == 0
    assert yaml.safe_load((stopped / "config.yaml").read_text())["save_steps"] == 1
    assert "since the run began" not in capsys.readouterr().out
    assert weights(stopped) == weights(begun / "out")


def test_a_configuration_that_was_edited_is_compared_with_the_checkpoint(stopped, go):
    values = yaml.safe_load((stopped / "config.yaml").read_text())
    (stopped / "config.yaml").write_text(yaml.safe_dump({**values, "seed": 5}))
    with pytest.raises(UserError, match="seed 5 .was 42"):
        go(resume=True, seed=5)


FACTORS = {  # each schedule at step `t` of `steps`, without warm-up
    "cosine": lambda t, steps: (1 + math.cos(math.pi * t / steps)) / 2,
    "linear": lambda t, steps: 1 - t / steps,
    "constant": lambda t, steps: 1.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", FACTORS)
def test_a_finished_run_that_is_made_longer_follows_the_schedule_of_its_new_length(go, schedule, capsys):
    values = {"lr_scheduler_type": schedule, **({"warmup_steps": 0.0} if schedule != "constant" else {})}
    go(**values, max_steps=2)
    code, folder = go(**values, max_steps=5, resume=True)
    assert code == 0
    expected = [FACTORS[schedule](t, 2 if t < 2 else 5) * 1e-3 for t in range(5)]
    assert rates(folder) == pytest.approx(expected)
    assert f"max_steps is 5, was 2; from here on the rate follows the {schedule} schedule" in capsys.readouterr().out
    with pytest.raises(UserError, match="--max-steps 3: the run is at step 5 already"):
        go(**values, max_steps=3, resume=True)
    with pytest.raises(UserError, match="--num-train-epochs 0.1: the run is at 2.5 epochs already"):
        go(**values, max_steps=-1, num_train_epochs=0.1, resume=True)


def test_a_checkpoint_without_the_optimizer_is_refused(stopped, go):
    file = stopped / "checkpoints" / "checkpoint-2"
    (file / "optimizer.pt").unlink()
    edit(file)
    with pytest.raises(UserError, match="checkpoint-2 holds the weights alone.*--model out/checkpoints/checkpoint-2"):
        go(resume=True)


def test_other_versions_of_libraries_are_told_and_of_plugins_refused(stopped, go, capsys):
    found = json.loads((stopped / "manifest.json").read_text())
    found["versions"]["trl"] = "0.1"
    found["plugins"][0] = "method sft: rlhf-method-sft 0.0.1"
    edit(stopped / "checkpoints" / "checkpoint-2", manifest=found)
    with pytest.raises(UserError, match=r"method sft is .*was rlhf-method-sft 0\.0\.1.*--allow-changed rlhf-method-s"):
        go(resume=True)
    assert go(resume=True, allow_changed=["rlhf-method-sft"])[0] == 0
    shown = capsys.readouterr().out
    assert "since the run began: method sft is rlhf-method-sft 0.1.0, was rlhf-method-sft 0.0.1" in shown
    assert "since the run began: trl is" in shown


def test_of_a_damaged_checkpoint_the_one_before_is_taken(finished, go, capsys, begun):
    shutil.rmtree(finished / "model")
    (finished / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    (finished / "manifest.json").write_text("{")  # its content is in the checkpoint, too
    assert go(resume=True, save_total_limit=9)[0] == 0
    shown = capsys.readouterr().out
    assert "checkpoint-4 is damaged: optimizer.pt has 4 bytes and had" in shown
    assert "Resuming after checkpoint-2." in shown
    assert weights(finished) == weights(begun / "out")
    assert [path.name for path in list_checkpoints(finished / "checkpoints")] == ["checkpoint-2", "checkpoint-4"]
    assert json.loads((finished / "manifest.json").read_text())["seed"] == 42


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_nothing_is_unpickled_even_from_a_checkpoint_that_is_sealed(stopped, go, capsys, name):
    file = stopped / "checkpoints" / "checkpoint-2"
    (file / name).write_bytes(pickle.dumps(Evil()))
    edit(file)
    assert go(resume=True)[0] == 1
    shown = capsys.readouterr()
    assert "out/checkpoints/checkpoint-2 can't be loaded: it is damaged, or another version wrote it" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert not Path("unpickled").exists()


def test_logs_keep_lines_with_any_line_break_in_their_texts_and_damage_is_set_aside(stopped, go, capsys):
    lines = [{"step": 1, "text": "one\u2028two\u0085three\x0bfour"}, {"step": 9}, {"no": "step"}, [1], {"step": "1"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (stopped / "samples.jsonl").write_bytes(text.encode() + b'\xff\x00\n{"step": 1, "half": "\xe4\xb8')
    assert go(resume=True)[0] == 0
    assert (stopped / "samples.jsonl").read_text() == json.dumps(lines[0], ensure_ascii=False) + "\n"
    assert len((stopped / "samples.jsonl.damaged").read_bytes().splitlines()) == 4
    assert "out/samples.jsonl: 4 damaged lines are set aside in out/samples.jsonl.damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["samples.jsonl", "samples.jsonl.damaged", "stop", ".stopped", ".rlhf.lock"])
def test_a_folder_in_the_place_of_a_file_is_said(stopped, go, name):
    (stopped / name).unlink(missing_ok=True)
    (stopped / name).mkdir()
    with pytest.raises(UserError, match=f"out/{name} is no file"):
        go(resume=True)


@pytest.mark.parametrize("name", ["model", "tensorboard"])
def test_a_file_or_a_dead_link_in_the_place_of_a_folder_is_said(stopped, go, name):
    shutil.rmtree(stopped / name, ignore_errors=True)
    for make in (lambda: (stopped / name).write_text("mine"), lambda: (stopped / name).symlink_to("nowhere")):
        make()
        with pytest.raises(UserError, match=f"out/{name} is no folder"):
            go(resume=True)
        (stopped / name).unlink()


def test_a_stop_file_that_was_left_is_removed_and_said(stopped, go, capsys):
    (stopped / "stop").touch()
    assert go(resume=True)[0] == 0
    assert "out/stop was left from before" in capsys.readouterr().out
    assert not (stopped / "stop").exists()


@pytest.mark.slow
def test_a_run_that_was_moved_with_its_data_resumes_from_anywhere(stopped, tmp_path, monkeypatch, begun):
    moved, there = tmp_path / "moved", tmp_path / "there"
    (moved / "runs").mkdir(parents=True)
    there.mkdir()
    shutil.move(stopped, moved / "renamed")
    shutil.move("data.jsonl", moved / "data.jsonl")
    monkeypatch.chdir(there)
    (there / "data.jsonl").write_text('{"prompt": "another", "chosen": "file"}')
    monkeypatch.setattr("sys.argv", ["rlhf", "run", "--resume", str(moved / "renamed")])
    for _ in range(2):  # also when it was resumed there before
        assert CliRunner().invoke(rlhf, ["run", "--resume", str(moved / "renamed")]).exit_code == 0
        assert weights(moved / "renamed") == weights(begun / "out")
        shutil.rmtree(moved / "renamed" / "checkpoints" / "checkpoint-4")
        shutil.rmtree(moved / "renamed" / "model")
    assert yaml.safe_load((moved / "renamed" / "config.yaml").read_text())["data"] == ["data.jsonl"]


@pytest.mark.slow
def test_a_reward_and_a_model_with_another_content_are_refused(tmp_path, go, tiny_model):
    Path("r.py").write_text("def f(completions, **_): return [float(len(c)) for c in completions]")
    shutil.copytree(tiny_model, "model")
    values = {"method": "grpo", "reward": ["./r.py:f"], "model": "model", "max_completion_length": 4, "max_steps": 2}
    values |= {"num_generations": 4}
    go(**values)
    with Path("r.py").open("a") as file:
        file.write("\n# changed")
    (Path("model") / "config.json").write_text((Path("model") / "config.json").read_text() + "\n")
    message = "the files of models or of the chat template are not what they were.*the files of rewards are not"
    with pytest.raises(UserError, match=message):
        go(resume=True, **{**values, "max_steps": 3})
    assert go(resume=True, allow_changed=["model", "reward"], **{**values, "max_steps": 3})[0] == 0
    assert go(resume=True, **{**values, "max_steps": 4})[0] == 0


def test_names_that_may_not_change_are_told(stopped, go):
    with pytest.raises(UserError, match="--allow-changed sead: nothing of that name may change. Did you mean 'seed'?"):
        go(resume=True, allow_changed=["sead"])
    with pytest.raises(UserError, match="--allow-changed seed has no effect without --resume"):
        rlhf(["run", "--method", "sft", "--allow-changed", "seed"], standalone_mode=False)
    assert {*launch.BATCH} == {"per_device_train_batch_size", "gradient_accumulation_steps"}


def test_resume_with_output_dir_is_the_run_in_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/newest", "chosen"):
        Path(name, "checkpoints").mkdir(parents=True)
        (Path(name) / "config.yaml").write_text(f"method: sft\nmodel: ./no/{name}\n")
    said = CliRunner().invoke(rlhf, ["run", "--resume", "--output-dir", "chosen"])
    assert "no/chosen" in said.output + str(said.exception)
    said = CliRunner().invoke(rlhf, ["run", "--resume", "runs/newest", "--output-dir", "chosen"])
    assert "leave out --output-dir chosen" in said.output + str(said.exception)


@pytest.mark.parametrize("text", ["method: [sft", "", "seed: 1", "\0", None])
def test_a_damaged_configuration_is_said_with_where_it_is_written_again(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    for step in (2, 12):
        Path(f"run/checkpoints/checkpoint-{step}").mkdir(parents=True)
        checkpoint.seal(Path(f"run/checkpoints/checkpoint-{step}"), step, {})
    if text is not None:
        Path("run/config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"--resume run: .*is in run/checkpoints/checkpoint-12/checkpoint\.json"):
        rlhf(["run", "--resume", "run"], standalone_mode=False)
