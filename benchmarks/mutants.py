"""Mutants of a module: its source with one small change in one function.

Operators are mutmut's, and three of ours: a condition is negated, a call is left out, nothing is returned. Left out on
purpose: texts (strings with a space), positional arguments (a TypeError nearly always), decorators, defaults, and what
a module runs when it is imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_arg_removal, operator_string

Place = tuple[str, int]  # a function's qualified name and first line


@dataclass(frozen=True)
class Mutant:
    place: Place
    lines: frozenset[int]  # that of the change, and the first of its statement
    line: int
    change: str
    source: bytes  # of the whole module


def mutants(file: Path) -> Iterator[Mutant]:
    """The mutants of a module, in its order."""
    source = file.read_bytes()
    wrapper = MetadataWrapper(cst.parse_module(source))
    found = _Changes()
    wrapper.visit(found)
    for place, lines, start, end, node, changed in found.changes:
        before, after = (_code(wrapper.module, one) for one in (node, changed))
        if source[start:end].decode() != before or before == after:
            continue
        mutated = source[:start] + after.encode() + source[end:]
        with contextlib.suppress(SyntaxError):
            compile(mutated, str(file), "exec", dont_inherit=True)
            yield Mutant(place, frozenset(lines), lines[0], f"{_short(before)} -> {_short(after)}", mutated)


class _Changes(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (ByteSpanPositionProvider, PositionProvider)

    def __init__(self) -> None:
        self.names: list[str] = []
        self.place: Place | None = None  # of the outermost function
        self.statement = 0
        self.changes: list[tuple[Place, list[int], int, int, cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef) and self.place is None:
            first = node.decorators[0] if node.decorators else node
            self.place = ".".join([*self.names, node.name.value]), self._line(first)
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.append(node.name.value)
        if isinstance(node, cst.Annotation | cst.Decorator | cst.Param) or _is_text(node):
            return False
        if isinstance(node, cst.BaseSmallStatement | cst.BaseCompoundStatement):
            self.statement = self._line(node)
        if self.place is not None:
            for old, new in (*((node, changed) for changed in _changed(node)), *_negated(node)):
                span = self.get_metadata(ByteSpanPositionProvider, old)
                start, end = span.start, span.start + span.length
                self.changes.append((self.place, [self._line(old), self.statement], start, end, old, new))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.pop()
        if (
            isinstance(node, cst.FunctionDef)
            and self.place
            and self.place[0] == ".".join([*self.names, node.name.value])
        ):
            self.place = None

    def _line(self, node: cst.CSTNode) -> int:
        return self.get_metadata(PositionProvider, node).start.line


def _changed(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and operator not in (operator_arg_removal, operator_string):
            yield from operator(node)
    if isinstance(node, cst.SimpleString):
        yield from list(operator_string(node))[:1]
    if isinstance(node, cst.Call):
        for i, argument in enumerate(node.args):
            if argument.keyword or argument.star:
                yield node.with_changes(args=[*node.args[:i], *node.args[i + 1 :]])
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.Call | cst.Await):
        yield cst.Pass()
    if isinstance(node, cst.Return) and node.value is not None and not isinstance(node.value, cst.Name):
        yield cst.Return(cst.Name("None"))


def _negated(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    """The conditions in `node` that are neither comparisons nor `not`, which mutmut changes."""
    conditions: tuple[cst.BaseExpression, ...] = ()
    if isinstance(node, cst.If | cst.While | cst.CompIf):
        conditions = (node.test,)
    elif isinstance(node, cst.BooleanOperation):
        conditions = (node.left, node.right)
    for condition in conditions:
        if isinstance(condition, cst.Call | cst.Name | cst.Attribute | cst.Subscript):
            yield condition, cst.UnaryOperation(cst.Not(), condition)


def _is_text(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.ConcatenatedString):
        return True
    if isinstance(node, cst.FormattedString):
        return any(isinstance(part, cst.FormattedStringText) and " " in part.value for part in node.parts)
    return isinstance(node, cst.SimpleString) and (" " in node.value or node.value.endswith(('"""', "'''")))


def _code(module: cst.Module, node: cst.CSTNode) -> str:
    if isinstance(node, cst.BaseExpression):
        node = node.with_changes(lpar=[], rpar=[])
    return module.code_for_node(node).strip()


def _short(code: str) -> str:
    return " ".join(code.split())
