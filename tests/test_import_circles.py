"""No circle of imports: a module can be read after those that it imports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grimp

KNOWN = {frozenset({"synthorax.capabilities", "synthorax.protocols"}),
         frozenset({"synthorax.evaluation.report.page", "synthorax.evaluation.report.record"})}
"""circles that are still to go; nothing may be added"""


def circles(imports: Mapping[str, Iterable[str]]) -> set[frozenset[str]]:
    """Sets of modules that all lead to one another: the strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        waiting.append(module)
        for other in imports[module]:
            if other not in order:
                visit(other)
            if other in waiting:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            place = waiting.index(module)
            if len(waiting) - place > 1:
                found.add(frozenset(waiting[place:]))
            del waiting[place:]

    for module in imports:
        if module not in order:
            visit(module)
    return found


def test_no_module_imports_one_that_leads_back_to_it() -> None:
    graph = grimp.build_graph("synthorax", cache_dir=None)
    found = circles({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    assert found <= KNOWN, f"new circles: {[sorted(circle) for circle in found - KNOWN]}"


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": []}) == {frozenset("abc")}
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == set()
