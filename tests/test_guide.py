"""The guide: its commands exist, its code is that of docs/examples, and those packages pass their own tests."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from rlhf_core import Catalog, testing
from rlhf_core.cli import rlhf
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import parameters
from rlhf_core.testing.probes import PROBES

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide"
EXAMPLES = ROOT / "docs" / "examples"
PAGES = (
    "data",
    "preferences",
    "choosing",
    "evaluation",
    "plugins",
    "cluster",
    "troubleshooting",
    "memory",
    "runs",
    "diagnoses",
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (GUIDE / page).read_text(encoding="utf-8"), re.DOTALL | re.M)


def commands(page: str) -> list[str]:
    """Every `rlhf …` in the page's shell blocks, also inside a line of a script."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|exec )(rlhf [^'#]*)", line) for line in lines]
    return [match[1].strip() for match in found if match]


@pytest.fixture
def installed(distribution, monkeypatch):
    """The example packages, as if they had been installed."""
    for folder in sorted(EXAMPLES.iterdir()):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        monkeypatch.syspath_prepend(str(folder))
        distribution(project["name"], {}, project["entry-points"])


def parse(command: str) -> None:
    """Read the command line as `rlhf` would, but run nothing. Raises click's error for what does not exist."""
    words = command.replace("$WHAT", "--method sft").replace("$SLURM_NODEID", "0").split()[1:]
    group: click.Command = rlhf
    context = click.Context(rlhf)
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = group.get_command(context, name)
        assert found is not None, f"{command}: there is no command {name}"
        context, group = click.Context(found, parent=context, info_name=name), found
    words = [word for word in words if word != "--help"]
    group.parse_args(context, words)


def check_rewards(command: str) -> None:
    """The installed rewards that a command names have the parameters that it gives them."""
    words = command.split()
    for option, given in itertools.pairwise(words):
        if option in ("--reward", "--judge") and ".py" not in given and not given.startswith("trl."):
            spec = RewardSpec.read(given)
            assert spec.parameters.keys() <= parameters(Catalog().load("rewards", spec.target)[0]).keys(), given


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_guide_exists_with_its_flags(page, installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "big" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "big" / "config.yaml").write_text("method: sft\n")
    assert len(commands(f"{page}.md")) > 4
    for command in commands(f"{page}.md"):
        parse(command)
        check_rewards(command)


@pytest.mark.parametrize("wrong", ["rlhf plugins make reward x", "rlhf run --method simpo --betta 2"])
def test_a_command_that_does_not_exist_is_an_error(wrong, installed):
    with pytest.raises((AssertionError, click.UsageError)):
        parse(wrong)


def test_a_parameter_that_a_reward_lacks_is_an_error():
    with pytest.raises(AssertionError):
        check_rewards("rlhf run --method grpo --reward length:target=300")


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_show_the_same_blocks(page):
    for language in ("bash", "python", "toml", "json", "text"):
        assert blocks(f"{page}.md", language) == blocks(f"{page}.zh-CN.md", language)


def test_the_code_in_the_guide_is_that_of_the_examples():
    files = [*EXAMPLES.rglob("*.py"), *EXAMPLES.rglob("*.jsonl")]
    written = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for block in [*blocks("plugins.md", "python"), *blocks("plugins.md", "json")]:
        assert block in written


@pytest.mark.parametrize("page", ["plugins.md", "plugins.zh-CN.md"])
def test_the_guide_names_every_probe(page):
    text = (GUIDE / page).read_text(encoding="utf-8")
    for name in PROBES:
        assert f"| `{name}` |" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "name"),
    [
        (testing.check_method, "simpo"),
        (testing.check_reward, "brevity"),
        (testing.check_formatter, "consultation"),
    ],
)
def test_the_examples_keep_the_rules_of_their_kind(check, name, installed):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simpo", "brevity", "consultation"])
def test_the_examples_pass_their_own_tests(name, installed):
    """In a separate process. That they conform is tested above."""
    command = [sys.executable, "-m", "pytest", "-q", str(EXAMPLES / name), "-k", "not conforms"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]


def test_our_methods_and_the_example_do_not_need_each_other():
    for file in (ROOT / "plugins").rglob("*.py"):
        assert "rlhf_method_simpo" not in file.read_text(encoding="utf-8")
    for file in (EXAMPLES / "simpo").rglob("*.py"):
        assert "rlhf_method_orpo" not in file.read_text(encoding="utf-8")
