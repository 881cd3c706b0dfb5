"""Pairs that contradict each other, by the answers to one prompt: a graph with an edge from each chosen answer to the
rejected one. Pure functions; nothing here is quadratic in the number of rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Node = Hashable
Edge = tuple[Node, Node]  # (chosen, rejected)


@dataclass
class Found:
    """Numbers of rows: `opposite` in groups that say A over B and B over A, `cycles` such as A over B over C over A,
    `duplicates` (the first row, its copies). `mixed`: answers that are chosen in one row and rejected in another, in
    an order without a contradiction.
    """

    opposite: list[list[int]] = field(default_factory=list)
    cycles: list[list[int]] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)
    mixed: int = 0

    def numbered(self, numbers: Sequence[int]) -> Found:
        """With other numbers for the rows."""
        groups = (
            [[numbers[i] for i in group] for group in kind] for kind in (self.opposite, self.cycles, self.duplicates)
        )
        return Found(*groups, self.mixed)


def contradictions(prompts: Sequence[Hashable], edges: Sequence[Edge]) -> Found:
    """Of all rows: `edges[i]` is what row i says of two answers to `prompts[i]`."""
    groups: dict[Hashable, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(number)
    found = Found()
    for numbers in groups.values():
        if len(numbers) > 1 and _share_answers([edges[number] for number in numbers]):
            _of_prompt({number: edges[number] for number in numbers}, found)
    return found


def _share_answers(edges: Sequence[Edge]) -> bool:
    """Whether rows of a prompt can contradict or repeat each other: most have answers of their own."""
    chosen = {edge[0] for edge in edges}
    return len(chosen) < len(edges) or not chosen.isdisjoint(edge[1] for edge in edges)


def _of_prompt(edges: Mapping[int, Edge], found: Found) -> None:
    rows: dict[Edge, list[int]] = {}
    for number, edge in edges.items():
        rows.setdefault(edge, []).append(number)
    found.duplicates += [numbers for numbers in rows.values() if len(numbers) > 1]
    for (chosen, rejected), numbers in rows.items():
        back = rows.get((rejected, chosen))
        if back and chosen != rejected and numbers[0] < back[0]:
            found.opposite.append(sorted(numbers + back))
    graph: dict[Node, list[Node]] = {}
    for chosen, rejected in rows:
        if chosen != rejected:
            graph.setdefault(chosen, []).append(rejected)
            graph.setdefault(rejected, [])
    part = {node: number for number, nodes in enumerate(components(graph)) for node in nodes}
    sizes: dict[int, int] = {}
    for number in part.values():
        sizes[number] = sizes.get(number, 0) + 1
    inside: dict[int, list[int]] = {}
    for (chosen, rejected), numbers in rows.items():
        if chosen != rejected and part[chosen] == part[rejected] and sizes[part[chosen]] > 2:
            inside.setdefault(part[chosen], []).extend(numbers)
    found.cycles += [sorted(numbers) for numbers in inside.values()]
    won, lost = ({edge[side] for edge in rows if edge[0] != edge[1]} for side in (0, 1))
    found.mixed += sum(sizes[part[node]] == 1 for node in won & lost)


def components(graph: Mapping[Node, Sequence[Node]]) -> Iterator[list[Node]]:
    """The strongly connected components (Tarjan, 1972: https://doi.org/10.1137/0201010), without recursion."""
    index: dict[Node, int] = {}
    lowest: dict[Node, int] = {}
    stack: list[Node] = []
    on_stack: set[Node] = set()
    for root in graph:
        if root in index:
            continue
        work: list[tuple[Node, Iterator[Node]]] = []

        def enter(node: Node, work: list[tuple[Node, Iterator[Node]]] = work) -> None:
            index[node] = lowest[node] = len(index)
            stack.append(node)
            on_stack.add(node)
            work.append((node, iter(graph[node])))

        enter(root)
        while work:
            node, following = work[-1]
            for other in following:
                if other not in index:
                    enter(other)
                    break
                if other in on_stack:
                    lowest[node] = min(lowest[node], index[other])
            else:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[node])
                if lowest[node] == index[node]:
                    yield list(_popped(node, stack, on_stack))


def _popped(node: Node, stack: list[Node], on_stack: set[Node]) -> Iterator[Node]:
    while True:
        other = stack.pop()
        on_stack.discard(other)
        yield other
        if other == node:
            return
