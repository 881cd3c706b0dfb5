"""From a `--reward` specification to a reward that can be called: import it and set its parameters."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args, get_origin

from rlhf_core import by_path
from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError, describe, did_you_mean
from rlhf_core.grammar import RewardSpec, write
from rlhf_core.reward import Reward, is_async

# What TRL passes to a reward function besides the data's columns. Callbacks exist only in the trainer's process.
CALLBACK_NAMES = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})
_LIST = re.compile(r"(?:Optional\[)?(?:[Ll]ist|[Tt]uple|Sequence|Iterable|Collection)\[(\w+)")
LOGS = frozenset({"log_extra", "log_metric"})
FINISHED = "finished"  # ours: whether each answer ended by itself, for functions that name it
TRL_NAMES = CALLBACK_NAMES | {"prompts", "completions", "completion_ids", FINISHED}
# Names that are never a column of the data: TRL's, whose values are the run's, and those of what the run makes prompts
# and completions of.
INSTEAD = {"prompt": "prompts", "completion": "completions", "messages": "prompts"}
ROW = "rlhf_row"  # the column of `Run.train_dataset` and `Run.eval_dataset` with the row's number
RESERVED = TRL_NAMES | INSTEAD.keys() | {ROW}
# What functions that score one row, for other trainers, call the model's answer.
ONE_ANSWER = ("solution_str", "response", "response_str", "completion", "output", "prediction", "predict_str", "text")


@dataclass(frozen=True)
class Signature:
    """The arguments of one callable: TRL's names, data columns, parameters; `keywords`: it has `**kwargs`. `texts`: for
    TRL's names that are annotated as a list, whether it is one of strings.
    """

    trl: frozenset[str]
    required_trl: frozenset[str]
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    parameters: Mapping[str, inspect.Parameter]
    keywords: bool
    positional_only: tuple[str, ...] = ()
    texts: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class BoundReward:
    """A reward with its parameters set. `function` is None where it is built only in a worker."""

    name: str
    weight: float
    reward: Reward
    spec: RewardSpec
    signature: Signature
    function: Callable[..., Any] | None
    parameters: Mapping[str, Any]
    distribution: str | None = None
    bare: bool = False  # a function without a `Reward`: it gets what TRL passes

    @property
    def kind(self) -> Literal["ordinary", "concurrent", "async", "process"]:
        """How its batches are scored."""
        if self.reward.isolation == "process":
            return "process"
        if self.function is not None and is_async(self.function):
            return "async"
        return "concurrent" if self.reward.concurrent else "ordinary"

    @property
    def as_text(self) -> dict[str, bool | None]:
        """Whether prompts and completions are passed as strings, not as messages; None: if the data's prompts are text.

        A bare function's annotations say it, such as `list[str]`.
        """
        if not self.bare:
            return {"prompts": False, "completions": self.reward.view == "text"}
        return {name: self.signature.texts.get(name) for name in ("prompts", "completions")}

    def missing_columns(self, available: Sequence[str]) -> list[str]:
        """The columns that this reward needs and the data does not have."""
        given = {*available, *self.parameters} - RESERVED
        return [name for name in self.signature.columns if name not in given]

    def call(self, columns: Mapping[str, list[Any]], trl: Mapping[str, Any]) -> Any:
        """Call the function with those of TRL's names and of a batch's `columns` that it accepts."""
        assert self.function is not None, f"reward {self.name!r} is called only in its worker process"
        s = self.signature
        wanted = {*s.columns, *s.optional}
        arguments = {
            **{k: v for k, v in columns.items() if k in wanted or (s.keywords and k not in s.parameters)},
            **{name: value for name, value in trl.items() if name in s.trl or s.keywords},
            **self.parameters,
        }
        positional = [arguments.pop(name) for name in s.positional_only]
        return self.function(*positional, **arguments)


def bind(spec: RewardSpec, catalog: Catalog, *, in_worker: bool = False) -> BoundReward:
    """Find the reward, check and set its parameters. Raises `UserError` for a mistake in the specification.

    A reward with `isolation="process"` is built only if `in_worker`; otherwise only its signature is read.
    """
    found, name, distribution = _find(spec.target, catalog)
    name = spec.name or name
    reward = found if isinstance(found, Reward) else Reward(found, view="messages")
    if spec.concurrent is not None:
        try:
            reward = replace(reward, concurrent=spec.concurrent)
        except ValueError as error:
            raise UserError(f"--reward {spec}: {error}") from error
    if not isinstance(found, Reward) and inspect.isfunction(found) and is_maker(found):
        _refuse_score_of_one_row(name, spec, parameters(reward))
    values = _check_parameters(name, spec.parameters, parameters(reward))
    elsewhere = reward.isolation == "process" and not in_worker
    if not is_maker(reward.function):
        call = reward.function
    elif elsewhere and inspect.isclass(reward.function):
        call = functools.partial(reward.function.__call__, None)
    else:
        call, values = _make(name, reward, values), {}
    signature = read_signature(call, reward.optional)
    if not isinstance(found, Reward):  # a function given by path: a column wins over a default
        signature = replace(signature, optional=tuple(signature.parameters))
    if "environments" in signature.required_trl:
        raise UserError(f"reward {name!r} needs environments, which rlhf does not provide")
    if reward.isolation == "process" and (callbacks := signature.required_trl & CALLBACK_NAMES):
        raise UserError(f"reward {name!r} runs in its own process and can't take {', '.join(sorted(callbacks))}")
    if reward.concurrent and is_async(call):
        raise UserError(f"reward {name!r} is async and already awaits its rows together: it can't be concurrent")
    if reward.concurrent and (logs := signature.trl & LOGS):
        raise UserError(f"reward {name!r} takes {', '.join(sorted(logs))}, for full batches: it can't be concurrent")
    function = None if elsewhere else call
    bare = not isinstance(found, Reward)
    return BoundReward(name, spec.weight, reward, spec, signature, function, values, distribution, bare)


def bind_all(entries: Sequence[RewardSpec], catalog: Catalog) -> list[BoundReward]:
    """Bind each of `entries`. Raises `UserError` where two have the same name."""
    rewards: list[BoundReward] = []
    for spec in entries:
        reward = bind(spec, catalog)
        if any(reward.name == other.name for other in rewards):
            raise UserError(
                f"reward {reward.name!r} is given twice. To use it twice, name one: --reward {spec.target}:name=other"
            )
        rewards.append(reward)
    return rewards


def check_columns(rewards: Sequence[BoundReward], available: Sequence[str], source: str) -> None:
    """Raise `UserError` if the data lacks a column that a reward needs."""
    for reward in rewards:
        if missing := reward.missing_columns(available):
            if instead := [f"{INSTEAD[name]}, not {name}" for name in missing if name in INSTEAD]:
                raise UserError(f"reward {reward.name!r} has an argument that it can't get: it is {instead[0]}")
            have = ", ".join(name for name in available if name not in RESERVED) or "none"
            raise UserError(
                f"reward {reward.name!r} needs the column{'s' * (len(missing) > 1)} {', '.join(missing)}, "
                f"which {source} does not have. Its columns: {have}."
            )


def _find(target: str, catalog: Catalog) -> tuple[Any, str, str | None]:
    """(a `Reward`, or a function given by path; its name; its distribution) of `target`."""
    if (at_path := by_path.find(target, "--reward")) is None:
        reward, entry = catalog.load("rewards", target)
        return reward, entry.name, f"{entry.distribution} {entry.version}"
    found, name = at_path
    if isinstance(found, Reward):
        return found, found.label or name, None
    if not callable(found):
        raise UserError(f"--reward {target}: {name} is {type(found).__name__}, not a function")
    return found, name, None


def read_signature(function: Callable[..., Any], optional: Sequence[str] = ()) -> Signature:
    """Sort the arguments of `function` by the rules of `rlhf_core.reward`. Those in `optional` are columns."""
    arguments = _arguments(function)
    named = [p for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = {p.name for p in named if p.default is p.empty}
    others = [p for p in named if p.name not in TRL_NAMES]
    return Signature(
        trl=TRL_NAMES.intersection(p.name for p in named),
        required_trl=TRL_NAMES & required,
        columns=tuple(p.name for p in others if p.name in required and p.name not in optional),
        optional=tuple(p.name for p in others if p.name in optional),
        parameters={p.name: p for p in others if p.name not in required and p.name not in optional},
        keywords=any(p.kind is p.VAR_KEYWORD for p in arguments),
        positional_only=tuple(p.name for p in arguments if p.kind is p.POSITIONAL_ONLY),
        texts={p.name: text for p in named if p.name in TRL_NAMES and (text := _list_of_text(p)) is not None},
    )


def _list_of_text(parameter: inspect.Parameter) -> bool | None:
    """Whether it is annotated as a list of strings; None where it has no annotation that says what it is a list of."""
    given = parameter.annotation
    written = given if isinstance(given, str) else inspect.formatannotation(given)  # not always one that can be read
    elements = _LIST.match(re.sub(r"\b(\w+\.)+|\s", "", written))
    if parameter.annotation is parameter.empty or elements is None:
        return None
    return {"str": True, "Any": None}.get(elements[1], False)


def is_maker(function: Callable[..., Any]) -> bool:
    """Whether it is a class, or takes none of TRL's names and no `**kwargs`: calling it returns the reward."""
    if inspect.isclass(function):
        return True
    signature = read_signature(function)
    return not signature.trl and not signature.keywords


def parameters(reward: Reward) -> Mapping[str, inspect.Parameter]:
    """What a user can set, by name. Of a class or a factory, all of its arguments."""
    if is_maker(reward.function):
        arguments = _arguments(reward.function)
        return {p.name: p for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return read_signature(reward.function, reward.optional).parameters


def _arguments(function: Callable[..., Any]) -> list[inspect.Parameter]:
    # Not following __wrapped__: a call meets the wrapper's arguments, and partials keep their bound values.
    try:
        signature = inspect.signature(function, follow_wrapped=False, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):  # names for the type checker alone, or any text
        signature = inspect.signature(function, follow_wrapped=False)
    return list(signature.parameters.values())


def _make(name: str, reward: Reward, values: Mapping[str, Any]) -> Callable[..., Any]:
    try:
        made = reward.function(**values)
    except UserError as error:
        raise UserError(f"reward {name!r}: {error}") from error
    except Exception as error:
        raise UserError(f"reward {name!r} could not be set up: {describe(error)}") from error
    if not callable(made):
        what = f"calling {reward.label or reward.function!r} returned {type(made).__name__}, not a function"
        hint = "a function that takes neither is called to make a reward"
        raise UserError(f"reward {name!r}: {what}. A reward takes `completions` (or **kwargs); {hint}.")
    return made


def _check_parameters(name: str, given: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    for key in given:
        if key not in known:
            takes = ", ".join(map(shown, known.values())) or "no parameters"
            raise UserError(f"reward {name!r} has no parameter {key!r}.{did_you_mean(key, known)} It takes {takes}.")
    if unset := [shown(p) for p in known.values() if p.default is p.empty and p.name not in given]:
        key = unset[0].partition(":")[0]
        raise UserError(f"reward {name!r} needs {', '.join(unset)}: write --reward {name}:{key}=…")
    return {key: _coerce(name, known[key], value) for key, value in given.items()}


def shown(parameter: inspect.Parameter) -> str:
    """A parameter as its signature has it, without bounds that its type carries."""
    kind = parameter.annotation
    return str(parameter.replace(annotation=get_args(kind)[0]) if get_origin(kind) is Annotated else parameter)


def _refuse_score_of_one_row(name: str, spec: RewardSpec, known: Mapping[str, inspect.Parameter]) -> None:
    """Raise `UserError` if a function can't be meant to make a reward: nobody could set its parameters."""
    unset = [p.name for p in known.values() if p.default is p.empty and p.name not in spec.parameters]
    answer = next((each for each in unset if each in ONE_ANSWER), None)
    if answer is None:
        return
    arguments = ", ".join(["completions: list[str]", *(each for each in unset if each != answer), "**_"])
    values = ", ".join("completions" if each == answer else each for each in unset)
    file, _, function = spec.target.rpartition(":")
    inside = " ground_truth inside verl's column reward_model is called answer."
    raise UserError(
        f"reward {name!r} scores one row, by its argument {answer}. A reward is called once for many rows, with TRL's "
        "arguments and the data's columns as lists, and returns a list of scores. Add this to its file, and use it as "
        f"--reward {file}:{function}_of_rows\n\n"
        f"    def {function}_of_rows({arguments}):\n"
        f"        return [{function}(*row) for row in zip({values})]\n\n"
        "The arguments after completions are columns of the data, by their names there."
        + (inside if "ground_truth" in unset else "")
    )


def _coerce(name: str, parameter: inspect.Parameter, value: Any) -> Any:
    """`value` converted to the annotation; as it is, where there is none or it can't be read."""
    if parameter.annotation is parameter.empty or isinstance(parameter.annotation, str):
        return value
    import pydantic

    adapter = pydantic.TypeAdapter(parameter.annotation, config={"arbitrary_types_allowed": True})
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        if not isinstance(value, list | dict):
            with contextlib.suppress(pydantic.ValidationError):
                return adapter.validate_python(write(value))  # `name=123` for a string parameter was read as JSON
        message = error.errors()[0]["msg"]
        raise UserError(f"reward {name!r}: {parameter.name}={write(value)}: {message} ({shown(parameter)})") from error
