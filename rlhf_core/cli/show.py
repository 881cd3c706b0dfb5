"""`rlhf rewards show NAME`, and the same for methods and formatters: what one plugin takes and where it is from.

The plugin is loaded, the libraries that it trains with are not.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import click

from rlhf_core.catalog import Catalog, Entry
from rlhf_core.formatter import Formatter
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.reward import Parameter, Reward, Signature, is_factory, maker_parameters, read_signature
from rlhf_core.ui.table import facts, print_json


def show(kind: str, name: str, as_json: bool) -> None:
    """Print what there is to know of one plugin. Raises `UserError` if there is none of that name, or it can't load."""
    found, entry = Catalog().load(kind, name)
    describe: dict[str, Callable[[Any], dict[str, Any]]] = {
        "rewards": describe_reward,
        "methods": describe_method,
        "formatters": describe_formatter,
    }
    described = {**_origin(entry), **describe[kind](found)}
    if as_json:
        print_json(described)
    else:
        print_text(kind, described)


def _origin(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "distribution": entry.distribution,
        "version": entry.version,
        "module": entry.module,
    }


def describe_reward(reward: Reward) -> dict[str, Any]:
    """What a user of the reward needs to know; its columns are None where only calling its factory would tell them."""
    maker = reward.function if inspect.isclass(reward.function) or is_factory(reward.function) else None
    known = maker_parameters(maker) if maker else read_signature(reward.function, reward.optional).parameters
    signature = _signature(reward)
    return {
        "parameters": [_parameter(p) for p in known.values()],
        "columns": None if signature is None else list(signature.columns),
        "optional_columns": None if signature is None else list(signature.optional),
        "takes_other_columns": None if signature is None else signature.keywords,
        "range": reward.range,
        "view": reward.view,
        "isolation": reward.isolation,
        "timeout": reward.timeout,
        "deterministic": reward.deterministic,
        "batchwise": reward.batchwise,
        "instruction": reward.instruction,
        **_source(reward.function),
    }


def _signature(reward: Reward) -> Signature | None:
    if not inspect.isclass(reward.function):
        return None if is_factory(reward.function) else read_signature(reward.function, reward.optional)
    signature = read_signature(reward.function.__call__, reward.optional)
    columns = tuple(name for name in signature.columns if name != "self")
    return Signature(**{**vars(signature), "columns": columns})


def _parameter(parameter: Parameter) -> dict[str, Any]:
    kind = str(Parameter(parameter.name, parameter.annotation, inspect.Parameter.empty))
    default = {} if parameter.required else {"default": parameter.default}
    return {"name": parameter.name, "type": kind.partition(": ")[2] or None, "required": parameter.required, **default}


def describe_method(method: type[Method]) -> dict[str, Any]:
    """Its own options first: those that it adds, and those with another default than the shared ones."""
    shared, fields = TrainingOptions.model_fields, method.Options.model_fields
    own = [n for n, f in fields.items() if n not in shared or f.get_default() != shared[n].get_default()]
    return {
        "data": method.data,
        "rewards": method.rewards,
        "task": method.task,
        "generates": method.generates,
        "config": method.config,
        "options": [_option(name, method, name in own) for name in sorted(fields, key=lambda name: name not in own)],
        "builtin_preset": method.preset(),
        **_source(method),
    }


def _option(name: str, method: type[Method], own: bool) -> dict[str, Any]:
    field = method.Options.model_fields[name]
    return {
        "name": name,
        "flag": "--" + name.replace("_", "-"),
        "type": _type(field.annotation),
        "default": None if field.is_required() else field.get_default(call_default_factory=True),
        "description": field.description,
        "own": own,
        "shared": name in TrainingOptions.model_fields,
    }


def _type(annotation: Any) -> str:
    """An option's type without its bounds, and a choice as a|b."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, parts))
    if origin is typing.Literal:
        return "|".join(map(str, parts))
    if annotation is type(None):
        return "None"
    return annotation.__name__ if inspect.isclass(annotation) and not parts else str(annotation)


def describe_formatter(formatter: Formatter) -> dict[str, Any]:
    """The columns it takes, and whether more than columns decides."""
    return {
        "columns": sorted(formatter.columns),
        "looks_at_values": formatter.matches is not None,
        **_source(formatter.convert),
    }


def _source(found: Any) -> dict[str, Any]:
    """Where the object is written, and its docstring; of a partial or an instance, those of what it calls."""
    while isinstance(found, functools.partial):
        found = found.func
    target = found if inspect.isroutine(found) or inspect.isclass(found) else type(found)
    try:
        file, line = inspect.getsourcefile(target), inspect.getsourcelines(target)[1]
    except (OSError, TypeError):  # built-in, or made at run time
        file, line = None, None
    module = sys.modules.get(target.__module__)
    docstring = inspect.cleandoc(target.__doc__ or (module and module.__doc__) or "")
    return {"source": target.__module__, "file": file, "line": line, "docstring": docstring}


def print_text(kind: str, described: Mapping[str, Any]) -> None:
    """The same for people."""
    click.echo(f"{described['name']}: {described['summary']}\n")
    rows = [("Distribution", f"{described['distribution']} {described['version']}")]
    rows += {"rewards": _reward_rows, "methods": _method_rows, "formatters": _formatter_rows}[kind](described)
    place = f"{described['file']}:{described['line']}" if described["file"] else "no file"
    facts([*rows, ("Source", f"{described['source']} ({place})")])
    if described["docstring"]:
        click.echo("\n" + described["docstring"])


def _reward_rows(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    if d["columns"] is None:
        columns = "known once its parameters are set and it is made"
    else:
        columns = f"needs {', '.join(d['columns'])}" if d["columns"] else "needs none"
        columns += f"; uses {', '.join(d['optional_columns'])} if there" if d["optional_columns"] else ""
    lowest_highest = f"{d['range'][0]:g} to {d['range'][1]:g}" if d["range"] else "not declared"
    timeout = f", at most {d['timeout']:g} s a batch" if d["timeout"] else ""
    other = [] if d["deterministic"] else ["scores differ from call to call"]
    other += ["scores depend on the whole batch"] if d["batchwise"] else []
    return [
        ("Use", f"rlhf run --method grpo --reward {d['name']}"),
        ("Parameters", "\n".join(map(_written, d["parameters"])) or "none"),
        ("Columns", columns),
        ("Range", lowest_highest),
        ("View", {"text": "text: completions as strings", "messages": "messages: completions as chat"}[d["view"]]),
        ("Isolation", {"inline": "inline", "process": "a process of its own"}[d["isolation"]] + timeout),
        ("Scores", "; ".join(other)),
        ("Instruction", d["instruction"] or ""),
    ]


def _written(parameter: Mapping[str, Any]) -> str:
    kind = f": {parameter['type']}" if parameter["type"] else ""
    return parameter["name"] + kind + (" (required)" if parameter["required"] else f" = {parameter['default']!r}")


def _method_rows(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    own = [option for option in d["options"] if option["own"]]
    lines = [f"{o['flag']}  {o['type']}  [{o['default']}]  {o['description'] or ''}" for o in own]
    shared = len(d["options"]) - len(own)
    lines.append(f"and {shared} that all methods share: rlhf run --method {d['name']} --help")
    return [
        ("Use", f"rlhf run --method {d['name']}" + (" --reward NAME" if d["rewards"] == "required" else "")),
        ("Data", d["data"]),
        ("Rewards", d["rewards"]),
        ("Trains", {"causal_lm": "a model that writes", "sequence_classification": "a model that scores"}[d["task"]]),
        ("Config", f"{d['config']} (its fields: --set name=value)"),
        ("Options", "\n".join(lines)),
        ("Built-in", "  ".join(f"{name}={value}" for name, value in d["builtin_preset"].items())),
    ]


def _formatter_rows(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    also = "; the values decide as well" if d["looks_at_values"] else ""
    return [
        ("Use", f"rlhf run --method sft --data FILE:formatter={d['name']}"),
        ("Columns", ", ".join(d["columns"]) + also),
    ]
