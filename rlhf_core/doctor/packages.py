"""Versions of packages against the tested and the supported ones, and whether they can be imported."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Iterator
from dataclasses import replace

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from rlhf_core.catalog import normalize
from rlhf_core.doctor import Check, one_line
from rlhf_core.doctor.asking import Asking

# Those of requirements.txt, which is not part of the installed package.
TESTED = {
    "torch": "2.13.0",
    "accelerate": "1.15.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "trl": "1.16.0",
    "tensorboard": "2.21.0",
    "bitsandbytes": "0.50.2",
}
NEEDED = tuple(name for name in TESTED if name != "bitsandbytes")  # each before what imports it
TRAIN = "Install it: pip install 'rlhf-core[train]'"
# package -> (name of the line, what can't be done without it)
OPTIONAL = {
    "vllm": ("vLLM", "--rollouts vllm can't be used, the others can"),
    "deepspeed": ("DeepSpeed", "--distributed zero2 and zero3 can't be used, ddp and fsdp can"),
    "sentencepiece": ("sentencepiece", "models with tokenizer.model and no tokenizer.json can't be read"),
    "tiktoken": ("tiktoken", "models with a tiktoken file and no tokenizer.json can't be read"),
}
# Others that a report about a problem tells, where they are there.
TOLD = (
    *("rlhf-core", *TESTED, *OPTIONAL, "tokenizers", "safetensors", "huggingface-hub", "numpy", "pyarrow", "triton"),
    *("protobuf", "flash-attn", "xformers", "pydantic", "rich", "click"),
)


def version_of(package: str) -> str | None:
    """The installed version, by its metadata: a package that is broken has one, too."""
    try:
        return importlib.metadata.version(package) or "unknown"
    except importlib.metadata.PackageNotFoundError:
        return None


def supported(package: str, by: str = "rlhf-core") -> str:
    """The versions of a package that the distribution `by` asks for, also in an extra; empty for any."""
    try:
        lines = importlib.metadata.requires(by) or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if normalize(requirement.name) == package:
            return str(requirement.specifier)
    return ""


def judge_version(package: str, version: str, versions: str, tested: str = "", name: str = "") -> Check:
    """Whether a version is within the supported ones, given as pip takes them, and newer than the tested one."""
    name = name or package
    try:
        given = Version(version)
    except InvalidVersion:
        advice = f"Install it again: {pip(package, versions, '--force-reinstall')}"
        return Check(name, "warn", f"its metadata has no version that can be read: {one_line(version)}", advice)
    if not Requirement(package + versions).specifier.contains(given, prereleases=True):
        asked = f"{version}, and {versions} is supported: what was not tested may fail or train something else"
        return Check(name, "warn", asked, f"Install another: {pip(package, versions)}")
    newer = bool(tested) and Version(given.public) > Version(tested)
    return Check(name, "ok", f"{version}, newer than the tested {tested}" if newer else version)


def core() -> Check:
    """The core, and what it needs without training."""
    version = version_of("rlhf-core")
    if version is None:
        unseen = "not installed as a package, so what it needs can't be seen"
        return Check("rlhf-core", "warn", unseen, "Install it: pip install -e . in its folder")
    lines = importlib.metadata.requires("rlhf-core") or []
    needs = [each for each in map(Requirement, lines) if each.marker is None]
    for need in needs:
        found = version_of(need.name)
        if found is None:
            return Check("rlhf-core", "fail", f"{version} needs {need}", f"Install it: {pip(str(need), '')}")
        judged = judge_version(normalize(need.name), found, str(need.specifier))
        if judged.status != "ok":
            return Check("rlhf-core", judged.status, f"{version} with {need.name} {judged.text}", judged.advice)
    return Check("rlhf-core", "ok", version)


def needed(package: str, asking: Asking, broken: str = "") -> Check:
    """A package that no method can train without. `broken`: one that it may need, and that can't be imported."""
    version = version_of(package)
    if version is None:
        return Check(package, "fail", "not installed: no method can train", TRAIN)
    judged = judge_version(package, version, supported(package), TESTED[package])
    if broken:
        return replace(judged, text=f"{judged.text}; not tried without {broken}")
    if error := asking.ask("library", package).error:
        advice = f"Install it again: {pip(package, supported(package), '--force-reinstall')}"
        return Check(package, "fail", f"{version} can't be imported: {one_line(error)}", advice)
    return judged


def optional(asking: Asking) -> Iterator[Check]:
    """Packages that something is missing without."""
    for package, (name, cost) in OPTIONAL.items():
        if package == "vllm":
            yield vllm()
        elif (version := version_of(package)) is None:
            yield Check(name, "missing", f"not installed: {cost}", f"To have it: {pip(package, '')}")
        else:
            yield judge_version(package, version, "", name=name)


def vllm() -> Check:
    """The installed vLLM against the versions that TRL asks for, and the packages that it shares with training against
    those that it asks for itself.
    """
    (name, cost), version, versions = OPTIONAL["vllm"], version_of("vllm"), supported("vllm", by="trl")
    if version is None:
        return Check(name, "missing", f"not installed: {cost}", f"To have it: {pip('vllm', versions)}")
    judged = judge_version("vllm", version, versions, name=name)
    for package in ("transformers", "torch") if judged.status == "ok" else ():
        found, asked = version_of(package), supported(package, by="vllm")
        if found is not None and judge_version(package, found, asked).status != "ok":
            text = f"{version} needs {package} {asked}, and {found} is installed"
            return Check(name, "warn", text, f"Install another: {pip(package, asked)}")
    return judged


def pip(package: str, versions: str, *options: str) -> str:
    """The command that installs a package in one of these versions."""
    return shlex.join(["pip", "install", *options, package + versions])
