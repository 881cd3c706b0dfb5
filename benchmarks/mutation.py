"""Mutation testing: each small fault put into a module must make one of its tests fail.

    pip install mutmut==3.8.1 && python -m benchmarks.mutation [--every N] [--survivors] [GROUP…]

The groups of modules, with the tests that hold them, are in pyproject.toml, [tool.mutation]. The tests run once, with
coverage, in one process. Then each mutant is a fork of it that replaces the code of one function and runs the tests
that reach the changed line, quickest first, until one fails. A mutant that every test lets pass has survived; its
reason is written by hand in benchmarks/results/mutation.json, and later runs keep it. The exit code is 1 where one has
none.

`--every 4` tries every fourth mutant, `--survivors` those that survived before, with more tests. Left
out on purpose: what benchmarks/mutants.py leaves out, and slow tests, but in groups with `slow = true`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import coverage
import pytest
from _pytest.runner import runtestprotocol

from benchmarks.mutants import Mutant, Place, mutants
from benchmarks.record import record

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
SECONDS = 10.0  # of tests for one mutant
AGAIN = 30.0  # and for one that survived before
PASSED = 77  # the exit code of a fork whose tests pass: a mutant may end its process with 0
MEMORY = 4 << 30  # bytes that a mutant may take beyond what the tests had taken before


# -- What the tests say


class Group:
    """A plugin of pytest: runs the tests of a group once, then for each mutant of its modules."""

    def __init__(self, files: list[Path], every: int, earlier: dict[str, Any], say: Callable[[str], None]) -> None:
        self.files, self.every, self.earlier, self.say = files, every, earlier, say
        self.seconds = AGAIN if earlier else SECONDS
        self.results: dict[str, dict[str, Any]] = {}
        self.caches: list[Any] = []  # of our functions
        self.durations: dict[str, float] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.session, self.items = session, {item.nodeid: item for item in session.items}
        reached = self._reached(session.items)
        self.say(f"{len(session.items)} tests, {sum(self.durations.values()):.0f} s")
        self._drop([*self._failed()])
        self.functions: dict[tuple[str, str, int], list[FunctionType]] = {}
        for one in gc.get_objects():
            if type(one) is functools._lru_cache_wrapper and str(one.__module__).startswith("rlhf"):
                self.caches.append(one)
            if type(one) is FunctionType:
                code = one.__code__
                self.functions.setdefault((code.co_filename, *_place(code)), []).append(one)
        gc.collect()
        gc.freeze()
        for file in self.files:
            self.results[str(file.relative_to(ROOT))] = self._try_all(file, reached(str(file)))
        return True

    def _reached(self, items: list[pytest.Item]) -> Callable[[str], dict[int, set[str]]]:
        """Run all tests with coverage. -> which tests reach each line of a file."""
        measured = coverage.Coverage(data_file=None, config_file=False, include=[str(file) for file in self.files])
        measured.start()
        for item, following in zip(items, [*items[1:], items[-1]], strict=True):
            measured.switch_context(item.nodeid)
            began = time.monotonic()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                self.say(f"fails without a mutant, left out: {item.nodeid}")
                self.items.pop(item.nodeid)
            self.durations[item.nodeid] = time.monotonic() - began
        measured.stop()
        # Fixtures of the session stay for the forks; those of a module are made in each.
        self.session._setupstate.teardown_exact(SimpleNamespace(listchain=lambda: [self.session]))
        data = measured.get_data()

        def reached(file: str) -> dict[int, set[str]]:
            return {line: {*tests} for line, tests in data.contexts_by_lineno(file).items()}

        return reached

    def _failed(self) -> Iterator[str]:
        """Tests that don't pass in a fork, each in one of its own if they don't pass together."""
        if self._fork([self.items[name] for name in self.items], lambda: None) == "survived":
            return
        for name, item in self.items.items():
            if self._fork([item], lambda: None) != "survived":
                yield name

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.say(f"does not pass in a fork, left out: {name}")
            self.items.pop(name)

    def _try_all(self, file: Path, reached: dict[int, set[str]]) -> dict[str, Any]:
        counts, survivors, began = Counter[str](), [], time.monotonic()
        before = self.earlier.get(str(file.relative_to(ROOT)))
        again = {(one["function"], one["change"]) for one in before["survivors"]} if before else set()
        for mutant in itertools.islice(mutants(file), 0, None, self.every):
            if before and (mutant.place[0], mutant.change) not in again:
                continue
            names = set().union(*(reached.get(line, ()) for line in mutant.lines)) & {*self.items}
            outcome = self._try(file, mutant, names)
            counts[outcome] += 1
            if outcome == "survived":
                self.say(f"survived: {file.name}:{mutant.line} {mutant.change}")
                survivors.append({"function": mutant.place[0], "line": mutant.line, "change": mutant.change})
        total = before["mutants"] if before else sum(counts.values()) - counts["invalid"]
        missed = before["not_reached"] if before else counts["not reached"]
        self.say(f"{file.relative_to(ROOT)}: {total}, {dict(counts)}, {time.monotonic() - began:.0f} s")
        every = before["every"] if before else self.every
        figures = {"every": every, "mutants": total, "killed": total - missed - counts["survived"]}
        return {**figures, "survived": counts["survived"], "not_reached": missed, "survivors": survivors}

    def _try(self, file: Path, mutant: Mutant, names: set[str]) -> str:
        functions = self.functions.get((str(file), *mutant.place), [])
        tests = sorted(names | self._sharing(names), key=lambda name: (name not in names, self.durations[name]))
        if not functions or not tests:
            return "not reached"
        code = _find(compile(mutant.source, str(file), "exec", dont_inherit=True), mutant.place)
        if code is None or code.co_freevars != functions[0].__code__.co_freevars:
            return "invalid"

        changed = [code, *_inner(code)]  # with functions that it made when its module was imported
        number = Counter(map(_place, changed))

        def change() -> None:
            for one in changed:
                for function in self.functions.get((str(file), *_place(one)), []) if number[_place(one)] == 1 else ():
                    if function.__code__.co_freevars == one.co_freevars:
                        function.__code__ = one

        chosen, seconds = [], 0.0
        for name in tests:
            seconds += self.durations[name]
            if chosen and seconds > self.seconds:
                break
            chosen.append(self.items[name])
        return self._fork(chosen, change)

    def _sharing(self, names: set[str]) -> set[str]:
        """The tests that use a module's fixture, in whose making a test among `names` reached the line."""

        def shared(item: pytest.Item) -> set[tuple[str, str]]:
            found = item._fixtureinfo.name2fixturedefs.items()
            return {(definitions[-1].baseid, name) for name, definitions in found if definitions[-1].scope == "module"}

        made = set().union(*(shared(self.items[name]) for name in names)) if names else set()
        return {name for name, item in self.items.items() if shared(item) & made} - names

    def _fork(self, items: list[pytest.Item], change: Callable[[], None]) -> str:
        """Run tests after a change in a fork of this process. -> killed, timeout or survived."""
        folder = Path(tempfile.mkdtemp(prefix="mutant-"))
        process = os.fork()
        if process == 0:
            self._in_fork(items, change, folder)
        ends = time.monotonic() + 15 + 5 * sum(self.durations[item.nodeid] for item in items)
        outcome = "timeout"
        while time.monotonic() < ends:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                outcome = "survived" if os.waitstatus_to_exitcode(status) == PASSED else "killed"
                break
            time.sleep(0.003)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        if outcome == "timeout":
            os.waitpid(process, 0)
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _in_fork(self, items: list[pytest.Item], change: Callable[[], None], folder: Path) -> None:
        try:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nowhere, stream)
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
            self.session.config._tmp_path_factory._basetemp = folder
            change()
            for cache in self.caches:
                cache.cache_clear()
            for item, following in zip(items, [*items[1:], items[-1]], strict=True):
                if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                    os._exit(1)
            os._exit(PASSED)
        finally:
            os._exit(1)


def _place(code: CodeType) -> Place:
    return code.co_qualname, code.co_firstlineno


def _inner(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _inner(one)


def _find(code: CodeType, place: Place) -> CodeType | None:
    return next((one for one in _inner(code) if _place(one) == place), None)


# -- What is written


def run(group: dict[str, Any], every: int, earlier: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of a group's modules, from a process of its own."""
    with tempfile.NamedTemporaryFile() as answer:
        process = os.fork()
        if process == 0:
            try:
                files = [file for pattern in group["modules"] for file in sorted(ROOT.glob(pattern))]
                tests = [str(file) for pattern in group["tests"] for file in sorted(ROOT.glob(pattern))]
                os.environ["OMP_NUM_THREADS"] = "1"
                sys.path.insert(0, str(ROOT))
                said = os.fdopen(os.dup(2), "w", buffering=1)
                plugin = Group(files, every, earlier, lambda text: print(text, file=said, flush=True))
                slow = [] if group.get("slow") else ["-m", "not slow"]
                with tempfile.TemporaryDirectory(prefix="mutation-") as folder:  # one that no other pytest removes
                    own = ["-p", "no:cacheprovider", "--basetemp", f"{folder}/tests"]
                    pytest.main(["-q", *slow, *own, *tests], plugins=[plugin])
                Path(answer.name).write_text(json.dumps(plugin.results))
            finally:
                os._exit(0)
        os.waitpid(process, 0)
        return json.loads(Path(answer.name).read_text() or "{}")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--survivors", action="store_true")
    asked = parser.parse_args()
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutation"]
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]["modules"] if RESULTS.exists() else {}
    reasons = {
        (module, survivor["function"], survivor["change"]): survivor["reason"]
        for module, result in results.items()
        for survivor in result["survivors"]
    }
    for name in asked.groups or list(groups):
        found = run(groups[name], asked.every, results if asked.survivors else {})
        for module, result in found.items():
            for survivor in result["survivors"]:
                survivor["reason"] = reasons.get((module, survivor["function"], survivor["change"]), "")
        results.update(found)
        counts = ("mutants", "killed", "survived", "not_reached")
        totals = {count: sum(result[count] for result in results.values()) for count in counts}
        record("mutation", {**totals, "modules": dict(sorted(results.items()))})
    return int(any(not survivor["reason"] for result in results.values() for survivor in result["survivors"]))


if __name__ == "__main__":
    sys.exit(main())
