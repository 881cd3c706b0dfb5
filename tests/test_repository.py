"""Every plugin folder is complete, and the README is true."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlhf_core import hookspecs
from rlhf_core.catalog import HOOKS, Catalog
from rlhf_core.cli import rlhf
from rlhf_core.config import resolve
from rlhf_core.errors import UserError
from rlhf_core.training.run import train

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in ROOT.glob("*/*/pyproject.toml"))
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_plugin_folder_is_a_distribution(folder):
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"].startswith("rlhf-")
    assert project["description"]
    assert any(need.startswith("rlhf-core") for need in project["dependencies"])
    assert (folder / "README.md").read_text().startswith("# ")
    assert list((folder / "tests").glob("test_*.py"))
    assert f"-e {folder.relative_to(ROOT)}" in (ROOT / "requirements.txt").read_text().split("\n")
    module = project["name"].replace("-", "_")
    assert (folder / f"{module}.py").exists() or (folder / module / "__init__.py").exists()
    for group, points in project["entry-points"].items():
        assert group.removeprefix("rlhf.") in HOOKS
        assert set(points.values()) == {module}


PUBLIC = (
    "rlhf_core",
    "rlhf_core.commands",
    "rlhf_core.endpoint",
    "rlhf_core.numbers",
    "rlhf_core.prefix",
    "rlhf_core.settings",
    "rlhf_core.testing",
    "rlhf_core.vllm",
)
MODULES = [
    file
    for folder in ("plugins", "reward_functions", "docs/examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "tests" not in file.parts
]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_plugins_import_only_what_is_public(file):
    """So that others can write what our own plugins do."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names if alias.name.startswith("rlhf_core")} <= set(PUBLIC)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rlhf_core":
            assert node.module in PUBLIC
            module = importlib.import_module(node.module)
            names = set(vars(module).get("__all__", dir(module)))
            submodules = {name.partition(".")[2] for name in PUBLIC} if node.module == "rlhf_core" else set()
            assert {alias.name for alias in node.names} <= names | submodules


def test_every_hook_has_a_kind_a_sentence_and_is_in_the_architecture():
    named = {name for name in vars(hookspecs) if name.startswith("rlhf_")}
    assert named == set(HOOKS.values())
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    for name in named:
        assert vars(hookspecs)[name].__doc__.strip()
        assert f"`{name}`" in architecture


UNASKED = ("vllm", "wandb", "trackio", "mlflow", "swanlab")


def test_pins_are_exact_and_within_the_ranges_that_are_declared():
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and line[0] not in "-#"]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        # vLLM runs on GPUs alone and would bring CUDA with it, and a tracker brings a server: nothing installs them unasked.
        *(need for extra, needs in project["optional-dependencies"].items() if extra not in UNASKED for need in needs),
    ]
    for need in map(Requirement, declared):
        assert need.specifier.contains(versions[need.name]), need


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_file_tree_of_the_readme_exists(readme):
    tree = re.search(r"```text\n(rlhf_core/.*?)```", readme.read_text(), re.DOTALL)[1]
    stack: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        for name in re.match(r"\s*((?:[\w.-]+/?(?: (?=\S+/ ))?)+)", line)[1].split():
            stack[depth:] = [name]
            assert (ROOT / "/".join(stack)).exists(), line


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(), re.DOTALL)


def commands(readme: Path) -> list[str]:
    lines = "\n".join(blocks(readme, "bash")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("rlhf ")]


def test_both_readmes_have_the_same_commands_and_code():
    assert commands(READMES[0]) == commands(READMES[1])
    for language in ("python", "toml", "yaml"):
        assert blocks(READMES[0], language) == blocks(READMES[1], language)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tiny_model) -> Path:
    """A run of one step, of the kind that the README's commands name."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    values = {"method": "grpo", "reward": ["medical_format"], "model": str(tiny_model), "lora": True, "max_steps": 1}
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_completion_length": 8}
    config, method = resolve({**values, **sizes, "num_eval_prompts": 1, "output_dir": str(folder)}, Catalog())
    assert train(config, method, Catalog()) == 0
    return folder


# A process for each of its stages, as another pipeline has, and all that tests/test_doctor.py tries by itself.
LONG = ("rlhf pipeline --config pipeline.yaml", "rlhf doctor")
TRIED = [
    pytest.param(command, marks=pytest.mark.thorough) if command in LONG else command
    for command in commands(READMES[0])
    if "Qwen" not in command and "--resume" not in command
]


@pytest.mark.slow
@pytest.mark.parametrize("command", TRIED)
def test_the_readmes_commands_run(command, tmp_path, monkeypatch, finished_run):
    """Commands that train only check everything; the demo itself is run by `make demo` and by benchmarks/demo.py."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "runs" / "grpo-20260101-120000")
    (tmp_path / "pipeline.yaml").write_text(blocks(READMES[0], "yaml")[0])
    (tmp_path / "my_data.jsonl").write_text('{"question": "2+2?", "answer": "4"}\n' * 20)
    (tmp_path / "my_rewards.py").write_text(blocks(READMES[0], "python")[0])
    arguments = shlex.split(command)[1:]
    trains = arguments[0] in ("run", "pipeline") and "--dry-run" not in arguments
    result = CliRunner().invoke(rlhf, [*arguments, "--dry-run"] if trains else arguments)
    if command == "rlhf pipeline":  # asks which, and there is no terminal to answer
        assert isinstance(result.exception, UserError)
    else:
        assert result.exit_code == 0, result.output + repr(result.exception)


def test_the_readmes_package_is_a_plugin(distribution):
    module, project = blocks(READMES[0], "python")[1], tomllib.loads(blocks(READMES[0], "toml")[0])["project"]
    distribution(project["name"], {"rlhf_reward_near": module}, project["entry-points"])
    reward, _ = Catalog().load("rewards", "near")
    assert reward.function(completions=["It is 4."], answer=["4"]) == [1.0]


def test_the_bill_of_materials_states_a_licence_for_all_that_is_needed(tmp_path):
    """What `make release-check` writes."""
    file = tmp_path / "sbom.json"
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    sbom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sbom)
    assert sbom.main(str(file)) == 0
    document = json.loads(file.read_text())
    names = {part["name"] for part in document["components"]}
    assert (document["bomFormat"], names > {"rlhf-core", "torch", "transformers", "trl", "pyyaml"}) == (
        "CycloneDX",
        True,
    )
