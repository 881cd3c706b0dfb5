"""The --reward grammar, and from a specification to arguments of a call."""

from __future__ import annotations

import asyncio

import pytest

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import DataSpec, RewardSpec, read_data
from rlhf_core.rewards.binding import bind, bind_all

# text -> (target, parameters, weight, name)
GRAMMAR = {
    "length": ("length", {}, 1.0, None),
    "length:target=200": ("length", {"target": 200}, 1.0, None),
    "length:target=200,weight=0.5": ("length", {"target": 200}, 0.5, None),
    "length:name=short,target=50": ("length", {"target": 50}, 1.0, "short"),
    "rlhf-reward-length/length:target=1": ("rlhf-reward-length/length", {"target": 1}, 1.0, None),
    "trl.rewards:think_format_reward": ("trl.rewards:think_format_reward", {}, 1.0, None),
    "trl.rewards:think_format_reward:weight=2": ("trl.rewards:think_format_reward", {}, 2.0, None),
    "./rewards.py:score": ("./rewards.py:score", {}, 1.0, None),
    "./rewards.py:Judge.make:model=a/b:c": ("./rewards.py:Judge.make", {"model": "a/b:c"}, 1.0, None),
    "/data/my rewards.py:score:x=1": ("/data/my rewards.py:score", {"x": 1}, 1.0, None),
    'f:words=["a,b","c=d"]': ("f", {"words": ["a,b", "c=d"]}, 1.0, None),
    'f:table={"a": 1, "b": [2]},x=3': ("f", {"table": {"a": 1, "b": [2]}, "x": 3}, 1.0, None),
    "f:sections=诊断/依据/建议": ("f", {"sections": "诊断/依据/建议"}, 1.0, None),
    "f:words=a,b,c,x=1": ("f", {"words": "a,b,c", "x": 1}, 1.0, None),
    "f:on=true,off=false,none=null": ("f", {"on": True, "off": False, "none": None}, 1.0, None),
    "f:x=-1.5e-3": ("f", {"x": -0.0015}, 1.0, None),
    'f:text="200"': ("f", {"text": "200"}, 1.0, None),
    "f:empty=": ("f", {"empty": ""}, 1.0, None),
    "f:concurrent=true,x=1": ("f", {"x": 1}, 1.0, None),
    "f:x=[1": ("f", {"x": "[1"}, 1.0, None),
}


@pytest.mark.parametrize("text", GRAMMAR)
def test_grammar(text):
    spec = RewardSpec.read(text)
    assert (spec.target, dict(spec.parameters), spec.weight, spec.name) == GRAMMAR[text]


@pytest.mark.parametrize("text", GRAMMAR)
def test_what_is_written_back_reads_the_same(text):
    spec = RewardSpec.read(text)
    assert RewardSpec.read(str(spec)) == spec


@pytest.mark.parametrize("text", ["f", "f:text=b", 'f:text="中,c=1"', "f:text=1 c=2", "f:x=[1, 2],weight=0.5"])
def test_what_is_written_as_one_would_type_it_is_written_back_as_it_was(text):
    assert str(RewardSpec.read(text)) == text
    assert str(RewardSpec.read("f:weight=1.0")) == "f"


def test_a_string_that_looks_like_two_values_is_quoted_when_written():
    spec = RewardSpec("f", {"text": "a,b=c"})
    assert RewardSpec.read(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "can't be read"),
        ("length:", "can't be read"),
        ("length:x=1,x=2", "x is given twice"),
        ("length:weight=heavy", "weight must be 0 or a number from"),
        ("length:weight=NaN", "nan is not a finite number"),
        ("length:weight=1e400", "inf is not a finite number"),
        ("length:weight=1e30", "weight must be 0 or a number from"),
        ("length:weight=-1e-30", "weight must be 0 or a number from"),
        ("length:weight=false", "weight must be 0 or a number from"),
        ("length:max=[1,NaN]", "nan is not a finite number"),
        ('length:name=""', "name must be text that can be printed"),
        ('length:name="a\\nb"', "name must be text that can be printed"),
        ("length:name=[1]", "name must be text that can be printed"),
        ({"length": {5: 1}}, "5 is no name of a parameter"),
        ({"length": {None: 1}}, "None is no name of a parameter"),
        ({"length": {"0": []}}, "'0' is no name of a parameter"),
        ({5: {}}, "can't be read"),
        ({}, "can't be read"),
        ("medical_format:sections=[1,2]", "sections=.1, 2.: "),
        ("medical_format:sections={}", "sections=.*: "),
        ("reward_model:path=x,batch_size=0", "batch_size=0: needs a number above 0"),
        ("/length", "there is no reward"),
        ("length:weight=true", "weight must be 0 or a number from"),
        ("./missing.py:f", "no file missing.py"),
        ("no.such.module:f", "ModuleNotFoundError"),
        ("math:sqroot", "Did you mean 'sqrt'"),
        ("math:pi", "is float, not a function"),
        ("no_such_reward", "there is no reward"),
    ],
)
def test_bad_specifications(text, message):
    with pytest.raises(UserError, match=message):
        bind(RewardSpec.read(text), Catalog())


def test_yaml_entries():
    assert RewardSpec.read("length:target=3") == RewardSpec("length", {"target": 3})
    assert RewardSpec.read({"length": {"target": 3, "weight": 2}}) == RewardSpec("length", {"target": 3}, 2.0)
    assert RewardSpec.read({"length": None}) == RewardSpec("length")
    assert RewardSpec.read({"./judge.py:score": {"concurrent": True}}).concurrent is True
    with pytest.raises(UserError, match="can't be read"):
        RewardSpec.read({"a": {}, "b": {}})


CODE = """
import functools
from typing import Annotated
from pydantic import Field
from rlhf_core import Reward

class Scale: ...

def bounded(completions, *, size: Annotated[int, Field(gt=0)] = 1, scale: Scale = None): ...

def plain(completions, answer, *, target: int = 200, words: list[str] = (), label: str = "x", **kwargs):
    return [target, sorted(kwargs)]

def defaulted(completions, answer=None, level=3):
    return [answer, level]

def only_columns(completions, answer):
    return answer

def strict(answer, /, completions):
    return answer

class Judge:
    def __init__(self, model: str, retries: int = 2):
        if retries < 0: raise ValueError("retries is negative")
        self.model = model
    def __call__(self, completions, answer, **kwargs):
        return [self.model, answer]

class NotCallable:
    def __init__(self, x=1): pass

class Group:
    inner = staticmethod(only_columns)

def _private(completions): ...

def unannotated(limit): return lambda completions: [limit]

def make(limit: int):
    def reward(completions, answer): return [limit]
    return reward

async def awaited(completions, **kwargs): return [1.0]

class AsyncJudge:
    async def __call__(self, completions, **kwargs): return [2.0]

bound = functools.partial(plain, target=7)
declared = Reward(plain, optional=("keywords",), range=(0, 1))
optional = Reward(defaulted, optional=("answer",))
def with_environments(completions, environments): ...
isolated = Reward(plain, isolation="process", name="isolated")
isolated_callbacks = Reward(lambda completions, log_metric: None, isolation="process", name="x")
at_once = Reward(plain, concurrent=True, name="at_once")
"""

COLUMNS = {"answer": ["A"], "level": [9], "target": [-1], "extra": ["e"]}
TRL = {"prompts": ["p"], "completions": ["c"], "completion_ids": [[1]], "trainer_state": "S"}


@pytest.fixture
def reward(tmp_path):
    """reward("plain:target=3") binds a reward of CODE by path."""
    (tmp_path / "code.py").write_text(CODE)
    return lambda text: bind(RewardSpec.read(f"{tmp_path}/code.py:{text}"), Catalog())


def test_set_parameters_win_over_a_column_of_their_name(reward):
    assert reward("plain:target=3").call(COLUMNS, TRL)[0] == 3


def test_by_path_a_column_wins_over_the_default(reward):
    assert reward("plain").call(COLUMNS, TRL)[0] == [-1]
    assert reward("defaulted").call(COLUMNS, TRL) == [["A"], [9]]
    assert reward("defaulted:level=4").call(COLUMNS, TRL) == [["A"], 4]
    assert reward("bound").call({"answer": ["A"]}, TRL)[0] == 7


def test_declared_rewards_keep_their_defaults(reward):
    assert reward("declared").call(COLUMNS, TRL)[0] == 200
    assert reward("optional").call(COLUMNS, TRL) == [["A"], 3]
    assert reward("optional").call({}, TRL) == [None, 3]


def test_the_rest_of_the_row_is_passed_only_to_kwargs(reward):
    _, rest = reward("declared").call(COLUMNS, TRL)
    assert rest == ["completion_ids", "extra", "level", "prompts", "trainer_state"]
    assert reward("only_columns").call(COLUMNS, TRL) == ["A"]  # which takes nothing else


def test_positional_only_columns_are_passed_by_position(reward):
    assert reward("strict").call(COLUMNS, TRL) == ["A"]


def test_what_is_inside_a_class_or_a_module_of_the_file_is_named_by_its_path(reward):
    bound = reward("Group.inner")
    assert (bound.name, bound.call(COLUMNS, TRL)) == ("inner", ["A"])


def test_a_class_takes_parameters_in_init_and_is_called(reward):
    assert reward("Judge:model=m").call(COLUMNS, TRL) == ["m", ["A"]]


def test_a_factory_makes_the_reward(reward):
    bound = reward("make:limit=5")
    assert bound.call(COLUMNS, TRL) == [5]
    assert bound.missing_columns(["prompt"]) == ["answer"]
    assert bound.name == "make"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("plain", "ordinary"), ("plain:concurrent=true", "concurrent"), ("at_once", "concurrent"),
        ("at_once:concurrent=false", "ordinary"), ("awaited", "async"), ("AsyncJudge", "async"),
        ("isolated", "process"),
    ],
)  # fmt: skip
def test_how_batches_are_scored(reward, name, kind):
    assert reward(name).kind == kind


@pytest.mark.parametrize(("name", "value"), [("awaited", 1.0), ("AsyncJudge", 2.0)])
def test_async(reward, name, value):
    bound = reward(name)
    assert asyncio.run(bound.call(COLUMNS, TRL)) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain:target=3", {"target": 3}),
        ('plain:target="3"', {"target": 3}),
        ('plain:words=["a"]', {"words": ["a"]}),
        ("plain:label=123", {"label": "123"}),
    ],
)
def test_values_become_what_the_annotation_says(reward, text, value):
    assert reward(text).parameters == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "plain:targt=3",
            "has no parameter 'targt'. Did you mean 'target'.*It takes target: int = 200, words: .*'x'.$",
        ),
        ("only_columns:x=3", "It takes no parameters.$"),
        ("bounded:size=0", r"greater than 0 \(size: int = 1\)$"),
        ("bounded:scale=2", "scale=2: Input should be an instance of Scale"),
        ("plain:target=many", r"valid integer.*\(target: int = 200\)"),
        ("plain:words=a", "valid list"),
        ("Judge", "needs model: str"),
        ("Judge:model=m,retries=-1", "could not be set up: ValueError: retries is negative"),
        ("NotCallable", "returned NotCallable, not a function.*takes neither is called to make a"),
        ("make", "needs limit: int: write --reward make:limit=…$"),
        ("unannotated", "needs limit: write --reward unannotated:limit=…$"),
        ("with_environments", "needs environments"),
        ("isolated_callbacks", "runs in its own process and can't take log_metric$"),
        ("plan", "Did you mean 'plain'"),
        ("_privat", "it has no '_privat'.$"),
    ],
)
def test_bad_parameters(reward, text, message):
    with pytest.raises(UserError, match=message):
        reward(text)


def test_a_file_without_a_function_name_lists_what_it_has(tmp_path):
    (tmp_path / "code.py").write_text("def a(completions): ...\ndef b(completions): ...")
    with pytest.raises(UserError, match="say which function.*It has a, b"):
        bind(RewardSpec.read(f"{tmp_path}/code.py"), Catalog())


def test_a_file_that_fails_is_one_message(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package_at_all")
    with pytest.raises(UserError, match="importing it failed: ModuleNotFoundError"):
        bind(RewardSpec.read(f"{tmp_path}/broken.py:f"), Catalog())


def test_the_same_reward_twice_needs_a_name(tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    path = f"{tmp_path}/code.py:plain"
    with pytest.raises(UserError, match="given twice.*name=other"):
        bind_all([RewardSpec.read(path), RewardSpec.read(path)], Catalog())
    rewards = bind_all([RewardSpec.read(path), RewardSpec.read(f"{path}:name=b,target=1")], Catalog())
    assert [r.name for r in rewards] == ["plain", "b"]


def test_trls_rewards_need_no_wrapper():
    think = bind(RewardSpec.read("trl.rewards:think_format_reward"), Catalog())
    said = [[{"role": "assistant", "content": "<think>\nx\n</think>\ny"}]]
    assert think.call({}, {**TRL, "completions": said}) == [1.0]
    overlong = bind(
        RewardSpec.read("trl.rewards:get_soft_overlong_punishment:max_completion_len=3,soft_punish_cache=1"), Catalog()
    )
    assert overlong.call({}, {**TRL, "completion_ids": [[1] * 9, [1]]}) == [-1, 0]


# text -> what is read; each is written as a text that is read as the same
DATA = {
    "d.jsonl": DataSpec("d.jsonl"),
    "embedded": DataSpec("builtin"),  # its name in earlier versions
    "d.jsonl:weight=0.5": DataSpec("d.jsonl", weight=0.5),
    "a/b:config=main,formatter=alpaca": DataSpec("a/b", config="main", formatter="alpaca"),
    "a/b:config=1,weight=2": DataSpec("a/b", weight=2, config="1"),
    "d.csv:first_option=1": DataSpec("d.csv", first_option=1),
    "d.csv:first_option=0": DataSpec("d.csv", first_option=0),
    "d.jsonl:prompt=question,chosen=a": DataSpec("d.jsonl", columns={"prompt": "question", "chosen": "a"}),
}


@pytest.mark.parametrize("text", DATA)
def test_what_data_is_given(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert DataSpec.read(text) == DATA[text]
    assert DataSpec.read(str(DATA[text])) == DATA[text]


def test_a_file_whose_name_looks_like_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl:weight=2").touch()
    assert DataSpec.read("d.jsonl:weight=2") == DataSpec("d.jsonl:weight=2")
    assert DataSpec.read({"d.jsonl": {"weight": 2}}) == DataSpec("d.jsonl", weight=2)


@pytest.mark.parametrize(
    "settings",
    [
        "weight=0",
        "weight=-1",
        "weight=true",
        "weight=x",
        "first_option=2",
        "first_option=true",
        "first_option=x",
        "wait=1",
    ],
)
def test_settings_of_data_that_are_refused(settings):
    with pytest.raises(UserError, match="--data d.jsonl: .*" + settings.partition("=")[0]):
        DataSpec.read(f"d.jsonl:{settings}")


def test_all_sources_of_a_run():
    own = read_data(["a", "b:config=x,formatter=y"], "main", "alpaca")
    assert own == [DataSpec("a", config="main", formatter="alpaca"), DataSpec("b", config="x", formatter="y")]
    assert [spec.weight for spec in read_data(["a:weight=1", "b:weight=2"], None, None)] == [1, 2]
    with pytest.raises(UserError, match="every source has a weight or none; missing for b"):
        read_data(["a:weight=1", "b"], None, None)
