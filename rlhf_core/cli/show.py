"""`rlhf rewards show NAME`, and the same for methods and formatters: what one plugin takes and where it is from.

The plugin is loaded, without the libraries that it trains with.
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
from rlhf_core.cli.listings import facts, print_json
from rlhf_core.formatter import Formatter
from rlhf_core.method import Method, TrainingOptions
from rlhf_core.reward import Reward
from rlhf_core.rewards.binding import is_maker, parameters, read_signature, shown

# A plugin as plain data for `--json`, the same as (name, text) lines, and the object whose source is shown.
Description = tuple[dict[str, Any], list[tuple[str, str]], Any]


def show(kind: str, name: str, as_json: bool) -> None:
    """Print a description of one plugin. Raises `UserError` if there is none of that name, or it can't be loaded."""
    found, entry = Catalog().load(kind, name)
    describe: Mapping[str, Callable[[Any, str], Description]]
    describe = {"rewards": _reward, "methods": _method, "formatters": _formatter}
    data, lines, target = describe[kind](found, entry.name)
    source = _source(target)
    if as_json:
        shared = {key: getattr(entry, key) for key in ("name", "summary", "distribution", "version", "module")}
        print_json({**shared, **data, **source})
        return
    click.echo(f"{entry.name}: {entry.summary}\n")
    place = f"{source['file']}:{source['line']}" if source["file"] else "no file"
    origin = ("Distribution", f"{entry.distribution} {entry.version}")
    facts([origin, *lines, ("Source", f"{source['source']} ({place})")])
    if source["docstring"]:
        click.echo("\n" + source["docstring"])


def _reward(reward: Reward, name: str) -> Description:
    """The columns are None for a factory, which would have to be called for them."""
    call: Any = None if is_maker(reward.function) else reward.function
    if inspect.isclass(reward.function):
        call = functools.partial(reward.function.__call__, None)  # without `self`
    signature = call and read_signature(call, reward.optional)
    known = parameters(reward).values()
    required = [p.name for p in known if p.default is p.empty]
    declared = ("range", "view", "isolation", "timeout", "deterministic", "batchwise", "concurrent", "system_prompt")
    data = {
        "parameters": [
            {
                "name": p.name,
                "type": shown(p.replace(default=p.empty)).partition(": ")[2] or None,
                "required": p.name in required,
                **({} if p.name in required else {"default": p.default}),
            }
            for p in known
        ],
        "columns": signature and list(signature.columns),
        "optional_columns": signature and list(signature.optional),
        "takes_other_columns": signature and signature.keywords,
        **{each: getattr(reward, each) for each in declared},
    }
    columns = "known when its parameters are set"
    if signature:
        columns = f"needs {', '.join(signature.columns) or 'none'}"
        columns += f"; uses {', '.join(signature.optional)} if the data has it" if signature.optional else ""
    scores = {
        "scores differ from call to call": not reward.deterministic,
        "scores depend on the full batch": reward.batchwise,
        "rows are scored at the same time": reward.concurrent,
    }
    timeout = f", at most {reward.timeout:g} s a batch" if reward.timeout else ""
    to_set = (":" if required else "") + ",".join(f"{each}=…" for each in required)
    lines = [
        ("Use", f"rlhf run --method grpo --reward {name}{to_set}"),
        ("Parameters", "\n".join(shown(p) + " (required)" * (p.name in required) for p in known) or "none"),
        ("Columns", columns),
        ("Range", f"{reward.range[0]:g} to {reward.range[1]:g}" if reward.range else "not declared"),
        ("View", {"text": "text: completions as strings", "messages": "messages: completions as chat"}[reward.view]),
        ("Isolation", {"inline": "inline", "process": "its own process"}[reward.isolation] + timeout),
        ("Scores", "; ".join(text for text, holds in scores.items() if holds)),
        ("System prompt", reward.system_prompt or ""),
    ]
    return data, lines, reward.function


def _method(method: type[Method], name: str) -> Description:
    """First the options that it adds or that have another default than the shared ones."""
    shared, fields = TrainingOptions.model_fields, method.Options.model_fields
    own = [n for n, f in fields.items() if n not in shared or f.get_default() != shared[n].get_default()]
    options = [
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
    ]
    told = [f"{o['flag']}  {o['type']}  [{o['default']}]  {o['description'] or ''}" for o in options if o["own"]]
    told.append(f"and {len(options) - len(own)} that all methods share: rlhf run --method {name} --help")
    lines = [
        ("Use", f"rlhf run --method {name}" + (" --reward NAME" if method.rewards == "required" else "")),
        ("Data", method.data),
        ("Rewards", method.rewards),
        ("Trains", {"causal_lm": "a language model", "sequence_classification": "a model that scores"}[method.task]),
        ("Config", f"{method.config} (its fields: --set name=value)"),
        ("Options", "\n".join(told)),
        ("Preset", "  ".join(f"{key}={value}" for key, value in method.preset().items())),
    ]
    data = {each: getattr(method, each) for each in ("data", "rewards", "task", "generates", "config")}
    return {**data, "options": options, "builtin_preset": method.preset()}, lines, method


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


def _formatter(formatter: Formatter, name: str) -> Description:
    columns, looks = sorted(formatter.columns), formatter.matches is not None
    fitting = "dpo" if any("reject" in column for column in columns) else "sft"
    fitting = "grpo --reward NAME" if columns == ["prompt"] else fitting
    lines = [
        ("Use", f"rlhf run --method {fitting} --data FILE:formatter={name}"),
        ("Columns", ", ".join(columns) + ("; what they hold must fit, too" if looks else "")),
        ("Other names", "; ".join(f"{name}: {', '.join(others)}" for name, others in formatter.names.items())),
    ]
    names = {name: list(others) for name, others in formatter.names.items()}
    return {"columns": columns, "names": names, "looks_at_values": looks}, lines, formatter.convert


def _source(found: Any) -> dict[str, Any]:
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
