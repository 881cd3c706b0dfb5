"""What a check found: one result for each rule, and the text that a user reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 5  # faults of one rule that are shown; the rest are counted


@dataclass
class Result:
    """One rule. `faults` say how it is broken and what to do; `notes` are for the user even if it is not."""

    rule: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def lines(self) -> list[str]:
        more = [f"… and {len(self.faults) - SHOWN} more"] if len(self.faults) > SHOWN else []
        return [f"{'✗' if self.faults else '✓'} {self.rule}"] + [
            "    " + text.replace("\n", "\n    ") for text in [*self.faults[:SHOWN], *more, *self.notes]
        ]


@dataclass
class Report:
    """The results of all rules that could be checked. `unmet`: what the check needs and did not get; then none was.

    `kind` is `reward`, `method` or `formatter`.
    """

    kind: str
    name: str
    results: list[Result] = field(default_factory=list)
    unmet: str | None = None

    def rule(self, text: str) -> Result:
        """Begin the next rule."""
        self.results.append(Result(text))
        return self.results[-1]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.faults]

    @property
    def ok(self) -> bool:
        return self.unmet is None and not self.failed

    @property
    def verdict(self) -> str:
        if self.unmet is not None:
            return f"not checked: {self.unmet}"
        count = f"{len(self.results)} rule{'s' * (len(self.results) != 1)}"
        return f"{len(self.failed)} of {count} broken" if self.failed else f"keeps {count}"

    def verified(self) -> Report:
        """This report, or `AssertionError` with every broken rule."""
        if not self.ok:
            lines = [line for result in self.failed for line in result.lines()]
            raise AssertionError("\n".join([f"{self.kind} {self.name}: {self.verdict}", *lines]))
        return self

    def __str__(self) -> str:
        lines = [line for result in self.results for line in result.lines()]
        return "\n".join([*lines, f"{self.kind} {self.name}: {self.verdict}"])

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok, "verdict": self.verdict}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Report:
        """The report from the result of `as_dict`."""
        results = [Result(**result) for result in values["results"]]
        return cls(values["kind"], values["name"], results, values["unmet"])
