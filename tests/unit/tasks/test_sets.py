"""The sets that are read: their columns, references and verdicts, on made-up rows."""

import json
from pathlib import Path
from typing import Any

import pytest

import interlace.errors
from interlace.errors import MissingDependencyError, TaskError
from interlace.tasks import Task, get_task
from interlace.tasks.drawn import Draw
from interlace.tasks.hub_sets import MATH_SETS
from support.task_files import (
    ARTICLES,
    CHOICES,
    FORMULAS,
    PUZZLES,
    WORD_PROBLEMS,
    write_jsonl,
)
from support.typecheck import unchecked


@pytest.fixture
def gsm8k(tmp_path: Path) -> Task:
    return get_task("gsm8k", data=write_jsonl(tmp_path / "rows.jsonl", WORD_PROBLEMS))


def test_gsm8k_takes_what_follows_the_hashes(gsm8k: Task) -> None:
    assert [example.answer for example in gsm8k] == ["10", "1,250", "0.25"]
    assert gsm8k.split == "all"


def test_gsm8k_traces_are_its_solutions_in_the_form_that_a_prompt_asks_for(gsm8k: Any) -> None:
    trace = gsm8k.trace(gsm8k[0], Draw("trace"))
    assert trace == "3 bags hold 3*4 = 12 pears.\n12 - 2 = 10 are left.\n\\boxed{10}"
    assert gsm8k.verify(gsm8k[0], trace).correct
    with pytest.raises(TaskError, match="no solutions, only results"):
        gsm8k.trace(gsm8k[2], Draw("trace"))


@pytest.mark.parametrize(
    ("index", "text", "correct", "answer"),
    [
        (0, r"so \boxed{10}", True, "10"),
        (0, "so 12 - 2 = 10\n#### 10", True, "10"),
        (0, "The answer is 10 pears.", True, "10"),
        (0, r"\boxed{10\text{ pears}}", True, "10"),
        (0, r"\boxed{\frac{20}{2}}", True, "10"),
        (0, r"\boxed{12}, no, \boxed{10}", True, "10"),
        (0, r"\boxed{10}, no, \boxed{12}", False, "12"),
        (0, r"\boxed{10}</think>I forgot", False, None),
        (0, r"\boxed{ten}", False, "ten"),
        (0, r"\boxed{}", False, None),
        (0, "", False, None),
        (1, r"\boxed{\$1{,}250}", True, "1250"),
        (1, "It costs $1,250.00", True, "1250"),
        (2, r"\boxed{\frac14}", True, "1/4"),
        (2, r"\boxed{25\%}", False, "25"),
    ],
)
def test_gsm8k_verdicts(
    gsm8k: Task, index: int, text: str, correct: bool, answer: str | None
) -> None:
    verdict = gsm8k.verify(gsm8k[index], text)
    assert (verdict.correct, verdict.score, verdict.answer) == (correct, float(correct), answer)


def test_gsm8k_steps_are_the_equations_of_the_text(gsm8k: Task) -> None:
    steps = gsm8k.steps(gsm8k[0], "3*4 = 12, 12 - 2 = 11, 3*4 = 12")
    assert [(step.text, step.holds) for step in steps] == [
        ("3*4 = 12", True),
        ("12 - 2 = 11", False),
    ]


@pytest.mark.parametrize("name", [name for name in MATH_SETS if name != "gsm8k"])
def test_math_sets(name: str, tmp_path: Path) -> None:
    task = get_task(name, data=write_jsonl(tmp_path / "rows.jsonl", FORMULAS))
    assert len(task) == 4
    assert "boxed" in str(task.prompt(task[0]))
    for example in task:
        assert task.verify(example, task.reference_text(example) or "").correct
        assert not task.verify(example, r"\boxed{17}").correct
    assert task.verify(task[0], r"\boxed{\sqrt{8}}").correct
    assert task.verify(task[1], r"The answer is $(x + 1)^2$.").correct


def test_numbers_need_no_math_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interlace.errors, "find_spec", lambda name: None)
    numbers = write_jsonl(tmp_path / "numbers.jsonl", [{"question": "6*7?", "answer": 42}])
    task = get_task("amc23", data=numbers)
    assert task.verify(task[0], "42").correct
    with pytest.raises(
        MissingDependencyError, match=r'math-verify.*pip install "interlace\[math\]"'
    ):
        get_task("math500", data=write_jsonl(tmp_path / "formulas.jsonl", FORMULAS))


def test_a_row_without_an_answer(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "So.\n#### "}])
    with pytest.raises(TaskError, match="'Why\\?' has no reference answer"):
        get_task("gsm8k", data=rows)


GPQA_GOLDEN = ["B", "C"]


@pytest.fixture
def gpqa(tmp_path: Path) -> Task:
    return get_task("gpqa", data=write_jsonl(tmp_path / "rows.jsonl", CHOICES))


def test_gpqa_shuffles_by_the_question(gpqa: Task, tmp_path: Path) -> None:
    for example, row in zip(gpqa, CHOICES, strict=True):
        choices = example.data["choices"]
        assert sorted(choices) == sorted(text for key, text in row.items() if "Answer" in key)
        assert choices["ABCD".index(example.answer)] == row["Correct Answer"]
        for letter, choice in zip("ABCD", choices, strict=True):
            assert f"\n{letter}) {choice}" in example.question
    assert [example.answer for example in gpqa] == GPQA_GOLDEN
    backwards = get_task("gpqa", data=write_jsonl(tmp_path / "back.jsonl", CHOICES[::-1]))
    assert list(backwards) == list(gpqa)[::-1]


def test_gpqa_verdicts(gpqa: Task) -> None:
    example = gpqa[1]
    right = example.answer
    wrong = "ABCD"[("ABCD".index(right) + 1) % 4]
    for text in (
        f"Answer: {right}",
        f"answer is ({right})",
        f"\\boxed{{{right}}}",
        f"I take ({right}) since it is light",
        f"Cork floats.\n\n**{right}**",
        "Answer: cork",
        f"({wrong}) sinks.\n({right})",
    ):
        assert gpqa.verify(example, text).answer == right
        assert gpqa.verify(example, text).correct
    assert gpqa.verify(example, f"Answer: {wrong}").reason == f"expected {right}"
    assert gpqa.verify(example, "All of them").answer is None
    assert gpqa.verify(example, "Answer: E").reason == "is none of the choices"


@pytest.fixture
def zebra(tmp_path: Path) -> Task:
    return get_task("zebralogic", data=write_jsonl(tmp_path / "rows.jsonl", PUZZLES))


RIGHT = {
    "House 1": {"Name": "Bo", "Drink": "tea"},
    "House 2": {"Name": "Ada", "Drink": "root beer"},
}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (json.dumps({"solution": RIGHT}), 1.0),
        (json.dumps(RIGHT), 1.0),
        (
            "So:\n```json\n"
            + json.dumps({"reasoning": "{", "solution": RIGHT}, indent=2)
            + "\n```",
            1.0,
        ),
        (json.dumps(RIGHT).replace("House ", ""), 1.0),
        (json.dumps(RIGHT).lower().replace("bo", " BO "), 1.0),
        (json.dumps(RIGHT).replace('"tea"', '["tea"]'), 1.0),
        ('{"solution": {}} ' + json.dumps(RIGHT) + " {unbalanced", 1.0),
        (json.dumps(RIGHT).replace("tea", "milk"), 0.75),
        (json.dumps({"House 1": RIGHT["House 1"]}), 0.5),
        (json.dumps({"House 1": {"Name": "Bo"}}), 0.25),
        (json.dumps(RIGHT) + json.dumps({"House 1": {"Name": "Ada"}}), 0.0),
        (json.dumps({"House 3": {"Name": "Bo"}}), 0.0),
        ("{}", 0.0),
        ("House 1: Bo, tea", 0.0),
        ("{" * 3000, 0.0),
        ('{"a":' * 3000 + "1" + "}" * 3000, 0.0),
        ("", 0.0),
    ],
)
def test_zebralogic_counts_cells(zebra: Task, text: str, score: float) -> None:
    verdict = zebra.verify(zebra[0], text)
    assert verdict.score == score
    assert verdict.correct is (score == 1.0)


def test_zebralogic_prompt_shows_the_form(zebra: Task) -> None:
    prompt = str(zebra.prompt(zebra[0]))
    assert "___" in prompt
    assert "House 2" in prompt
    assert "root beer" not in prompt


def test_zebralogic_refuses_blanks(tmp_path: Path) -> None:
    blank = json.loads(json.dumps(PUZZLES[0]).replace("root beer", "___"))
    with pytest.raises(TaskError, match=r"blanked out\. Use data='WildEval/ZebraLogic'"):
        get_task("zebralogic", data=write_jsonl(tmp_path / "rows.jsonl", [blank]))
    blank["solution"] = {"header": ["House", "Name"], "rows": [["1"]]}
    with pytest.raises(TaskError, match="'header' and 'rows' of the same length"):
        get_task("zebralogic", data=write_jsonl(tmp_path / "rows.jsonl", [blank]))


@pytest.mark.parametrize("name", ["xsum", "cnn-dailymail"])
def test_summaries(name: str, tmp_path: Path) -> None:
    rows = ARTICLES
    if name == "cnn-dailymail":
        rows = [{"article": r["document"], "highlights": r["summary"]} for r in ARTICLES]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = get_task(name, data=path)
    assert str(task.prompt(task[0])).count("sentence") == 1
    whole = task.verify(task[0], f"<think>hm</think> {ARTICLES[0]['summary']}")
    assert (whole.correct, whole.score) == (True, 1.0)
    # 3 of 10 words in order, of a text of 3: F = 2 * 1 * 0.3 / 1.3
    some = task.verify(task[0], "Bridge been closed")
    assert some.score == pytest.approx(0.6 / 1.3)
    assert (
        not get_task(name, data=path, threshold=0.5).verify(task[0], "Bridge been closed").correct
    )
    assert task.verify(task[0], "Nothing").score == 0
    assert task.verify(task[0], " ").answer is None
    assert len(task.verify(task[0], "bridge " * 50_000).answer or "") == 4000


def test_summaries_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interlace.errors, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'rouge-score.*"interlace\[eval\]"'):
        get_task("xsum", data=write_jsonl(tmp_path / "rows.jsonl", ARTICLES))


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_thresholds_out_of_range(tmp_path: Path, threshold: float) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ARTICLES)
    with pytest.raises(TaskError, match="above 0 and at most 1"):
        get_task("xsum", data=path, threshold=threshold)


MINE = [{"q": "Half of 3?", "a": "1.5", "options": ["1", "1.5", "2"]}]


@pytest.mark.parametrize(
    ("options", "text", "correct"),
    [
        ({"checker": "number"}, r"\boxed{3/2}", True),
        ({"checker": "math"}, r"\boxed{\frac32}", True),
        ({"checker": "exact"}, "Answer: 1.5", True),
        ({"checker": "exact"}, "Answer: one and a half", False),
        ({"checker": "choice", "choices": "options"}, "Answer: B", True),
        ({"checker": "choice", "choices": "options"}, "I say\n(B)", True),
        ({"checker": "choice", "choices": "options"}, "Answer: C", False),
    ],
)
def test_jsonl(tmp_path: Path, options: dict[str, Any], text: str, correct: bool) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", MINE)
    task = get_task(f"jsonl:{path}", question="q", answer="a", **options)
    assert task.verify(task[0], text).correct is correct
    assert task.verify(task[0], task.reference_text(task[0]) or "").correct


def test_jsonl_choices_and_instruction(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", MINE)
    options = {"question": "q", "answer": "a", "checker": "choice", "choices": "options"}
    task = get_task(f"jsonl:{path}", chat=False, instruction="One letter.", **options)
    assert task.prompt(task[0]) == "Half of 3?\n\nA) 1\nB) 1.5\nC) 2\n\nOne letter."
    assert task[0].answer == "B"
    assert task.normalise("(b)") == task.normalise("B") == "B"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (MINE, {"question": "q"}, "needs the column 'answer'; this one has 'q', 'a', 'options'"),
        (MINE, {"question": "q", "answer": "a", "checker": "maths"}, "A checker is one of"),
        (MINE, {"question": "q", "answer": "a", "checker": "choice"}, "is a letter"),
        (
            [{**MINE[0], "options": "AB"}],
            {"question": "q", "answer": "a", "choices": "options"},
            "a list of 2 to 26",
        ),
    ],
)
def test_jsonl_refusals(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", rows)
    with unchecked(), pytest.raises(TaskError, match=message):
        get_task(f"jsonl:{path}", **options)


def test_jsonl_without_a_file() -> None:
    with pytest.raises(TaskError, match="there is no 'absent/file'"):
        get_task("jsonl:absent/file")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["42"], r"text or a number; got a list"),
        ({"v": 42}, r"text or a number; got a dict"),
        (float("nan"), "nor NaN or infinity; got nan"),
        (1e999, "nor NaN or infinity; got inf"),
        (" \u200b", "not empty"),
        (None, "this one has null in 'answer'"),
        (True, "got true or false"),
        ("", "is not empty"),
        ("  ", "is not empty"),
    ],
)
def test_an_answer_is_text_or_a_number(tmp_path: Path, answer: object, message: str) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "Q?", "answer": answer}])
    for checker in ("math", "exact"):
        with pytest.raises(TaskError, match=message):
            get_task(f"jsonl:{path}", checker=checker)


def test_numbers_are_answers(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Q?", "answer": 4.5}])
    task = get_task(f"jsonl:{path}")
    assert task.verify(task[0], r"\boxed{\frac{9}{2}}").correct


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hi. What is it?"},
    {"role": "user", "content": "6 * 7?"},
]


@pytest.mark.parametrize("name", ["jsonl:rows.jsonl", "gsm8k"])
def test_messages_stay_messages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They became the text of a Python list, or were refused."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [{"question": TALK, "answer": "42"}])
    task = get_task(name, data="rows.jsonl")
    assert task[0].question == TALK
    asked = task.prompt(task[0])
    assert asked[:3] == TALK[:3]
    assert asked[3] == {"role": "user", "content": f"6 * 7?\n\n{task.instruction}"}
    assert get_task(name, data="rows.jsonl", template="{question}").prompt(task[0]) == TALK
    with pytest.raises(TaskError, match="chat messages, which chat=False has no form for"):
        get_task(name, data="rows.jsonl", chat=False).prompt(task[0])


def test_the_instruction_joins_the_users_message_where_the_assistant_begins(tmp_path: Path) -> None:
    prefill = [*TALK, {"role": "assistant", "content": "It is"}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": prefill, "answer": "42"}])
    asked = get_task(f"jsonl:{path}", instruction="Think.").prompt(get_task(f"jsonl:{path}")[0])
    assert asked[3:] == [{"role": "user", "content": "6 * 7?\n\nThink."}, prefill[4]]


def test_choices_stand_below_the_users_message(tmp_path: Path) -> None:
    rows = [{"question": TALK, "answer": "42", "o": ["41", "42"]}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = get_task(f"jsonl:{path}", checker="choice", choices="o", template="{question}")
    assert task[0].answer == "B"
    assert task.prompt(task[0])[3] == {"role": "user", "content": "6 * 7?\n\nA) 41\nB) 42"}


@pytest.mark.parametrize(
    "question", [[], [{"role": "user"}], [{"role": "assistant", "content": "Hi."}], ["6 * 7?"], 5]
)
def test_what_is_neither_text_nor_messages_is_no_question(tmp_path: Path, question: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": question, "answer": "42"}])
    for name in ("jsonl:" + path, "gsm8k"):
        with pytest.raises(TaskError, match="A question is text, or chat messages"):
            get_task(name, data=path)


def test_a_question_with_two_answers_is_refused_and_a_repeated_row_is_one(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": "4"}
    path = write_jsonl(tmp_path / "a.jsonl", [row, row])
    assert len(get_task(f"jsonl:{path}")) == 1
    path = write_jsonl(tmp_path / "b.jsonl", [row, {**row, "answer": "5"}])
    with pytest.raises(TaskError, match=r"one reference answer; .* 'Q\?' has '4' and '5'"):
        get_task(f"jsonl:{path}")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "Q?", "answer": "4"}\n')
    assert get_task(f"jsonl:{path}")[0].answer == "4"


def test_a_verdict_does_not_depend_on_other_rows(tmp_path: Path) -> None:
    """ "math" became "number" where every reference of the file was one."""
    number = {"question": "N?", "answer": "72"}
    formula = {"question": "F?", "answer": r"\sqrt{2}"}
    answers = ["x+y=72", "f(3)=72", r"\sqrt{5184}", r"72\text{ m}", r"6 \times 12 = 72", "73"]
    for name, rows in (("a", [number]), ("b", [number, formula])):
        if formula in rows:
            pytest.importorskip("math_verify")
        task = get_task(f"jsonl:{write_jsonl(tmp_path / f'{name}.jsonl', rows)}")
        right = [task.verify(task[0], rf"\boxed{{{answer}}}").correct for answer in answers]
        assert right == [True] * 5 + [False]
