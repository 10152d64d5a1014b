r"""Arithmetic that a model wrote, parsed and evaluated exactly; never by `eval`.

Grammar (a recursive descent, exact fractions throughout):

    sum     = product (("+" | "-") product)*
    product = unary (("*" | "/") unary)*
    unary   = ("+" | "-") unary | power
    power   = atom ("^" unary)?         "**" is "^"; so -2^2 is -(2^2), and 2^3^2 is 2^(3^2)
    atom    = number | "(" sum ")"      number: ASCII digits with an optional decimal part

`×`, `·`, `÷`, `−` and LaTeX's `\times`, `\cdot`, `\div`, `\frac{a}{b}`, `\sqrt{a}`, `\left(`,
`\right)` are read as the signs they stand for. There is no implicit multiplication. With
`names=True` an atom is also a name, or a name with one argument in brackets; such trees have no
value here. With `factorials=True` an atom may be followed by "!". Roots have a value where it is
exact.

A chain of one precedence is one node: a tree is as deep as its brackets, not as long as its text.

Every bound is checked *before* the work it bounds, so that no text of any content takes longer than
some milliseconds: characters, nesting, bits of a result, size of an exponent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from interlace.errors import ExpressionError

MAX_CHARACTERS = 1000
MAX_DEPTH = 40
MAX_BITS = 4096  # of a numerator and of a denominator
MAX_EXPONENT = 1000
MAX_FACTORIAL = 500

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u00d7\u00b7\u2219", "*"),
        **dict.fromkeys("\u2212\u2013", "-"),
        "\u00f7": "/",
        "[": "(",
        "]": ")",
    }
)
_FRACTION, _ROOT, _FACTORIAL = "\u2044", "\u221a", "!"  # tokens
_LATEX = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\[dtc]?frac(?![A-Za-z])"), _FRACTION),
    (re.compile(r"\\sqrt(?![A-Za-z\[])"), _ROOT),
    (re.compile(r"\\(?:left|right|,|;|!|:|displaystyle)(?![A-Za-z])"), " "),
)
_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+|\*\*|[-+*/^()!\u2044\u221a]|[A-Za-z]+)")


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


def parse(text: str, *, names: bool = False, factorials: bool = False) -> Node:
    r"""The tree of an expression.

    Args:
        text: An expression in the grammar of this module's head.
        names: Whether variables and functions may occur.
        factorials: Whether factorials may occur.

    Returns:
        The tree; chains of one precedence are one node, so its depth is that of the brackets.

    Raises:
        ExpressionError: for anything else, or above `MAX_CHARACTERS` or `MAX_DEPTH`.

    >>> evaluate(parse(r"(7 - 3) × \frac{9}{2}"))
    Fraction(18, 1)
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(
            f"An expression has at most {MAX_CHARACTERS} characters; this one has {len(text)}."
        )
    return _Parser(_plain(text), names, factorials).parse()


def evaluate(node: Node) -> Fraction:
    """The exact value of a tree.

    Raises:
        ExpressionError: for a division by zero, an exponent that is no whole number of at most
            `MAX_EXPONENT`, a value above `MAX_BITS` bits, or a name.
    """
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        if node.text == _FACTORIAL and node.argument is not None:
            return _factorial(evaluate(node.argument))
        raise ExpressionError(f"The name {node.text!r} has no value.")
    if isinstance(node, Sum):
        total = Fraction(0)
        for sign, term in node.terms:
            total = _bounded(total + sign * evaluate(term))
        return total
    if isinstance(node, Product):
        total = Fraction(1)
        for sign, factor in node.factors:
            value = evaluate(factor)
            if sign < 0 and value == 0:
                raise ExpressionError("A division by zero has no value.")
            total = _bounded(total * value if sign > 0 else total / value)
        return total
    return _power(evaluate(node.base), evaluate(node.exponent))


def value_of(text: str) -> Fraction | None:
    """The exact value of an expression; None where `parse` or `evaluate` would raise.

    >>> value_of("2^10 / 4"), value_of("10^10^10"), value_of("1/0"), value_of("٣ + 1")
    (Fraction(256, 1), None, None, None)
    """
    try:
        return evaluate(parse(text, factorials=True))
    except ExpressionError:
        return None


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


def _plain(text: str) -> str:
    """The text with Unicode and LaTeX signs as plain ones."""
    text = text.translate(_SIGNS)
    for pattern, sign in _LATEX:
        text = pattern.sub(sign, text)
    return text.replace("{", "(").replace("}", ")")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise ExpressionError(f"A value has at most {MAX_BITS} bits; this one has more.")
    return value


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise ExpressionError(f"A factorial is of a whole number from 0 to {MAX_FACTORIAL}.")
    return Fraction(math.factorial(int(value)))


def _root(value: Fraction) -> Fraction:
    if value >= 0:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if (top * top, bottom * bottom) == (value.numerator, value.denominator):
            return Fraction(top, bottom)
    raise ExpressionError("A root has a value here where it is exact.")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent == Fraction(1, 2):
        return _root(base)
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
        raise ExpressionError(
            f"An exponent is a whole number from -{MAX_EXPONENT} to {MAX_EXPONENT}."
        )
    size = abs(int(exponent))
    if base == 0 and exponent < 0:
        raise ExpressionError("A division by zero has no value.")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) not in (0, 1) and (bits - 1) * size > MAX_BITS:
        raise ExpressionError(f"A value has at most {MAX_BITS} bits; this power has more.")
    return _bounded(base ** int(exponent))


class _Parser:
    """One pass over the tokens of a text."""

    def __init__(self, text: str, names: bool, factorials: bool) -> None:
        self.names = names
        self.factorials = factorials
        self.tokens: list[str] = []
        self.at = 0
        position, text = 0, text.strip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise ExpressionError(
                    "An expression holds numbers, + - * / ^ and brackets; found "
                    f"{text[position : position + 12].strip()!r}."
                )
            self.tokens.append(found[1])
            position = found.end()

    def parse(self) -> Node:
        node = self.sum(0)
        if self.at < len(self.tokens):
            raise ExpressionError(f"An expression ends before {self.tokens[self.at]!r}.")
        return node

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *wanted: str) -> str | None:
        token = self.peek()
        if token not in wanted:
            return None
        self.at += 1
        return token

    def sum(self, depth: int) -> Node:
        terms = [(1, self.product(depth))]
        while sign := self.take("+", "-"):
            terms.append((1 if sign == "+" else -1, self.product(depth)))
        return terms[0][1] if len(terms) == 1 else Sum(tuple(terms))

    def product(self, depth: int) -> Node:
        factors = [(1, self.unary(depth))]
        while sign := self.take("*", "/"):
            factors.append((1 if sign == "*" else -1, self.unary(depth)))
        return factors[0][1] if len(factors) == 1 else Product(tuple(factors))

    def unary(self, depth: int) -> Node:
        sign = self.take("+", "-")
        if sign is None:
            return self.power(depth)
        inside = self.unary(self._deeper(depth))
        return inside if sign == "+" else Sum(((-1, inside),))

    def power(self, depth: int) -> Node:
        base = self.atom(depth)
        if self.factorials and self.take(_FACTORIAL):  # once: "!!" is another function
            base = Name(_FACTORIAL, base)
        if self.take("^", "**"):
            return Power(base, self.unary(self._deeper(depth)))
        return base

    def argument(self, depth: int) -> Node:
        """Of a LaTeX command: a bracket, or the next digit alone."""
        token = self.peek()
        if token is not None and token[0].isdigit():
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]] if token[1:] else [token]
        return self.atom(self._deeper(depth))

    def atom(self, depth: int) -> Node:
        if self.take(_FRACTION):
            top = self.argument(depth)
            return Product(((1, top), (-1, self.argument(depth))))
        if self.take(_ROOT):
            return Power(self.argument(depth), Number(Fraction(1, 2), "1/2"))
        if self.take("("):
            node = self.sum(self._deeper(depth))
            if not self.take(")"):
                raise ExpressionError("A bracket is not closed.")
            return node
        token = self.peek()
        if token is not None and token[0].isalpha() and self.names:
            self.at += 1
            return Name(token, self.atom(self._deeper(depth)) if self.peek() == "(" else None)
        if token is None or not (token[0].isdigit() or token[0] == "."):
            raise ExpressionError(
                "A number or a bracket is missing "
                + ("at the end." if token is None else f"before {token!r}.")
            )
        self.at += 1
        return Number(_bounded(Fraction(token)), token)

    def _deeper(self, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise ExpressionError(f"An expression nests at most {MAX_DEPTH} deep.")
        return depth + 1
