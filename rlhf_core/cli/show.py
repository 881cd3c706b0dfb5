"""`rlhf rewards show NAME`, and the same for methods and formatters: what one plugin takes and where it is from.

The plugin is loaded, without the libraries that it trains with. For each kind, one function describes a plugin as plain
data (`--json`) and another turns it into lines.
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

from rlhf_core.catalog import Catalog
from rlhf_core.formatter import Formatter
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.reward import Reward
from rlhf_core.rewards.binding import is_maker, parameters, read_signature
from rlhf_core.ui.table import facts, print_json

Described = Mapping[str, Any]
Lines = list[tuple[str, str]]


def show(kind: str, name: str, as_json: bool) -> None:
    """Print a description of one plugin. Raises `UserError` if there is none of that name, or it can't be loaded."""
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
    """The columns are None for a factory, which would have to be called for them."""
    call: Any = None if is_maker(reward.function) else reward.function
    if inspect.isclass(reward.function):
        call = functools.partial(reward.function.__call__, None)  # without `self`
    signature = call and read_signature(call, reward.optional)
    declared = ("range", "view", "isolation", "timeout", "deterministic", "batchwise", "concurrent", "system_prompt")
    return {
        "parameters": [_parameter(p) for p in parameters(reward).values()],
        "columns": signature and list(signature.columns),
        "optional_columns": signature and list(signature.optional),
        "takes_other_columns": signature and signature.keywords,
        **{name: getattr(reward, name) for name in declared},
    }


def _parameter(parameter: inspect.Parameter) -> Described:
    kind = str(parameter.replace(default=parameter.empty)).partition(": ")[2] or None
    required = parameter.default is parameter.empty
    default = {} if required else {"default": parameter.default}
    return {"name": parameter.name, "type": kind, "required": required, **default}


def _reward_lines(d: Described) -> Lines:
    columns = "known when its parameters are set"
    if d["columns"] is not None:
        columns = f"needs {', '.join(d['columns']) or 'none'}"
        columns += f"; uses {', '.join(d['optional_columns'])} if the data has it" if d["optional_columns"] else ""
    timeout = f", at most {d['timeout']:g} s a batch" if d["timeout"] else ""
    scores = {
        "scores differ from call to call": not d["deterministic"],
        "scores depend on the full batch": d["batchwise"],
        "rows are scored at the same time": d["concurrent"],
    }
    return [
        ("Use", f"rlhf run --method grpo --reward {d['name']}"),
        ("Parameters", "\n".join(map(_parameter_line, d["parameters"])) or "none"),
        ("Columns", columns),
        ("Range", f"{d['range'][0]:g} to {d['range'][1]:g}" if d["range"] else "not declared"),
        ("View", {"text": "text: completions as strings", "messages": "messages: completions as chat"}[d["view"]]),
        ("Isolation", {"inline": "inline", "process": "its own process"}[d["isolation"]] + timeout),
        ("Scores", "; ".join(text for text, holds in scores.items() if holds)),
        ("System prompt", d["system_prompt"] or ""),
    ]


def _parameter_line(parameter: Described) -> str:
    kind = f": {parameter['type']}" if parameter["type"] else ""
    return parameter["name"] + kind + (" (required)" if parameter["required"] else f" = {parameter['default']!r}")


def _method(method: type[Method]) -> Described:
    """First the options that it adds or that have another default than the shared ones."""
    shared, fields = TrainingOptions.model_fields, method.Options.model_fields
    changed = [n for n, f in fields.items() if n not in shared or f.get_default() != shared[n].get_default()]
    return {
        **{name: getattr(method, name) for name in ("data", "rewards", "task", "generates", "config")},
        "options": [
            {
                "name": name,
                "flag": "--" + name.replace("_", "-"),
                "type": _type(fields[name].annotation),
                "default": None if fields[name].is_required() else fields[name].get_default(call_default_factory=True),
                "description": fields[name].description,
                "own": name in changed,
                "shared": name in shared,
            }
            for name in sorted(fields, key=lambda name: name not in changed)
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
        ("Trains", {"causal_lm": "a language model", "sequence_classification": "a model that scores"}[d["task"]]),
        ("Config", f"{d['config']} (its fields: --set name=value)"),
        ("Options", "\n".join(lines)),
        ("Built-in", "  ".join(f"{name}={value}" for name, value in d["builtin_preset"].items())),
    ]


def _formatter(formatter: Formatter) -> Described:
    return {"columns": sorted(formatter.columns), "looks_at_values": formatter.matches is not None}


def _formatter_lines(d: Described) -> Lines:
    also = "; what they hold must fit, too" if d["looks_at_values"] else ""
    use = f"rlhf run --method sft --data FILE:formatter={d['name']}"
    return [("Use", use), ("Columns", ", ".join(d["columns"]) + also)]


def _source(found: Any) -> Described:
    """Where the object is defined, and its docstring; for a partial, its function's, for an instance, its class's."""
    while isinstance(found, functools.partial):
        found = found.func
    target = found if inspect.isroutine(found) or inspect.isclass(found) else type(found)
    try:
        file, line = inspect.getsourcefile(target), inspect.getsourcelines(target)[1]
    except (OSError, TypeError):  # built-in, or defined at run time
        file, line = None, None
    module = sys.modules.get(target.__module__)
    docstring = inspect.cleandoc(target.__doc__ or (module and module.__doc__) or "")
    return {"source": target.__module__, "file": file, "line": line, "docstring": docstring}


# kind -> (description, its lines, the object whose source is shown)
KINDS: Mapping[str, tuple[Callable[[Any], Described], Callable[[Described], Lines], Callable[[Any], Any]]] = {
    "rewards": (_reward, _reward_lines, lambda reward: reward.function),
    "methods": (_method, _method_lines, lambda method: method),
    "formatters": (_formatter, _formatter_lines, lambda formatter: formatter.convert),
}
