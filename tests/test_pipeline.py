"""Pipelines: stages feed each other by name, and only what is unfinished or changed is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.cli import pipeline as cli_pipeline
from rlhf_core.cli import rlhf
from rlhf_core.environment import STARTED_BY
from rlhf_core.errors import UserError
from rlhf_core.pipeline import plan as planning
from rlhf_core.pipeline import running
from rlhf_core.pipeline.plan import GUIDE, Pipeline, select
from rlhf_core.training import launch

CATALOG = Catalog()
PPO = {"stages": GUIDE["ppo"][1]}
FILE = """
model: some/model
load_in_4bit: true
num_generations: 8
stages:
  sft: {data: conversations.jsonl}
  second: {method: grpo, model: sft, reward: [medical_format], load-in-4bit: false}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("conversations.jsonl", "pairs.jsonl"):
        Path(name).write_text("{}")


def plan(description, stages=None, **flags):
    return planning.plan(description, Path("out"), CATALOG, flags, stages or {})


class FakeRuns:
    """Does what `rlhf run` does to a folder. `codes` are exit codes of coming runs, 0 after them."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.commands, self.said = list(codes), [], []

    def __call__(self, arguments):
        code = self.codes.pop(0) if self.codes else 0
        self.commands.append(list(arguments))
        if arguments[0] == "run" and "--dry-run" not in arguments and code != 2:
            folder = Path(arguments[arguments.index("--resume" if "--resume" in arguments else "--output-dir") + 1])
            (folder / "config.yaml").write_text("method: sft")
            if code == 0:
                (folder / "model").mkdir(exist_ok=True)
        return code

    @property
    def names(self):
        """Each run's stage, with -resume where it was resumed, and other commands by their name."""
        return [
            (Path(c[-1]).name if "--config" in c else Path(c[-1]).name + "-resume") if c[0] == "run" else c[0]
            for c in self.commands
        ]


def carry_out(runs, description=PPO, *, first=None, last=None, only=None, compare=False, catalog=CATALOG, **overrides):
    stages = plan(description, **overrides)
    selected = select(stages, first, last, only)
    pipeline = Pipeline(Path("out"), stages, selected, compare, "rlhf pipeline --output-dir out")
    return running.carry_out(pipeline, catalog, runs, runs.said.append)


# Planning


def test_the_name_of_an_earlier_stage_means_its_model():
    stages = plan(PPO)
    assert stages["ppo"].feeds == {"model": "sft", "reward_model": "reward_model"}
    assert stages["ppo"].config.model == "out/sft/model"
    assert stages["ppo"].config.reward_model == "out/reward_model/model"
    assert stages["sft"].config.model == "builtin"
    assert stages["sft"].config.output_dir == "out/sft"


def test_models_made_from_the_builtin_one_keep_their_methods_preset():
    stages = plan(PPO, stages={"ppo": {"max_steps": 3}})
    preset = stages["ppo"].method.preset()
    assert stages["ppo"].preset == {key: value for key, value in preset.items() if key != "max_steps"}
    assert stages["ppo"].config.options.max_steps == 3
    assert stages["ppo"].config.options.learning_rate == preset["learning_rate"]
    assert stages["ppo"].origin == "builtin"
    assert not any(stage.preset for stage in plan(PPO, model="some/model").values())


def test_embedded_is_the_earlier_name_of_the_builtin_model():
    description = {"model": "embedded", "stages": {"sft": {}, "dpo": {"model": "sft"}}}
    for stages in (plan(description), plan(PPO, model="embedded")):
        assert stages["sft"].values["model"] == "builtin"
        assert stages[list(stages)[-1]].origin == "builtin"
        assert stages[list(stages)[-1]].preset


def test_shared_keys_apply_where_the_method_has_them():
    stages = plan(yaml.safe_load(FILE))
    assert stages["sft"].config.model == "some/model"
    assert stages["second"].config.model == "out/sft/model"
    assert stages["sft"].config.options.load_in_4bit
    assert not stages["second"].config.options.load_in_4bit
    assert stages["second"].config.options.num_generations == 8
    assert "num_generations" not in stages["sft"].values


def test_flags_win_over_the_file_but_stages_still_feed_each_other():
    stages = plan(
        yaml.safe_load(FILE), model="other/model", data=["pairs.jsonl"], reward=["length"], stages={"sft": {"seed": 7}}
    )
    assert stages["sft"].config.model == "other/model"
    assert stages["second"].config.model == "out/sft/model"
    assert [stage.config.data for stage in stages.values()] == [["pairs.jsonl"]] * 2
    assert [stage.config.reward for stage in stages.values()] == [[], ["length"]]
    assert stages["sft"].config.options.seed == 7


def test_every_pipeline_of_the_guide_is_complete():
    for name, (line, stages) in GUIDE.items():
        assert line
        planned = plan({"stages": stages})
        assert list(planned)[-1] == name
        assert all(stage.origin == "builtin" for stage in planned.values())


# stages -> what the message says
MISTAKES = {
    "no stages": ({}, "a pipeline has `stages:`"),
    "a list": ({"stages": ["sft"]}, "a pipeline has `stages:`"),
    "not a mapping": ({"stages": {"sft": "data"}}, "stage sft: expected keys and values"),
    "bad name": ({"stages": {"a/b": {"method": "sft"}}}, "can't name a stage"),
    "taken name": ({"stages": {"comparison": {"method": "sft"}}}, "can't name a stage"),
    "unknown method": ({"stages": {"stf": {}}}, "stage stf: there is no method 'stf'. Did you mean 'sft'?"),
    "unknown stage": (
        {"stages": {"sft": {}, "dpo": {"model": "stf"}}},
        "stage dpo: model: 'stf' is neither a model nor an earlier stage. Did you mean 'sft'? Stages: sft.",
    ),
    "no such folder": ({"stages": {"sft": {"model": "./nowhere"}}}, "is neither a model nor an earlier stage"),
    "forward": ({"stages": {"dpo": {"model": "sft"}, "sft": {}}}, "'sft' is not an earlier stage"),
    "itself": ({"stages": {"sft": {"model": "sft"}}}, "'sft' is not an earlier stage"),
    "a checkpoint of a stage": (
        {"stages": {"sft": {}, "dpo": {"model": "sft@best"}}},
        "model: 'sft@best': a stage hands on its model. Write 'sft', and final_model: best in stage sft",
    ),
    "no such checkpoint": ({"stages": {"sft": {"model": "r@7"}}}, "there is no such checkpoint. There are @3, @last"),
    "a scorer that writes": (
        {"stages": {"reward_model": {}, "dpo": {"model": "reward_model"}}},
        "trains a model that scores answers, which can't be used as model",
    ),
    "a writer that scores": (
        {"stages": {"sft": {}, "ppo": {"reward_model": "sft"}}},
        "trains a model that writes answers, which can't be used as reward_model",
    ),
    "model is a list": ({"stages": {"sft": {"model": ["a"]}}}, "stage sft: --model ['a']"),
    "unknown key": ({"stages": {"sft": {"max_stps": 1}}}, "has no option 'max_stps'. Did you mean 'max_steps'?"),
    "unknown shared key": ({"max_stps": 1, "stages": {"sft": {}}}, "no stage's method knows 'max_stps'"),
    "shared method": ({"method": "sft", "stages": {"sft": {}}}, "method can't be set beside `stages`"),
    "output folder": ({"stages": {"sft": {"output-dir": "x"}}}, "leave out output_dir: the pipeline chooses out/sft"),
    "bad value": ({"stages": {"sft": {"max_steps": "many"}}}, "stage sft: --max-steps many"),
    "no reward": ({"stages": {"sft": {}, "grpo": {"model": "sft"}}}, "stage grpo: method grpo needs a reward"),
    "unknown reward": ({"stages": {"grpo": {"reward": ["lenght"]}}}, "there is no reward 'lenght'. Did you mean"),
    "no reward file": ({"stages": {"grpo": {"reward": ["./r.py:f"]}}}, "there is no file r.py"),
    "no data": ({"stages": {"sft": {}, "dpo": {"data": "nowhere.jsonl"}}}, "stage dpo: --data nowhere.jsonl"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_anything_runs(case):
    description, message = MISTAKES[case]
    Path("r/checkpoints/checkpoint-3").mkdir(parents=True)
    assert plan({"stages": {"sft": {"model": "r@3"}}})["sft"].origin == "r@3"
    with pytest.raises(UserError) as caught:
        plan(description)
    assert message in str(caught.value)


# What is run


def test_finished_and_unchanged_stages_are_skipped():
    first, second = FakeRuns(), FakeRuns()
    assert carry_out(first) == 0
    assert first.names == ["sft", "reward_model", "ppo"]
    assert yaml.safe_load(Path("out/ppo/stage.yaml").read_text())["reward_model"] == "out/reward_model/model"
    assert carry_out(second) == 0
    assert second.names == []
    assert second.said[0] == "[1/3] sft: finished and unchanged, skipped"


def test_the_folder_alone_is_the_same_pipeline():
    carry_out(FakeRuns(), model="some/model", stages={"sft": {"max_steps": 3}})
    runs = FakeRuns()
    assert carry_out(runs, yaml.safe_load(Path("out/pipeline.yaml").read_text())) == 0
    assert runs.names == []


def test_resuming_with_another_model_drops_the_builtin_preset():
    carry_out(FakeRuns())
    written = yaml.safe_load(Path("out/pipeline.yaml").read_text())
    assert written["stages"]["ppo"] == {"method": "ppo", "model": "sft", "reward_model": "reward_model"}
    options = plan(written, model="some/model")["ppo"].config.options
    assert options.learning_rate == type(options)().learning_rate


@pytest.mark.parametrize(
    ("changed", "runs_again"),
    [("sft", ["sft", "reward_model", "ppo"]), ("reward_model", ["reward_model", "ppo"]), ("ppo", ["ppo"])],
)
def test_a_changed_stage_and_those_that_use_it_run_again(changed, runs_again):
    carry_out(FakeRuns())
    runs = FakeRuns()
    carry_out(runs, stages={changed: {"seed": 1}})
    assert runs.names == runs_again
    assert sorted(path.name for path in Path("out").glob("*.old-1")) == sorted(f"{name}.old-1" for name in runs_again)
    carry_out(FakeRuns(), stages={changed: {"seed": 2}})
    assert Path(f"out/{changed}.old-2/stage.json").is_file()


def test_changed_data_change_a_stage():
    description = {"stages": {"sft": {"data": "conversations.jsonl"}, "dpo": {"model": "sft", "data": "pairs.jsonl"}}}
    carry_out(FakeRuns(), description)
    os.utime("pairs.jsonl", (1, 1))
    runs = FakeRuns()
    carry_out(runs, description)
    assert runs.names == []
    Path("pairs.jsonl").write_text("{} ")
    carry_out(runs, description)
    assert runs.names == ["dpo"]


@pytest.mark.parametrize("code", [1, 130])
def test_an_interrupted_stage_is_resumed(code):
    runs = FakeRuns(0, code)
    assert carry_out(runs) == code
    assert runs.names == ["sft", "reward_model"]
    assert runs.said[-1].endswith("Resume the pipeline: rlhf pipeline --output-dir out")
    runs = FakeRuns()
    assert carry_out(runs) == 0
    assert runs.names == ["reward_model-resume", "ppo"]


def test_an_interrupted_stage_that_has_changed_starts_again():
    carry_out(FakeRuns(1))
    runs = FakeRuns()
    carry_out(runs, last="sft", stages={"sft": {"seed": 1}})
    assert runs.names == ["sft"]
    assert Path("out/sft.old-1").is_dir()


def test_a_refused_stage_leaves_no_folder_to_rename():
    assert carry_out(FakeRuns(2)) == 2
    runs = FakeRuns()
    carry_out(runs, last="sft", stages={"sft": {"seed": 1}})
    assert runs.names == ["sft"]
    assert not list(Path("out").glob("*.old-*"))


def test_a_trained_stage_whose_configuration_is_lost_is_not_begun_anew():
    assert carry_out(FakeRuns(), last="sft") == 0
    Path("out/sft/config.yaml").unlink()
    record = Path("out/sft/checkpoints/checkpoint-2/checkpoint.json")
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(UserError, match=f"out/sft was trained, and its config.yaml is missing: .* is in {record}"):
        carry_out(FakeRuns(), last="sft")


def test_a_model_that_was_changed_since_its_stage_feeds_no_other():
    assert carry_out(FakeRuns(), last="sft") == 0
    Path("out/sft/model/model.safetensors").write_text("others")
    runs = FakeRuns()
    for first in (None, "reward_model"):
        with pytest.raises(UserError, match="out/sft/model is not what stage sft has trained.*Move out/sft/model away"):
            carry_out(runs, first=first)
    shutil.rmtree("out/sft/model")
    assert carry_out(runs, last="sft") == 0
    assert runs.names == ["sft-resume"]
    stage = json.loads(Path("out/sft/stage.json").read_text())
    Path("out/sft/stage.json").write_text(json.dumps({name: stage[name] for name in ("fingerprint", "finished")}))
    Path("out/sft/model/model.safetensors").write_text("others")  # an earlier version had no digest of it
    assert carry_out(FakeRuns()) == 0


def test_a_dead_link_in_the_place_of_a_stage_is_said():
    Path("out").mkdir()
    Path("out/reward_model").symlink_to("nowhere")
    with pytest.raises(UserError, match="out/reward_model exists and is not a stage of a pipeline"):
        carry_out(FakeRuns())


def test_other_folders_are_not_touched():
    Path("out/reward_model").mkdir(parents=True)
    Path("out/reward_model/notes.txt").write_text("mine")
    runs = FakeRuns()
    with pytest.raises(UserError, match="is not a stage of a pipeline"):
        carry_out(runs)
    assert runs.names == []


def test_from_to_and_only():
    stages = plan(PPO)

    def names(*flags):
        return [stage.name for stage in select(stages, *flags)]

    assert names(None, None, None) == ["sft", "reward_model", "ppo"]
    assert names("reward_model", None, None) == ["reward_model", "ppo"]
    assert names(None, "reward_model", None) == ["sft", "reward_model"]
    assert names(None, None, "reward_model") == ["reward_model"]
    for flags, message in [
        (("sfft", None, None), "--from-stage sfft: there is no such stage. Did you mean 'sft'?"),
        ((None, None, "x"), "--only x: there is no such stage. Stages: sft, reward_model, ppo."),
        (("ppo", "sft", None), "--from-stage ppo comes after --to-stage sft"),
        (("ppo", None, "sft"), "--only is one stage"),
    ]:
        with pytest.raises(UserError) as caught:
            select(stages, *flags)
        assert message in str(caught.value)


def test_skipped_stages_must_be_finished_if_they_are_used():
    with pytest.raises(UserError, match="stage ppo needs stage sft, which is not finished in out"):
        carry_out(FakeRuns(), only="ppo")
    carry_out(FakeRuns(), last="reward_model")
    runs = FakeRuns()
    carry_out(runs, only="ppo")
    assert runs.names == ["ppo"]


class Commands(Catalog):
    """A catalog with these plugin commands."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.commands = [Entry("commands", name, "module", "rlhf-tools", "1", "") for name in names]

    def entries(self, kind: str) -> list[Entry]:
        return self.commands if kind == "commands" else super().entries(kind)


def test_the_comparison_is_made_once_after_the_last_stage():
    runs = FakeRuns()
    catalog = Commands("compare")
    carry_out(runs, last="reward_model", compare=True, catalog=catalog)
    assert runs.names == ["sft", "reward_model"]
    carry_out(runs, compare=True, catalog=catalog)
    reward = ["--reward", "reward_model:path=out/reward_model/model"]
    assert runs.commands[-1] == [
        *["compare", "builtin", "out/ppo/model", "--prompts", "48", *reward, "--output", "out/comparison"]
    ]
    count = len(runs.commands)
    carry_out(runs, compare=True, catalog=catalog)
    assert len(runs.commands) == count
    assert runs.said[-1] == "Compared before and after: out/comparison"


def test_without_the_command_the_comparison_is_a_hint():
    runs = FakeRuns()
    carry_out(runs, {"stages": {"sft": {}}}, compare=True, catalog=Commands())
    assert runs.names == ["sft"]
    hint = "rlhf compare builtin out/sft/model --prompts 48 --reward medical_format --output out/comparison"
    assert runs.said[-1] == f"To compare before and after: pip install rlhf-tools && {hint}"


def test_a_dry_run_checks_what_it_can_and_writes_nothing(monkeypatch):
    configs = []

    def checked(arguments):
        configs.append(yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text()))
        assert "--dry-run" in arguments
        return 0

    monkeypatch.setattr(cli_pipeline, "run_here", checked)
    result = CliRunner().invoke(rlhf, ["pipeline", "ppo", "--output-dir", "out", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "[2/3] reward_model: rlhf run --config out/reward_model/stage.yaml --output-dir out/reward_model" in (
        result.output
    )
    assert "Checked with builtin, since the model of stage sft is not trained yet:" in result.output
    assert "Its data can't be checked yet: that needs the model of stage reward_model." in result.output
    assert [(c["method"], c["model"]) for c in configs] == [("sft", "builtin"), ("reward_model", "builtin")]
    assert not Path("out").exists()
    Path("pipeline.yaml").write_text("stages: {sft: {}}")
    result = CliRunner().invoke(rlhf, ["pipeline", "--config", "pipeline.yaml", "--dry-run"])
    assert re.search(r"^Folder  runs/pipeline-\d{8}-\d{6}$", result.output, re.MULTILINE)
    monkeypatch.setattr(cli_pipeline, "run_here", lambda arguments: 2)
    assert CliRunner().invoke(rlhf, ["pipeline", "dpo", "--dry-run"]).exit_code == 2


def test_a_dry_run_of_a_stage_with_several_processes_has_a_process_of_its_own(monkeypatch):
    """One GPU is left visible to the other stages, in this process."""
    started = []
    monkeypatch.setattr(cli_pipeline, "run_here", lambda arguments: started.append("here") or 0)
    monkeypatch.setattr(running, "run_process", lambda arguments: started.append("a process") or 0)
    stages = ["--stage", "sft:num_processes=2", "--no-compare"]
    assert CliRunner().invoke(rlhf, ["pipeline", "dpo", *stages, "--dry-run"]).exit_code == 0
    assert started == ["a process", "here"]


def test_a_stage_that_is_checked_leaves_the_environment_as_it_was(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(launch, "check_environment", lambda: os.environ.update(CUDA_VISIBLE_DEVICES="3"))
    assert cli_pipeline.run_here(["run", "--method", "sft", "--data", "missing.jsonl", "--dry-run"]) == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert "missing.jsonl" in capsys.readouterr().err


# The command


@pytest.mark.parametrize("answer", ["3", "orpo"])
def test_without_a_name_it_asks_in_a_terminal(answer, monkeypatch):
    runs = FakeRuns()
    monkeypatch.setattr("rlhf_core.cli.pipeline._in_terminal", lambda: True)
    monkeypatch.setattr(running, "run_process", runs)
    result = CliRunner().invoke(rlhf, ["pipeline", "--no-compare"], input=f"9\n{answer}\n")
    assert result.exit_code == 0, result.output
    for number, (name, (line, _)) in enumerate(GUIDE.items(), start=1):
        assert f"{number}  {name:6}{line}" in result.output
    assert runs.names == ["sft", "orpo"]
    assert "out" not in os.listdir()
    assert len(list(Path("runs").glob("pipeline-orpo-*"))) == 1


@pytest.mark.parametrize("values", [{"num_eval_prompts": 0}, {"num_eval_prompts": 8}, {"data": ["builtin"]}])
def test_a_stage_without_held_out_prompts_is_not_compared(values, monkeypatch):
    """There would be no prompts for it, which would be found when all is trained."""
    Path("own.yaml").write_text(
        yaml.safe_dump({"stages": {"sft": {"data": ["conversations.jsonl"], "num_eval_prompts": 0} | values}})
    )
    pipelines = []
    monkeypatch.setattr(running, "dry_run", lambda pipeline, *_: pipelines.append(pipeline) or 0)
    output = CliRunner().invoke(rlhf, ["pipeline", "--config", "own.yaml", "--dry-run"]).output
    without = values == {"num_eval_prompts": 0}
    assert [pipeline.compare for pipeline in pipelines] == [not without]
    assert ("holds out no prompts (num_eval_prompts 0)" in output) == without


# arguments -> what the message says
REFUSED = {
    "no name": ([], "which pipeline? Write rlhf pipeline NAME, one of ppo, dpo, orpo, grpo, or --config FILE"),
    "unknown": (["pp"], "there is no pipeline 'pp'. Did you mean 'ppo'?"),
    "two": (["ppo", "--config", "p.yaml"], "either ppo or --config p.yaml"),
    "no file": (["--config", "p.yaml"], "--config p.yaml: No such file"),
    "no pipeline": (["--output-dir", "nowhere"], "--output-dir nowhere holds no pipeline to resume"),
    "a file": (["ppo", "--output-dir", "pairs.jsonl"], "is a file"),
    "empty folder": (["ppo", "--output-dir", ""], "--output-dir is empty"),
    "long folder": (["ppo", "--output-dir", "a" * 300], "no file can have such a name"),
    "stage": (["ppo", "--stage", "sfft:seed=1"], "--stage sfft: there is no such stage. Did you mean 'sft'?"),
    "stage without keys": (["ppo", "--stage", "sft"], "sets nothing: write NAME:key=value"),
    "stage with dashes": (["ppo", "--stage", "sft:max-steps=1"], "with keys such as max_steps"),
    "reward": (["dpo", "--reward", "length"], "no stage of this pipeline uses a reward"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    arguments, message = REFUSED[case]
    before = os.listdir()
    result = CliRunner().invoke(rlhf, ["pipeline", *arguments])
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert os.listdir() == before


def test_its_help_imports_no_torch():
    code = (
        "import sys\nfrom rlhf_core.cli import rlhf\nrlhf.main(['pipeline', '--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_mistake_ends_the_process_with_2():
    result = subprocess.run([sys.executable, "-m", "rlhf_core", "pipeline", "pp"], capture_output=True, text=True)
    assert (result.returncode, result.stderr.partition("'")[0]) == (2, "Error: there is no pipeline ")


def test_a_stage_ends_with_the_pipeline_that_started_it_also_when_that_is_killed():
    stage = "import os, time\nfrom rlhf_core.environment import end_with_starter\nend_with_starter()\n"
    stage += "print(os.getpid(), 'RLHF_STARTED_BY' in os.environ, flush=True)\ntime.sleep(60)"
    starts = "import os, subprocess, sys\nfrom rlhf_core.environment import STARTED_BY\n"
    starts += "started = {**os.environ, STARTED_BY: str(os.getpid())}\n"
    starts += f"subprocess.Popen([sys.executable, '-c', {stage!r}], env=started).wait()"
    pipeline = subprocess.Popen([sys.executable, "-c", starts], stdout=subprocess.PIPE, text=True)
    pid, told = pipeline.stdout.readline().split()
    assert told == "False"  # those that the stage starts have another parent
    pipeline.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"finished": true}', "\x00"])
def test_a_damaged_stage_json_is_said(text, tmp_path):
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(UserError, match=r"stage\.json"):
        running.recorded(tmp_path)


def test_a_killed_process_is_reported(monkeypatch, capsys):
    class Killed:
        def __init__(self, *_, env):
            assert env[STARTED_BY] == str(os.getpid())

        def wait(self):
            return -9

    monkeypatch.setattr(subprocess, "Popen", Killed)
    assert running.run_process(["run"]) == 1
    assert "SIGKILL" in capsys.readouterr().out


@pytest.fixture
def hangs_up():
    """A closed terminal ends the tests: under nohup it does not, and a pipeline leaves that as it is."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_the_pipeline_alone_stops_its_stage(monkeypatch, number):
    sent = []

    class Stage:
        def __init__(self, *_, env):
            self.send_signal = sent.append

        def wait(self):
            os.kill(os.getpid(), number)
            return 130

    monkeypatch.setattr(subprocess, "Popen", Stage)
    assert running.run_process(["run"]) == 130
    assert sent == [signal.SIGTERM]


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_stage_starts_ends_it_and_is_no_failure(monkeypatch, number):
    sent = []

    class Starting:
        def __init__(self, *_, env):
            os.kill(os.getpid(), number)
            self.send_signal = sent.append

        def wait(self):
            return -number  # it handles no signals yet

    monkeypatch.setattr(subprocess, "Popen", Starting)
    assert running.run_process(["run"]) == 130
    assert sent == [signal.SIGTERM]


@pytest.mark.slow
def test_a_real_pipeline_and_the_same_again(tiny_model, write_jsonl):
    turns = [{"role": "user", "content": "What helps against fever?"}, {"role": "assistant", "content": "Rest."}]
    pair = {"question": "What helps against fever?", "response_chosen": "Rest.", "response_rejected": "Running."}
    shared = {"max_steps": 1, "num_eval_prompts": 0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    stages = {
        "sft": {"data": write_jsonl("conversations.jsonl", [{"messages": turns}] * 2)},
        "dpo": {"model": "sft", "data": write_jsonl("pairs.jsonl", [pair] * 2)},
    }
    Path("p.yaml").write_text(yaml.safe_dump({"model": str(tiny_model), **shared, "stages": stages}, sort_keys=False))

    def typed(*arguments):
        words = [sys.executable, "-m", "rlhf_core", "pipeline", *arguments, "--output-dir", "out", "--no-compare"]
        result = subprocess.run(words, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    assert "[2/2] dpo: done in" in typed("--config", "p.yaml")
    assert json.loads(Path("out/dpo/stage.json").read_text())["finished"]
    assert yaml.safe_load(Path("out/dpo/config.yaml").read_text())["model"] == "out/sft/model"
    assert (Path("out/dpo/model") / "README.md").is_file()
    assert typed().count("finished and unchanged, skipped") == 2
