"""What a run was made of: it is compared with what is there now, and found again where files and runs were moved."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec
from rlhf_core.reward import Reward
from rlhf_core.training import checkpoint, manifest, resume

CONFIG = {
    **{"method": "sft", "data": ["d.jsonl"], "model": None, "reward_model": None, "chat_template": None, "set": None},
    **{"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "max_steps": 8, "seed": 42, "save_steps": 2},
    **{"weight_decay": 0.0, "lora": False, "num_train_epochs": 1.0, "total_episodes": None, "reward": None},
}
PLUGINS = ["method sft: rlhf-method-sft 0.1.0", "formatter alpaca: rlhf-formatter-common 0.1.0"]
ROWS = [{"prompt": "one"}, {"prompt": "two"}]


def a_run(folder: Path, config=(), train=ROWS, held_out=()) -> SimpleNamespace:
    """As much of a run as is looked at."""
    values = {**CONFIG, **dict(config)}
    data = [DataSpec.read(entry) for entry in values["data"] or ()]
    rewards = [RewardSpec.read(entry) for entry in values["reward"] or ()]
    config = SimpleNamespace(
        **values, to_dict=lambda: values, data_specs=data, eval_specs=[], reward_specs=rewards, trust_remote_code=False
    )
    plan = SimpleNamespace(data=SimpleNamespace(train=list(train), rows=[*train, *held_out]))
    info, options = SimpleNamespace(path=values["model"], adapter=None), SimpleNamespace(seed=values["seed"])
    bound = [
        SimpleNamespace(name=spec.label, function="built", reward=Reward(print, name=spec.label)) for spec in rewards
    ]
    return SimpleNamespace(
        folder=folder,
        config=config,
        plan=plan,
        held_out=list(held_out),
        info=info,
        options=options,
        resume_from=None,
        rewards=SimpleNamespace(rewards=bound),
    )


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """begun(option=…) -> the checkpoint at step 4 of a run in out/ with this configuration."""
    monkeypatch.chdir(tmp_path)

    def make(plugins=PLUGINS, more=(), change=lambda described: None, optimizer="optimizer.pt", **config) -> Path:
        folder = tmp_path / "out"
        made = folder / "checkpoints" / "checkpoint-4"
        made.mkdir(parents=True)
        for name in (optimizer, "scheduler.pt", "model.safetensors"):
            (made / name).write_bytes(b"state")
        described = manifest.describe(a_run(folder, config), plugins)
        change(described)
        (folder / manifest.FILE).write_text(json.dumps(described))
        (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config}))
        checkpoint.seal(made, 4, {"config": {**CONFIG, **config}, "manifest": described, **dict(more)})
        return made

    return make


def check(made: Path, plugins=PLUGINS, allowed=(), train=ROWS, held_out=(), **config) -> resume.Resumed:
    return resume.check(a_run(made.parent.parent, config, train, held_out), made, plugins, allowed)


def test_nothing_is_said_of_a_run_that_is_what_it_was(begun):
    made = begun(change=lambda described: described.update(command="as it began"))
    resumed = check(made)
    assert (resumed.told, resumed.notes, resumed.names, resumed.rate_ratio) == ([], [], set(), 1)
    assert not resumed.changes_schedule
    assert resumed.manifest == checkpoint.record(made)["manifest"]
    (made.parent.parent / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "seed": 5}))  # the checkpoint's counts
    assert check(made).names == set()


# as the run began, now -> what is said of it; one that may change at most with --allow-changed
OPTIONS = [
    ({}, {"seed": 1}, "seed 1 (was 42)"),
    ({}, {"set": {"adam_beta1": 0.5}}, "adam_beta1 0.5 (was unset)"),
    ({"set": {"adam_beta1": 0.5}}, {}, "adam_beta1 unset (was 0.5)"),
    ({"set": {"adam_beta1": 0.5}}, {"set": {"adam_beta1": 0.6}}, "adam_beta1 0.6 (was 0.5)"),
    ({}, {"weight_decay": 0.1}, "weight_decay 0.1 (was 0.0)"),
    ({}, {"chat_template": "x.jinja"}, "chat_template x.jinja (was None)"),
    ({"chat_template": "x.jinja"}, {}, "chat_template None (was x.jinja)"),
]


@pytest.mark.parametrize(("then", "now", "said"), OPTIONS)
def test_options_that_change_what_is_learned(begun, then, now, said):
    made = begun(**then)
    name = said.partition(" ")[0]
    with pytest.raises(UserError) as refused:
        check(made, **now)
    assert f"which these do not: {said}. Leave" in str(refused.value)
    assert str(refused.value).endswith(f"go on with them all the same: --allow-changed {name}")
    resumed = check(made, **now, allowed=[name])
    assert resumed.names == {name}
    assert resumed.changes_schedule is (name in ("adam_beta1", "weight_decay"))
    (note,) = resumed.manifest["changed"]
    assert (note["step"], note["name"]) == (4, name)


def test_what_may_change(begun):
    made = begun(set={"save_total_limit": 1})
    assert check(made, save_steps=5, set={"save_total_limit": 3, "logging_first_step": True}).names == set()


def test_several_changes_are_refused_together_and_one_with_no_place_always(begun):
    made = begun()
    with pytest.raises(UserError, match=r"seed 1 .was 42.; weight_decay 0.1 .*--allow-changed seed --allow-changed we"):
        check(made, seed=1, weight_decay=0.1)
    with pytest.raises(UserError, match=r"these do not: weight_decay 0\.1 .was 0\.0.\. Leave"):
        check(made, seed=1, weight_decay=0.1, allowed=["seed"])
    with pytest.raises(UserError, match=r"lora True .was False.*checkpoint-4$"):
        check(made, lora=True, seed=1)


@pytest.mark.parametrize("name", ["lora", "set", "by", "sead", "rlhf", "versions", "0.1.0"])
def test_names_that_nothing_has(begun, name):
    with pytest.raises(UserError, match=f"--allow-changed {name}: nothing of that name may change"):
        check(begun(), allowed=[name])


@pytest.mark.parametrize("name", ["seed", "adam_beta1", "data", "model", "reward", "checkpoint", "rlhf-method-sft"])
def test_names_that_have_not_changed_are_told(begun, name):
    made = begun(set={"adam_beta1": 0.5})
    resumed = check(made, set={"adam_beta1": 0.5}, allowed=[name])
    assert resumed.told == [f"--allow-changed {name}: it has not changed"]


def test_the_peak_of_the_learning_rate_is_compared_with_what_it_was(begun):
    resumed = check(begun(), learning_rate=3e-3, allowed=["learning_rate"])
    assert resumed.rate_ratio == pytest.approx(3)
    assert resumed.changes_schedule


@pytest.mark.parametrize("schedules", [("cosine", "greedy"), ("reduce_lr_on_plateau", "cosine")])
def test_the_rate_of_a_schedule_that_follows_a_metric_cannot_be_set(begun, schedules):
    made = begun(lr_scheduler_type=schedules[0])
    with pytest.raises(UserError, match="follows a metric"):
        check(made, lr_scheduler_type=schedules[1], allowed=["lr_scheduler_type"])
    with pytest.raises(UserError, match="follows a metric"):
        check(made, lr_scheduler_type=schedules[1], learning_rate=1, allowed=["lr_scheduler_type", "learning_rate"])
    assert check(made, lr_scheduler_type=schedules[0], seed=1, allowed=["seed"]).names == {"seed"}


def test_lengths(begun):
    made = begun()
    assert check(made, max_steps=4).names == {"max_steps"}
    assert check(made, max_steps=-1, num_train_epochs=2.0).names == {"max_steps", "num_train_epochs"}
    resumed = check(made, max_steps=9)
    assert resumed.changes_schedule
    assert "max_steps is 9, was 8; from here on the rate follows the cosine schedule" in resumed.told[0]
    for shorter in (1, 3):
        with pytest.raises(UserError, match=f"--max-steps {shorter}: the run is at step 4 already, in checkpoint-4"):
            check(made, max_steps=shorter)


def test_lengths_in_epochs(begun):
    made = begun(max_steps=-1, num_train_epochs=3.0)
    (made / "trainer_state.json").write_text('{"epoch": 1.5}')
    assert check(made, max_steps=-1, num_train_epochs=2.0).names == {"num_train_epochs"}
    with pytest.raises(UserError, match="--num-train-epochs 1: the run is at 1.5 epochs already, in checkpoint-4"):
        check(made, max_steps=-1, num_train_epochs=1.0)
    for other in ({"max_steps": 5}, {"max_steps": -1, "total_episodes": 9}):  # of which the epochs say nothing
        assert "num_train_epochs" in check(made, num_train_epochs=1.0, **other).names
    begun_shorter = {"max_steps": -1, "num_train_epochs": 3.0}
    (made / "trainer_state.json").write_text('{"epoch": 4.0}')  # the same length as then is not compared
    assert check(made, **begun_shorter).names == set()


@pytest.mark.parametrize("between", [False, True])
def test_a_run_is_made_longer_between_two_batches_of_answers_only(begun, between):
    made = begun(more={"between_batches": between})
    assert check(made).names == set()
    if between:
        assert check(made, max_steps=9).names == {"max_steps"}
    else:
        with pytest.raises(UserError, match="checkpoint-4 is within a batch of answers"):
            check(made, max_steps=9)


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "optimizer_0", "global_step4", ""])
def test_the_state_of_the_optimizer_is_there_and_changed_only_where_one_process_holds_it(begun, name):
    made = begun(optimizer=name or "another.pt")
    if not name:
        with pytest.raises(UserError, match="the weights alone, without the state of the optimizer"):
            check(made)
        return
    assert check(made).names == set()
    if name == "optimizer.pt":
        assert check(made, weight_decay=0.1, allowed=["weight_decay"]).names == {"weight_decay"}
    else:
        with pytest.raises(UserError, match="split between processes"):
            check(made, weight_decay=0.1, allowed=["weight_decay"])


def test_a_changed_optimizer_begins_anew_with_all_other_files_of_the_checkpoint(begun):
    made = begun()
    run = a_run(made.parent.parent)
    run.resumed = check(made)
    assert resume.folder_to_load(run) is None
    run.resume_from = made
    assert resume.folder_to_load(run) == made
    run.resumed = check(made, weight_decay=0.1, allowed=["weight_decay"])
    for _ in range(2):  # each process does
        view = resume.folder_to_load(run)
        assert {file.name for file in view.iterdir()} == {"model.safetensors", checkpoint.RECORD}
        assert (view / "model.safetensors").read_bytes() == b"state"
    assert (made / "optimizer.pt").exists()


# training rows, held-out rows
DATA = {
    "a row less": (ROWS[:1], []),
    "another order": (ROWS[::-1], []),
    "another word": ([ROWS[0], {"prompt": "tvo"}], []),
    "a column more": ([ROWS[0], {"prompt": "two", "answer": 2}], []),
    "held out": (ROWS[:1], ROWS[1:]),
}


@pytest.mark.parametrize("case", DATA)
def test_other_data(begun, case):
    made, (train, held_out) = begun(), DATA[case]
    was = "2 rows and 0 held out then"
    with pytest.raises(UserError, match=f"{was}, {len(train)} and {len(held_out)} now.*--allow-changed data"):
        check(made, train=train, held_out=held_out)
    resumed = check(made, train=train, held_out=held_out, allowed=["data"])
    assert resumed.names == {"data"}
    assert resumed.manifest["data"]["rows"] == len(train)
    assert resumed.notes[0]["was"] == manifest.fingerprint(ROWS)


def test_data_of_which_nothing_is_known(begun):
    with pytest.raises(UserError, match="what the data was when the run began is not known any more"):
        check(begun(change=lambda described: described.pop("data")))


def test_the_same_data_in_another_file(begun):
    assert check(begun(), data=["moved.jsonl"]).names == set()


def test_the_files_that_a_reward_imports(begun):
    """One that an earlier version did not know of is taken as it is."""
    Path("scales").mkdir()
    texts = {"r.py": "import json, os.path\nfrom helper import n\ndef f(**_):\n    import scales.one", "other.py": ""}
    texts |= {"helper.py": "from scales import one, two\nimport r", "scales/__init__.py": "", "scales/one.py": "("}
    for name, text in texts.items():
        Path(name).write_text(text)
    made = begun(reward=["./r.py:f"])
    known = {"./r.py", "helper.py", "scales/__init__.py", "scales/one.py"}
    assert set(checkpoint.record(made)["manifest"]["files"]) == known
    assert check(made, reward=["./r.py:f"]).names == set()
    Path("scales/one.py").write_text("n = 2")
    with pytest.raises(UserError, match="the files of rewards are not what they were"):
        check(made, reward=["./r.py:f"])
    shutil.rmtree("out")
    made = begun(
        reward=["./r.py:f"], change=lambda made_of: [made_of["files"].pop(name) for name in known - {"./r.py"}]
    )
    assert check(made, reward=["./r.py:f"]).names == set()


def test_the_content_of_models_and_rewards(begun):
    for name in ("one", "same", "other"):
        Path(name).mkdir(exist_ok=True)
        (Path(name) / "model.safetensors").write_text("weights" if name != "other" else "WEIGHTS")
    Path("r.py").write_text("reward")
    made = begun(model="one", reward=["./r.py:f"])
    made_of = checkpoint.record(made)["config"]
    assert check(made, model="same", reward=["./r.py:f"]).names == set()
    with pytest.raises(UserError, match=r"model other .was one.*--allow-changed model$"):
        check(made, model="other", reward=["./r.py:f"])
    Path("r.py").write_text("another")
    with pytest.raises(UserError, match=r"these do not: the files of rewards are not what they were"):
        check(made, model="one", reward=["./r.py:f"])
    resumed = check(made, model="one", reward=["./r.py:f"], allowed=["reward"])
    assert resumed.names == {"reward"}
    assert resumed.written == {name: made_of[name] for name in manifest.MOVED if name in made_of}
    files = resumed.manifest["files"]
    assert files["./r.py"]["sha256"] == manifest.digest(Path("r.py"))
    assert {text: file["of"] for text, file in files.items()} == {"./r.py": "reward", "one": "model"}
    (Path("one") / "model.safetensors").write_text("changed")
    with pytest.raises(UserError, match="the files of models or of the chat template are not what they were"):
        check(made, model="one", reward=["./r.py:f"], allowed=["reward"])


def test_versions_of_libraries_are_told_and_those_of_plugins_refused(begun):
    made = begun(change=lambda described: described["versions"].update(trl="0.1"))
    (told,) = check(made).told
    assert told.startswith("since the run began: trl is ")
    assert told.endswith(", was 0.1")
    newer = ["method sft: rlhf-method-sft 0.2.0", *PLUGINS[1:], "method new: rlhf-method-new 1.0"]
    with pytest.raises(UserError, match=r"method sft is rlhf-method-sft 0\.2\.0 .was rlhf-method-sft 0\.1\.0"):
        check(made, plugins=newer)
    resumed = check(made, plugins=newer, allowed=["rlhf-method-sft"])
    assert resumed.names == {"method sft", "trl"}
    assert resumed.manifest["plugins"] == newer
    assert resumed.manifest["versions"] == manifest.versions()


def test_a_plugin_whose_parameters_hold_what_ends_its_name(begun):
    made = begun(plugins=["reward f:text=a: b: rlhf-x 1.0", "reward ./r.py:f: by path"])
    assert check(made, plugins=["reward f:text=a: c: rlhf-x 2.0"]).names == set()  # another reward: options say so
    with pytest.raises(UserError, match=r"f:text=a: b is rlhf-x 2\.0 .was rlhf-x 1\.0.*--allow-changed rlhf-x$"):
        check(made, plugins=["reward f:text=a: b: rlhf-x 2.0"])
    with pytest.raises(UserError, match="--allow-changed by: nothing of that name"):
        check(made, allowed=["by"])


def test_notes_of_earlier_changes_are_kept(begun):
    earlier = {"step": 2, "name": "seed", "was": 1, "now": 42}
    made = begun(change=lambda described: described.update(changed=[earlier], command="as it began"))
    resumed = check(made, max_steps=9)
    assert resumed.manifest["changed"] == [earlier, {"step": 4, "name": "max_steps", "was": 8, "now": 9}]
    assert resumed.manifest["command"] == "as it began"


def test_what_the_manifest_has_after_a_change(begun):
    """The files of an earlier version, which had none, are those of now; the seed is the new one."""
    Path("d.jsonl").write_text("{}")
    made = begun(change=lambda described: described.pop("files"))
    resumed = check(made, seed=7, allowed=["seed"])
    assert resumed.manifest["files"]["d.jsonl"]["of"] == "data"
    assert resumed.manifest["seed"] == 7


def test_without_a_record_the_runs_own_files_are_compared_and_it_is_noted(begun):
    made = begun(seed=7)
    (made / checkpoint.RECORD).unlink()
    resumed = check(made, seed=7)
    assert resumed.notes == [{"name": "checkpoint", "was": "checked", "now": "not checked"}]
    with pytest.raises(UserError, match="seed 42 .was 7"):
        check(made)
    (made.parent.parent / manifest.FILE).unlink()
    assert check(made, seed=7, allowed=["data"]).manifest["files"] == {}  # what it is now


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A run in was/runs/out with was/d.jsonl and was/r.py; moved(files) -> what `located` makes of its configuration.

    `files` are those that there are now, with their contents: the first letter is right.
    """
    monkeypatch.chdir(tmp_path)

    def find(values, **files) -> dict:
        for name in ("was", "now", "here"):
            (tmp_path / name / "runs" / "out").mkdir(parents=True)
        known = {}
        for text in ("d.jsonl", "m", "./r.py"):
            file = tmp_path / "was" / text
            file.write_text("a")
            known[text] = {"of": "data", "path": str(file), "sha256": manifest.digest(file)}
            file.unlink()
        run = tmp_path / "now" / "runs" / "out"
        described = {"files": known, "folder": str(tmp_path / "was" / "runs" / "out")}
        (run / manifest.FILE).write_text(json.dumps(described))
        for place, contents in files.items():
            for name, text in contents.items():
                (tmp_path / place / name).write_text(text)
        monkeypatch.chdir(tmp_path / "here")
        found = manifest.located(values, run)
        return json.loads(json.dumps(found).replace(str(tmp_path) + "/", ""))

    return find


# files by place -> where the data is
PLACES = [
    ({}, "d.jsonl"),
    ({"was": {"d.jsonl": "a"}}, "was/d.jsonl"),
    ({"now": {"d.jsonl": "a"}}, "now/d.jsonl"),
    ({"here": {"d.jsonl": "a"}}, "d.jsonl"),
    ({"was": {"d.jsonl": "b"}, "now": {"d.jsonl": "a"}}, "now/d.jsonl"),
    ({"was": {"d.jsonl": "b"}, "here": {"d.jsonl": "a"}}, "d.jsonl"),
    ({"now": {"d.jsonl": "a"}, "here": {"d.jsonl": "b"}}, "now/d.jsonl"),
    ({"was": {"d.jsonl": "a"}, "now": {"d.jsonl": "a"}, "here": {"d.jsonl": "a"}}, "was/d.jsonl"),
    ({"was": {"d.jsonl": "b"}, "now": {"d.jsonl": "b"}}, "was/d.jsonl"),
]


@pytest.mark.parametrize(("files", "place"), PLACES)
def test_a_file_is_taken_where_its_content_is(moved, files, place):
    assert moved({"data": ["d.jsonl"]}, **files) == {"data": [place]}


def test_every_option_that_names_files_is_followed(moved):
    values = {"data": ["d.jsonl:weight=2,prompt=q", "builtin"], "eval_data": ["d.jsonl"], "model": "m"}
    values |= {"reward": ["./r.py:f:weight=2", "length:model=m,target=9"], "chat_template": "m", "reward_model": None}
    assert moved({**values, "seed": 1}, now={"d.jsonl": "a", "m": "a", "r.py": "a"}) == {
        "data": ["now/d.jsonl:prompt=q,weight=2", "builtin"],
        "eval_data": ["now/d.jsonl"],
        "model": "now/m",
        "reward": ["now/r.py:f:weight=2.0", "length:model=now/m,target=9"],
        "chat_template": "now/m",
        "reward_model": None,
        "seed": 1,
    }


def test_what_a_run_is_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/usr/bin/rlhf", "run", "--data", "a b"])
    for name in ("d.jsonl", "r.py", "m"):
        Path(name).write_text("{}")
    run = a_run(Path("out"), {"model": "m", "reward": ["./r.py:f:n=3,empty=''"]})
    run.rewards.rewards[0].reward = Reward(print, describe=lambda function: {"of": function})
    described = manifest.describe(run, PLUGINS)
    assert described["rewards"] == {"f": {"of": "built"}}
    assert described["command"] == "rlhf run --data 'a b'"
    assert (described["folder"], described["seed"]) == (str(tmp_path / "out"), 42)
    assert (described["trust_remote_code"], described["git_commit"]) == (False, None)
    assert described["python"].startswith("3.")
    assert described["platform"]
    assert described["versions"]["trl"] == importlib.metadata.version("trl")
    assert {text: file["of"] for text, file in described["files"].items()} == {
        "d.jsonl": "data",
        "./r.py": "reward",
        "m": "model",
    }


DAMAGED = (
    *("{", "[]", "null", '{"files": []}', '{"files": {"tiny": 5}}', '{"files": {"tiny": {}}}', '{"folder": 1}'),
    *('{"plugins": {}}', '{"plugins": [5]}', '{"data": []}', '{"data": {"rows": "x"}}', '{"versions": 1}'),
    *('{"versions": {"torch": 5}}', '{"changed": 5}'),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_manifest_is_read_from_the_newest_checkpoint(begun, text):
    made = begun()
    folder = made.parent.parent
    described = manifest.read(folder)
    (folder / manifest.FILE).write_text(text)
    assert manifest.read(folder) == described
    (made / checkpoint.RECORD).write_text("{")
    assert manifest.read(folder) == {}


@pytest.mark.parametrize(
    ("target", "file"),
    [("./r.py:f", "./r.py"), ("r.py", "r.py"), ("a.py:b.py:f", "a.py"), ("length", ""), ("package.pyx:f", "")],
)
def test_the_file_of_a_reward(target, file):
    assert manifest.python_file(target) == file


def test_digests(tmp_path, monkeypatch):
    """Of a file by its content, of a folder by the names and contents of a model's files, of a run by its model."""
    monkeypatch.setattr(manifest, "SAMPLES", 4)
    monkeypatch.setattr(manifest, "SAMPLE", 4)
    file = tmp_path / "model.bin"
    content = bytes(range(100))  # sampled at 0, 25, 50 and 75
    seen = set()
    for at in (None, 0, 3, 25, 28, 53, 78):
        changed = bytearray(content)
        if at is not None:
            changed[at] ^= 255
        file.write_bytes(changed)
        seen.add(manifest.digest(file))
    assert len(seen) == 7
    file.write_bytes(content + b"x")
    assert manifest.digest(file) not in seen
    file.write_bytes(content)
    assert manifest.digest(file.rename(tmp_path / "b.bin")) in seen  # wherever it is
    sampled = b"".join(content[at : at + 4] for at in (0, 25, 50, 75))
    assert hashlib.sha256(b" 100\n" + sampled).hexdigest().startswith(manifest.digest(tmp_path / "b.bin"))
    if sys.platform == "linux":
        (tmp_path / os.fsdecode(b"\xff.safetensors")).touch()
        manifest.digest(tmp_path)
        (tmp_path / os.fsdecode(b"\xff.safetensors")).unlink()
    folder = tmp_path / "run" / "model"
    (folder / "deeper.bin").mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    first = manifest.digest(folder)
    assert manifest.digest(folder.parent) == first
    for name in ("README.md", "x.log"):
        (folder / name).write_text("text")
    assert manifest.digest(folder) == first
    (folder / "config.json").write_text("{}")
    second = manifest.digest(folder)
    (folder / "config.json").rename(folder / "configs.json")
    third = manifest.digest(folder)
    (folder / "configs.json").write_text("{}w")
    (folder / "model.safetensors").write_text("eights")
    assert len({first, second, third, manifest.digest(folder)}) == 4


@pytest.mark.parametrize(
    "other", [[{"a": 1}], [{"a": "1"}, {"b": 2}], [{"b": 2}, {"a": 1}], [{"a": 1, "b": 2}], [{"a": 1}, {"b": 3}], []]
)
def test_fingerprints_of_other_rows_differ(other):
    assert manifest.fingerprint([{"a": 1}, {"b": 2}]) != manifest.fingerprint(other)
    assert manifest.fingerprint([{"a": 1, "b": "\ud800"}]) == manifest.fingerprint([{"b": "\ud800", "a": 1}])
