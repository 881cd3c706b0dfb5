"""Several processes: a step of two is the step of one; they stop together, end together, and start again together when
memory was too small; less than was asked for is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from click.testing import CliRunner
from packaging.version import Version
from safetensors.torch import load_file

from rlhf_core import environment, phase
from rlhf_core.catalog import Catalog
from rlhf_core.cli import rlhf
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.prefix import sampler
from rlhf_core.training import ending, launch
from rlhf_core.training.checkpoint import list_checkpoints
from rlhf_core.training.run import train
from rlhf_core.ui.screen import Screen

TRANSFORMERS_5_17 = Version(transformers.__version__) < Version("5.18")
LOADS_NOTHING = "transformers 5.17 can't load the optimizer's state into several processes on a CPU"

pytestmark = pytest.mark.slow

# Answer i of a group is sampled with the same numbers every time, so that all processes sample alike.
REWARD = """
import torch
from rlhf_core.prefix import sampler
def uniforms(rows, sampling):
    return ((torch.arange(rows) % 4 + 0.5) / 4).double()[:, None].expand(rows, sampling.max_new_tokens)
sampler.uniforms = uniforms
def place(completions, **_): return [float(i % 4) for i in range(len(completions))]
def hang(completions, trainer_state, **_):
    import os, time
    if trainer_state.max_steps == 2:  # not when it is tried before training
        open(f"hanging-{os.environ['RANK']}", "w").close()
        time.sleep(600)
    return place(completions)
"""
FLAGS = {
    "max_steps": 2,
    "learning_rate": 1e-3,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 8,
    "logging_steps": 1,
    "num_eval_prompts": 2,
    "gradient_checkpointing": False,
    "output_dir": "one",
}
SAMPLED = {"reward": ["./rewards.py:place"], "data": "prompts.jsonl"}
PAIRS, CHATS = {"data": "pairs.jsonl", "max_completion_length": 48}, {"data": "chats.jsonl"}
METHODS = {
    "sft": {**CHATS, "optim": "sgd"},
    "reward_model": {**PAIRS, "optim": "sgd"},
    "dpo": {**PAIRS, "optim": "sgd"},
    "orpo": {**PAIRS, "optim": "sgd"},
    "grpo": {**SAMPLED, "num_generations": 4},
    "ppo": {**SAMPLED, "num_ppo_epochs": 2},
}
LONGER = {**METHODS["sft"], "method": "sft", "max_steps": 24, "save_steps": 100, "num_processes": 2}
LONGER |= {"per_device_train_batch_size": 2, "optim": "adamw_torch"}


def write_inputs(folder: Path) -> None:
    (folder / "rewards.py").write_text(REWARD)
    rows = [(f"What helps against symptom {i}?", f"Rest {'and water ' * (i % 3)}.") for i in range(20)]
    prompts = [{"question": q, "answer": a} for q, a in rows]
    pairs = [{"question": q, "response_chosen": a, "response_rejected": "No."} for q, a in rows]
    chats = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in rows]
    for name, values in (("prompts", prompts), ("pairs", pairs), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, values)))


@pytest.fixture
def settings(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampler, "uniforms", sampler.uniforms)  # put back after what the reward does to it
    write_inputs(tmp_path)
    return {**FLAGS, "model": str(tiny_model)}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory, tiny_model, in_two_processes) -> Path:
    """A folder with the run of each method in two processes. They are started once for all."""
    folder = tmp_path_factory.mktemp("two")
    write_inputs(folder)
    half = {**FLAGS, "model": str(tiny_model), "per_device_train_batch_size": 4, "num_processes": 2}
    runs = [{**half, **values, "method": name, "output_dir": name} for name, values in METHODS.items()]
    in_two_processes(lambda: carry_out(runs, folder))
    return folder


def carry_out(runs: list[dict], folder: Path) -> None:
    os.chdir(folder)
    for values in runs:
        config, method = resolve(values, Catalog())
        assert train(config, method, Catalog()) == 0, values["method"]


def typed(values: dict) -> list[str]:
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags += [text for item in (value if isinstance(value, list) else [value]) for text in (flag, str(item))]
    return [sys.executable, "-m", "rlhf_core", "run", *flags]


def command(values: dict) -> subprocess.CompletedProcess:
    return subprocess.run(typed(values), capture_output=True, text=True, timeout=300)


def start(values: dict) -> subprocess.Popen:
    """As a shell starts it: in a process group of its own, all of which Ctrl-C reaches."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(typed(values), start_new_session=True, **streams)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_two_processes_is_that_of_one(settings, of_two_processes, method):
    values = {**settings, **METHODS[method], "method": method}
    config, made = resolve({**values, "per_device_train_batch_size": 8}, Catalog())
    assert train(config, made, Catalog()) == 0
    one, other = (load_file(folder / "model/model.safetensors") for folder in (Path("one"), of_two_processes / method))
    start = load_file(f"{settings['model']}/model.safetensors")
    moved = max((one[key] - start[key]).abs().max().item() for key in start if key in one)
    apart = max((one[key] - other[key]).abs().max().item() for key in one)
    assert moved > 1e-5
    assert apart < 0.02 * moved


def test_a_mistake_is_reported_before_processes_start(settings, monkeypatch):
    Path("bad.jsonl").write_text('{"frage": "x"}')
    monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("processes were started"))
    result = CliRunner().invoke(rlhf, typed({**settings, "method": "sft", "data": "bad.jsonl", "num_processes": 2})[3:])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).count("no formatter fits") == 1


@pytest.mark.skipif(TRANSFORMERS_5_17, reason=LOADS_NOTHING)
def test_ctrl_c_stops_all_processes_after_the_same_step(settings, in_two_processes):
    """One checkpoint, one message, exit code 130, and what comes of it is the run that was not interrupted."""
    process, metrics = start({**settings, **LONGER, "output_dir": "cut"}), Path("cut/metrics.jsonl")
    wait_until(lambda: metrics.exists() and '"step": 3' in metrics.read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("Traceback"), errors.count("Interrupted")) == (130, 0, 0), errors
    (saved,) = list_checkpoints(Path("cut/checkpoints"))
    step = int(saved.name.rpartition("-")[2])
    assert 3 <= step < 24
    assert [shown.count(text) for text in ("Stopping with a checkpoint", "rlhf run --resume cut")] == [1, 1]
    assert f"Stopped after step {step}. Resume: rlhf run --resume cut" in shown
    assert not Path("cut", launch.STOP).exists()
    resumed = command({"resume": "cut"})
    assert resumed.returncode == 0, resumed.stderr
    assert f"Resuming after checkpoint-{step}." in resumed.stdout
    in_two_processes(lambda: carry_out([{**settings, **LONGER, "output_dir": "full"}], Path.cwd()))
    one, other = (load_file(f"{folder}/model/model.safetensors") for folder in ("cut", "full"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if str(folder).encode() in words:
            found.append(int(process.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc; only Linux ends them with a parent")
@pytest.mark.parametrize(
    ("signals", "code"), [((signal.SIGTERM, signal.SIGTERM), 130), ((signal.SIGKILL,), -signal.SIGKILL)]
)
def test_no_process_is_left_when_the_command_ends(settings, tmp_path, signals, code):
    """Stopped twice, or killed, while every process is inside a step that would take ten minutes."""
    values = {**settings, **METHODS["grpo"], "method": "grpo", "reward": "./rewards.py:hang", "num_processes": 2}
    folder = tmp_path / "out"
    process = start({**values, "per_device_train_batch_size": 4, "num_eval_prompts": 0, "output_dir": folder})
    wait_until(lambda: Path("hanging-0").exists() and Path("hanging-1").exists(), process)
    assert len(processes_of(folder)) == 3  # the command and two trainers
    for position, number in enumerate(signals):
        process.send_signal(number)
        if position == 0 and len(signals) > 1:
            wait_until((folder / launch.STOP).exists, process)
            time.sleep(environment.SAME_SIGNAL)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == code
    wait_until(lambda: not processes_of(folder), seconds=10)
    if code == 130:
        assert shown.count(f"Stopped at once. Resume from the last checkpoint: rlhf run --resume {folder}") == 1


@pytest.fixture
def with_gpus(settings, monkeypatch):
    """with_gpus(N) -> the configuration and method of a run of two processes, on a machine with N GPUs."""

    def make(count: int):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        values = {**settings, **CHATS, "method": "sft", "model": "nowhere", "num_processes": 2}
        return resolve(values, Catalog())

    return make


@pytest.mark.parametrize(("gpus", "started"), [(1, "2"), (2, "3")])
def test_more_processes_than_gpus_are_refused(with_gpus, monkeypatch, gpus, started):
    config, method = with_gpus(gpus)
    if started == "3":  # by torchrun
        monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    with pytest.raises(UserError, match=f"{started} processes .* it has {gpus}: start {gpus}, or"):
        train(config, method, Catalog())
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize("gpus", [0, 2, 8])
def test_processes_with_a_gpu_each_or_none_are_taken(with_gpus, gpus):
    launch.check_distributed(with_gpus(gpus)[0])


@pytest.mark.parametrize(
    ("visible", "processes", "rank", "used"),
    [
        (None, 1, None, "0"),
        ("3,5", 1, None, "3"),
        ("GPU-8d,GPU-5c", 1, None, "GPU-8d"),
        (None, 2, None, None),
        (None, 1, "0", None),  # of another launcher
    ],
)
def test_one_process_uses_the_first_of_several_gpus_and_says_so(with_gpus, monkeypatch, visible, processes, rank, used):
    config = with_gpus(2)[0].model_copy(update={"num_processes": processes})
    for name, value in {"CUDA_VISIBLE_DEVICES": visible, "RANK": rank}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    said = launch.use_one_gpu(config)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == (used or visible)
    assert [text for _, text in said] == ["the first of 2 is used; for all of them: --num-processes 2"] * bool(used)


def test_a_run_that_would_split_its_batches_between_gpus_is_refused(with_gpus):
    """As it is where something has started CUDA before."""
    config = with_gpus(2)[0].model_copy(update={"num_processes": 1})
    with pytest.raises(UserError, match="write CUDA_VISIBLE_DEVICES=0 before it"):
        launch.check(config, SimpleNamespace(args=SimpleNamespace(world_size=1, n_gpu=2)))


def test_zero_stage_3_saves_models_that_load():
    """transformers saves the shares of the processes without this, which `from_pretrained` can't load."""
    assert launch.arguments_for("zero3")["deepspeed"]["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distributed": "fsdp"}, "add --num-processes N"),
        ({"distributed": "zero2", "num_processes": 2}, "needs DeepSpeed: pip install deepspeed"),
        ({"distributed": "fsdp", "num_processes": 2}, "fsdp needs GPUs"),
    ],
)
def test_an_unavailable_distribution_is_refused_before_anything_loads(settings, monkeypatch, flags, message):
    config, made = resolve({**settings, **CHATS, "method": "sft", "model": "nowhere", **flags}, Catalog())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        train(config, made, Catalog())


FULL = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
# of a launcher -> what is said; none: it is taken
ENVIRONMENTS = [
    ({}, None),
    (FULL, None),
    ({**FULL, "RANK": "1", "WORLD_SIZE": "2"}, None),
    ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "", "MASTER_PORT": ""}, None),  # as some clusters set
    ({"RANK": "1"}, "process 1 of 1, counted from 0"),
    ({"RANK": "abc"}, "RANK is no number"),
    ({"RANK": "-1"}, "RANK is no number"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE is no number"),
    ({"WORLD_SIZE": "2"}, "without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
    ({"LOCAL_RANK": "0"}, "without RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
    ({**FULL, "WORLD_SIZE": "0"}, "process 0 of 0"),
    ({**FULL, "MASTER_PORT": "x"}, "MASTER_PORT is no number"),
    ({**FULL, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0"),
]


@pytest.mark.parametrize(("variables", "message"), ENVIRONMENTS)
def test_an_environment_that_no_launcher_makes_is_refused(monkeypatch, variables, message):
    for name in (*FULL, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        launch.check_environment()


def trainer(world: int, kind: str):
    return SimpleNamespace(
        args=SimpleNamespace(world_size=world, n_gpu=1),
        accelerator=SimpleNamespace(distributed_type=SimpleNamespace(name=kind)),
    )


@pytest.mark.parametrize(
    ("asked", "got", "message"),
    [
        ({"num_processes": 2}, (1, "NO"), "asked for 2 processes and got 1"),
        ({"num_processes": 2, "num_machines": 2, "master_addr": "a:1"}, (2, "MULTI_CPU"), "asked for 4 processes and got 2"),
        ({"num_processes": 2, "distributed": "fsdp"}, (2, "MULTI_CPU"), "asked for fsdp and got MULTI_CPU"),
        ({"num_processes": 2, "distributed": "zero3"}, (2, "MULTI_GPU"), "asked for zero3 and got MULTI_GPU"),
        ({"num_processes": 2}, (2, "MULTI_CPU"), None),
        ({"num_processes": 2, "distributed": "fsdp"}, (2, "FSDP"), None),
        ({}, (2, "MULTI_CPU"), None),
    ],
)  # fmt: skip
def test_fewer_processes_than_requested_are_refused(asked, got, message):
    config, _ = resolve({"method": "sft", **asked}, Catalog())
    if message is None:
        launch.check(config, trainer(*got))
    else:
        with pytest.raises(UserError, match=message):
            launch.check(config, trainer(*got))


def test_several_machines_need_an_address():
    with pytest.raises(UserError, match="--master-addr"):
        resolve({"method": "sft", "num_machines": 2}, Catalog())


ENDING = """
import atexit, sys
from torch import distributed
from rlhf_core.training import launch
launch.end_process(1)  # alone: nothing
atexit.register(print, "its last words", end="")
if len(sys.argv) > 1:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
class Lasting:
    def __del__(self): print(", and Python's end", end="")
lasting = Lasting()
print("said, ", end="")
launch.end_process(3)
sys.exit(4)
"""


@pytest.mark.parametrize(
    ("group", "code", "said"), [(["group"], 3, ""), ([], 4, ", and Python's end")], ids=["in a group", "alone"]
)
def test_a_process_of_several_ends_without_pythons_own_end(group, code, said):
    """There a thread of gloo's may abort it. What was said is written, and what `atexit` has is done."""
    done = subprocess.run([sys.executable, "-c", ENDING, *group], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, f"said, its last words{said}")


@pytest.mark.parametrize(("size", "smaller"), [((8, 1), (4, 2)), ((2, 16), (1, 32)), ((3, 2), (1, 6)), ((1, 4), None)])
def test_the_micro_batch_shrinks_and_the_step_does_not(size, smaller, tmp_path):
    options = SimpleNamespace(per_device_train_batch_size=size[0], gradient_accumulation_steps=size[1])
    asked, file = launch.ask_for_smaller(tmp_path, options), tmp_path / launch.SMALLER
    assert asked == file.exists() == (smaller is not None)
    if asked:
        assert tuple(json.loads(file.read_text()).values()) == smaller


def test_another_launchers_processes_do_not_ask_to_be_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    options = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert not launch.ask_for_smaller(tmp_path, options)
    monkeypatch.setenv(launch.LAUNCHER, "1")
    assert launch.ask_for_smaller(tmp_path, options)


def test_no_smaller_micro_batch_is_tried_where_memory_ran_out_in_sampling(settings, tmp_path, capsys):
    """Sampling takes as many answers as a step has, whatever the micro-batch: the run says what would help."""
    config, _ = resolve({**settings, **CHATS, "method": "grpo", "reward": ["length"]}, Catalog())
    run, screen = SimpleNamespace(folder=tmp_path, options=config.options, resume_from=None, config=config), Screen()
    outside, inside = torch.OutOfMemoryError("tried to allocate"), torch.OutOfMemoryError("no room for a cache")
    assert ending.failed(outside, run, screen, loaded=True, kept=True) == launch.OUT_OF_MEMORY
    (tmp_path / launch.SMALLER).unlink()
    with pytest.raises(torch.OutOfMemoryError), phase("sampling"):
        raise inside
    assert ending.failed(inside, run, screen, loaded=True, kept=True) == 1
    assert not (tmp_path / launch.SMALLER).exists()
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "ran out of memory while it sampled answers: no room for a cache Try a smaller --max-completion-length" in said
    )
    assert "fewer answers at a time (--num-generations, --gradient-accumulation-steps" in said
    with phase("sampling"):  # it went well after that
        pass
    assert ending.failed(outside, run, screen, loaded=True, kept=True) == launch.OUT_OF_MEMORY


RUNS_OUT = """
import json, os
import torch
from rlhf_core import hookimpl
from transformers import TrainerCallback

class RunsOut(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        short = json.loads(os.environ["SHORT_OF_MEMORY"]).get(str(args.per_device_train_batch_size), "")
        if state.global_step == 2 and os.environ.get("RANK", "0") in short:
            raise torch.OutOfMemoryError("tried to allocate too much")

@hookimpl
def rlhf_callbacks(run): return [RunsOut()]
"""


@pytest.mark.parametrize(
    ("processes", "short", "starts"),
    [
        pytest.param(1, {4: "0", 2: "0"}, [(2, 2), (1, 4)], id="one process, twice"),
        pytest.param(
            *(2, {4: "1"}, [(2, 2)]),
            id="one of two processes",
            marks=pytest.mark.skipif(TRANSFORMERS_5_17, reason=LOADS_NOTHING),
        ),
    ],
)
def test_a_run_out_of_memory_resumes_with_a_smaller_micro_batch(
    settings, tmp_path, monkeypatch, processes, short, starts
):
    """All processes start again, also when only one of them ran out. `short`: the micro-batch -> who can't do it."""
    site = tmp_path / "site"
    (site / "runs_out-1.0.dist-info").mkdir(parents=True)
    (site / "runs_out_plugin.py").write_text(RUNS_OUT)
    (site / "runs_out-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: runs-out\nVersion: 1.0\n")
    (site / "runs_out-1.0.dist-info" / "entry_points.txt").write_text("[rlhf.callbacks]\nruns_out = runs_out_plugin\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("SHORT_OF_MEMORY", json.dumps(short))
    values = {
        **settings,
        **METHODS["grpo"],
        "method": "grpo",
        "callback": ["runs_out"],
        "max_steps": 3,
        "save_steps": 1,
    }
    done = command({**values, "per_device_train_batch_size": 4, "num_processes": processes})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Traceback") == 0, done.stderr
    for batch, accumulation in starts:
        sizes = f"per_device_train_batch_size {batch}, gradient_accumulation_steps {accumulation}"
        assert done.stdout.count(f"Starting again from the last checkpoint with {sizes}") == 1
    assert done.stdout.count("Resuming after checkpoint-2.") == len(starts)
    state = sorted(Path("one/checkpoints").glob("checkpoint-*/trainer_state.json"))[-1]
    assert json.loads(state.read_text())["global_step"] == 3
    config = json.loads((state.parent / "checkpoint.json").read_text())["config"]
    assert (config["per_device_train_batch_size"], config["gradient_accumulation_steps"]) == starts[-1]
