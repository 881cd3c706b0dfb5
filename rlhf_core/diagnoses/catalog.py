"""Every diagnosis, in the order in which they are looked for, and what is made of what they find."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from rlhf_core.diagnoses import no_signal, pairs, policy, ppo, rewards, runs
from rlhf_core.diagnoses.finding import AGAIN, ALL, INFO, Diagnosis, Finding
from rlhf_core.diagnoses.reading import Summary
from rlhf_core.errors import UserError, did_you_mean
from rlhf_core.words import say

FAMILIES: dict[str, list[Diagnosis]] = {
    "run": [*runs.FIRST],
    "policy": policy.DIAGNOSES,
    "rewards": rewards.DIAGNOSES,
    "signal": no_signal.DIAGNOSES,
    "pairs": pairs.DIAGNOSES,
    "ppo": ppo.DIAGNOSES,
    "more": runs.DIAGNOSES,
}
DIAGNOSES = [diagnosis for family in FAMILIES.values() for diagnosis in family]
BY_NAME = {diagnosis.name: diagnosis for diagnosis in DIAGNOSES}
EVERY, DENSE = 10, 200  # lines between two looks, once there are many
ANY = "any"


def is_due(run: Summary) -> bool:
    """Whether to look after this line: always in a short run, after every tenth in a long one."""
    return run.lines <= DENSE or run.lines % EVERY == 0


def look(run: Summary, said: Collection[str], where: str = "", data: str = "") -> Iterator[dict[str, Any]]:
    """The lines of diagnoses.jsonl for what is found now and is not among `said`. Where several explain each other,
    the cause alone. `where` is the run's folder, `data` its first source, for the commands.
    """
    found: dict[str, Finding] = {}
    for one in DIAGNOSES:
        if one.name in said or (run.method in ALL and run.method not in one.methods):
            continue
        if (finding := one.check(run)) is not None:
            found[one.name] = finding
    earlier: set[str] = set()
    for name, finding in found.items():
        # Of two that explain each other, the first
        causes = {one for one in found if one in earlier or name not in BY_NAME[one].unless} - {name}
        if not {*BY_NAME[name].unless} & {*said, *causes}:
            yield line_of(BY_NAME[name], finding, run, where, data)
        earlier.add(name)


def line_of(one: Diagnosis, finding: Finding, run: Summary, where: str, data: str) -> dict[str, Any]:
    model = str(run.option("model", "MODEL"))
    params = {"run": shlex.quote(where), "data": shlex.quote(data or "FILE"), "model": shlex.quote(model)}
    params |= {name: str(value) for name, value in finding.values.items()}
    command = one.command
    if not run.options:  # logs of another trainer: what to set can be said, and nothing that needs a run of ours
        command = command.removeprefix(AGAIN).strip()
        command = "" if "{run}" in command else command
    command = command.format(**params)
    return {
        "name": one.name,
        "step": run.step,
        "level": one.level,
        "params": params,
        "text": text_of(one.name, "en"),
        "evidence": list(finding.evidence),
        "samples": list(finding.samples)[:3],
        "command": command,
    }


def text_of(name: str, lang: str) -> str:
    """What a diagnosis says, and what to do, in a language."""
    one = BY_NAME[name]
    return f"{say(lang, one.says)}{'' if lang == 'zh' else ' '}{say(lang, one.remedy)}"


def check_names(names: Collection[str], method: str, flag: str = "--stop-on") -> None:
    """Raise `UserError` for names that no diagnosis has, and for those that can't be found with a method."""
    for name in names:
        if name == ANY:
            continue
        if name not in BY_NAME:
            near = did_you_mean(name.replace("_", "-"), [*BY_NAME, ANY])
            raise UserError(f"{flag} {name}: there is no such diagnosis.{near} All of them: rlhf diagnose --list")
        one = BY_NAME[name]
        if one.level == INFO:
            raise UserError(f"{flag} {name}: it is information, and never stops a run")
        if method in ALL and method not in one.methods:
            raise UserError(
                f"{flag} {name} has no effect with method {method}: it is found with {', '.join(one.methods)}"
            )


def replay(
    run: Summary,
    metrics: Iterator[Mapping[str, Any]],
    samples: Iterator[Mapping[str, Any]],
    evaluations: Iterator[Mapping[str, Any]],
    found: Callable[[dict[str, Any]], None] | None = None,
    **places: str,
) -> None:
    """Feed a run's logs to `run` in the order of their steps, and look after each line as while it trained."""
    said: set[str] = set()
    waiting: dict[int, Mapping[str, Any] | None] = {0: next(samples, None), 1: next(evaluations, None)}
    sources, add = (samples, evaluations), (run.add_sample, run.add_evaluation)

    def see() -> None:
        for line in look(run, said, **places) if found else ():
            said.add(line["name"])
            found(line)  # type: ignore[misc]

    def take(until: float) -> None:
        for i, source in enumerate(sources):
            while (line := waiting[i]) is not None and _step(line) <= until:
                add[i](line)
                waiting[i] = next(source, None)

    for line in metrics:
        before = run.lines
        take(_step(line))
        run.add_metrics(line)
        if run.lines > before and is_due(run):
            see()
    take(float("inf"))
    run.ended = True
    see()


def _step(line: Mapping[str, Any]) -> float:
    step = line.get("step")
    return step if isinstance(step, int | float) else 0
