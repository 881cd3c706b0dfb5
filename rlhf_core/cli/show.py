"""`rlhf rewards show NAME`, and the same for methods and formatters: what one plugin takes and where it is from.

The plugin is loaded, the libraries that it trains with are not. Each kind has one function that says what there is to
know as plain data (`--json`) and one that words it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import click

from rlhf_core.catalog import Catalog
from rlhf_core.formatter import Formatter
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.reward import Parameter, Reward, Signature, read_signature
from rlhf_core.ui.table import facts, print_json

Described = Mapping[str, Any]
Lines = list[tuple[str, str]]


def show(kind: str, name: str, as_json: bool) -> None:
    """Print what there is to know of one plugin. Raises `UserError` if there is none of that name, or it can't load."""
    found, entry = Catalog().load(kind, name)
    describe, word, where = KINDS[kind]
    described = {key: getattr(entry, key) for key in ("name", "summary", "distribution", "version", "module")}
    described |= {**describe(found), **_source(where(found))}
    if as_json:
        print_json(described)
        return
    click.echo(f"{entry.name}: {entry.summary}\n")
    line = f"{described['file']}:{described['line']}" if described["file"] else "no file"
    origin = [("Distribution", f"{entry.distribution} {entry.version}")]
    facts([*origin, *word(described), ("Source", f"{described['source']} ({line})")])
    if described["docstring"]:
        click.echo("\n" + described["docstring"])


def _reward(reward: Reward) -> Described:
    """The columns are None where only calling the reward's factory would tell them."""
    signature = _signature(reward)
    declared = ("range", "view", "isolation", "timeout", "deterministic", "batchwise", "concurrent", "system_prompt")
    return {
        "parameters": [_parameter(p) for p in reward.parameters.values()],
        "columns": signature and list(signature.columns),
        "optional_columns": signature and list(signature.optional),
        "takes_other_columns": signature and signature.keywords,
        **{name: getattr(reward, name) for name in declared},
    }


def _signature(reward: Reward) -> Signature | None:
    if inspect.isclass(reward.function):
        signature = read_signature(reward.function.__call__, reward.optional)
        return replace(signature, columns=tuple(name for name in signature.columns if name != "self"))
    return None if reward.is_maker else read_signature(reward.function, reward.optional)


def _parameter(parameter: Parameter) -> Described:
    kind = str(replace(parameter, default=inspect.Parameter.empty)).partition(": ")[2] or None
    default = {} if parameter.required else {"default": parameter.default}
    return {"name": parameter.name, "type": kind, "required": parameter.required, **default}


def _reward_lines(d: Described) -> Lines:
    columns = "known once its parameters are set and it is made"
    if d["columns"] is not None:
        columns = f"needs {', '.join(d['columns']) or 'none'}"
        columns += f"; uses {', '.join(d['optional_columns'])} if the data has it" if d["optional_columns"] else ""
    timeout = f", at most {d['timeout']:g} s a batch" if d["timeout"] else ""
    scores = {
        "scores differ from call to call": not d["deterministic"],
        "scores depend on the whole batch": d["batchwise"],
        "rows are scored at once": d["concurrent"],
    }
    return [
        ("Use", f"rlhf run --method grpo --reward {d['name']}"),
        ("Parameters", "\n".join(map(_parameter_line, d["parameters"])) or "none"),
        ("Columns", columns),
        ("Range", f"{d['range'][0]:g} to {d['range'][1]:g}" if d["range"] else "not declared"),
        ("View", {"text": "text: completions as strings", "messages": "messages: completions as chat"}[d["view"]]),
        ("Isolation", {"inline": "inline", "process": "a process of its own"}[d["isolation"]] + timeout),
        ("Scores", "; ".join(text for text, holds in scores.items() if holds)),
        ("System prompt", d["system_prompt"] or ""),
    ]


def _parameter_line(parameter: Described) -> str:
    kind = f": {parameter['type']}" if parameter["type"] else ""
    return parameter["name"] + kind + (" (required)" if parameter["required"] else f" = {parameter['default']!r}")


def _method(method: type[Method]) -> Described:
    """Its own options first: those that it adds, and those with another default than the shared ones."""
    shared, fields = TrainingOptions.model_fields, method.Options.model_fields
    own = [n for n, f in fields.items() if n not in shared or f.get_default() != shared[n].get_default()]
    return {
        **{name: getattr(method, name) for name in ("data", "rewards", "task", "generates", "config")},
        "options": [
            {
                "name": name,
                "flag": "--" + name.replace("_", "-"),
                "type": _type(fields[name].annotation),
                "default": None if fields[name].is_required() else fields[name].get_default(call_default_factory=True),
                "description": fields[name].description,
                "own": name in own,
                "shared": name in shared,
            }
            for name in sorted(fields, key=lambda name: name not in own)
        ],
        "builtin_preset": method.preset(),
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


def _method_lines(d: Described) -> Lines:
    own = [option for option in d["options"] if option["own"]]
    lines = [f"{o['flag']}  {o['type']}  [{o['default']}]  {o['description'] or ''}" for o in own]
    lines.append(f"and {len(d['options']) - len(own)} that all methods share: rlhf run --method {d['name']} --help")
    return [
        ("Use", f"rlhf run --method {d['name']}" + (" --reward NAME" if d["rewards"] == "required" else "")),
        ("Data", d["data"]),
        ("Rewards", d["rewards"]),
        ("Trains", {"causal_lm": "a model that writes", "sequence_classification": "a model that scores"}[d["task"]]),
        ("Config", f"{d['config']} (its fields: --set name=value)"),
        ("Options", "\n".join(lines)),
        ("Built-in", "  ".join(f"{name}={value}" for name, value in d["builtin_preset"].items())),
    ]


def _formatter(formatter: Formatter) -> Described:
    return {"columns": sorted(formatter.columns), "looks_at_values": formatter.matches is not None}


def _formatter_lines(d: Described) -> Lines:
    also = "; the values decide as well" if d["looks_at_values"] else ""
    use = f"rlhf run --method sft --data FILE:formatter={d['name']}"
    return [("Use", use), ("Columns", ", ".join(d["columns"]) + also)]


def _source(found: Any) -> Described:
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


# kind -> (what there is to know, its lines for people, the object whose source is shown)
KINDS: Mapping[str, tuple[Callable[[Any], Described], Callable[[Described], Lines], Callable[[Any], Any]]] = {
    "rewards": (_reward, _reward_lines, lambda reward: reward.function),
    "methods": (_method, _method_lines, lambda method: method),
    "formatters": (_formatter, _formatter_lines, lambda formatter: formatter.convert),
}
