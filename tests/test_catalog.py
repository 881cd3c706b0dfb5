"""The catalog: one broken plugin is that plugin's trouble only."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

import rlhf_core
from rlhf_core.catalog import HOOKS, Catalog, Entry, _core_unmet, _record
from rlhf_core.errors import PluginError, UserError
from rlhf_core.training.ending import callback_of

GOOD = """
from rlhf_core import Reward, hookimpl
def a(completions): return [1.0] * len(completions)
def b(completions): return [2.0] * len(completions)
@hookimpl
def rlhf_rewards(): return [Reward(a), Reward(b)]
"""


def failing(body: str) -> str:
    return f"from rlhf_core import Reward, hookimpl\nfrom functools import partial\n@hookimpl\n{body}"


def test_two_entry_points_on_one_module_are_told_apart_by_name(distribution):
    distribution("good", {"good_module": GOOD}, {"rlhf.rewards": {"a": "good_module", "b": "good_module"}})
    catalog = Catalog()
    (a, entry), (b, _) = catalog.load("rewards", "a"), catalog.load("rewards", "good/b")
    assert (a.label, b.label) == ("a", "b")
    assert (entry.distribution, entry.version, entry.summary) == ("good", "1.0", "an example")


# hook code -> what the error says
BROKEN = {
    "import error": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "syntax error": ("def f(:", "SyntaxError"),
    "exit at import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "misspelt hook": (failing("def rlhf_reward(): return []"), "unknown hook 'rlhf_reward'"),
    "hook raises": (failing("def rlhf_rewards(): raise RuntimeError('no')"), "RuntimeError: no"),
    "generator raises late": (
        failing("def rlhf_rewards():\n    yield Reward(print)\n    raise RuntimeError('late')"),
        "RuntimeError: late",
    ),
    "returns nothing": (failing("def rlhf_rewards(): return []"), "returned nothing, and no object called 'x'"),
    "no such name": (failing("def rlhf_rewards(): return [Reward(print)]"), "returned 'print'"),
    "a bare function": (failing("def rlhf_rewards(): return [print]"), "wrap the function"),
    "no hook at all": ("x = 1", "implements no hook rlhf_rewards"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_says_why_and_breaks_nothing_else(distribution, case):
    code, message = BROKEN[case]
    distribution("bad", {"bad_module": code}, {"rlhf.rewards": {"x": "bad_module"}})
    distribution("good", {"good_module": GOOD}, {"rlhf.rewards": {"a": "good_module"}})
    catalog = Catalog()
    assert {e.name: e.problem for e in catalog.entries("rewards") if e.name in "xa"} == {"x": None, "a": None}
    with pytest.raises(PluginError, match="reward 'x' of bad 1.0 could not be loaded") as caught:
        catalog.load("rewards", "x")
    assert message in str(caught.value)
    assert catalog.load("rewards", "a")[0].label == "a"
    states = {e.name: e.problem for e in Catalog().entries("rewards")}
    assert "failed when last loaded" in states["x"]
    assert states["a"] is None


def test_a_plugin_that_was_fixed_is_ok_again(distribution, tmp_path):
    distribution("p", {"p_module": "import no_such_package"}, {"rlhf.rewards": {"a": "p_module"}})
    with pytest.raises(PluginError):
        Catalog().load("rewards", "a")
    (tmp_path / "site" / "p_module.py").write_text(GOOD)
    assert Catalog().load("rewards", "a")[0].label == "a"
    assert next(e for e in Catalog().entries("rewards") if e.name == "a").problem is None


def test_a_partial_alone_takes_the_entry_points_name(distribution):
    code = failing("def rlhf_rewards(): return [Reward(partial(print, sep=''))]")
    distribution("p", {"p_module": code}, {"rlhf.rewards": {"x": "p_module"}})
    assert Catalog().load("rewards", "x")[1].name == "x"


def test_a_name_offered_twice_is_settled_by_the_distribution(distribution):
    distribution("one", {"one_module": GOOD}, {"rlhf.rewards": {"a": "one_module"}})
    distribution("two", {"two_module": GOOD}, {"rlhf.rewards": {"a": "two_module"}})
    with pytest.raises(UserError, match="write one/a or two/a"):
        Catalog().load("rewards", "a")
    assert Catalog().load("rewards", "two/a")[1].distribution == "two"
    assert "also offered by two" in next(e for e in Catalog().entries("rewards") if e.distribution == "one").problem


def test_a_disabled_distribution_is_listed_and_not_loaded(distribution, monkeypatch):
    distribution("one", {"one_module": GOOD}, {"rlhf.rewards": {"a": "one_module"}})
    distribution("two", {"two_module": GOOD}, {"rlhf.rewards": {"a": "two_module"}})
    monkeypatch.setenv("RLHF_DISABLE_PLUGINS", "other, TWO")
    assert Catalog().load("rewards", "a")[1].distribution == "one"
    with pytest.raises(UserError, match="is disabled: two is in RLHF_DISABLE_PLUGINS"):
        Catalog().load("rewards", "two/a")
    assert [e.problem for e in Catalog().entries("rewards") if e.distribution == "two"] == ["disabled"]


def test_listing_imports_no_plugin_and_sees_what_is_missing(distribution):
    distribution("one", {"one_module": GOOD}, {"rlhf.rewards": {"a": "one_module", "b": "absent", "c": "email.absent"}})
    distribution("old", {"old_module": GOOD}, {"rlhf.rewards": {"d": "old_module"}}, requires="rlhf_core>=99")
    problems = {e.name: e.problem for e in Catalog().entries("rewards")}
    assert "one_module" not in sys.modules
    assert problems["a"] is None
    assert problems["b"] == "module absent is missing"
    assert problems["c"] == "module email.absent is missing"
    assert problems["d"] == "needs rlhf-core>=99, this is 0.1.0"


def test_metadata_of_any_kind_is_read(distribution, tmp_path):
    """As eggs have it, with comments and groups of others, and a distribution that is there twice."""
    distribution("egg", {"egg_module": GOOD}, {"rlhf.rewards": {"a": "egg_module"}})
    info = tmp_path / "site" / "egg-1.0.dist-info"
    (info / "METADATA").rename(info / "PKG-INFO")
    points = "[other]\nz = z\n[ rlhf.rewards ]\n# b = b\n; c = c\n\na = egg_module : x [extra]=\n[rlhf.none]\nd = d\n[x]\ne = e"
    (info / "entry_points.txt").write_text(points)

    def found() -> list[Entry]:
        return [e for kind in HOOKS for e in Catalog().entries(kind) if e.distribution.lower() == "egg"]

    assert [(e.kind, e.name, e.module, e.version, e.summary, e.state) for e in found()] == [
        ("rewards", "a", "egg_module", "1.0", "an example", "ok")
    ]
    again = tmp_path / "site" / "Egg-2.0.dist-info"
    again.mkdir()
    (again / "METADATA").write_text("Name: EGG\n")
    (again / "entry_points.txt").write_text(points)
    assert [(e.version, e.summary) for e in found()] in ([("1.0", "an example")], [("", "")])  # the first on the path


# what a distribution requires -> whether this core is not what it needs
REQUIRED = {
    "rlhf-core": False,
    "RLHF.Core>=0.0.1": False,
    "rlhf-core<0.0.1": True,
    "rlhf-core>=99; extra == 'train'": False,
    "rlhf-core>=99; python_version >= '3'": True,
    "rlhf-core-extras>=99": False,
    "rlhf-core>=0.1, <99": False,
    "rlhf-core >=": True,
    "click>=1\nRequires-Dist: rlhf-core-extras>=99\nRequires-Dist: rlhf-core>=99": True,
}


@pytest.mark.parametrize("text", REQUIRED)
@pytest.mark.parametrize("version", ["0.1.0", "0.2.0rc1"])
def test_the_core_that_a_distribution_requires(distribution, monkeypatch, text, version):
    monkeypatch.setattr(rlhf_core, "__version__", version)
    _core_unmet.cache_clear()
    distribution("one", {"one_module": GOOD}, {"rlhf.rewards": {"a": "one_module"}}, requires=text)
    (entry,) = (e for e in Catalog().entries("rewards") if e.distribution == "one")
    _core_unmet.cache_clear()
    assert entry.state == ("core version unmet" if REQUIRED[text] else "ok")


def test_modules_in_packages_are_found_without_importing_them(distribution, tmp_path):
    modules = {"in": "outer.inner.reward", "no": "outer.absent", "none": "absent.inner", "file": "one_module.json"}
    distribution("one", {"one_module": GOOD}, {"rlhf.rewards": modules})
    (tmp_path / "site" / "outer" / "inner").mkdir(parents=True)
    for file in ("__init__", "inner/__init__", "inner/reward"):
        (tmp_path / "site" / "outer" / f"{file}.py").write_text("raise SystemExit(3)")
    states = {e.name: e.state for e in Catalog().entries("rewards") if e.distribution == "one"}
    assert states == {"in": "ok", "no": "module missing", "none": "module missing", "file": "module missing"}


def test_of_distributions_with_the_same_name_the_first_counts(distribution, tmp_path, monkeypatch):
    for number, name in enumerate(["one", "two"]):
        distribution(name, {f"{name}_module": GOOD}, {"rlhf.rewards": {"a": f"{name}_module"}}, requires=f"x>={number}")
    one, two = (
        importlib.metadata.Distribution.at(tmp_path / "site" / f"{name}-1.0.dist-info") for name in ("one", "two")
    )
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [one, one, two])
    assert [entry.distribution for entry in Catalog().entries()] == ["one", "two"]


def test_one_line_of_a_listing_says_what_is_wrong(distribution, tmp_path, monkeypatch):
    distribution("one", {"one_module": GOOD}, {"rlhf.rewards": {"a": "one_module"}})
    listed = lambda: [(e.state, e.detail) for e in Catalog().entries("rewards") if e.distribution == "one"]  # noqa: E731
    assert listed() == [("ok", "an example")]
    _record(Catalog().find("rewards", "a"), "no\n  GPU")
    ((state, detail),) = listed()
    assert (state, detail.rpartition(": ")[2]) == ("failed", "no GPU")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert listed() == [("ok", "an example")]
    _record(Catalog().find("rewards", "a"), "no")
    assert len(list(tmp_path.glob(".cache/rlhf/plugin_failures/one-1.0-rewards-a"))) == 1
    monkeypatch.setenv("RLHF_DISABLE_PLUGINS", "one")
    assert listed() == [("disabled", "an example")]


def test_a_name_like_no_other_comes_with_all_of_them(distribution):
    with pytest.raises(UserError, match=r"there is no callback 'zzz'.*Installed: none\."):
        Catalog().find("callbacks", "zzz")
    distribution("one", {"one_module": GOOD}, {"rlhf.callbacks": {"alarm": "one_module", "bell": "one_module"}})
    with pytest.raises(UserError, match="alarm, bell"):
        Catalog().find("callbacks", "zzz")


def test_an_unknown_name_comes_with_the_nearest(distribution):
    with pytest.raises(UserError, match="there is no reward 'medical_fromat'. Did you mean 'medical_format'"):
        Catalog().load("rewards", "medical_fromat")


def test_callbacks_get_the_run(distribution):
    code = """
    from rlhf_core import hookimpl
    from transformers import TrainerCallback
    class Alarm(TrainerCallback):
        def __init__(self, run): self.run = run
        def on_log(self): raise OSError("no pager")
    @hookimpl
    def rlhf_callbacks(run): return [Alarm(run)] if run else ["no callback"]
    """
    of_a_class = code.replace("[Alarm(run)] if run", "[Alarm]")
    distribution("cb", {"cb_module": code}, {"rlhf.callbacks": {"alarm": "cb_module"}})
    assert [callback.run for callback in Catalog().load_callbacks(["alarm", "cb/alarm"], "run")] == ["run", "run"]
    with pytest.raises(OSError, match="no pager") as caught:
        Catalog().load_callbacks(["alarm"], "run")[0].on_log()
    assert callback_of(caught.value, ["alarm"]) == "Callback 'alarm' of cb 1.0 failed: OSError: no pager."
    assert callback_of(caught.value, []) is None
    with pytest.raises(PluginError, match="returned 'no callback', which is no TrainerCallback"):
        Catalog().load_callbacks(["alarm"], None)
    distribution(
        "of", {"of_module": of_a_class.partition("else")[0] + "\n"}, {"rlhf.callbacks": {"class": "of_module"}}
    )
    assert [one.__name__ for one in Catalog().load_callbacks(["class"], "run")] == ["Alarm"]
    for name in ("allarm", "/alarm", "x/alarm"):
        with pytest.raises(UserError, match="there is no callback"):
            Catalog().load_callbacks([name], None)


def test_commands_are_loaded_when_typed(distribution):
    code = """
    import click
    from rlhf_core import hookimpl
    @click.command()
    def hello(): "Say hello."
    @hookimpl
    def rlhf_commands(): return [hello]
    """
    distribution("cmd", {"cmd_module": code}, {"rlhf.commands": {"hello": "cmd_module"}})
    assert Catalog().load("commands", "hello")[0].name == "hello"
