"""The page at `/`, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import interlace
from interlace.server.playground import _judged
from interlace.tasks import Verdict
from support.architectures import attach_random, build
from support.server import Running, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
HOSTILE = [
    "<img src=x onerror=document.title='owned'>",
    "<script>document.title='owned'</script>",
    "\"'><svg/onload=document.title='owned'>",
    "</pre><a href=javascript:alert(1)>x</a>",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium: Any, **options: Any) -> Any:
    """A page that waits longer than a busy machine takes; by default half a minute."""
    page = chromium.new_context(**options).new_page()
    page.set_default_timeout(300_000)
    return page


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page on which anything in the console is a fault."""
    page = opened(chromium)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    yield page
    assert told == []


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    """The packaged model with its task, as `interlace serve` serves it."""
    model, tokenizer = interlace.load("tiny-bridge")
    task = interlace.tasks.get_task("tiny-countdown")
    with running(interlace.Engine(model, tokenizer), name="tiny-bridge", task=task) as server:
        yield server


def hostile_engine(kind: str = "bridge", **options: str) -> interlace.Engine:
    """A model that says nothing but markup, with random blocks."""
    words = ["<pad>", "<end>", "go", *HOSTILE]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="go"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>"
    )
    model = build("llama", seed=1, vocab_size=len(words), eos_token_id=1, tie_word_embeddings=False)
    attach_random(model, kind, **options)
    return interlace.Engine(model, tokenizer)


@in_browser
def test_a_person_sees_at_once_what_the_method_does(page: Any, tiny: Running) -> None:
    page.goto(tiny.address)
    page.get_by_text("rows are right").wait_for()
    assert page.locator("section.group").count() == 2
    status = page.locator("#status").inner_text()
    assert status.startswith("together: 7 of 8 rows are right, 6 of them after a sibling had it")
    assert "alone: 3 of 8 rows are right" in status
    assert page.locator("#together-2").get_by_text("after row 1").is_visible()
    assert page.locator("#together-2 mark").inner_text().strip() == "( 7 * 6 ) - 3"
    assert page.locator("section.group .votes").first.inner_text().startswith("6*7-3: 7 ✓")
    assert page.locator("section.group .arcs path").count() > 0
    assert page.locator(".row.finished").count() == 16


@in_browser
def test_the_slider_goes_back_and_the_keyboard_moves_it(page: Any, tiny: Running) -> None:
    page.goto(tiny.address)
    page.get_by_text("rows are right").wait_for()
    whole = page.locator("#together-1 pre").inner_text()
    step = page.locator("#step")
    step.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#step-out").inner_text() == "24 of 29"
    part = page.locator("#together-1 pre").inner_text()
    assert whole.startswith(part)
    assert part != whole
    step.fill("8")
    assert page.locator("#alone-2 p").inner_text() == ""
    assert "none: 7" in page.locator("section.group .votes").first.inner_text()
    heat = page.locator("section.group .heat").first
    before = heat.get_attribute("aria-label")
    page.get_by_role("button", name="One step on").click()
    assert heat.get_attribute("aria-label") != before
    page.locator("#layer").fill("2")
    assert page.locator("#layer-out").inner_text() == "2"
    page.locator("#play").click()
    page.get_by_text("29 of 29").wait_for()


@in_browser
def test_a_link_holds_the_settings(page: Any, tiny: Running) -> None:
    page.goto(f"{tiny.address}/?p=1+3+8+-%3E+2+%3A&w=3&n=9&t=0.5&s=4&m=alone")
    page.get_by_text("rows are right").wait_for()
    assert page.locator(".row").count() == 3
    assert page.locator("#step-out").inner_text() == "9 of 9"
    page.get_by_role("button", name="Next seed").click()
    page.wait_for_url("**s=5**")
    with page.expect_download() as download:
        page.locator("#save:enabled").click()
    saved = json.loads(download.value.path().read_text())
    assert saved["settings"]["seed"] == 5
    (group,) = saved["groups"]
    assert group["mode"] == "alone"
    assert len(group["texts"]) == 3


@in_browser
def test_arcs_stand_over_their_rows_where_these_are_wider_than_the_page(
    page: Any, tiny: Running
) -> None:
    """They were drawn over the width of the page, and the rows were scrolled below them."""
    page.goto(f"{tiny.address}/?p=1+3+8+-%3E+2+%3A&w=24&n=9&t=1&s=4&m=together")
    page.get_by_text("rows are right").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(gaps := page.evaluate(GAPS)) > 23
    assert max(gaps) < 2


# Pixels between the start of each arc and the middle of the row that it starts from.
GAPS = """() => [...document.querySelectorAll(".arcs path")].map((path) => {
  const start = path.getPointAtLength(0).matrixTransform(path.getScreenCTM());
  const row = path.textContent.match(/^row (\\d+)/)[1];
  const box = document.getElementById(`together-${row}`).getBoundingClientRect();
  return Math.abs(start.x - (box.x + box.width / 2));
})"""


@in_browser
def test_hostile_output_stays_text(page: Any) -> None:
    with running(hostile_engine()) as server:
        page.goto(server.address)
        page.locator("#prompt").fill("go <b>go</b>")
        page.locator("#run").click()
        page.get_by_text("together: 8 rows").wait_for()
        text = page.locator("#groups").inner_text()
        assert any(word in text for word in HOSTILE)
        assert (
            page.locator("#groups img, #groups script, #groups pre a, #groups pre svg").count() == 0
        )
        assert page.title() == "Interlace: rows that read each other"


@in_browser
@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("bridge", {"reads": "finished"}, "all that those wrote which have ended"),
        ("bridge", {"reads": "history"}, "all that its siblings have written"),
        ("gated", {"reads": "history"}, "all that its siblings have written"),
        ("gated", {}, "at every step each row reads what its siblings feed"),
        ("pmatch", {}, "no row can read another"),
    ],
)
def test_it_says_what_the_blocks_read(
    page: Any, kind: str, options: dict[str, str], words: str
) -> None:
    """And shows who listens to whom, where anyone does."""
    with running(hostile_engine(kind, **options)) as server:
        page.goto(f"{server.address}/?p=go&w=3&n=5&m=together")
        page.locator("#status", has_text="together: 3 rows").wait_for()
        assert words in page.locator("section.group .words > p").inner_text()
        heat = page.locator("section.group .heat")
        assert heat.is_visible() == (kind != "pmatch")
        if heat.is_visible():
            assert "row 3 listens to row" in (heat.get_attribute("aria-label") or "")


@in_browser
def test_a_key_is_asked_for_and_an_error_is_told(chromium: Any) -> None:
    """The console has the refused request, which is no fault."""
    page = opened(chromium, permissions=["clipboard-read", "clipboard-write"])
    with running(hostile_engine(), api_key="secret") as server:
        page.goto(server.address)
        page.get_by_text("asks for its API key").wait_for()
        page.locator("#key").fill("secret")
        page.locator("#run").click()  # without a prompt, which only the model would tell
        page.get_by_text("bridge blocks").wait_for()
        assert page.locator("#status").inner_text() == ""
        page.locator("#prompt").fill("go")
        page.locator("#run").click()
        page.get_by_text("together: 8 rows").wait_for()
        page.locator("#python").click()
        page.locator("#status", has_text="clipboard").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert "secret" not in copied
        assert 'api_key=os.environ["INTERLACE_API_KEY"]' in copied
        compile(copied, "copied", "exec")
        page.locator("#prompt").fill("go " * 200)
        page.locator("#run").click()
        page.locator("#status.error").wait_for()


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_its_words_can_be_read(
    chromium: Any, tiny: Running, scheme: str
) -> None:
    """No sideways scrolling at 360 px, and a contrast of 4.5 to 1 (WCAG AA) of every text."""
    page = opened(chromium, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(tiny.address)
    page.get_by_text("rows are right").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    poor = page.evaluate(CONTRAST)
    assert poor == []


# Texts of the page whose contrast with what lies behind them is below 4.5 to 1.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return rgba("white");
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const has = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!has || node.closest("svg") || node.disabled || !node.offsetParent) continue;
    const a = light(rgba(getComputedStyle(node).color)), b = light(behind(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName} ${node.className}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


def test_static_files_are_a_fixed_table(tiny: Running) -> None:
    with httpx.Client(base_url=tiny.address) as http:
        page = http.get("/")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert http.get("/static/page.js").headers["Content-Type"].startswith("text/javascript")
        for path in ("..%2fapp.py", "%2e%2e/app.py", "page.html", "../page.css", "nothing"):
            assert http.get(f"/static/{path}").status_code == 404
        assert "access-control-allow-origin" not in http.get(
            "/v1/models", headers={"Origin": "http://evil.example"}
        ).headers  # fmt: skip


def test_verdicts_of_long_rows_take_few_looks() -> None:
    """A verdict of every beginning and every end took the square of a row's length."""
    looks = []

    class Finds:
        def verify(self, example: str, text: str) -> Verdict:
            looks.append(text)
            return Verdict(example in text, float(example in text), None, "")

    for before in (0, 1, 700):
        row = [*["x"] * before, *"hit", *["y"] * 900]
        (found,) = _judged(Finds(), "hit", [row])["rows"]
        assert (found["start"], found["since"]) == (before, before + 2)
    assert len(looks) < 3 * 25
    assert _judged(Finds(), "", [[]])["rows"][0]["since"] is None


def test_no_page_where_none_is_wanted() -> None:
    with running(hostile_engine(), playground=False) as server:
        assert httpx.get(server.address).status_code == 404


def test_the_page_is_small_and_loads_nothing_from_elsewhere() -> None:
    from importlib.resources import files

    sources = [f.read_text() for f in (files("interlace.server") / "static").iterdir()]
    assert sum(len(text.splitlines()) for text in sources) <= 1000
    allowed = "http://www.w3.org/2000/svg"  # a name, not an address
    assert not any("://" in text.replace(allowed, "") for text in sources)
