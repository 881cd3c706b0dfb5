"""`rlhf runs`: what it says of folders as runs leave them, whole and damaged, and what `rlhf runs rm` removes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from rlhf_core import runs as past
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.outputs import LOCK, claim
from rlhf_core.training import run_folder
from rlhf_core.training.run import train


def make(folder: Path, steps: int = 0, **more) -> Path:
    """A run's folder, as a run leaves it after `steps` steps. `more`: what its manifest has."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / LOCK).touch()
    config = (
        "method: grpo\nmodel: builtin\ndata:\n- 数据.jsonl\nreward:\n- length\ntag:\n- 甲\nlearning_rate: 1.0e-05\n"
    )
    (folder / "config.yaml").write_text(config)
    (folder / "manifest.json").write_text(json.dumps({"max_steps": 10, **more}))
    lines = [{"step": 0, "eval_loss": 9.0}, *({"step": n + 1, "loss": 0.0, "reward": n / 10} for n in range(steps))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "re')
    return folder


def list_runs(*arguments: str):
    return CliRunner().invoke(rlhf, ["runs", *arguments], catch_exceptions=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


RESULTS = {"before": {"rewards": {"length": 0.25}}, "after": {"rewards": {"length": 0.75}}}


def test_each_run_is_told_with_its_state_steps_and_main_metric(here):
    done = {"state": "done"}
    make(here / "runs" / "good", 10, ended=done, results=RESULTS)
    make(here / "runs" / "stage" / "inner", 4)
    make(here / "runs" / "stage" / "inner" / "model" / "no-run-of-its-own", 1)
    make(here / "runs" / "new")
    make(here / "runs" / "broken", 3, ended={"state": "failed"})
    old = make(here / "runs" / "old", 10)  # of an earlier version
    (old / "manifest.json").write_text("{}")
    (old / "model").mkdir()
    (old / "model" / "README.md").touch()
    (old / "evaluation.json").write_text(
        json.dumps({"before": {"metrics": {"loss": 2.0}, "rewards": {}}, "after": None})
    )
    with claim(make(here / "runs" / "now", 2), "x"):
        found = {run["folder"]: run for run in json.loads(list_runs("--json").output)}
    states = {folder.removeprefix("runs/"): run["state"] for folder, run in found.items()}
    assert states == {
        "good": "done", "stage/inner": "stopped", "new": "new", "broken": "failed", "old": "done", "now": "training"
    }  # fmt: skip
    good, inner = found["runs/good"], found["runs/stage/inner"]
    assert (good["metric"], good["before"], good["after"], good["in_training"]) == ("length", 0.25, 0.75, False)
    assert (good["steps"], good["max_steps"], good["data"], good["tags"]) == (10, 10, ["数据.jsonl"], ["甲"])
    assert (inner["metric"], inner["before"], inner["after"], inner["in_training"]) == ("reward", 0.0, 0.3, True)
    assert (found["runs/old"]["metric"], found["runs/old"]["before"], found["runs/old"]["after"]) == ("loss", 2.0, None)
    assert inner["resume"] == "rlhf run --resume runs/stage/inner"
    assert {folder for folder, run in found.items() if run["resume"]} == {
        f"runs/{n}" for n in ("stage/inner", "new", "broken")
    }


def test_two_that_are_done_are_compared_by_their_pages_and_by_their_answers_where_they_write_some(here):
    for name in ("a", "b", "c  d"):
        make(here / "runs" / name, 10, ended={"state": "done"})
    (here / "runs" / "b" / "model").mkdir()
    (here / "runs" / "b" / "model" / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    said = list_runs("--sort", "name").output.split("To compare two:\n")[1]
    assert said == "  rlhf report runs/a runs/b\n  rlhf compare runs/a 'runs/c  d'\n"


def test_a_model_that_is_its_own_reference_has_no_accuracy_before(here):
    means = {"before": {"metrics": {"rewards/accuracies": 0.0, "rewards/margins": 0.0}}}
    means["after"] = {"metrics": {"rewards/accuracies": 0.75, "rewards/margins": 0.1}}
    run = past.read(make(here / "runs" / "a", 10, results=means))
    assert (run.metric, run.before, run.after) == ("rewards/accuracies", None, 0.75)


DAMAGE = {
    "no YAML": ("config.yaml", b"method: [grpo\n\tmodel", "config.yaml is not YAML"),
    "not a mapping": ("config.yaml", b"- 1\n", "names no method"),
    "bytes": ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    "no configuration": ("config.yaml", None, "config.yaml is missing"),
    "cut manifest": ("manifest.json", b'{"max_steps": 1', "manifest.json is not JSON"),
    "list": ("manifest.json", b"[]", "manifest.json is no object"),
    "deep": ("manifest.json", b"[" * 100_000, "manifest.json is not JSON"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_shown_as_such(case, here):
    name, content, message = DAMAGE[case]
    folder = make(here / "runs" / "a", 2)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    run = past.read(folder)
    assert run.state == "damaged"
    assert message in run.problem
    assert "damaged" in list_runs().output


def test_configurations_in_another_style_and_odd_values_are_read(here):
    folder = make(here / "runs" / "a", 2, ended=7, results=["x"], max_steps=True)
    (folder / "config.yaml").write_text('{"method": "dpo", "name": "\\u001b[31mred", "data": {"a": 1}, "max_steps": 5}')
    (folder / "metrics.jsonl").write_bytes(
        b'[1]\n{"step": 1, "loss": "\xff"}\n{"step": 2, "loss": NaN, "reward": null}\n'
    )
    run = past.read(folder)
    assert (run.method, run.data, run.state, run.steps, run.max_steps) == ("dpo", ['{"a": 1}'], "stopped", 2, 5)
    assert "\x1b" not in list_runs().output
    assert "␛[31mred (a)" in list_runs().output


def test_sorting_and_filters(here):
    for name, steps, tags in (("b", 1, "[x, y]"), ("a", 3, "[x]"), ("c", 2, "[]")):
        folder = make(here / name, steps)
        text = (
            (folder / "config.yaml").read_text().replace("tag:\n- 甲", f"tag: {tags}").replace("builtin", f"m/{name}")
        )
        (folder / "config.yaml").write_text(text)

    def names(*arguments):
        return "".join(run["name"] for run in json.loads(list_runs(".", "--json", *arguments).output))

    assert names("--sort", "name") == "abc"
    assert names("--sort", "steps") == "acb"
    assert names("--tag", "x", "--sort", "name") == "ab"
    assert names("--tag", "x", "--tag", "y") == "b"
    assert names("--find", "M/C") == "c"
    assert names("--method", "sft") == names("--state", "done") == ""
    assert "None of the 3 runs" in list_runs(".", "--method", "sft").output


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal_and_columns_are_aligned(width, here, monkeypatch):
    make(here / "runs" / "中文名字的一次训练", 10, ended={"state": "done"}, results=RESULTS)
    make(here / "runs" / "grpo-20260101-120000", 4)
    monkeypatch.setattr("rlhf_core.cli.runs.Terminal", lambda: _terminal(width))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", list_runs().output).splitlines()
    assert all(cell_len(line) <= width for line in shown[:3])
    starts = {
        cell_len(line[: line.index(word)]) for line, word in zip(shown, ("STATE", "stopped", "done"), strict=False)
    }
    assert len(starts) == 1, shown
    assert ("MODEL" in shown[0]) == (width == 120)
    assert "* as it was logged in training" in "\n".join(shown)


def _terminal(width):
    from rlhf_core.ui.screen import Terminal

    terminal = Terminal(force_terminal=True, width=width)
    terminal.file = sys.stdout
    return terminal


def test_a_pipe_gets_no_colours_and_a_long_list_is_quick_and_imports_nothing_heavy(here):
    first = make(here / "runs" / "r0", 10, ended={"state": "done"}, results=RESULTS)
    for i in range(1, 60):
        folder = here / "runs" / f"r{i}"
        (folder / "checkpoints").mkdir(parents=True)
        for name in ("config.yaml", "manifest.json", "metrics.jsonl"):
            (folder / name).write_bytes((first / name).read_bytes())
    code = "import sys, rlhf_core.cli as c; c.rlhf(sys.argv[1:], standalone_mode=False); print({*sys.modules} & {'torch', 'pydantic'})"
    result = subprocess.run([sys.executable, "-c", code, "runs"], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len([line for line in lines if " 10/10 " in line]) == 60
    assert lines[-1] == "set()"
    assert "\x1b" not in result.stdout
    began = time.process_time()
    for _ in range(5):
        list(map(past.read, past.find([here / "runs"])))
    assert time.process_time() - began < 1.5  # 300 of them


def test_no_runs_and_no_folder(here):
    assert "No runs in runs/." in list_runs().output
    with pytest.raises(UserError, match="there is no such folder"):
        list_runs("nowhere")
    (here / "file").touch()
    with pytest.raises(UserError, match="is no folder"):
        list_runs("file")


def test_rm_removes_what_the_run_wrote_and_nothing_else(here):
    folder, other = make(here / "runs" / "a", 3), make(here / "runs" / "b")
    (folder / "mine.txt").write_text("x")
    (folder / "model").mkdir()
    (folder / "model" / "big").write_bytes(bytes(3_000_000))
    shown = list_runs("rm", "a", "runs/b", "--yes").output
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert not other.exists()
    assert "3 MB are free" in shown
    assert "mine.txt stays" in shown


def test_rm_asks_and_refuses(here, monkeypatch):
    folder = make(here / "runs" / "a")
    (here / "no-run").mkdir()
    (here / "link").symlink_to(folder)
    cases = {
        ("no-run", "--yes"): "this is not a run",
        ("nothing", "--yes"): "there is no such run",
        ("a", "nothing", "--yes"): "there is no such run",
        ("link", "--yes"): "is a link",
        ("a",): "write --yes",
        ("a", "--yes", "--json"): "--json has no effect",
        (): "which runs",
    }
    for words, message in cases.items():
        with pytest.raises(UserError, match=message):
            list_runs("rm", *words)
    with claim(folder, "x"), pytest.raises(UserError, match="is training now"):
        list_runs("rm", "a", "--yes")
    with pytest.raises(UserError, match="--yes has no effect"):
        list_runs("--yes")
    assert (folder / "config.yaml").exists()
    monkeypatch.chdir(folder)
    assert list_runs("rm", ".", "--yes").exit_code == 0
    assert not folder.exists()


def test_who_looks_at_a_lock_keeps_nobody_from_it(here):
    """`rlhf runs` shares the lock for a moment, in which a run may begin."""
    import fcntl
    import threading

    folder = make(here / "a")
    with (folder / LOCK).open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        threading.Timer(0.02, lambda: fcntl.flock(looked_at, fcntl.LOCK_UN)).start()
        with claim(folder, "x"):
            assert past.is_training(folder)


def run(tiny_model, *, resume: bool = False, **values):
    values = {"method": "sft", "model": str(tiny_model), "data": "rows.jsonl", "max_steps": 2, **values}
    values |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_eval_prompts": 0}
    return train(*resolve(values, Catalog()), Catalog(), resume=resume)


def test_a_run_has_a_name_and_tags_that_change_on_resume(here, tiny_model):
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(4)
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(tiny_model, name="第一次", tag=["x"], save_steps=1) == 0
    folder = Path("runs") / "第一次"
    told = past.read(folder)
    assert (told.state, told.name, told.tags, told.steps, told.max_steps) == ("done", "第一次", ["x"], 2, 2)
    with pytest.raises(UserError, match="--name runs/第一次 holds a run already"):
        run(tiny_model, name="第一次")
    assert (
        run(tiny_model, output_dir=str(folder), name="second", tag=["y", "z"], max_steps=3, save_steps=1, resume=True)
        == 0
    )
    told = past.read(folder)
    assert (told.state, told.name, told.tags, told.steps, told.max_steps) == ("done", "second", ["y", "z"], 3, 3)
    assert list_runs("rm", "second", "--yes").exit_code == 0
    assert not folder.exists()


@pytest.mark.parametrize("name", ["a/b", ".hidden", "-x", "a,b", "", " ", "a\nb", "x" * 200, "\x1b[0m"])
def test_names_that_no_folder_should_have_are_refused(name, here):
    with pytest.raises(UserError, match="--name"):
        resolve({"method": "sft", "name": name}, Catalog())


def test_a_name_that_is_taken_by_other_files_is_refused(here):
    (here / "runs" / "a").mkdir(parents=True)
    (here / "runs" / "a" / "run.log").touch()
    config, _ = resolve({"method": "sft", "name": "a"}, Catalog())
    with pytest.raises(UserError, match="--name runs/a has files"), run_folder.claimed(config, False):
        pass
