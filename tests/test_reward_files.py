"""What a reward given by path may be: a file with others beside it, a function with a reward's signature."""

from __future__ import annotations

import re
import sys
import textwrap
from types import ModuleType

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind
from rlhf_core.rewards.runtime import RewardBatch, RewardRuntime

REWARD = """
from rlhf_core import Reward
from helper import value
import parts.deep.number as number
from parts import other

def top(completions, **_): return [value() + number.N + other.M] * len(completions)
def late(completions, **_):
    from later import LATER
    from helper import value as again
    assert again is value
    return [LATER] * len(completions)
def later_still(completions, **_):
    from helper import late_value
    return [late_value() + other.late()] * len(completions)
def stdlib(completions, **_):
    import statistics, colorsys
    assert __import__("os.path", fromlist=["join"]).join
    return [statistics.fmean([1, 2])] * len(completions)
isolated = Reward(top, isolation="process", name="isolated")
isolated_late = Reward(later_still, isolation="process", name="isolated_late")
"""


def score(specification: str) -> float:
    runtime = RewardRuntime([bind(RewardSpec.read(specification), Catalog())], str)
    try:
        runtime.start()
        batch = RewardBatch([[{"role": "user", "content": "q"}]], [[{"role": "assistant", "content": "a"}]], [[1]], {})
        (column,) = runtime.evaluate(batch).values()
    finally:
        runtime.close()
    assert column.errors == [None]
    return column.scores[0]


@pytest.fixture
def folders(tmp_path):
    """Two folders with files of the same names, whose values differ by ten."""
    for name, value in (("one", 1), ("two", 11)):
        folder = tmp_path / name
        (folder / "parts" / "deep").mkdir(parents=True)  # no __init__.py
        (folder / "reward.py").write_text(REWARD)
        (folder / "helper.py").write_text(
            f"from second import start\ndef value(): return start + {value}\n"
            "def late_value():\n    from later import LATER\n    return LATER\n"
        )
        (folder / "second.py").write_text(
            "import sys, types\nstart = 0.0\nsys.modules['made'] = types.ModuleType('made')\n"
        )
        (folder / "later.py").write_text(f"LATER = {value}.0\n")
        (folder / "statistics.py").write_text("raise RuntimeError('the one that is installed goes before it')\n")
        (folder / "parts" / "deep" / "number.py").write_text("N = 100\n")
        (folder / "parts" / "other.py").write_text("M = 1000\ndef late():\n    from . import last\n    return last.L\n")
        (folder / "parts" / "last.py").write_text("L = 100\n")
    return tmp_path


def test_a_reward_imports_the_files_of_its_own_folder(folders, monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    assert [score(f"{folders}/{name}/reward.py:top") for name in ("one", "two", "one")] == [1101.0, 1111.0, 1101.0]
    assert [score(f"{folders}/{name}/reward.py:late") for name in ("two", "one")] == [11.0, 1.0]
    assert [score(f"{folders}/{name}/reward.py:later_still") for name in ("one", "two")] == [101.0, 111.0]
    assert score(f"{folders}/two/reward.py:stdlib") == 1.5
    monkeypatch.setitem(sys.modules, "helper", other := ModuleType("helper"))  # of anybody else
    assert score(f"{folders}/one/reward.py:late") == 1.0
    assert sys.modules.pop("helper") is other
    assert (sys.path, sys.meta_path) == (path, finders)
    assert "colorsys" in sys.modules
    assert sys.modules.pop("made")
    assert not {"helper", "second", "later", "parts", "parts.other"} & (set(sys.modules) - modules)


def test_a_worker_imports_them_too(folders):
    assert score(f"{folders}/two/reward.py:isolated") == 1111.0
    assert score(f"{folders}/two/reward.py:isolated_late") == 111.0


def test_what_is_not_there_is_one_message(tmp_path):
    (tmp_path / "reward.py").write_text("import no_such_neighbour\ndef f(completions, **_): ...\n")
    with pytest.raises(UserError, match="importing it failed: ModuleNotFoundError: No module named 'no_such_neighb"):
        bind(RewardSpec.read(f"{tmp_path}/reward.py:f"), Catalog())


def test_a_module_of_the_current_folder(tmp_path, monkeypatch):
    """The folder is looked through last, and once for all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    path = list(sys.path)
    for name in ("mine_a", "mine_b"):
        module = f"{name}_of_{tmp_path.name}"
        (tmp_path / f"{module}.py").write_text("def f(completions, **_): return [2.0]\n")
        assert score(f"{module}:f") == 2.0
    assert sys.path == [*path, str(tmp_path)]
    sys.path[-1] = ""
    assert bind(RewardSpec.read("trl.rewards:think_format_reward"), Catalog())
    assert sys.path == [*path, ""]


ONE_ROW = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0 if ground_truth in solution_str else 0.0
def graded(response): return 1.0
def scaled(limit: int, text: str = ""): return lambda completions, **_: [float(limit)] * len(completions)
"""


def test_a_function_that_scores_one_row_is_refused_with_what_to_write(tmp_path):
    """And what it says to write works."""
    file = tmp_path / "reward.py"
    file.write_text(ONE_ROW)
    with pytest.raises(UserError, match="scores one row, by its argument solution_str") as error:
        bind(RewardSpec.read(f"{file}:compute_score"), Catalog())
    specification = re.search(r"--reward (\S+)", str(error.value))[1]
    wrapper = textwrap.dedent(re.search(r"(?s)( {4}def .*?)\n\n", str(error.value))[1])
    assert "ground_truth inside verl's column" in str(error.value)
    file = tmp_path / "other.py"
    file.write_text(f"{ONE_ROW}\n{wrapper}\n")
    reward = bind(RewardSpec.read(specification.replace("reward.py", "other.py")), Catalog())
    assert reward.signature.columns == ("data_source", "ground_truth")
    completions, columns = ["it is 8", "9"], {"data_source": ["own"] * 2, "ground_truth": ["8"] * 2}
    assert reward.call(columns, {"completions": completions}) == [1.0, 0.0]

    file = tmp_path / "a:b" / "reward.py"
    file.parent.mkdir()
    file.write_text(ONE_ROW)
    written = (
        rf"(?s)by its argument response.*--reward {file}:graded_of_rows\n+ +def graded_of_rows\(.*their names there\.$"
    )
    with pytest.raises(UserError, match=written):
        bind(RewardSpec.read(f"{file}:graded"), Catalog())


def test_a_function_that_makes_a_reward_is_still_called(tmp_path):
    (tmp_path / "reward.py").write_text(ONE_ROW)
    assert score(f"{tmp_path}/reward.py:scaled:limit=3") == 3.0
    with pytest.raises(UserError, match="needs limit: int: write --reward scaled:limit="):
        bind(RewardSpec.read(f"{tmp_path}/reward.py:scaled"), Catalog())


PROCESS = """
import functools, pathlib
from rlhf_core import Reward

class Heavy:
    def __init__(self):
        pathlib.Path(__file__).with_name("built").write_text("")
    def __call__(self, completions, **_): return [1.0] * len(completions)
def score(completions, **_): return [1.0] * len(completions)

heavy = Reward(Heavy, isolation="process")
named = Reward(score, name="its own name")
nameless = Reward(functools.partial(score))
"""


def test_a_reward_of_a_worker_is_not_built_here(tmp_path):
    (tmp_path / "reward.py").write_text(PROCESS)
    here = bind(RewardSpec.read(f"{tmp_path}/reward.py:heavy"), Catalog())
    assert (here.function, (tmp_path / "built").exists()) == (None, False)
    there = bind(RewardSpec.read(f"{tmp_path}/reward.py:heavy"), Catalog(), in_worker=True)
    assert (there.function is None, (tmp_path / "built").exists()) == (False, True)


def test_a_reward_is_called_as_it_says_else_as_its_place_in_the_file(tmp_path):
    (tmp_path / "reward.py").write_text(PROCESS)
    names = [bind(RewardSpec.read(f"{tmp_path}/reward.py:{one}"), Catalog()).name for one in ("named", "nameless")]
    assert names == ["its own name", "nameless"]
