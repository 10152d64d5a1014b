"""Search traces of a simple policy: what the tiny base model is trained on.

Letters: B rows of a batch, E = 192 the expressions of a problem, S tokens of a row.

A problem gives three numbers and a target. A try is an expression of seven tokens, "=", its value,
and what it came to: ";" after a miss, "yes" after a hit. A row has four tries of ten tokens, so try
k of every row stands in the same columns; the end stands in place of the last one's verdict. Once
the policy has hit, it writes the hit again until the fourth try, which is the answer: a row that
ended at its hit could not be read by its siblings.

    3 5 7 -> 56 : ( 3 + 5 ) + 7 = 15 ; 7 * ( 5 + 3 ) = 56 yes 7 * ( 5 + 3 ) = 56 yes 7 * ...

It avoids values that it has already seen, mostly avoids those that are no whole number from 0 to
100, and now and then is drawn towards values near the target. Its arithmetic is right; the model
makes mistakes of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int

TRIES, TRY_TOKENS, LARGEST = 4, 10, 100
SPECIAL = ["<pad>", "<eos>", "<unk>"]
SIGNS = ["+", "-", "*", "/"]
KINDS = ["neg", "frac", "big", "undef"]  # values without a token of their own
MISS, HIT = ";", "yes"
VOCABULARY = [
    *SPECIAL,
    *(str(number) for number in range(LARGEST + 1)),
    *SIGNS,
    *["(", ")", "=", MISS, ":", "->"],
    *KINDS,
    HIT,
]
ID = {token: index for index, token in enumerate(VOCABULARY)}


def value_of(sign: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """The value of `left sign right`; None if it, or a side, is a division by zero."""
    if left is None or right is None or (sign == "/" and right == 0):
        return None
    if sign == "/":
        return left / right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def token_of(value: Fraction | None) -> str:
    """A whole number from 0 to 100 as itself, any other value as its kind."""
    if value is None:
        return "undef"
    if value < 0:
        return "neg"
    if value.denominator > 1:
        return "frac"
    return str(value) if value <= LARGEST else "big"


def expressions(numbers: Sequence[int]) -> list[tuple[str, str]]:
    """All 192 expressions of three numbers, as (seven tokens, token of the value)."""
    found = []
    for a, b, c in itertools.permutations(numbers):
        for inner, outer in itertools.product(SIGNS, SIGNS):
            bracket = value_of(inner, Fraction(a), Fraction(b))
            after = value_of(outer, bracket, Fraction(c))
            before = value_of(outer, Fraction(c), bracket)
            found.append((f"( {a} {inner} {b} ) {outer} {c}", token_of(after)))
            found.append((f"{c} {outer} ( {a} {inner} {b} )", token_of(before)))
    return found


class Policy:
    """Writes traces for the given problems.

    Args:
        problems: Sorted numbers and target of each.
        odd: Weight of an expression whose value is no whole number from 0 to 100, against 1.
        guided: Share of the tries that are drawn towards the target.
        reach: A guided try weighs a value at distance d as 1 / (1 + d / reach).
        seed: Of the draws.
    """

    def __init__(
        self,
        problems: Sequence[tuple[Sequence[int], int]],
        *,
        odd: float,
        guided: float,
        reach: float,
        seed: int,
    ) -> None:
        sets = sorted({tuple(numbers) for numbers, _ in problems})
        listed = [expressions(numbers) for numbers in sets]
        place = {numbers: index for index, numbers in enumerate(sets)}
        self._tries = np.array(  # [sets, E, 9]: the seven tokens, "=", the value
            [[[ID[t] for t in f"{e} = {v}".split()] for e, v in row] for row in listed]
        )
        self._set = np.array([place[tuple(numbers)] for numbers, _ in problems])
        self._target = np.array([ID[str(target)] for _, target in problems])
        self._prompt = np.array(
            [[ID[t] for t in (*map(str, n), "->", str(target), ":")] for n, target in problems]
        )
        self._odd, self._guided, self._reach = odd, guided, reach
        self._rng = np.random.default_rng(seed)

    def __call__(self, rows: int) -> tuple[Int[np.ndarray, "B S"], Float[np.ndarray, "B S"]]:
        """Fresh traces, one a row, of problems drawn with repetition.

        Returns:
            Token ids, and their kind: 0 the prompt, 1 a token that the policy drew, 2 a token that
            follows from those before (a value, a verdict, the end, a hit written again).
        """
        chosen = self._rng.integers(len(self._set), size=rows)
        prompt, target = self._prompt[chosen], self._target[chosen]
        tries = self._tries[self._set[chosen]]
        ids = np.zeros((rows, prompt.shape[1] + TRIES * TRY_TOKENS), np.int64)
        kinds = np.zeros(ids.shape)
        ids[:, : prompt.shape[1]] = prompt
        values = tries[:, :, -1]
        whole = (values >= ID["0"]) & (values <= ID[str(LARGEST)])
        base = np.where(whole, 1.0, self._odd)
        near = base / (1 + np.where(whole, abs(values - target[:, None]), LARGEST) / self._reach)
        fresh, found = np.ones(values.shape, bool), np.full(rows, -1)
        for start in range(prompt.shape[1], ids.shape[1], TRY_TOKENS):
            guided = self._rng.random((rows, 1)) < self._guided
            picked = self._draw(np.where(guided, near, base) * fresh)
            picked = np.where(found >= 0, found, picked)
            written = tries[np.arange(rows), picked]
            value = written[:, -1]
            last = start + TRY_TOKENS == ids.shape[1]
            end = np.where(value == target, ID[HIT], ID[MISS])
            end[:] = ID["<eos>"] if last else end
            ids[:, start : start + TRY_TOKENS] = np.concatenate([written, end[:, None]], axis=1)
            kinds[:, start : start + TRY_TOKENS] = [*[1] * 7, *[2] * 3]
            kinds[found >= 0, start : start + TRY_TOKENS] = 2
            fresh &= values != value[:, None]
            found = np.where((found < 0) & (value == target), picked, found)
        return ids, kinds

    def _draw(self, weights: Float[np.ndarray, "B E"]) -> Int[np.ndarray, "B"]:
        total = weights.cumsum(axis=1)
        threshold = self._rng.random((len(weights), 1)) * total[:, -1:]
        return (total > threshold).argmax(axis=1)
