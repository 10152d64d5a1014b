"""Trees of arithmetic expressions: what `arithmetic.parse` returns, and what can be read off them.

A chain of one precedence is one node: a tree is as deep as its brackets, not as long as its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Number:
    """A literal; `text` is how it was written."""

    value: Fraction
    text: str


@dataclass(frozen=True)
class Sum:
    """`terms` added up, each with its sign +1 or -1."""

    terms: tuple[tuple[int, Node], ...]


@dataclass(frozen=True)
class Product:
    """`factors` multiplied, each with +1, or divided by, with -1."""

    factors: tuple[tuple[int, Node], ...]


@dataclass(frozen=True)
class Power:
    """`base` to the `exponent`."""

    base: Node
    exponent: Node


@dataclass(frozen=True)
class Name:
    """A variable, or a function with its `argument`."""

    text: str
    argument: Node | None = None


Node = Number | Sum | Product | Power | Name


def literals(node: Node) -> list[Number]:
    """The numbers of a tree as written, from left to right."""
    if isinstance(node, Number):
        return [node]
    return [number for part in parts(node) for number in literals(part)]


def parts(node: Node) -> list[Node]:
    """The nodes right below a node, from left to right."""
    match node:
        case Sum(terms):
            return [term for _, term in terms]
        case Product(factors):
            return [factor for _, factor in factors]
        case Power(base, exponent):
            return [base, exponent]
        case Name(argument=argument) if argument is not None:
            return [argument]
    return []


def has_power(node: Node) -> bool:
    """Whether a power occurs anywhere in the tree."""
    return isinstance(node, Power) or any(has_power(part) for part in parts(node))


def canonical(node: Node) -> str:
    """One text for all orders and bracketings that commutativity and associativity make equal.

    It has the tree's value where there is one.

    >>> from interlace.answers.arithmetic import parse
    >>> canonical(parse("3 + (4*2 - 1)")) == canonical(parse("(2 * 4 + 3) - 1"))
    True
    >>> canonical(parse("3 + (4*2 - 1)"))
    '2*4+3-1'
    """
    if isinstance(node, Number):
        return str(node.value) if node.value.denominator == 1 else f"({node.value})"
    if isinstance(node, Power):
        return f"{_bracketed(node.base)}^{_bracketed(node.exponent)}"
    if isinstance(node, Name):
        return node.text + (f"({canonical(node.argument)})" if node.argument else "")
    if isinstance(node, Sum):
        return _join(_flat(node, Sum, 1), "+", "-")
    return _join(_flat(node, Product, 1), "*", "/")


def _flat(node: Node, kind: type[Sum] | type[Product], sign: int) -> list[tuple[int, str]]:
    """The parts of nested nodes of one kind as (sign, canonical text)."""
    if not isinstance(node, kind):
        bracket = kind is Product and isinstance(node, Sum)
        return [(sign, _bracketed(node) if bracket else canonical(node))]
    pairs = node.terms if isinstance(node, Sum) else node.factors
    return [flat for own, part in pairs for flat in _flat(part, kind, sign * own)]


def _join(parts: list[tuple[int, str]], plus: str, minus: str) -> str:
    ahead = sorted(text for sign, text in parts if sign > 0)
    behind = sorted(text for sign, text in parts if sign < 0)
    start = plus.join(ahead) or ("1" if minus == "/" else "")
    return start + "".join(minus + text for text in behind)


def _bracketed(node: Node) -> str:
    text = canonical(node)
    return text if isinstance(node, Number) else f"({text})"
