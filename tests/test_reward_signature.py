"""How columns and parameters are read off a reward's signature: every rule has its row."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import pytest
import trl.rewards

from rlhf_core.reward import Reward, is_async
from rlhf_core.rewards.binding import is_maker, parameters, read_signature


def plain(completions, answer, *, target=200, **_): ...
def positional(prompts, completions, answer, level): ...
def strict(answer, /, completions): ...
def everything(**kwargs): ...
def loop(completions, keywords=None, trainer_state=None, log_metric=None): ...
def typed(completions, *, target: int = 3, words: list[str] | None = None): ...
def unknown_type(completions, *, target: Missing = 3): ...  # noqa: F821
async def awaited(completions, answer, **kwargs): ...
def get_reward(limit: int, scale: float = 1.0): ...


class Judge:
    def __init__(self, model: str, *, retries: int = 2): ...

    def __call__(self, completions, answer, **kwargs): ...


class AsyncJudge:
    async def __call__(self, completions, **kwargs): ...


def wrap(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


# function, TRL names, columns, parameters, takes everything else
SIGNATURES = {
    "columns and parameters": (plain, {"completions"}, ["answer"], ["target"], True),
    "positional columns": (positional, {"prompts", "completions"}, ["answer", "level"], [], False),
    "positional-only column": (strict, {"completions"}, ["answer"], [], False),
    "only **kwargs": (everything, set(), [], [], True),
    "TRL's callbacks are no columns": (loop, {"completions", "trainer_state", "log_metric"}, [], ["keywords"], False),
    "partial by keyword": (functools.partial(plain, target=5), {"completions"}, ["answer"], ["target"], True),
    "partial by position": (functools.partial(strict, "x"), {"completions"}, [], [], False),
    "instance": (Judge("m"), {"completions"}, ["answer"], [], True),
    "bound method": (Judge("m").__call__, {"completions"}, ["answer"], [], True),
    "async function": (awaited, {"completions"}, ["answer"], [], True),
    "instance with async __call__": (AsyncJudge(), {"completions"}, [], [], True),
    "a wrapper's own arguments count": (wrap(plain), set(), [], [], True),
    "and where its types do not exist": (wrap(unknown_type), set(), [], [], True),
    "trl: think format": (trl.rewards.think_format_reward, {"completions"}, [], [], True),
    "trl: accuracy": (trl.rewards.accuracy_reward, {"completions", "log_extra"}, ["solution"], [], True),
    "trl: made by a factory": (
        trl.rewards.get_soft_overlong_punishment(10, 5), {"completion_ids"}, [], [], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SIGNATURES)
def test_signature(case):
    function, trl_names, columns, parameters, keywords = SIGNATURES[case]
    signature = read_signature(function)
    assert signature.trl == trl_names
    assert list(signature.columns) == columns
    assert list(signature.parameters) == parameters
    assert signature.keywords is keywords


def test_optional_column_is_not_a_parameter():
    signature = read_signature(loop, optional=("keywords",))
    assert signature.optional == ("keywords",)
    assert not signature.parameters


def test_partial_keeps_its_bound_value_as_the_default():
    assert read_signature(functools.partial(plain, target=5)).parameters["target"].default == 5


def test_types_are_read_from_annotations_and_those_that_do_not_exist_are_left_alone():
    assert read_signature(typed).parameters["target"].annotation is int
    assert read_signature(typed).parameters["words"].annotation == list[str] | None
    assert read_signature(unknown_type).parameters["target"].annotation == "Missing"


MAKERS = {
    "takes no TRL name": (get_reward, True),
    "trl's overlong": (trl.rewards.get_soft_overlong_punishment, True),
    "trl's repetition": (trl.rewards.get_repetition_penalty_reward, True),
    "partial of one": (functools.partial(get_reward, 3), True),
    "takes completions": (plain, False),
    "takes **kwargs": (everything, False),
    "a class": (Judge, True),
}


@pytest.mark.parametrize("case", MAKERS)
def test_what_is_called_to_make_the_reward(case):
    function, expected = MAKERS[case]
    assert is_maker(function) is expected


def test_parameters_of_a_class_and_of_a_factory():
    assert [str(p) for p in parameters(Reward(Judge)).values()] == ["model: str", "retries: int = 2"]
    assert [p.default for p in parameters(Reward(get_reward)).values()] == [inspect.Parameter.empty, 1.0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (awaited, True),
        (functools.partial(awaited, answer=1), True),
        (AsyncJudge(), True),
        (AsyncJudge, True),
        (plain, False),
        (Judge("m"), False),
        (Judge, False),
    ],
)
def test_async(function, expected):
    assert is_async(function) is expected


def test_reward_refuses_what_it_cannot_keep():
    with pytest.raises(TypeError, match="needs a function"):
        Reward("length")
    with pytest.raises(ValueError, match="view must be"):
        Reward(plain, view="tokens")
    with pytest.raises(ValueError, match="timeout needs"):
        Reward(plain, timeout=3)
    with pytest.raises(ValueError, match="memory_gb needs"):
        Reward(plain, memory_gb=1)
    with pytest.raises(ValueError, match="timeout must be a number above 0"):
        Reward(awaited, timeout=0)
    with pytest.raises(ValueError, match="memory_gb must be a number above 0"):
        Reward(plain, isolation="process", memory_gb=0)
    with pytest.raises(ValueError, match="choose one of them"):
        Reward(plain, batchwise=True, concurrent=True)
    with pytest.raises(ValueError, match="concurrent needs isolation='inline'"):
        Reward(plain, isolation="process", concurrent=True)
    with pytest.raises(ValueError, match="concurrent is for ordinary functions"):
        Reward(AsyncJudge, concurrent=True)
    assert Reward(awaited, timeout=3).timeout == 3
    assert Reward(plain, isolation="process", timeout=3).timeout == 3


def test_the_old_name_of_the_system_prompt_is_taken():
    with pytest.warns(DeprecationWarning, match="system_prompt=") as warned:
        reward = Reward(plain, instruction="Be brief.")
    assert warned[0].filename == __file__
    assert (reward.system_prompt, replace(reward, batchwise=True).system_prompt) == ("Be brief.",) * 2


def test_label():
    assert Reward(plain).label == "plain"
    assert Reward(Judge).label == "Judge"
    assert Reward(plain, name="other").label == "other"
    assert Reward(functools.partial(plain, target=1)).label is None
    assert Reward(Judge("m")).label is None
