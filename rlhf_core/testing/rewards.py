"""The rules for every reward: `rlhf_core.testing.check_reward`, `rlhf plugins check NAME`.

Rewards are bound and called, and their results read, by the code that does so in a run.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_core import builtin
from rlhf_core.catalog import Catalog
from rlhf_core.errors import UserError
from rlhf_core.grammar import RewardSpec
from rlhf_core.rewards.binding import bind, parameters
from rlhf_core.testing import again, golden, hacking, hostile, imports, injections, probes
from rlhf_core.testing.bench import Bench, Outcome, batch_of
from rlhf_core.testing.golden import Case, Row, shown
from rlhf_core.testing.report import Report, Result

UNKNOWN = {"a_column_it_does_not_know": "text", "another_one": [1, 2]}
TURNS = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Good morning."},
    {"role": "assistant", "content": "Good morning. How can I help?"},
]


@dataclass
class Subject:
    """The reward under check: its cases, and a bench for each set of parameters that they use."""

    spec: RewardSpec
    catalog: Catalog
    cases: list[Case]
    benches: dict[str, Bench]

    def bench(self, parameters: Mapping[str, Any]) -> Bench:
        """The bench of the reward with these parameters over those it was given. Raises `UserError`."""
        merged = {**self.spec.parameters, **parameters}
        key = json.dumps(merged, sort_keys=True, default=str)
        if key not in self.benches:
            self.benches[key] = Bench(bind(replace(self.spec, parameters=merged), self.catalog))
        return self.benches[key]

    @property
    def main(self) -> Bench:
        """The bench of the first full case, or else of the first case."""
        full = [case for case in self.cases if case.case == "full"] or self.cases
        return self.bench(full[0].parameters if full else {})

    def poor(self) -> tuple[Case, Bench] | None:
        """The first case that deserves nothing."""
        for case in self.cases:
            if case.case == "none" and (case.score is not None or self.main.bound.reward.batchwise):
                with contextlib.suppress(UserError):  # of its parameters, which the golden scores report
                    return case, self.bench(case.parameters)
        return None

    def rows(self) -> list[Row]:
        """The rows that the main bench scores: those of its cases, or some of the built-in data."""
        given = {**self.spec.parameters}
        wanted = dict(self.main.bound.spec.parameters)
        return [case.row for case in self.cases if {**given, **case.parameters} == wanted] or _builtin_rows()


def examine(target: str, parameters: Mapping[str, Any]) -> Report:
    """All rules for the reward that `target` names, with these parameters, which those of a golden case override."""
    report = Report("reward", target)
    catalog = Catalog()
    rule = report.rule("is found, and takes its parameters")
    try:
        given = RewardSpec.read(target)
        spec = replace(given, parameters={**given.parameters, **parameters})
        module, path, name, installed = _locate(spec, catalog)
        file = golden.file_beside(path)
        cases, faults = golden.read(file, name, probes.NAMES) if file.is_file() else ([], [])
        subject = Subject(spec, catalog, cases, {})
        if needs := _needs(spec, catalog, cases):
            report.unmet = f"it needs {needs}: check it with {target}:{needs.partition(':')[0]}=…"
            return report
        bound = subject.main.bound
    except UserError as error:
        rule.fault(str(error))
        return report
    imports.examine(report, module)
    _golden_file(report.rule("has golden cases"), file, cases, faults, installed, bound.reward.batchwise)
    rows = subject.rows()
    if missing := bound.missing_columns(list(batch_of(rows).columns)):
        report.rule("finds its columns in its golden cases").fault(
            f"it needs {', '.join(missing)}: add this to every case in {file.name}"
        )
        return report
    try:
        _behaviour(report, subject, rows)
    finally:
        for bench in subject.benches.values():
            bench.close()
    return report


def _behaviour(report: Report, subject: Subject, rows: list[Row]) -> None:
    bench = subject.main
    if subject.cases:
        _golden_scores(report.rule("returns the golden scores"), subject)
    expected = bench.scores(rows)
    rule = report.rule("returns one finite number or None for each row")
    for outcome in expected:
        if outcome.error:
            rule.fault(f"{outcome.row.location}: {outcome.error}")
    _takes_conversations(report.rule("takes conversations of several turns"), bench, expected)
    again.all_the_same(
        report.rule("ignores columns that it does not know"),
        bench,
        expected,
        bench.scores([replace(row, columns={**row.columns, **UNKNOWN}) for row in rows]),
        "with additional columns",
        "name the columns that it reads, and accept **_",
    )
    _unchanged(report.rule("leaves its input as it was"), bench, rows)
    again.examine(report, bench, rows, expected)
    _survives(report.rule("survives empty, huge, malformed and foreign text"), bench, rows[0])
    full = [case for case in subject.cases if case.case == "full"]
    if full:
        hacking.examine(report, [(case, subject.bench(case.parameters)) for case in full])
    if subject.cases:
        injections.examine(report, subject.poor())
    _in_range(report.rule("stays within its range"), subject)


def _locate(spec: RewardSpec, catalog: Catalog) -> tuple[str, Path, str, bool]:
    """(what is imported for the reward: a module's name or a file; the file; the name in it; whether installed)."""
    target = spec.target
    if target.endswith(".py") or ".py:" in target:
        path, _, attribute = target.rpartition(":") if ".py:" in target else (target, "", "")
        file = Path(path).expanduser()
        return str(file), file, attribute, False
    if ":" in target:
        module, _, attribute = target.partition(":")
        return module, imports.file_of(module), attribute, False
    entry = catalog.load("rewards", target)[1]
    return entry.module, imports.file_of(entry.module), entry.name, True


def _needs(spec: RewardSpec, catalog: Catalog, cases: Sequence[Case]) -> str | None:
    """The parameters without a default that neither the caller nor every golden case gives, as in `path: str`."""
    if ":" in spec.target or spec.target.endswith(".py"):
        return None
    known = parameters(catalog.load("rewards", spec.target)[0])
    given = {*spec.parameters}.union(set.intersection(*(set(case.parameters) for case in cases)) if cases else ())
    return ", ".join(str(p) for p in known.values() if p.default is p.empty and p.name not in given) or None


def _golden_file(
    rule: Result, file: Path, cases: list[Case], faults: list[str], installed: bool, batchwise: bool
) -> None:
    for fault in faults:
        rule.fault(fault)
    full = sum(case.case == "full" for case in cases)
    if full:
        rule.note(f"{len(cases)} in {file.name}, {full} of them full")
    elif batchwise and cases:
        rule.note(f"{len(cases)} in {file.name}, none of them full: what it gives to a row depends on the full batch")
    elif installed:
        what = "has no case 'full'" if file.is_file() else "is missing"
        rule.fault(
            f"{file} {what}: write an answer that deserves the best score, a line of JSON: "
            '{"case": "full", "prompt": "…", "completion": "…", "score": 1, <columns>}'
        )
    else:
        rule.note(f"none: there is no {file.name} with a case 'full', so that hackability was not probed")


def _golden_scores(rule: Result, subject: Subject) -> None:
    for case in subject.cases:
        try:
            (outcome,) = subject.bench(case.parameters).scores([case.row])
        except UserError as error:
            rule.fault(f"{case.row.location}: {error}")
            continue
        if outcome.error:
            rule.fault(f"{case.row.location}: it failed: {outcome.error}")
        elif not case.agrees(outcome.score):
            rule.fault(f"{case.row.location}: the score is {shown(outcome.score)}, expected {case.expected}")


def _takes_conversations(rule: Result, bench: Bench, expected: list[Outcome]) -> None:
    """The same question as a later turn. Earlier turns may change the score, but must not make the reward fail."""
    rows = [replace(o.row, prompt=[*TURNS, *o.row.prompt]) for o in expected if len(o.row.prompt) == 1]
    failed = {outcome.row.location for outcome in expected if outcome.error}
    for outcome in bench.scores(rows):
        if outcome.error and outcome.row.location not in failed:
            rule.fault(f"{outcome.row.location}, after a system message and earlier turns: {outcome.error}")


def _unchanged(rule: Result, bench: Bench, rows: list[Row]) -> None:
    """Called without the copies that a run makes."""
    if bench.isolated:
        rule.note("it runs in its own process, on copies of the input")
        return
    batch = batch_of(rows)
    texts = [row.completion for row in rows]
    completions = texts if bench.bound.reward.view == "text" else batch.completions
    trl = {"prompts": batch.prompts, "completions": completions, "completion_ids": batch.completion_ids}
    inputs: tuple[dict[str, Any], dict[str, Any]] = copy.deepcopy((dict(batch.columns), trl))
    before = copy.deepcopy(inputs)
    try:
        result = bench.bound.call(inputs[0], {**inputs[1], **batch.trl})
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
    except (Exception, SystemExit):  # what it raises is reported by other rules
        pass
    for was, now in zip(before, inputs, strict=True):
        for name in was:
            if was[name] != now[name]:
                rule.fault(f"it changed {name}: work on a copy")


def _survives(rule: Result, bench: Bench, row: Row) -> None:
    """Each hostile text as the answer, as the question, and in every text of the row's columns."""
    score = bench.fresh_scores if bench.can_be_isolated else bench.scores
    for name, text in hostile.TEXTS.items():
        columns = {key: text if isinstance(value, str) else value for key, value in row.columns.items()}
        rows = [
            replace(row, location=f"{name} as the answer", completion=text),
            replace(row, location=f"{name} as the question", prompt=[{"role": "user", "content": text}]),
        ]
        if any(isinstance(value, str) for value in row.columns.values()):
            rows.append(replace(row, location=f"{name} in the columns", columns=columns))
        for each in rows:
            (outcome,) = score([each])
            if outcome.error:
                rule.fault(f"{each.location}: {outcome.error:.300}")
        if sum(": timeout" in fault for fault in rule.faults) > 2:
            rule.note("no further texts were tried, since each would take as long")
            return


def _in_range(rule: Result, subject: Subject) -> None:
    limits = subject.main.bound.reward.range
    if limits is None:
        rule.note("it declares no range; with Reward(…, range=(low, high)) this check and reports use it")
        return
    low, high = limits
    outcomes = [outcome for bench in subject.benches.values() for outcome in bench.seen]
    outside = {(o.row.location, o.score) for o in outcomes if o.score is not None and not low <= o.score <= high}
    for location, score in sorted(outside):
        rule.fault(f"{location}: {shown(score)} is outside {low:g} to {high:g}: declare more, or clip the score")


def _builtin_rows() -> list[Row]:
    """For a reward without golden cases: questions of the built-in data, with right answers."""
    lines = builtin.data_file("prompts", "heldout").read_text(encoding="utf-8").splitlines()[:6]
    return [
        Row(
            f"builtin row {number}",
            [{"role": "user", "content": values.pop("question")}],
            f"<think>\nI know it.\n</think>\n<answer>\n{values['answer']}\n</answer>",
            values,
        )
        for number, values in enumerate(map(json.loads, lines), start=1)
    ]
