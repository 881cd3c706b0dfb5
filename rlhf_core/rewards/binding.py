"""From a `--reward` specification to a reward that can be called: import it and set its parameters."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError, describe, did_you_mean
from rlhf_core.grammar import RewardSpec, write
from rlhf_core.reward import CALLBACK_NAMES, Parameter, Reward, Signature, is_async, own_name, read_signature

_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>[A-Za-z_][\w.]*))?")
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_][\w.]*)")


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
    by_path: bool = False
    distribution: str | None = None

    @property
    def kind(self) -> Literal["ordinary", "concurrent", "async", "process"]:
        """How its batches are scored."""
        if self.reward.isolation == "process":
            return "process"
        if self.function is not None and is_async(self.function):
            return "async"
        return "concurrent" if self.reward.concurrent else "ordinary"

    def missing_columns(self, available: Sequence[str]) -> list[str]:
        """The columns that this reward needs and the data does not have."""
        return [name for name in self.signature.columns if name not in available and name not in self.parameters]

    def arguments(self, columns: Mapping[str, list[Any]], trl: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of one call: TRL's names, columns and set parameters that the function accepts."""
        s = self.signature
        wanted = {*s.columns, *s.optional, *(s.parameters if self.by_path else ())}
        return {
            **{name: value for name, value in trl.items() if name in s.trl or s.keywords},
            **{k: v for k, v in columns.items() if k in wanted or (s.keywords and k not in s.parameters)},
            **self.parameters,
        }

    def call(self, columns: Mapping[str, list[Any]], trl: Mapping[str, Any]) -> Any:
        """Score a batch of `columns` (one list each). Returns what the function returns."""
        assert self.function is not None, f"reward {self.name!r} is called only in its worker process"
        arguments = self.arguments(columns, trl)
        positional = [arguments.pop(name) for name in self.signature.positional_only]
        return self.function(*positional, **arguments)


def bind(spec: RewardSpec, catalog: Catalog, *, in_worker: bool = False) -> BoundReward:
    """Find the reward, check and set its parameters. Raises `UserError` for a mistake in the specification.

    A reward with `isolation="process"` is built only if `in_worker`; otherwise only its signature is read.
    """
    reward, name, by_path, distribution = _find(spec.target, catalog)
    name = spec.name or name
    if spec.concurrent is not None:
        try:
            reward = replace(reward, concurrent=spec.concurrent)
        except ValueError as error:
            raise UserError(f"--reward {spec}: {error}") from error
    values = _check_parameters(name, spec.parameters, reward.parameters)
    elsewhere = reward.isolation == "process" and not in_worker
    if not reward.is_maker:
        call = reward.function
    elif elsewhere and inspect.isclass(reward.function):
        call = functools.partial(reward.function.__call__, None)
    else:
        call, values = _make(name, reward.function, values), {}
    signature = read_signature(call, reward.optional)
    if "environments" in signature.required_trl:
        raise UserError(f"reward {name!r} needs environments, which rlhf does not provide")
    if reward.isolation == "process" and (callbacks := signature.required_trl & CALLBACK_NAMES):
        raise UserError(f"reward {name!r} runs in its own process and can't take {', '.join(sorted(callbacks))}")
    if reward.concurrent and is_async(call):
        raise UserError(f"reward {name!r} is async and already awaits its rows together: it can't be concurrent")
    if reward.concurrent and (logs := signature.trl & {"log_extra", "log_metric"}):
        raise UserError(f"reward {name!r} takes {', '.join(sorted(logs))}, for full batches: it can't be concurrent")
    function = None if elsewhere else call
    return BoundReward(name, spec.weight, reward, spec, signature, function, values, by_path, distribution)


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


def _find(target: str, catalog: Catalog) -> tuple[Reward, str, bool, str | None]:
    """(reward, name, whether it is a plain function given by path, distribution) of `target`."""
    if match := _FILE.fullmatch(target):
        found = _attribute(target, _import_file(Path(match["path"]), match["attribute"]), match["attribute"])
    elif match := _MODULE.fullmatch(target):
        found = _attribute(target, _import_module(match["module"]), match["attribute"])
    else:
        reward, entry = catalog.load("rewards", target)
        return reward, entry.name, False, f"{entry.distribution} {entry.version}"
    last = match["attribute"].rpartition(".")[2]
    if isinstance(found, Reward):
        return found, found.label or last, False, None
    if not callable(found):
        raise UserError(f"--reward {target}: {last} is {type(found).__name__}, not a function")
    return Reward(found, view="messages"), last, True, None


def _import_file(path: Path, attribute: str | None) -> Any:
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"--reward: there is no file {path}")
    if attribute is None:
        try:
            body = ast.parse(path.read_text(encoding="utf-8")).body
        except SyntaxError as error:
            raise UserError(f"--reward {path}: line {error.lineno}: {error.msg}") from error
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        raise UserError(f"--reward {path}: say which function, {path}:NAME. It has {', '.join(functions) or 'none'}.")
    name = f"rlhf_reward_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"--reward {path}: importing it failed: {describe(error)}") from error
    return sys.modules[name]


def _import_module(module: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for a package in the current folder
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UserError(f"--reward {module}: importing it failed: {describe(error)}") from error


def _attribute(target: str, module: Any, attribute: str) -> Any:
    found = module
    for part in attribute.split("."):
        if part not in dir(found):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UserError(f"--reward {target}: it has no {part!r}.{did_you_mean(part, public)}")
        found = getattr(found, part)
    return found


def _make(name: str, maker: Callable[..., Any], values: Mapping[str, Any]) -> Callable[..., Any]:
    try:
        made = maker(**values)
    except UserError as error:
        raise UserError(f"reward {name!r}: {error}") from error
    except Exception as error:
        raise UserError(f"reward {name!r} could not be set up: {describe(error)}") from error
    if not callable(made):
        raise UserError(
            f"reward {name!r}: calling {own_name(maker) or maker!r} returned {type(made).__name__}, not a function. "
            "A reward takes `completions` (or **kwargs); a function that takes neither is called to make a reward."
        )
    return made


def _check_parameters(name: str, given: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    for key in given:
        if key not in known:
            takes = ", ".join(map(str, known.values())) or "no parameters"
            raise UserError(f"reward {name!r} has no parameter {key!r}.{did_you_mean(key, known)} It takes {takes}.")
    if unset := [str(p) for p in known.values() if p.required and p.name not in given]:
        key = unset[0].partition(":")[0]
        raise UserError(f"reward {name!r} needs {', '.join(unset)}: write --reward {name}:{key}=…")
    return {key: _coerce(name, known[key], value) for key, value in given.items()}


def _coerce(name: str, parameter: Parameter, value: Any) -> Any:
    """`value` converted to the annotation; as it is, where there is none or it can't be read."""
    if parameter.annotation is inspect.Parameter.empty or isinstance(parameter.annotation, str):
        return value
    import pydantic

    adapter = pydantic.TypeAdapter(parameter.annotation, config={"arbitrary_types_allowed": True})
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        if not isinstance(value, str):  # `name=123` for a string parameter was read as JSON
            try:
                return adapter.validate_python(write(value))
            except pydantic.ValidationError:
                pass
        message = error.errors()[0]["msg"]
        raise UserError(f"reward {name!r}: {parameter.name}={write(value)}: {message} ({parameter})") from error
