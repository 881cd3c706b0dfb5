"""`rlhf plugins` and `show`: listed from metadata, with the state of broken plugins, without any effect on runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from rlhf_core.catalog import STATES, Catalog, Entry
from rlhf_core.cli import packages, rlhf
from rlhf_core.cli.listings import table
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind
from rlhf_core.testing.new_package import CASES, KINDS, check_name, write

REWARD = """
from rlhf_core import Reward, hookimpl
def a(completions, answer, *, limit: int = 3, **_): "Scores it."
@hookimpl
def rlhf_rewards(): return [Reward(a, range=(0, 1), system_prompt="Be brief.")]
"""


def invoke(*arguments: str, **options):
    return CliRunner().invoke(rlhf, list(arguments), **options)


@pytest.fixture
def one_of_each_state(distribution, monkeypatch):
    distribution("fine", {"fine_module": REWARD}, {"rlhf.rewards": {"a": "fine_module"}})
    distribution("off", {"off_module": REWARD}, {"rlhf.rewards": {"off": "off_module"}})
    distribution("old", {"old_module": REWARD}, {"rlhf.rewards": {"old": "old_module"}}, requires="rlhf_core>=99")
    distribution("gone", {}, {"rlhf.rewards": {"gone": "gone_module"}})
    distribution(
        "bad", {"bad_module": "import no_such_package_of_a_long_name"}, {"rlhf.rewards": {"bad": "bad_module"}}
    )
    for name in ("one", "two"):
        distribution(name, {f"{name}_module": REWARD}, {"rlhf.rewards": {"twice": f"{name}_module"}})
    monkeypatch.setenv("RLHF_DISABLE_PLUGINS", "off")
    with pytest.raises(UserError):
        Catalog().load("rewards", "bad")
    return {
        "fine": "ok",
        "off": "disabled",
        "old": "core version unmet",
        "gone": "module missing",
        "bad": "failed",
        "one": "duplicate name",
    }


def test_the_listing_has_each_plugin_with_its_state(one_of_each_state):
    assert set(one_of_each_state.values()) == set(STATES)
    found = {e["distribution"]: e for e in json.loads(invoke("plugins", "--json").output)}
    assert {name: found[name]["state"] for name in one_of_each_state} == one_of_each_state
    assert (found["fine"]["problem"], found["fine"]["summary"]) == (None, "an example")
    assert "no_such_package_of_a_long_name" in found["bad"]["problem"]
    assert not {"fine_module", "one_module"} & sys.modules.keys()
    assert invoke("plugins", "list", "--json").output == invoke("plugins", "--json").output


@pytest.mark.parametrize("columns", [80, 120])
def test_the_listing_fits_the_terminal_and_cuts_no_reason(one_of_each_state, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke("plugins").output
    assert max(map(cell_len, output.splitlines())) <= columns
    said = " ".join(output.split())
    for reason in ("needs rlhf-core>=99, this is 0.1.0", "module gone_module is missing", "write one/twice"):
        assert reason in said
    assert "no_such_package_of_a_long_name'" in said


def test_a_pipe_gets_full_lines(one_of_each_state, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = [line.split() for line in invoke("plugins").output.splitlines()]
    assert ["reward", "a", "fine", "1.0", "ok", "an", "example"] in lines
    assert ["reward", "off", "off", "1.0", "disabled", "an", "example"] in lines
    assert lines[0] == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE", "SUMMARY"]


def test_chinese_takes_two_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    table(["NAME", "SUMMARY"], [["a", "肺炎" * 10]])
    assert capsys.readouterr().out.splitlines() == ["NAME  SUMMARY", "a     " + "肺炎" * 9 + "肺", "      炎"]


# what an author may have written in entry_points.txt and METADATA, and the state that follows
ODD = {
    "no equals sign": ("[rlhf.rewards]\nodd\n", "", "module missing"),
    "an attribute and extras": ("[rlhf.rewards]\nodd = json:loads [extra]\n", "", "ok"),
    "comments": ("# a\n[other]\nx = y\n[rlhf.rewards]\n; b\nodd=json\n", "", "ok"),
    "a requirement that is none": (
        "[rlhf.rewards]\nodd = json\n",
        "Requires-Dist: rlhf-core >> 3\n",
        "core version unmet",
    ),
    "another package's version": ("[rlhf.rewards]\nodd = json\n", "Requires-Dist: rlhf-core-extras>=99\n", "ok"),
    "for another Python": (
        "[rlhf.rewards]\nodd = json\n",
        "Requires-Dist: rlhf-core>=99; python_version < '3'\n",
        "ok",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_metadata_breaks_no_listing(case, tmp_path, monkeypatch):
    points, fields, state = ODD[case]
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n{fields}\nName: not this\n")
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "nameless-1.0.dist-info").mkdir()
    (tmp_path / "nameless-1.0.dist-info" / "entry_points.txt").write_text("[rlhf.rewards]\nnameless = json\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {e.name: e for e in Catalog().entries("rewards")}
    assert (found["odd"].state, found["odd"].distribution) == (state, "odd")
    assert "nameless" not in found


def test_callbacks_that_were_fixed_are_ok_again(distribution, tmp_path):
    code = "from rlhf_core import hookimpl\n@hookimpl\ndef rlhf_callbacks(run): {}"
    distribution("cb", {"cb_module": code.format("raise RuntimeError")}, {"rlhf.callbacks": {"alarm": "cb_module"}})
    for body, state in (("raise RuntimeError", "failed"), ("return []", "ok")):
        (tmp_path / "site" / "cb_module.py").write_text(code.format(body))
        sys.modules.pop("cb_module", None)
        importlib.invalidate_caches()
        try:
            Catalog().load_callbacks(["alarm"], "the run")
        except UserError:
            assert state == "failed"
        assert [e.state for e in Catalog().entries("callbacks") if e.name == "alarm"] == [state]


# show


@pytest.mark.parametrize(
    "arguments", [("rewards", "show", "length"), ("methods", "show", "grpo"), ("formatters", "show", "alpaca")]
)
def test_show_loads_one_plugin_and_no_torch(arguments):
    code = (
        "import sys\nfrom rlhf_core.cli import rlhf\nrlhf.main(sys.argv[1:], standalone_mode=False)\n"
        "print('@@', *{name.partition('.')[0] for name in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    modules = set(result.stdout.partition("@@")[2].split())
    assert modules.isdisjoint({"torch", "transformers", "trl", "datasets", "peft", "accelerate"})
    plugins = {name for name in modules if name.startswith(("rlhf_method", "rlhf_reward", "rlhf_formatter"))}
    assert len(plugins) == 1


def test_a_reward_is_shown_with_what_its_signature_tells(distribution):
    distribution("fine", {"fine_module": REWARD}, {"rlhf.rewards": {"a": "fine_module"}})
    output = invoke("rewards", "show", "a").output
    for line in (
        "a: an example",
        "Distribution   fine 1.0",
        "Parameters     limit: int = 3",
        "Columns        needs answer",
        "Range          0 to 1",
        "System prompt  Be brief.",
        "Scores it.",
    ):
        assert line in output
    shown = json.loads(invoke("rewards", "show", "a", "--json").output)
    assert shown["parameters"] == [{"name": "limit", "type": "int", "required": False, "default": 3}]
    assert (shown["columns"], shown["takes_other_columns"], shown["view"]) == (["answer"], True, "text")
    assert shown["file"].endswith("fine_module.py")


FORMS = {
    "a class": ("class a:\n    def __init__(self, *, limit: int): pass\n    def __call__(self, completions, level): pass",
                "limit: int (required)", "needs level"),
    "a factory": ("def a(limit: int = 3): return print", "limit: int = 3", "known when"),
    "async": ("async def a(completions, level, limit=3): pass", "limit=3", "needs level"),
    "a partial": ("from functools import partial\ndef f(completions, level, limit=3): pass\na = partial(f, limit=4)",
                  "limit=4", "needs level"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS)
def test_every_form_of_reward_can_be_shown(distribution, case):
    code, parameter, columns = FORMS[case]
    hook = "from rlhf_core import Reward, hookimpl\n@hookimpl\ndef rlhf_rewards(): return [Reward(a, name='a')]"
    distribution("form", {"form_module": f"{code}\n{hook}"}, {"rlhf.rewards": {"a": "form_module"}})
    output = invoke("rewards", "show", "a").output
    assert f"Parameters     {parameter}" in output
    assert f"Columns        {columns}" in output


def test_a_method_is_shown_with_its_own_options_first():
    output = invoke("methods", "show", "dpo").output
    assert "--beta  float  [0.1]  how closely" in output
    assert "--loss-type  sigmoid|ipo|hinge|robust  [sigmoid]" in output
    assert "--max-grad-norm" not in output
    shown = json.loads(invoke("methods", "show", "dpo", "--json").output)
    assert (shown["data"], shown["rewards"]) == ("preferences", "optional")
    assert shown["config"] == "transformers:TrainingArguments"
    own = [option["own"] for option in shown["options"]]
    assert own == sorted(own, reverse=True)
    assert f"and {own.count(False)} that all methods share" in output


def test_a_formatter_is_shown_with_its_columns():
    assert "Columns       instruction, output" in invoke("formatters", "show", "alpaca").output


def test_formats_are_listed_with_their_columns_and_a_summary(distribution, monkeypatch):
    distribution("bad", {"bad_format": "import no_such"}, {"rlhf.formatters": {"bad": "bad_format"}})
    listed = {entry["name"]: entry for entry in json.loads(invoke("formatters", "--json").output)}
    assert listed["preference"]["columns"] == ["question", "response_chosen", "response_rejected"]
    assert listed["preference"]["summary"] == "A question with a chosen and a rejected response."
    assert listed["alpaca"]["names"]["input"] == ["context", "输入"]
    assert "No module named 'no_such'" in listed["bad"]["summary"]
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal has the summaries under the names
    lines = invoke("formatters").output.splitlines()
    assert lines[0].split() == ["NAME", "COLUMNS", "DISTRIBUTION", "SUMMARY"]
    assert any(line.startswith("bad ") and "no_such" in line for line in lines)


@pytest.mark.parametrize("kind", ["methods", "rewards", "formatters"])
def test_listings_are_json_too(kind):
    assert {e["name"] for e in json.loads(invoke(kind, "--json").output)} == {e.name for e in Catalog().entries(kind)}


def test_a_name_without_show_is_an_error_with_the_right_command():
    result = invoke("rewards", "length")
    assert (result.exit_code, "rlhf rewards show length" in result.output) == (2, True)
    assert "Did you mean 'length'" in str(invoke("rewards", "show", "lenght").exception)


# new

KIT = """
from rlhf_core import testing
for name in ("check_reward", "check_method", "check_formatter"):
    if name not in vars(testing):  # without the kit only the package's own tests are run
        setattr(testing, name, lambda _: None)
"""


@pytest.fixture(params=list(KINDS))
def package(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    """(kind, folder) of a new package called near_it, as if it were installed for editing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = invoke("plugins", "new", request.param, "near-it")
    assert result.exit_code == 0, result.output
    folder = tmp_path / f"rlhf-{request.param}-near-it"
    assert [line[:2] for line in result.output.splitlines()[-3:]] == ["1.", "2.", "3."]
    assert f"2. pip install -e {folder.name}\n" in result.output
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    fields = {"Name": project["name"], "Version": project["version"], "Summary": project["description"]}
    (info / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    [(group, points)] = project["entry-points"].items()
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    for path in (folder, tmp_path / "site"):
        monkeypatch.syspath_prepend(str(path))
    yield request.param, folder
    sys.modules.pop(f"rlhf_{request.param}_near_it", None)


@pytest.mark.slow
def test_a_new_package_passes_its_own_tests(package, tmp_path):
    _, folder = package
    (tmp_path / "kit.py").write_text(KIT)
    places = [str(folder), str(tmp_path / "site"), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "kit", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def test_a_new_package_is_complete_and_clean(package):
    kind, folder = package
    module = f"rlhf_{kind}_near_it"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert packed == [f"{module}.py", *([f"{module}_{CASES[kind]}.jsonl"] if kind in CASES else [])]
    assert all((folder / file).is_file() for file in packed)
    assert (folder / ".github" / "workflows" / "test.yml").read_text().count("${{ matrix.python }}") == 1
    assert (folder / "README.md").read_text().startswith(f"# rlhf-{kind}-near-it\n")
    assert not [file for file in folder.rglob("*") if file.is_file() and "$name" in file.read_text()]
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120", "."]
        result = subprocess.run(ruff, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout
    assert Catalog().load(f"{kind}s", "near_it")[1].module == module


def test_the_cases_of_a_new_reward_are_right(tmp_path, monkeypatch):
    write("reward", "golden_one", tmp_path / "p")
    monkeypatch.syspath_prepend(str(tmp_path / "p"))
    module = importlib.import_module("rlhf_reward_golden_one")
    cases = [json.loads(line) for line in (tmp_path / "p" / "rlhf_reward_golden_one_golden.jsonl").open()]
    assert {case["case"] for case in cases} == {"full", "none", "malformed", "partial"}
    for case in cases:
        score = module.golden_one([case["completion"]], [case["answer"]], **case.get("parameters", {}))[0]
        low, high = case["score"] if isinstance(case["score"], list) else (case["score"], case["score"])
        assert low <= score <= high, case
    file = tmp_path / "p" / "rlhf_reward_golden_one.py"
    assert bind(RewardSpec.read(f"{file}:golden_one"), Catalog()).signature.columns == ("answer",)


def test_a_new_reward_can_not_be_had_cheaply(tmp_path, monkeypatch):
    write("reward", "dear", tmp_path / "p")
    monkeypatch.syspath_prepend(str(tmp_path / "p"))
    dear = importlib.import_module("rlhf_reward_dear").dear
    golden = "It lies on the Seine.\n<answer>Paris</answer>"
    cheap = ["", "What is the capital of France?", "Paris " * 50, "<answer></answer>", golden * 3, golden + "so " * 300]
    scores = dear([golden, *cheap], ["Paris"] * 7)
    assert scores[0] == 1.0
    assert max(scores[1:]) < 0.5


# kind, name -> what the message says
NAMES = {
    "capitals": (("reward", "Near"), "small letters and digits"),
    "a dot": (("reward", "near.it"), "small letters and digits"),
    "two dashes": (("reward", "near--it"), "small letters and digits"),
    "a path": (("reward", "../near"), "small letters and digits"),
    "a digit first": (("method", "4bit"), "small letters and digits"),
    "too long": (("reward", "a" * 41), "at most 40 characters"),
    "a word of Python": (("reward", "class"), "Try class_reward"),
    "a function of Python": (("reward", "max"), "Try max_reward"),
    "taken": (("reward", "length"), "rlhf-reward-length 0.1.0 is installed already, with the reward 'length'"),
    "taken, otherwise spelled": (("reward", "medical-format"), "rlhf plugins uninstall rlhf-reward-medical-format"),
    "taken by a distribution": (("formatter", "common"), "rlhf-formatter-common 0.1.0 is installed already"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_can_not_be(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = NAMES[case]
    result = invoke("plugins", "new", *arguments)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_written_as_the_distributions():
    assert check_name("reward", "rlhf-reward-near-it") == check_name("reward", "near_it") == "near_it"
    assert check_name("method", "length") == "length"  # a reward of that name is no hindrance


def test_a_folder_that_exists_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert "exists already" in str(invoke("plugins", "new", "reward", "near", "--output-dir", "here").exception)
    assert invoke("plugins", "new", "reward", "near", "--output-dir", "a/b").exit_code == 0
    assert (tmp_path / "a" / "b" / "rlhf_reward_near.py").is_file()


# install and uninstall


def wheel(folder: Path, requires: str) -> str:
    """A plugin's wheel, small enough to be written by hand."""
    path = folder / "rlhf_reward_made-1.0-py3-none-any.whl"
    info = "rlhf_reward_made-1.0.dist-info"
    files = {
        "rlhf_reward_made.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: rlhf-reward-made\nVersion: 1.0\nRequires-Dist: {requires}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[rlhf.rewards]\nmade = rlhf_reward_made\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("need", ["torch>=99", "rlhf-core>=99", "numpy==1.0"])
def test_a_plugin_can_not_move_what_runs_are_trained_with(tmp_path, need):
    result = invoke("plugins", "install", "--dry-run", "--no-index", wheel(tmp_path, need))
    assert isinstance(result.exception, UserError), result.output
    name = need.partition(">")[0].partition("=")[0]
    said = f"rlhf-reward-made 1.0 needs {need}, and {name} {packages.pinned()[name]} is installed. It is pinned"
    assert said in str(result.exception)
    assert "pip install" in str(result.exception)


def test_a_plugin_that_fits_is_installed_with_pips_own_options(tmp_path):
    """In a dry run, which leaves nothing behind. torch is installed with a local label such as +cpu."""
    result = invoke("plugins", "install", "--dry-run", "--no-index", "--upgrade", wheel(tmp_path, "torch>=2.11"))
    assert result.exit_code == 0, result.exception
    assert "Would install rlhf-reward-made-1.0" in result.output
    assert "Requirement already satisfied" not in result.output


def test_what_pip_can_not_find_is_pips_to_tell():
    result = invoke("plugins", "install", "--dry-run", "--no-index", "no-such-plugin")
    assert "No matching distribution found for no-such-plugin" in result.output
    assert "pip did not install it" in str(result.exception)
    assert invoke("plugins", "install").exit_code == 2


def test_a_requirement_that_pip_cannot_read_is_refused():
    with pytest.raises(UserError, match="'a;b': behind ; a requirement says where it holds"):
        rlhf(["plugins", "install", "a;b"], standalone_mode=False)


def test_pins_are_what_is_installed():
    pins = packages.pinned()
    assert set(pins) == set(packages.PINNED)
    import torch

    assert pins["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # wheels of PyPI hide which CUDA


PIP_SAID = {
    "one": ("    rlhf-reward-x 1.0 depends on torch<2.0\n", "rlhf-reward-x 1.0 needs torch<2.0, and torch 2.13.0+cpu"),
    "extras": ("    x 1.0 depends on rlhf_core[train]>=9\n", "x 1.0 needs rlhf_core[train]>=9, and rlhf-core 0.1.0"),
    "another package": ("    x 1.0 depends on left-pad>=9\n", "pip did not install it"),
    "asked for": ("The user requested (constraint) torch==2.13.0+cpu\n", "another torch than the installed 2.13.0+cpu"),
    "no network": ("ERROR: No matching distribution found\n", "pip did not install it: see above"),
}


@pytest.mark.parametrize("case", PIP_SAID)
def test_what_pip_said_is_explained(case):
    said, message = PIP_SAID[case]
    assert message in packages.explain(said, {"torch": "2.13.0+cpu", "rlhf-core": "0.1.0"})


def test_new_plugins_are_listed_after_an_install(distribution, monkeypatch):
    entry = Entry("rewards", "made", "m", "d", "1.0", "s", problem="module m is missing", state="module missing")
    listings = iter([[], [entry]])
    given = []
    monkeypatch.setattr(packages, "listed", lambda: next(listings))
    monkeypatch.setattr(packages, "run_pip", lambda *words: (given.extend(words), (0, ""))[1])
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke("plugins", "install", "--upgrade", "-e", "folder", "d[extra]>=1")
    assert given[:2] == ["install", "--constraint"]
    assert given[3:] == ["--upgrade", "-e", "folder", "d[extra]>=1"]
    assert result.output.splitlines()[-1].split() == [
        "reward", "made", "d", "1.0", "module", "missing", "module", "m", "is", "missing",
    ]  # fmt: skip


@pytest.fixture
def removed(monkeypatch) -> list[str]:
    """What pip would have been called with."""
    given: list[str] = []
    monkeypatch.setattr(packages, "run_pip", lambda *words: (given.extend(words), (0, ""))[1])
    return given


def test_uninstall_takes_plugins_and_distributions(one_of_each_state, removed):
    result = invoke("plugins", "uninstall", "--yes", "bad", "off", "Gone", "a", "one/twice", "fine")
    assert result.exit_code == 0, result.exception
    assert removed == ["uninstall", "--yes", "bad", "off", "gone", "fine", "one"]
    assert "one has: reward twice" in result.output


UNINSTALL = {
    "ambiguous": ("twice", "offered by one and two"),
    "the core": ("rlhf_core", "rlhf-core is the trainer, not a plugin"),
    "no plugin": ("click", "no plugin is called 'click'"),
    "misspelt": ("god", "no plugin is called 'god'"),
    "not in that distribution": ("one/a", "no plugin is called 'one/a'"),
}


@pytest.mark.parametrize("case", UNINSTALL)
def test_uninstall_refuses(case, one_of_each_state, removed):
    name, message = UNINSTALL[case]
    assert message in str(invoke("plugins", "uninstall", "--yes", name).exception)
    assert not removed


def test_uninstall_asks_first(one_of_each_state, removed, monkeypatch):
    assert "add --yes" in str(invoke("plugins", "uninstall", "bad").exception)
    monkeypatch.setattr(packages, "_in_terminal", lambda: True)
    assert invoke("plugins", "uninstall", "bad", input="n\n").exit_code == 1
    assert not removed
    invoke("plugins", "uninstall", "bad", input="y\n")
    assert removed == ["uninstall", "--yes", "bad"]


# freeze

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# direct_url.json -> the line
ORIGINS = {
    "an index": (None, "near==1.0"),
    "git": (
        {"url": "https://example.org/near.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
        f"near @ git+https://example.org/near.git@{COMMIT}",
    ),
    "a folder of a repository, with a token": (
        {"url": "https://me:t@example.org/r", "vcs_info": {"vcs": "git", "commit_id": COMMIT}, "subdirectory": "near"},
        f"near @ git+https://example.org/r@{COMMIT}#subdirectory=near",
    ),
    "ssh": (
        {"url": "ssh://git@example.org/near", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
        f"near @ git+ssh://git@example.org/near@{COMMIT}",
    ),
    "an archive": (
        {"url": "https://example.org/near.whl", "archive_info": {"hashes": {"sha256": "ab"}}},
        "near @ https://example.org/near.whl#sha256=ab",
    ),
    "a folder": (
        {"url": "file:///home/me/near", "dir_info": {"editable": True}},
        "# near==1.0 is installed editable, from /home/me/near, which is on this machine only",
    ),
    "a file": (
        {"url": "file:///home/me/near.whl", "archive_info": {}},
        "# near==1.0 is installed from /home/me/near.whl, which is on this machine only",
    ),
}


@pytest.mark.parametrize("case", ORIGINS)
def test_freeze_says_where_a_plugin_is_from(case, distribution, tmp_path):
    origin, line = ORIGINS[case]
    distribution("near", {"near_module": REWARD}, {"rlhf.rewards": {"near": "near_module", "b": "near_module"}})
    if origin:
        (tmp_path / "site" / "near-1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    lines = invoke("plugins", "freeze").output.splitlines()
    assert lines.count(line) == 1
    assert "rlhf-core" in lines[0]
    assert len(lines) == 1 + len(
        {e.distribution for kind in ("methods", "rewards", "formatters", "commands") for e in Catalog().entries(kind)}
    )


MANIFEST = {
    "python": "3.11.7",
    "versions": {"rlhf-core": "9.9", "torch": "2.13.0+cpu", "trl": "1.16.0"},
    "plugins": ["method sft: rlhf-method-sft 9.9", "reward near:limit=3: near 2.0", "reward ./a.py:f: by path"],
}


def test_freeze_of_a_run_is_what_it_was_made_with(tmp_path, distribution):
    distribution("near", {"near_module": REWARD}, {"rlhf.rewards": {"near": "near_module"}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(MANIFEST))
    assert invoke("plugins", "freeze", str(tmp_path / "run")).output.splitlines() == [
        "# Python 3.11.7, on which the run was made",
        "rlhf-core==9.9",
        "torch==2.13.0  # torch was 2.13.0+cpu",
        "trl==1.16.0",
        "rlhf-method-sft==9.9",
        "near==2.0",
        "# reward ./a.py:f: given by path",
    ]
    command = invoke("plugins", "freeze", str(tmp_path / "run"), "--install-command").output.splitlines()
    assert command[-1] == "pip install rlhf-core==9.9 torch==2.13.0 trl==1.16.0 rlhf-method-sft==9.9 near==2.0"
    assert all(line.startswith("# ") for line in command[:-1])


@pytest.mark.parametrize(
    "text",
    [
        *(None, "{", "{}", "[]", "[" * 100_000),
        *(
            json.dumps({**MANIFEST, **changed})
            for changed in (
                *(
                    {"versions": []},
                    {"versions": {"a": 1}},
                    {"versions": {"a": "1\n-r x"}},
                    {"versions": {"a; b": "1"}},
                ),
                *({"plugins": [1]}, {"plugins": ["x: y"]}, {"plugins": "abc"}, {"plugins": ["a\nb: by path"]}),
                *({"python": None}, {"python": "3\n--index-url x"}),
            )
        ),
    ],
)
def test_freeze_of_what_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="is not a run's folder"):
        packages.of_run(tmp_path)
