"""Einsum of many operands, taken two at a time: what meets what is then a node of its own."""

from __future__ import annotations

from functools import reduce

import torch
from torch.fx import Graph, Node


def take_in_pairs(graph: Graph, node: Node) -> None:
    """Put a chain of einsums of two operands, from left to right, in the place of one of three or more.

    One with an axis twice in a term (a diagonal) stays as it is.
    """
    equation, operands = str(node.args[0]), node.args[1]
    assert isinstance(operands, list | tuple)
    terms, output = terms_of(equation)
    if len(operands) < 3 or any(len(set(term)) < len(term) for term in terms):
        return
    first, term = operands[0], terms[0]
    with graph.inserting_before(node):
        for place in range(1, len(operands)):
            rest = set(output).union(*terms[place + 1 :])
            both = dict.fromkeys(sorted(term + terms[place], key=lambda letter: letter != "."))
            last = place == len(operands) - 1
            result = output if last else "".join(letter for letter in both if letter in rest)
            spec = f"{term},{terms[place]}->{result}".replace(".", "...")
            call = graph.call_function(torch.ops.aten.einsum.default, (spec, [first, operands[place]]))
            call.meta.update({key: value for key, value in node.meta.items() if key != "val" or last})
            first, term = call, result
    assert isinstance(first, Node)
    node.replace_all_uses_with(first)
    graph.erase_node(node)


def terms_of(equation: str) -> tuple[list[str], str]:
    """The letters of every operand and of the result, "." for the ellipsis.

    >>> terms_of("...i, ij, j")
    (['.i', 'ij', 'j'], '.')
    """
    left, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    terms = left.split(",")
    if not arrow:
        every = reduce(str.__add__, terms)
        output = "".join(sorted(c for c in set(every) if c == "." or every.count(c) == 1))
    return terms, output
