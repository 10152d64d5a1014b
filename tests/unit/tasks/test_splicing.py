"""Spliced groups: what may be copied, from where, and what stays as it was."""

from __future__ import annotations

import re

import pytest

from interlace.errors import TaskError
from interlace.tasks import get_task
from interlace.tasks.base import Example, Task, Verdict
from interlace.tasks.drawn import Draw
from interlace.tasks.splicing import Row, splice_lines

TASK = get_task("tiny-countdown", split="all")
EXAMPLE = next(e for e in TASK if e.data == {"numbers": [3, 7, 8], "target": 45})
FINDS = ["3 * ( 8 + 7 ) = 45", "( 7 + 8 ) * 3 = 45", "( 8 + 7 ) * 3 = 45"]
MISSES = ["( 7 - 3 ) * 8 = 32", "( 7 * 8 ) - 3 = 53", "3 - ( 7 + 8 ) = neg"]


def pieces(text: str) -> Row:
    """A text as the tiny tokenizer's tokens write it."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split())]


def keeping(*tries: str) -> Row:
    """A row that keeps its find: four tries, "yes" after every hit but the last."""
    written = list(tries)
    while len(written) < 4:
        written.append(written[-1])
    ends = ["yes" if one in FINDS else ";" for one in written[:-1]]
    return pieces(" ".join(f"{one} {end}" for one, end in zip(written, [*ends, ""], strict=True)))


def ending(*tries: str) -> Row:
    """A row that ends at its find."""
    return pieces(" ; ".join(tries))


def random_group(draw: Draw, ends: bool, width: int) -> list[Row]:
    rows = []
    for _ in range(width):
        tries: list[str] = []
        while len(tries) < 4 and (not tries or tries[-1] not in FINDS):
            tries.append(draw.choice(FINDS if draw.chance(0.2) else MISSES))
        rows.append(ending(*tries) if ends else keeping(*tries))
    return rows


def splice(rows: list[Row], probability: float = 1.0, key: object = 0) -> list[Row]:
    return TASK.splice(EXAMPLE, rows, probability, Draw("test", key))


def column_of_find(row: Row) -> int | None:
    """The column of the token that completes the row's first hit."""
    words = [token.strip() for token in row]
    for start in range(0, len(words), 10):
        if " ".join(words[start : start + 9]) in FINDS:
            return start + 8
    return None


def test_the_next_try_becomes_the_find_and_is_kept_as_the_sibling_keeps_it() -> None:
    rows = [keeping(MISSES[0], FINDS[0]), keeping(*MISSES, MISSES[0])]
    after = splice(rows)
    assert after[0] == rows[0]
    assert after[1] == keeping(*MISSES[:2], FINDS[0])
    assert len(after[1]) == len(rows[1]) == 39


def test_the_row_ends_with_the_find_where_the_sibling_ended() -> None:
    rows = [ending(MISSES[0], FINDS[1]), ending(*MISSES, MISSES[0])]
    assert splice(rows)[1] == ending(*MISSES[:2], FINDS[1])


def test_a_find_in_the_last_try_comes_too_late() -> None:
    rows = [keeping(*MISSES, FINDS[0]), keeping(*MISSES, MISSES[1])]
    assert splice(rows) == rows


@pytest.mark.parametrize(
    "written",
    [
        "( 7 + 8 ) * 3 = 44",  # says another value
        "( 7 * 8 ) - 3 = 45",  # a wrong value that looks like the target
        "( 7 + 8 ) + 30 = 45",  # uses other numbers
    ],
)
def test_only_what_the_verifier_takes_is_copied(written: str) -> None:
    rows = [pieces(" yes ".join([written] * 4)), keeping(*MISSES, MISSES[0])]
    assert splice(rows) == rows


def test_a_hit_that_the_row_itself_takes_for_a_miss_is_not_copied() -> None:
    row = pieces(f"{FINDS[0]} ; {MISSES[0]} ; {MISSES[1]} ; {MISSES[2]}")
    rows = [row, keeping(*MISSES, MISSES[0])]
    assert splice(rows) == rows


@pytest.mark.parametrize("ends", [False, True])
def test_whatever_is_copied_stands_in_earlier_columns_of_a_sibling(ends: bool) -> None:
    """Breaks if a row could copy what its sibling writes at the same time, or later."""
    changed = 0
    for key in range(60):
        rows = random_group(Draw("rows", ends, key), ends, width=5)
        after = splice(rows, 0.7, key)
        for w, (old, new) in enumerate(zip(rows, after, strict=True)):
            if old == new:
                continue
            changed += 1
            same = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
            start = same - same % 10  # the try that was rewritten
            assert new[:start] == old[:start]
            assert column_of_find(old[:start]) is None
            copied = new[start : start + 9]
            sources = [
                v
                for v, row in enumerate(after)
                if v != w
                and any(row[c : c + 9] in (copied, [copied[0].strip(), *copied[1:]])
                        for c in range(0, start - 9, 10))
            ]  # fmt: skip
            assert sources
            assert TASK.verify(EXAMPLE, "".join(new)).correct
            if not ends:  # kept: the sibling stands beside it in the very same columns
                assert len(new) == 39
    assert changed > 40


def test_a_group_without_a_hit_is_unchanged() -> None:
    rows = [keeping(MISSES[w % 3], *MISSES) for w in range(6)]
    assert splice(rows) == rows
    assert splice(rows[:1]) == rows[:1]


def test_no_row_loses_its_own_find_and_probability_0_changes_nothing() -> None:
    for key in range(20):
        rows = random_group(Draw("own", key), False, width=4)
        assert splice(rows, 0.0, key) == rows
        for old, new in zip(rows, splice(rows, 1.0, key), strict=True):
            own, now = column_of_find(old), column_of_find(new)
            assert own is None or (now is not None and now <= own)


def test_the_same_draws_give_the_same_rows() -> None:
    rows = random_group(Draw("again", 1), False, width=7)
    assert splice(rows, 0.5, 3) == splice(rows, 0.5, 3)
    assert len({str(splice(rows, 0.5, key)) for key in range(12)}) > 1


def test_the_share_of_copies_is_the_probability() -> None:
    copied = 0
    for key in range(400):
        rows = [keeping(*MISSES[:2], FINDS[0]), keeping(*MISSES, MISSES[0])]
        copied += splice(rows, 0.8, key)[1] != rows[1]
    assert 0.74 < copied / 400 < 0.86  # one chance each: three standard errors


def test_rows_of_any_text_come_back_as_they_were() -> None:
    for text in ("", "yes", "; ; ;", "( 7 yes ) ;", "= 45", "yes yes = 45 ;"):
        rows = [pieces(text), keeping(*MISSES, MISSES[0])]
        assert splice(rows) == rows


class Numbers(Task):
    """A task of one's own, without a splice."""

    def check(self, example: Example, answer: str) -> Verdict:
        form = self.normalise(answer)
        return Verdict(form == self.normalise(example.answer), 1.0, str(form), "")


def test_a_task_without_a_splice_says_so() -> None:
    example = Example("1", "1 + 1", "2")
    with pytest.raises(TaskError, match=r"'own' has no splice.*warmup\.splice_by=lines"):
        Numbers("own", [example], split="all").splice(example, [["2"]], 0.5, Draw(0))


CHAIN = get_task("chain-arithmetic", size=5)
SUM = CHAIN[0]


def lines(text: str) -> Row:
    """A text as tokens of which every line's end is one."""
    return [piece for line in text.splitlines(keepends=True) for piece in line.partition(" ")]


def wrong_row(*first: str) -> Row:
    return lines("".join(f"{line}\n" for line in first) + "1 + 1 = 2\n2 + 2 = 4\nAnswer: 123456")


def test_chain_arithmetic_takes_over_the_line_with_the_answer() -> None:
    right = lines(CHAIN.reference_text(SUM) or "")
    wrong = wrong_row(*["3 + 4 = 7"] * 7)
    after = CHAIN.splice(SUM, [right, wrong], 1.0, Draw("chain"))
    assert after[0] == right
    text = "".join(after[1])
    assert text.endswith(f"Answer: {SUM.answer}")
    assert CHAIN.verify(SUM, text).correct
    kept = len(after[1]) - len(lines(f"Answer: {SUM.answer}"))
    assert kept >= len(right)  # not before the sibling had written all of it
    assert after[1][:kept] == wrong[:kept]


def test_chain_arithmetic_copies_no_wrong_answer_and_no_unmarked_number() -> None:
    for text in ("Answer: 99999", CHAIN.reference_text(SUM).rpartition("\n")[0]):  # type: ignore[union-attr]
        rows = [lines(text), wrong_row(*["3 + 4 = 7"] * 7)]
        assert CHAIN.splice(SUM, rows, 1.0, Draw("chain")) == rows


def test_free_text_says_where_the_answer_comes_from() -> None:
    right, wrong = lines(CHAIN.reference_text(SUM) or ""), wrong_row(*["3 + 4 = 7"] * 7)
    after = splice_lines(CHAIN, SUM, [right, wrong, wrong], 1.0, Draw("lines"))
    for row in after[1:]:
        text = "".join(row)
        last = SUM.data["steps"][-1]
        assert text.endswith(
            f"Another attempt found {SUM.answer}; checking: {last}\nAnswer: {SUM.answer}"
        )
        assert CHAIN.verify(SUM, text).correct
    assert splice_lines(CHAIN, SUM, [wrong, wrong], 1.0, Draw("lines")) == [wrong, wrong]


def words(text: str) -> Row:
    """A text as chat models' tokens: a blank begins a token, signs stand alone."""
    return re.findall(r" ?\w+|\n|[^\w\s]| ", text)


def rewritten(right: str, wrong: str, answer: str) -> str:
    task = Numbers("own", [Example("1", "?", answer)], split="all")
    rows = [words(right), words(wrong)]
    assert all("".join(row) == text for row, text in zip(rows, (right, wrong), strict=True))
    after = splice_lines(task, task[0], rows, 1.0, Draw("words"))
    assert after[0] == rows[0]
    return "".join(after[1])


def test_the_point_of_a_number_ends_no_sentence() -> None:
    """Failed: "The answer is 3" was a find of a row that says 3.5, and rows were cut within 2.5."""
    late = "Let me see that. Is it 2.5 or what? It is 9."
    assert rewritten("The answer is 3.5, not 3.", late, "3") == late
    found = rewritten("The answer is 3.", "It is 2.5 or so, or 4.5 or even 5.5. No.", "3")
    assert (
        found == "It is 2.5 or so, or 4.5 or even 5.5. Another attempt found 3.\nThe answer is 3."
    )


def test_what_is_copied_is_set_apart_from_the_sentence_before_it() -> None:
    """Failed: "that.Another attempt found 3; checking: ", and the find before the line's end."""
    right = "Half of 6. So:\nThe answer is 3."
    apart = "Another attempt found 3; checking: Half of 6. So:\nThe answer is 3."
    start = "I begin and look at this for quite a long while"
    assert rewritten(right, f"{start}. Then I go on.", "3") == f"{start}. {apart}"
    assert rewritten(right, f"{start}.\nThen I go on.", "3") == f"{start}.\n{apart}"
    assert rewritten("The answer is 50%.", f"{start}.\nNo.", "50%").endswith(
        "found 50%.\nThe answer is 50%."
    )
