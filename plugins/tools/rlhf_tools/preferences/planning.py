"""What `rlhf preferences make` will do: everything is found and checked here, before weights load."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import click

from rlhf_core import Catalog, Planned, UserError
from rlhf_core.commands import (
    BoundReward,
    Screen,
    content_of,
    files_of_reward,
    read_kwargs,
    said_before,
    to_json,
)
from rlhf_core.endpoint import Endpoint
from rlhf_tools.answering import Asking, prepare, with_tools
from rlhf_tools.candidates import find_models
from rlhf_tools.judging import check_judge
from rlhf_tools.preferences.making import Work
from rlhf_tools.preferences.sampling import (
    AT_ONCE,
    EndpointModel,
    LocalModel,
    open_endpoint,
    rows_at_once,
    split_endpoints,
)
from rlhf_tools.preferences.scoring import Pairwise, Pointwise
from rlhf_tools.preferences.selecting import Prompt
from rlhf_tools.preferences.words import say

EXAMPLES = 3  # prompts that a dry run shows
Line = tuple[str, str]


@dataclass
class Plan:
    """`n` answers of each model here (`asking`) and behind `endpoints`."""

    asking: Asking
    endpoints: list[EndpointModel]
    n: int
    pairwise: bool
    keep_refusals: bool
    lang: str

    @property
    def judges(self) -> list[BoundReward]:
        return self.asking.rewards.rewards

    @property
    def judged_by(self) -> str:
        return ", ".join(str(one.spec) for one in self.judges)

    @property
    def each(self) -> int:
        """Answers to a prompt."""
        return self.n * (len(self.asking.candidates) + len(self.endpoints))

    def work(self) -> Work:
        asking = self.asking
        rows = zip(asking.prompts, asking.questions.rows, strict=True)
        prompts = [Prompt(messages, [], _columns(row), row) for messages, row in rows]
        ids = bool(self.by_tokens)
        local = [LocalModel(asking, number, self.n, ids) for number in range(len(asking.candidates))]
        judge = Pairwise(self.judges[0]) if self.pairwise else Pointwise(asking.rewards)
        return Work(prompts, [*local, *self.endpoints], judge, self.each, self.keep_refusals, self.lang)

    def said_before(self) -> list[Line]:
        """What the judges say of all that they will be asked. Raises `UserError` for one that can't work."""
        prompts, tokens = self.asking.prompts, self.asking.max_completion_length
        comparisons = len(prompts) * self.each * (self.each - 1) if self.pairwise else 0  # in both orders
        answers = 2 * comparisons if self.pairwise else len(prompts) * self.each
        asked = Planned(prompts, answers, tokens, self.each, comparisons=comparisons)
        return said_before(self.judges, asked)

    def lines(self) -> list[Line]:
        """What is shown before weights load."""
        asking, lang = self.asking, self.lang
        rows = [
            (say(lang, "Model"), f"{one.name}: {one.given}, {info.parameters:,} {say(lang, 'parameters')}")
            for one, info in zip(asking.candidates, asking.infos, strict=True)
        ]
        rows += [
            (say(lang, "Model"), f"{one.name}: {one.endpoint.base_url}, {one.estimate()}") for one in self.endpoints
        ]
        rows += [(say(lang, "Data"), asking.questions.source)]
        rows += [(say(lang, "Judge"), str(one.spec)) for one in self.judges]
        if asking.system_prompt:
            rows.append((say(lang, "System"), f"“{asking.system_prompt}”"))
        rows += [(say(lang, "Note"), warning) for info in asking.infos for warning in info.warnings]
        rows += [(say(lang, "Note"), warning) for warning in asking.questions.warnings]
        counts = {"prompts": f"{len(asking.prompts):,}", "answers": f"{len(asking.prompts) * self.each:,}"}
        plan = say(lang, "{prompts} prompts with {each} answers each: {answers}", each=self.each, **counts)
        return [*rows, (say(lang, "Plan"), plan)]

    @property
    def by_tokens(self) -> list[str]:
        """The judges that ask for the tokens of answers."""
        return [] if self.pairwise else [one.name for one in self.judges if "completion_ids" in one.signature.trl]

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """What to know of the judges."""
        sentence = "{name} counts tokens: of answers from an endpoint it got one per character"
        return [(sentence, {"name": name}) for name in self.by_tokens if self.endpoints]

    def about(self) -> dict[str, Any]:
        """What a data sheet begins with."""
        asking = self.asking
        sampled = [{"name": one.name, "model": one.given} for one in asking.candidates]
        behind = ((one.name, one.endpoint) for one in self.endpoints)
        sampled += [{"name": name, "model": one.model, "endpoint": one.base_url} for name, one in behind]
        settings = {"n": self.n, "temperature": asking.temperature, "seed": asking.seed}
        settings |= {
            "max_completion_length": asking.max_completion_length,
            "system_prompt": asking.system_prompt,
            "load_in_4bit": asking.load_in_4bit,
        }
        judges = [
            {"spec": str(one.spec), "distribution": one.distribution, "range": one.reward.range} for one in self.judges
        ]
        return {
            "source": asking.questions.source,
            "sampled_by": sampled,
            "settings": settings,
            "judge": judges,
            "pairwise": self.pairwise,
        }

    def settings(self) -> dict[str, Any]:
        """What decides which answers and which scores come out, by option."""
        asking = self.asking
        models = [
            f"{one.name}: {one.given}, {_digest([content_of([part]) for part in (info.path, info.adapter) if part])}"
            for one, info in zip(asking.candidates, asking.infos, strict=True)
        ]
        models += [f"{one.name}: {one.endpoint.model}, {one.endpoint.base_url}" for one in self.endpoints]
        return {
            "--data": f"{asking.questions.source}, {len(asking.prompts)} prompts, {_digest(asking.questions.rows)}",
            "--model": models,
            "--judge": [_identity(one) for one in self.judges],
            "--pairwise": self.pairwise,
            "--n": self.n,
            "--temperature": asking.temperature,
            "--max-completion-length": asking.max_completion_length,
            "--system-prompt": asking.system_prompt,
            "--chat-template-kwargs": [_digest(one.identity()) for one in asking.templates],
            "--keep-refusals": self.keep_refusals,
            "--seed": asking.seed,
            "--load-in-4bit": asking.load_in_4bit,
            "batches": [rows_at_once(asking), AT_ONCE],
        }


def _identity(judge: BoundReward) -> str:
    """What decides its scores: not what limits its calls, such as a budget that was spent."""
    limits = {*signature(Endpoint).parameters} - {"model", "base_url"}
    spec = replace(judge.spec, parameters={k: v for k, v in judge.spec.parameters.items() if k not in limits})
    described = judge.reward.describe(judge.function) if judge.reward.describe else {}
    return f"{spec}, {judge.distribution or ''} {_digest([content_of(files_of_reward(judge.spec)), dict(described)])}"


def _columns(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("prompt", "messages")}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@contextmanager
def planned(
    screen: Screen, lang: str, keep_refusals: bool, *, model: Sequence[str], judge: Sequence[str], pairwise: bool,
    n: int, trust_remote_code: bool, chat_template_kwargs: str | None, **values: Any,
) -> Iterator[Plan]:  # fmt: skip
    """The plan; the judge's processes end with it. Raises `UserError`."""
    catalog = Catalog()
    here, behind = split_endpoints(model)
    candidates = find_models(here, catalog, trust_remote_code)
    if n * len(model) < 2:
        raise UserError("one answer to each prompt has nothing to be compared with: --n 2 or more, or another --model")
    with screen.working(say(lang, "Reading data and model configurations …")):
        asking = prepare(
            candidates, catalog, reward=judge, samples=n, training=True,
            chat_template_kwargs=None if chat_template_kwargs is None else read_kwargs(chat_template_kwargs), **values,
        )  # fmt: skip
    try:
        _check_judges(asking.rewards.rewards, pairwise)
        yield Plan(asking, _endpoints(asking, behind, n), n, pairwise, keep_refusals, lang)
    finally:
        asking.rewards.close()


def _check_judges(judges: Sequence[BoundReward], pairwise: bool) -> None:
    if not judges:
        raise UserError("which judge? Write --judge NAME (rlhf rewards lists them)")
    if pairwise and len(judges) > 1:
        raise UserError("--pairwise takes one --judge, which compares two answers")
    if pairwise:
        check_judge(judges[0])


def _endpoints(asking: Asking, behind: Sequence[tuple[str, str]], n: int) -> list[EndpointModel]:
    """Those behind endpoints, each of which has answered a first call."""
    if behind and any(tools for _, tools in with_tools(asking.questions)):
        raise UserError("--model endpoint: the prompts have tools, which a model behind an endpoint is not given")
    taken = [one.name for one in asking.candidates]
    found = []
    for given_name, given in behind:
        endpoint = open_endpoint(given)
        asyncio.run(endpoint.check())
        name = given_name or endpoint.model
        if name in taken:
            raise UserError(f"the name {name!r} is given twice: give each model a different name, NAME=endpoint:…")
        taken.append(name)
        length, temperature = asking.max_completion_length, asking.temperature
        found.append(EndpointModel(name, endpoint, asking.prompts, n, length, temperature, asking.seed))
    return found


def dry_run(screen: Screen, plan: Plan, said: Sequence[Line], *, as_json: bool) -> None:
    """The plan, and prompts as the first model gets them."""
    prompts = [_given(plan, number) for number in range(min(EXAMPLES, len(plan.asking.prompts)))]
    lines = [*plan.lines(), *said]
    if as_json:
        plain = [f"{label}: {text}" for label, text in lines]
        click.echo(to_json({**plan.about(), "plan": plain, "examples": prompts}))
        return
    screen.resolved(lines)
    for number, prompt in enumerate(prompts, 1):
        screen.say(f"\n{say(plan.lang, 'Prompt {number}, as the model gets it', number=number)}", "bold")
        screen.say(prompt)
    screen.say(f"\n{say(plan.lang, 'Nothing was sampled.')}")


def _given(plan: Plan, number: int) -> str:
    asking = plan.asking
    if asking.templates:
        return asking.templates[0].prompt(*with_tools(asking.questions)[number])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in asking.prompts[number])
