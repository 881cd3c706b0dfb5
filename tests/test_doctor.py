"""`rlhf doctor`: each check over situations of machines, and the command with what is broken left broken."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlhf_core.cli import rlhf
from rlhf_core.cli.doctor import show
from rlhf_core.doctor import Check, asking, devices, packages, plugins, probes, report, system
from rlhf_core.doctor.asking import Answer, Asking
from rlhf_core.errors import UserError
from rlhf_core.ui.screen import Terminal

ROOT = Path(__file__).parent.parent
H100 = {"name": "NVIDIA H100", "memory": 85e9, "free": 84e9, "capability": "9.0", "bfloat16": "native"}
T4 = {"name": "Tesla T4", "memory": 16e9, "free": 3e9, "capability": "7.5", "bfloat16": "emulated"}
ON_CUDA, ON_CPU = {"cuda": "13.0", "hip": None}, {"cuda": None, "hip": None}
SMI = {"names": ["NVIDIA H100"], "driver": "580.1"}


def judged(*checks: Check) -> list[tuple[str, str]]:
    return [(check.status, f"{check.name}: {check.text}") for check in checks]


# devices, torch, nvidia-smi, environment -> what is said
MACHINES = {
    "a GPU": (
        [H100],
        ON_CUDA,
        SMI,
        {},
        "ok",
        "GPU: NVIDIA H100, 84.0 of 85.0 GB free; compute capability 9.0, CUDA 13.0",
    ),
    "its driver": ([H100], ON_CUDA, SMI, {}, "ok", ", driver 580.1"),
    "one in use": ([T4], ON_CUDA, {}, {}, "warn", "Tesla T4, 3.0 of 16.0 GB free"),
    "AMD": ([H100], {"cuda": None, "hip": "7.1"}, {}, {}, "ok", "ROCm 7.1"),
    "Apple": ([{"name": "mps"}], ON_CPU, {}, {}, "ok", "mps; tested are CUDA and CPUs alone"),
    "none": ([], ON_CPU, {}, {}, "missing", "GPU: none: training uses the CPU"),
    "none for CUDA": (
        [],
        ON_CUDA,
        {},
        {},
        "missing",
        "none; torch was built for CUDA and says: too old: training uses",
    ),
    "hidden": ([], ON_CUDA, SMI, {"CUDA_VISIBLE_DEVICES": ""}, "warn", "can't use: CUDA_VISIBLE_DEVICES= hides it"),
    "a torch for CPUs": (
        [],
        ON_CPU,
        SMI,
        {},
        "warn",
        "driver 580.1, which torch can't use: this torch was built without",
    ),
    "an old driver": ([], ON_CUDA, SMI, {}, "warn", "which torch can't use: too old"),
    "a broken driver": (
        [],
        ON_CUDA,
        {"failed": "Driver/library\nmismatch"},
        {},
        "warn",
        "nvidia-smi fails: Driver/library mismatch",
    ),
}


@pytest.mark.parametrize("case", MACHINES)
def test_devices(case):
    each, torch, smi, environment, status, text = MACHINES[case]
    facts = {"kind": "cuda" if each else "cpu", "devices": each, "said": ["too old"] if torch["cuda"] else []}
    [found] = judged(*devices.judge_devices(facts, torch, Answer(smi), environment))
    assert found[0] == status
    assert text in found[1]


def test_several_devices_are_a_line_each_with_their_numbers_for_json():
    facts = {"kind": "cuda", "devices": [H100, T4], "said": []}
    checks = list(devices.judge_devices(facts, ON_CUDA, Answer({}), {}))
    assert [check.name for check in checks] == ["GPU 0", "GPU 1"]
    assert [check.values for check in checks] == [H100, T4]


def test_without_torch_the_gpus_of_the_driver_are_told():
    assert judged(devices.judge_without_torch(Answer(SMI))) == [
        ("warn", "GPU: NVIDIA H100; nothing was tried on it, which needs torch")
    ]
    assert "none that nvidia-smi knows" in devices.judge_without_torch(Answer({}, "no such file")).text


def test_bfloat16():
    have = {
        name: devices.judge_bfloat16({"devices": [{"bfloat16": name}]}).status
        for name in ("native", "emulated", "none")
    }
    assert have == {"native": "ok", "emulated": "warn", "none": "warn"}
    assert devices.judge_bfloat16({"devices": []}).status == "ok"
    mixed = devices.judge_bfloat16({"devices": [H100, T4]})
    assert (mixed.status, mixed.text) == (
        "warn",
        "emulated on this GPU, slowly: frozen weights are float16, those that are all trained float32",
    )


STEP = {"device": "cuda", "dtype": "bfloat16"}
STEPS = {
    "works": (Answer({**STEP, "losses": [11.6, 11.1]}), "ok", "on cuda in bfloat16"),
    "no number": (Answer({**STEP, "losses": [11.6, float("nan")]}), "fail", "from 11.6 to nan"),
    "learns nothing": (Answer({**STEP, "losses": [11.6, 11.6]}), "fail", "should lower it"),
    "no code": (Answer({}, "RuntimeError: no kernel image is available"), "fail", "no kernel image"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_training_step(case):
    answer, status, text = STEPS[case]
    check = devices.judge_step(answer)
    assert check.status == status
    assert text in check.text
    assert ("no code for this GPU" in check.advice) == (case == "no code")


def test_attention_that_fails_costs_time_and_not_training():
    cuda = {"device": "cuda", "kernel": True}
    cases = [
        (Answer({**cuda, "problem": None}), "ok", "equals plain arithmetic"),
        (Answer({**cuda, "problem": "0.3 of the values away"}), "warn", "0.3 of the values away: shared prompts are"),
        (Answer({"device": "mps", "kernel": False, "problem": None}), "warn", "no flash kernel that is used on mps"),
        (Answer({}, "its process was ended by SIGSEGV"), "warn", "SIGSEGV"),
    ]
    for answer, status, text in cases:
        check = devices.judge_attention(answer)
        assert check.status == status
        assert text in check.text


def test_quantized_weights_are_ok_only_if_both_kinds_multiply_as_they_should():
    def of(version, four, eight):
        return devices.judge_bitsandbytes(version, {"4": four, "8": eight})

    good, nan = Answer({"apart": 1e-3}), Answer({"apart": float("nan")})
    assert of("0.50.2", good, good) == Check(
        "bitsandbytes", "ok", "0.50.2; 4-bit and 8-bit weights multiply as they should"
    )
    assert of(None, good, good).status == "missing"
    assert "8-bit weights fail: libcudart" in of("0.50.2", good, Answer({}, "libcudart")).text
    assert of("0.50.2", Answer({"apart": 0.03}), Answer({"apart": 0.03})).text.startswith(
        "0.50.2: 4-bit weights multiply"
    )
    assert of("0.50.2", nan, good).status == "warn"
    assert f"{packages.supported('bitsandbytes')} is supported" in of("0.40.0", good, good).text


def test_several_processes():
    def of(answer):
        return devices.judge_processes("nccl", answer)

    assert of(Answer({"available": True, "correct": True, "version": "2.29.3"})).text == "nccl 2.29.3 sums as it should"
    assert of(Answer({"available": True, "correct": False, "version": ""})).status == "warn"
    assert of(Answer({"available": False})).status == "missing"
    assert "NCCL_SOCKET_IFNAME" in of(Answer({}, "no interface")).advice


def test_what_nvidia_smi_says_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probes.nvidia() == {}
    command = tmp_path / "nvidia-smi"

    def says(script):
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        return probes.nvidia()

    assert says("echo 'NVIDIA H100, 580.1'; echo 'Tesla T4, 580.1'") == {
        "names": ["NVIDIA H100", "Tesla T4"],
        "driver": "580.1",
    }
    assert says("echo No devices were found") == {"names": [], "driver": ""}
    assert says("echo broken; exit 9") == {"failed": "broken"}
    assert says("exit 9") == {"failed": "exit code 9"}


@pytest.mark.parametrize(("native", "emulated", "word"), [(1, 1, "native"), (0, 1, "emulated"), (0, 0, "none")])
def test_what_torch_says_of_a_cuda_device_is_read(native, emulated, word, monkeypatch):
    import torch

    about = SimpleNamespace(name="GPU", major=8, minor=6)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda", 0))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3, 5))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    answers = {False: native, True: emulated}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: answers[including_emulation])
    assert probes.devices() == {
        "kind": "cuda",
        "devices": [{"name": "GPU", "memory": 5, "free": 3, "capability": "8.6", "bfloat16": word}],
        "said": [],
    }


VERSIONS = {
    "tested": ("2.13.0+cpu", ">=2.11,<2.14", "2.13.0", "ok", "2.13.0+cpu"),
    "supported": ("2.11.1", ">=2.11,<2.14", "2.13.0", "ok", "2.11.1"),
    "newer": ("2.13.2", ">=2.11,<2.14", "2.13.0", "ok", "2.13.2, newer than the tested 2.13.0"),
    "too new": ("2.14.0.dev1", ">=2.11,<2.14", "2.13.0", "warn", "2.14.0.dev1, and >=2.11,<2.14 is supported"),
    "too old": ("2.1", ">=2.11,<2.14", "2.13.0", "warn", "2.1, and"),
    "any": ("0.1", "", "", "ok", "0.1"),
    "no version": ("unknown", ">=1", "", "warn", "no version that can be read: unknown"),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_versions(case):
    version, versions, tested, status, text = VERSIONS[case]
    check = packages.judge_version("torch", version, versions, tested)
    assert check.status == status
    assert check.text.startswith(text) or text in check.text


def test_the_tested_versions_are_those_of_the_requirements():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in packages.TESTED} == packages.TESTED


def test_the_tested_versions_of_python_are_those_of_the_readme():
    first, last = (".".join(map(str, each)) for each in system.TESTED)
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()


def test_supported_versions_are_read_from_what_asks_for_them(distribution):
    distribution("asks", {}, {}, 'vllm<=0.31,>=0.22; extra == "vllm"')
    assert packages.supported("vllm", by="asks") == "<=0.31,>=0.22"
    assert packages.supported("torch", by="asks") == ""
    assert packages.supported("torch", by="no-such-distribution") == ""
    assert packages.supported("torch") == "<2.14,>=2.11"


class Fake:
    """In place of `Asking`: answers by the question's words; {} to others."""

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.asked: list[tuple[str, ...]] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, *question):
        self.asked.append(question)
        return self.answers.get(question, Answer({}))


def test_a_needed_package_that_is_missing_or_broken_fails(monkeypatch):
    broken = Fake({("library", "trl"): Answer({}, "ImportError: libcudart.so.13:\n cannot open")})
    check = packages.needed("trl", broken)
    assert (check.status, check.text) == ("fail", "1.16.0 can't be imported: ImportError: libcudart.so.13: cannot open")
    assert check.advice == "Install it again: pip install --force-reinstall 'trl<1.17,>=1.16'"
    monkeypatch.setattr(packages, "version_of", lambda name: None)
    assert packages.needed("trl", Fake()).status == "fail"
    assert all(check.status == "missing" for check in packages.optional(Fake()))


def test_vllm_is_held_against_the_versions_of_trl(monkeypatch):
    monkeypatch.setattr(packages, "version_of", {"vllm": "0.50.0", "tiktoken": "0.9"}.get)
    found = {check.name: check for check in packages.optional(Fake())}
    assert found["vLLM"].status == "warn"
    assert f"and {packages.supported('vllm', by='trl')} is supported" in found["vLLM"].text
    assert found["tiktoken"].status == "ok"


def test_vllm_is_held_against_the_transformers_that_it_asks_for(monkeypatch):
    asked = {
        ("vllm", "trl"): "<=0.31.0,>=0.22.0",
        ("transformers", "vllm"): "<5.18,>=5.10",
        ("torch", "vllm"): "==2.13.0",
    }
    monkeypatch.setattr(packages, "supported", lambda package, by: asked[package, by])
    installed = {"vllm": "0.31.0", "transformers": "5.23.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(packages, "version_of", installed.get)
    found = packages.vllm()
    assert (found.status, found.text) == ("warn", "0.31.0 needs transformers <5.18,>=5.10, and 5.23.0 is installed")
    assert found.advice == "Install another: pip install 'transformers<5.18,>=5.10'"
    installed["transformers"] = "5.17.0"
    assert packages.vllm().status == "ok"


def test_the_extra_asks_for_the_vllm_that_trl_asks_for():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    ours = next(need for need in map(Requirement, extra["vllm"]) if need.name == "vllm")
    assert ours.specifier == SpecifierSet(packages.supported("vllm", by="trl"))


def test_the_core_with_what_it_needs(monkeypatch):
    assert packages.core().status == "ok"
    versions = {"rlhf-core": "0.1.0", "click": "7.0"}
    monkeypatch.setattr(packages, "version_of", versions.get)
    assert packages.core().text.startswith("0.1.0 with click 7.0, and >=8.2 is supported")
    versions["click"] = "8.5.0"
    assert packages.core().status == "fail"  # nothing else is there
    versions.clear()
    assert packages.core().status == "warn"


def disk_of(free, monkeypatch, folder, size=12, otherwise="--output-dir"):
    monkeypatch.setattr(system.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    return system.judge_disk("output", folder, size, "a checkpoint", otherwise)


def test_disks(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "runs"
    roomy = disk_of(90e9, monkeypatch, folder)
    assert roomy.status == "ok"
    assert roomy.text.startswith(f"90.0 GB free in {folder}; a checkpoint takes 7 GB for 0.6 B, 20 GB for 1.7 B, 96 GB")
    assert disk_of(7e9, monkeypatch, folder).status == "warn"
    assert disk_of(5e7, monkeypatch, folder).status == "fail"
    assert disk_of(5e7, monkeypatch, folder, otherwise="HF_HOME").status == "warn"
    assert disk_of(5e8, monkeypatch, folder, size=0).status == "warn"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    inside = disk_of(90e9, monkeypatch, tmp_path / "file" / "runs")
    assert (inside.status, inside.text) == ("fail", f"{tmp_path}/file/runs can't be written to: Not a directory")

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(system.tempfile, "TemporaryFile", full)
    assert disk_of(90e9, monkeypatch, tmp_path, otherwise="HF_HOME").status == "warn"
    assert disk_of(90e9, monkeypatch, tmp_path).text == f"{tmp_path} can't be written to: No space left on device"


def test_a_tmpdir_that_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(system.tempfile, "tempdir", str(tmp_path))
    assert ("warn", f"temporary: TMPDIR=/nowhere can't be written to: {tmp_path} is used") in judged(
        *system.disks(tmp_path)
    )


def test_without_a_home_or_a_temporary_folder(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError

    def none():
        raise FileNotFoundError

    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(system.Path, "expanduser", lambda path: no_home())
    monkeypatch.setattr(system.tempfile, "gettempdir", none)
    found = {check.name: check.status for check in system.disks(tmp_path)}
    assert found == {"output": "ok", "downloads": "warn", "temporary": "fail"}
    monkeypatch.setattr(system.Path, "home", no_home)
    assert system.home_as_tilde("/home/ann/x") == "/home/ann/x"


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_downloads_are_where_huggingface_hub_keeps_them(environment, folder):
    assert str(system.downloads(environment)) == folder


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(system.os, "sysconf", {"SC_PAGE_SIZE": 4000, "SC_PHYS_PAGES": 10**8}.get)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  100000000 kB\n")

    def of(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return system.memory(tmp_path, meminfo)

    assert of().text == "102.4 of 400.0 GB free, 64 CPU cores"
    assert of(memory_max="max", cpu_max="max 100000").status == "ok"
    small = of(memory_max="16000000000\n", memory_current="12000000000\n", cpu_max="250000 100000\n")
    assert small.text.startswith("4.0 of 16.0 GB free, 64 CPU cores, of which this container may use 2.5")
    assert small.advice == "Set it: export OMP_NUM_THREADS=2"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert of().status == "ok"
    assert of(memory_current="15000000000").status == "warn"


def test_limits():
    infinite = system.resource.RLIM_INFINITY
    assert [system.judge_files(*each).status for each in ((infinite, infinite), (1024, 4096), (256, 512))] == [
        *("ok", "ok", "warn")
    ]
    assert system.judge_files(256, 4096).advice == "Before the command: ulimit -n 4096"
    assert system.judge_files(256, infinite).advice == "Before the command: ulimit -n 65536"
    assert system.judge_files(256, 512).advice.startswith("Start the container with --ulimit nofile=65536")
    assert [system.judge_shared(size).status for size in (64_000_000, 8_000_000_000)] == ["warn", "ok"]


def test_address_space(monkeypatch):
    limits = {system.resource.RLIMIT_AS: (10**10, 10**10)}
    monkeypatch.setattr(system.resource, "getrlimit", lambda name: limits.get(name, (4096, 4096)))
    assert ("warn", "address space: a process may map 10.0 GB: CUDA and large files map more than they use") in judged(
        *system.limits()
    )


def test_the_hub(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert system.hub().status == "missing"
    (tmp_path / "token").write_text("hf_abc")
    assert system.hub() == Check("Hub", "ok", "a token is set")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert system.hub().text == "a token is set; HF_HUB_OFFLINE=1: nothing is downloaded"
    (tmp_path / "token").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    assert system.hub().status == "ok"


def entry(kind, name, state="ok", problem=None, distribution="dist"):
    from rlhf_core.catalog import Entry

    return Entry(kind, name, "module", distribution, "1.0", "", problem, state)


GRPO = entry("methods", "grpo")
# entries, answers, RLHF_DISABLE_PLUGINS -> what is said
INSTALLED = {
    "all load": (
        [GRPO, entry("rewards", "a"), entry("rewards", "b")],
        {},
        "",
        [("ok", "plugins: 1 method, 2 rewards can be loaded")],
    ),
    "one raises": (
        [GRPO, entry("rewards", "a")],
        {
            ("plugin", "rewards", "dist/a"): Answer(
                {}, "reward 'a' of dist 1.0 could not be loaded: ValueError: no\nway"
            )
        },
        "",
        [("warn", "plugin: reward a of dist 1.0: ValueError: no way"), ("ok", "plugins: 1 method can be loaded")],
    ),
    "one is missing": (
        [GRPO, entry("rewards", "a", "module missing", "module x is missing")],
        {},
        "",
        [("warn", "plugin: reward a of dist 1.0: module x is missing"), ("ok", "plugins: 1 method can be loaded")],
    ),
    "one failed and is fixed": (
        [GRPO, entry("rewards", "a", "failed", "failed when")],
        {},
        "",
        [("ok", "plugins: 1 method, 1 reward can be loaded")],
    ),
    "two of a name": (
        [GRPO, entry("methods", "x", "duplicate name", "also offered by b")],
        {},
        "",
        [("warn", "plugin: method x of dist 1.0: also offered by b"), ("ok", "plugins: 1 method can be loaded")],
    ),
    "disabled": (
        [GRPO, entry("rewards", "a", "disabled", "disabled", "off")],
        {},
        "off, ,OFF",
        [("ok", "plugins: 1 method can be loaded; RLHF_DISABLE_PLUGINS leaves out off")],
    ),
    "a disabled name that is not there": (
        [GRPO],
        {},
        "offf",
        [("warn", "plugins: 1 method can be loaded; RLHF_DISABLE_PLUGINS names offf, which is not installed")],
    ),
    "no method": ([], {}, "", [("fail", "plugins: none can be loaded: without a method nothing can be trained")]),
}


@pytest.mark.parametrize("case", INSTALLED)
def test_plugins(case):
    entries, answers, disabled, said = INSTALLED[case]
    assert judged(*plugins.judge(entries, Fake(answers), disabled)) == said


PLUGINS = {
    "good": "from rlhf_core import Reward, hookimpl\ndef good(completions): return []\n"
    "@hookimpl\ndef rlhf_rewards():\n    print('noise')\n    return [Reward(good)]",
    "raises": "raise SystemExit('gone')",
    "exits": "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(3)",
    "aborts": "import os\nos.abort()",
    "hangs": "import time\ntime.sleep(600)",
    "forks": "import os, time\nif os.fork() == 0: time.sleep(600)\nos._exit(4)",
}


def test_a_probe_may_raise_end_abort_or_hang(distribution):
    """And what a plugin prints is no answer."""
    distribution(
        "p", {f"p_{name}": code for name, code in PLUGINS.items()}, {"rlhf.rewards": {n: f"p_{n}" for n in PLUGINS}}
    )
    with Asking() as asked:
        assert asked.ask("plugin", "rewards", "good") == Answer({}, None)
        assert "SystemExit: gone" in asked.ask("plugin", "rewards", "raises").error
        assert asked.ask("plugin", "rewards", "exits").error == "its process ended with exit code 3: last words"
        assert asked.ask("plugin", "rewards", "aborts").error.startswith("its process was ended by SIGABRT")
        assert asked.ask("plugin", "rewards", "forks").error == "its process ended with exit code 4"
        assert asked.ask("variables") == Answer({}, None)  # a new process is there
        process, asked.seconds = asked._process, 0.1
        started = time.monotonic()
        assert asked.ask("plugin", "rewards", "hangs").error == "no answer after 0.1 s"
        assert time.monotonic() - started < 10
        assert process.poll() is not None


def test_where_no_process_can_be_started_that_is_the_answer(monkeypatch):
    def refused(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asking.subprocess, "Popen", refused)
    with Asking() as asked:
        assert asked.ask("torch").error == "no process can be started: Resource temporarily unavailable"


def test_variables_that_a_run_refuses(monkeypatch):
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "loud")
    refused = system.environment(Fake())
    assert refused.status == "fail"
    assert refused.text.startswith("the environment has ACCELERATE_LOG_LEVEL='loud', which is none of")
    monkeypatch.setenv("RANK", "x")
    with Asking() as asked:  # such a value does not keep the process from answering
        assert asked.ask("variables").error.startswith("the environment has RANK=x: RANK is no number.")
    monkeypatch.delenv("ACCELERATE_LOG_LEVEL")
    assert system.environment(Fake({("variables",): Answer({}, "no number")})).status == "fail"


def invoke(monkeypatch, answers, *arguments):
    """`rlhf doctor ARGUMENTS` where the process answers `answers`."""
    answers = {("torch",): Answer(ON_CPU), ("devices",): Answer({"kind": "cpu", "devices": [], "said": []})} | answers
    good = {
        ("step",): Answer({**STEP, "losses": [2.0, 1.0]}),
        ("attention",): Answer({"device": "cpu", "kernel": True, "problem": None}),
        ("bitsandbytes", "4"): Answer({"apart": 0.0}),
        ("bitsandbytes", "8"): Answer({"apart": 0.0}),
        ("processes", "gloo"): Answer({"available": True, "correct": True, "version": ""}),
    }
    fake = Fake(good | answers)
    monkeypatch.setattr(asking, "Asking", lambda: fake)
    return CliRunner().invoke(rlhf, ["doctor", *arguments]), fake


def test_where_all_is_well_the_exit_code_is_0_and_the_json_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result, _ = invoke(monkeypatch, {}, "--json")
    found = json.loads(result.output)
    assert (result.exit_code, found["works"]) == (0, True)
    assert {*found} == {
        *(
            "works",
            "rlhf_core",
            "commit",
            "python",
            "platform",
            "packages",
            "plugins",
            "environment",
            "devices",
            "checks",
        )
    }
    assert all({*check} == {"name", "status", "text", "advice"} for check in found["checks"])
    assert {check["status"] for check in found["checks"]} <= {"ok", "missing", "warn"}
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert not list(tmp_path.iterdir())


def test_a_pipe_gets_one_line_for_each_check(monkeypatch):
    result, _ = invoke(monkeypatch, {})
    *lines, last, report_line = result.output.splitlines()
    assert all(re.match(r"(ok|missing|warn|fail) +\S", line) for line in lines)
    assert last.startswith("Training works here")
    assert report_line == "For a bug report: rlhf doctor --report"


def test_a_broken_torch_is_one_line_that_fails_and_the_rest_goes_on(monkeypatch):
    broken = Answer({}, "its process was ended by SIGILL")
    result, fake = invoke(monkeypatch, {("torch",): broken, ("library", "torch"): broken, ("nvidia",): Answer(SMI)})
    assert result.exit_code == 1
    assert re.search(r"^fail +torch .* can't be imported: its process was ended by SIGILL", result.output, re.MULTILINE)
    assert re.search(r"^warn +GPU +NVIDIA H100; nothing was tried on it", result.output, re.MULTILINE)
    assert re.search(r"^ok +transformers .*; not tried without torch$", result.output, re.MULTILINE)
    assert "Training can't work here: torch.\n" in result.output
    assert re.search(r"^ok +plugins", result.output, re.MULTILINE)
    assert not {("devices",), ("step",), ("bitsandbytes", "4"), ("library", "trl")} & {*fake.asked}


def test_devices_that_do_not_answer_fail_and_nothing_more_is_tried_on_them(monkeypatch):
    result, fake = invoke(monkeypatch, {("devices",): Answer({}, "no answer after 120 s")})
    assert result.exit_code == 1
    assert "looking for devices failed: no answer after 120 s" in result.output
    assert ("step",) not in fake.asked


def test_without_transformers_what_needs_only_torch_is_tried(monkeypatch):
    result, fake = invoke(monkeypatch, {("library", "transformers"): Answer({}, "ImportError: no")})
    assert result.exit_code == 1
    assert re.search(r"^missing +training +no step was tried, which needs transformers", result.output, re.MULTILINE)
    assert not {("step",), ("library", "trl")} & {*fake.asked}
    assert {("library", "torch"), ("bitsandbytes", "8"), ("attention",)} <= {*fake.asked}


def test_on_a_gpu_the_report_has_its_driver_and_several_processes_use_nccl(monkeypatch):
    on_gpu = {
        ("torch",): Answer(ON_CUDA),
        ("devices",): Answer({"kind": "cuda", "devices": [H100], "said": []}),
        ("nvidia",): Answer(SMI),
        ("processes", "nccl"): Answer({"available": True, "correct": True, "version": "2.29.3"}),
    }
    result, _ = invoke(monkeypatch, on_gpu, "--report")
    assert result.exit_code == 0
    assert "CUDA 13.0, driver 580.1" in result.output
    assert "nccl 2.29.3" in result.output
    assert json.loads(invoke(monkeypatch, on_gpu, "--json")[0].output)["devices"] == [H100]


TOKEN, PASSWORD = "hf_" + "a1" * 17, "s3cretpassword"


def test_no_secret_and_no_home_folder_is_told(monkeypatch, distribution, tmp_path):
    """Neither of variables, nor of what libraries and plugins say, nor of where a package was installed from."""
    home = tmp_path / "homes" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    url = f"https://ann:{PASSWORD}@pypi.example/simple"
    for name, value in {"HF_TOKEN": TOKEN, "PIP_INDEX_URL": url, "HF_ENDPOINT": url, "MY_PLACE": "elsewhere9"}.items():
        monkeypatch.setenv(name, value)
    distribution("rlhf-reward-x", {"x": ""}, {"rlhf.rewards": {"x": "x"}})
    info = tmp_path / "site" / "rlhf_reward_x-1.0.dist-info" / "direct_url.json"
    info.write_text(json.dumps({"url": url}))
    says = f"HTTPError: 401 of {url}?token={TOKEN} in {home}/models"
    answers = {("plugin", "rewards", "rlhf-reward-x/x"): Answer({}, says), ("attention",): Answer({}, says)}
    for arguments in ((), ("--report",), ("--json",)):
        output = invoke(monkeypatch, answers, "--output-dir", str(home / "runs"), *arguments)[0].output
        assert "HTTPError: 401 of https://***@pypi.example" in output
        for secret in (TOKEN, PASSWORD, "PIP_INDEX_URL", "MY_PLACE", "elsewhere9", *[str(home)] * bool(arguments)):
            assert secret not in output
        assert "HF_ENDPOINT" in output or not arguments


def test_the_report_is_one_block_that_nothing_in_it_closes():
    text = report.as_text([Check("a", "warn", "x ``` y"), Check("attention", "ok", "z")])
    assert text.count("```") == 2
    assert "\nwarn    a          x ''' y\n" in text


def test_the_commit_is_told_of_a_checkout_alone(monkeypatch):
    def of(text):
        found = SimpleNamespace(read_text=lambda name: text)
        monkeypatch.setattr(report.importlib.metadata, "distribution", lambda name: found)
        return report.commit()

    assert of(None) is None
    assert of('{"url": "file:///x", "dir_info": {}}') is None
    assert of("{") is None
    ran = []
    done = SimpleNamespace(returncode=0, stdout="1234567-dirty\n")
    monkeypatch.setattr(report.subprocess, "run", lambda *command, **_: ran.append(command) or done)
    assert of('{"dir_info": {"editable": true}}') == "1234567-dirty"
    assert ran
    done.returncode = 128
    assert of('{"dir_info": {"editable": true}}') is None


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_of_a_terminal_is_wider_than_it(width, capsys):
    checks = [
        Check("sentencepiece", "missing", "not installed: " + "word " * 30, "To have it: pip install sentencepiece"),
        Check("bitsandbytes", "ok", "0.50.2"),
        Check("GPU", "warn", "显卡" * 60),
    ]
    console = Terminal(width=width, force_terminal=True, color_system=None)
    for check in checks:
        show(console, check)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(width, len("missing  sentencepiece"))
    assert [line for line in lines if re.match(r"(ok|missing|warn) ", line)]
    assert any(line.strip().startswith("To have") for line in lines)


def test_colour_is_beside_the_words_and_control_characters_do_nothing(capsys):
    show(Terminal(width=80, force_terminal=True, color_system="standard"), Check("x", "fail", "a\x1b[2Jb"))
    assert capsys.readouterr().out == "\x1b[1;31mfail     \x1b[0mx              a␛[2Jb\n"


MISTAKES = {
    "a file": (["--output-dir", "file"], "--output-dir 'file' is no folder"),
    "nothing": (["--output-dir", ""], "--output-dir '' is no folder"),
    "too long": (["--output-dir", "x" * 5000], "is no folder"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    arguments, message = MISTAKES[case]
    result, _ = invoke(monkeypatch, {}, *arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_report_or_json(monkeypatch):
    result, _ = invoke(monkeypatch, {}, "--json", "--report")
    assert result.exit_code == 2
    assert "--report or --json, not both" in result.output
    assert invoke(monkeypatch, {}, "more")[0].exit_code == 2


@pytest.mark.parametrize("page", ["troubleshooting.md", "troubleshooting.zh-CN.md"])
def test_the_guide_has_a_row_for_every_line(page, monkeypatch):
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "guide" / page).read_text(), re.MULTILINE)
    told = {name for row in rows for name in re.findall("`([^`]+)`", row)}
    checks = json.loads(invoke(monkeypatch, {}, "--json")[0].output)["checks"]
    assert {check["name"] for check in checks} | {"plugin", "address space"} <= told
    assert {"ok", "missing", "warn", "fail"} <= told


def test_the_help_imports_neither_torch_nor_pydantic():
    code = "import sys\nfrom rlhf_core.cli import main\ntry: main()\nfinally: print({*sys.modules} & {'torch', 'pydantic'})"
    done = subprocess.run([sys.executable, "-c", code, "doctor", "--help"], capture_output=True, text=True)
    assert "--report" in done.stdout
    assert done.stdout.endswith("set()\n")


@pytest.mark.slow
def test_this_machine(monkeypatch, tmp_path):
    """Nothing is faked."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(rlhf, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = {check["name"]: check for check in json.loads(result.output)["checks"]}
    for name in (*packages.NEEDED, "training", "attention", "bitsandbytes", "processes", "plugins"):
        assert found[name]["status"] == "ok", found[name]
    assert not list(tmp_path.iterdir())
