"""What is compared on which prompts: models, names and rows, from the arguments and the runs' config.yaml."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_core import Catalog, Method, RunConfig, UserError, commands, resolve
from rlhf_core.commands import BoundReward, DataSpec, ModelReference, RewardSpec, path_of
from rlhf_core.numbers import MAX_BAD_ROWS

BUILTIN = "builtin"
ALL = 10**9  # rows


@dataclass(frozen=True)
class Candidate:
    """One model to compare. `config` and `method` are those of the run that it comes from, if it is given as a run."""

    name: str
    given: str
    model: ModelReference
    config: RunConfig | None = None
    method: Method | None = None


@dataclass(frozen=True)
class Questions:
    """The rows with the prompts, and their source."""

    rows: list[dict[str, Any]]
    source: str
    warnings: Sequence[str] = ()
    text_prompts: bool = False

    @property
    def columns(self) -> dict[str, list[Any]]:
        """What the rewards may read beside the prompt."""
        return commands.columns_of(self.rows)


def find_candidates(models: Sequence[str], catalog: Catalog, trust: bool = False) -> list[Candidate]:
    """Raises `UserError` for fewer than two models, for what is no language model and for a name given twice."""
    if len(models) < 2:
        raise UserError("comparing takes at least two models: rlhf compare builtin runs/grpo-20260101-120000")
    return find_models(models, catalog, trust)


def find_models(models: Sequence[str], catalog: Catalog, trust: bool = False) -> list[Candidate]:
    """Raises `UserError` for what is no language model and for a name given twice."""
    named = [_split(text) for text in models]
    names = [name or _default_name(given) for name, given in named]
    given_names = Counter(name for name, _ in named if name)
    if twice := [name for name, count in given_names.items() if count > 1]:
        raise UserError(f"the name {twice[0]!r} is given twice: give each model a different name, NAME=PATH")
    return [_candidate(name, given, catalog, trust) for name, (_, given) in zip(_unique(names), named, strict=True)]


def find_candidate(text: str, catalog: Catalog, trust: bool = False) -> Candidate:
    """One model. Raises `UserError` for what is no language model."""
    name, given = _split(text)
    return _candidate(name or _default_name(given), given, catalog, trust)


def _split(text: str) -> tuple[str | None, str]:
    """(name or None, model) of `NAME=PATH`; a folder whose name has a `=` is a model without a name."""
    name, equals, given = text.partition("=")
    if not equals or "/" in name or path_of(text, "model").exists():
        return None, text
    if not name.strip() or not given.strip():
        raise UserError(f"{text!r}: write NAME=PATH, or PATH alone")
    return name.strip(), given.strip()


def _default_name(given: str) -> str:
    """The folder's name; for `model` inside a run's folder, the run's name."""
    path = path_of(given, "model")
    path = path.resolve() if path.is_dir() else path
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _unique(names: Sequence[str]) -> list[str]:
    taken: list[str] = []
    for name in names:
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name} ({number})"
        taken.append(free)
    return taken


def _candidate(name: str, given: str, catalog: Catalog, trust: bool) -> Candidate:
    model = commands.find_model(given, trust_remote_code=trust)
    if model.is_reward_model:
        raise UserError(f"{given} is a reward model, which scores answers and writes none: --reward-model uses it")
    if model.run is None or not (model.run / "config.yaml").is_file():
        return Candidate(name, given, model)
    config, method = resolve(commands.read_config(model.run / "config.yaml"), catalog)
    config = config.model_copy(update={"trust_remote_code": trust})  # what its run trusted is not trusted here
    return Candidate(name, given, model, config, method)


def choose_rewards(given: Sequence[str], candidates: Sequence[Candidate], catalog: Catalog) -> list[BoundReward]:
    """Those that were given, else those of the first run that has any, else none."""
    if given:
        return commands.bind_rewards([RewardSpec.read(text) for text in given], catalog)
    configs = [one.config for one in candidates if one.config and one.config.reward_specs]
    return commands.bind_rewards(configs[0].reward_specs, catalog) if configs else []


def choose_system_prompt(
    given: str | None, candidates: Sequence[Candidate], rewards: Sequence[BoundReward]
) -> str | None:
    """The given one, else that of the first run that has one, else what the rewards expect; '' means none."""
    asked = [given, *(one.config.system_prompt for one in candidates if one.config)]
    return commands.system_prompt_for(next((text for text in asked if text is not None), None), rewards)[0]


def choose_max_completion_length(given: int | None, candidates: Sequence[Candidate]) -> int:
    return given or next((one.config.options.max_completion_length for one in candidates if one.config), 256)


def choose_questions(
    data: Sequence[str],
    count: int | None,
    seed: int,
    candidates: Sequence[Candidate],
    catalog: Catalog,
    max_bad_rows: float = MAX_BAD_ROWS,
    training: bool = False,
) -> Questions:
    """At most `count` rows, or all: of `data`, else those that the first run held out, else of the built-in data.
    `training`: of the built-in data, the part to learn from, else the held-out one.
    """
    run = next((one for one in candidates if one.config), None)
    if data:
        found = _any_rows(commands.read_data_specs(data, None, None), count, seed, catalog, max_bad_rows, training)
    elif run is None:
        found = _any_rows([DataSpec(BUILTIN)], count, seed, catalog)
    else:
        found = _held_out(run, count, seed, candidates, catalog)
    if count is not None and len(found.rows) < count:
        warning = f"{len(found.rows)} prompts instead of {count}: there are no more"
        found = replace(found, warnings=[*found.warnings, warning])
    return found


def _any_rows(
    specs: Sequence[DataSpec],
    count: int | None,
    seed: int,
    catalog: Catalog,
    max_bad_rows: float = MAX_BAD_ROWS,
    training: bool = False,
) -> Questions:
    source = ", ".join(spec.source for spec in specs)
    if source == BUILTIN and not training:
        rows = commands.load_data(specs, "prompts", catalog, held_out=count or ALL).held_out
        return Questions(list(rows), "builtin, its held-out part")
    data = commands.load_data(specs, "prompts", catalog, max_bad_rows=max_bad_rows)
    order = list(range(len(data.train)))
    random.Random(seed).shuffle(order)
    return Questions([data.train[number] for number in order[:count]], source, data.warnings, data.text_prompts)


def _held_out(
    run: Candidate, count: int | None, seed: int, candidates: Sequence[Candidate], catalog: Catalog
) -> Questions:
    """What `run` held out. Which rows those are depends on its data, its method and its seed."""
    assert run.config is not None
    assert run.method is not None
    config, options = run.config, run.config.options
    if config.eval_specs or [spec.source for spec in config.data_specs] == [BUILTIN]:
        specs = config.eval_specs or config.data_specs
        found = _any_rows(specs, count, seed, catalog, config.max_bad_rows)
        return replace(found, source=f"{found.source} (as in {run.name})")
    data = commands.load_data(
        config.data_specs,
        run.method.data,
        catalog,
        held_out=options.num_eval_prompts,
        seed=options.seed,
        max_bad_rows=config.max_bad_rows,
    )
    rows, source = list(data.held_out[:count]), ", ".join(spec.source for spec in config.data_specs)
    if not rows:
        raise UserError(f"{run.given} held out no row of {source}: pass prompts that it was not trained on with --data")
    warnings = [
        f"{other.name} held out other rows of its data and may have been trained on some of these prompts"
        for other in candidates
        if other.config and not other.config.eval_data and _split_by(other) != _split_by(run)
    ]
    return Questions(rows, f"{source}, what {run.name} held out", warnings, data.text_prompts)


def _split_by(candidate: Candidate) -> tuple[Any, ...]:
    """The settings that determine which rows a run holds out, beside its method."""
    assert candidate.config is not None
    options = candidate.config.options
    return candidate.config.data, options.seed, options.num_eval_prompts
