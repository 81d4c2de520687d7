"""The page in a browser: every part of it, light and dark, on a phone, by keys alone; it asks
nobody but its server.
"""

import copy
import json
import re
import shutil
from urllib.parse import urlencode

import pytest

pytest.importorskip("fastapi", reason="the playground needs the extra: pip install 'rung[serve]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright, from PyPI"
)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
if BROWSER is None:
    pytest.skip(
        "the browser tests need Chromium: apt-get install chromium", allow_module_level=True
    )

import numpy  # noqa: E402

from rung.data.tokenizer import encode_documents  # noqa: E402
from rung.data.tokenizer_training import build_tokenizer  # noqa: E402
from rung.models import make_config  # noqa: E402
from rung.models.bigram import BigramForCausalLM  # noqa: E402
from rung.serve.app import build_app  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402
from tests.conftest import SENTENCES  # noqa: E402
from tests.serve.playground_app import running  # noqa: E402

expect = playwright.expect
expect.set_options(timeout=120_000)  # the step in C is compiled on the way
TABS = {
    "side": ".card",
    "next": ".bars",
    "surprise": ".reading .t",
    "attention": ".head",
    "chat": ".log",
}
NAMES = ["bigram", "ngram", "rnn-attention", "gpt2", "llama3"]
PHONE = {"viewport": {"width": 360, "height": 740}}
HOSTILE = '<img src=x onerror="alert(1)"><b>cat</b>'
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def served(make_tiny, tokenizer):
    record = {
        "scores": {"test": {"bits_per_byte": 1.5, "low": 1.4, "high": 1.6}},
        "marks": {"zlib": 2.5},
    }
    record |= {
        "corpus": {"name": HOSTILE},
        "prompt": "the cat",
        "passage": [["the cat sat\n", 3.0], ["on a mat", 5.0]],
    }
    runs = {name: ServedModel(name, make_tiny(name), tokenizer, record) for name in NAMES}
    able = copy.deepcopy(tokenizer)
    able.chat_template = TEMPLATE
    return runs | {
        "tuned": ServedModel("tuned", make_tiny("llama3"), able, record),
        "letters": spell(record),
    }


def spell(record):
    """A bigram of letters: a run whose tokens are not those of the others."""
    tokenizer = build_tokenizer("char", SENTENCES)
    documents = list(encode_documents(SENTENCES, tokenizer))
    starts = numpy.cumsum([0] + [len(ids) for ids in documents[:-1]])
    model = BigramForCausalLM.fit(
        make_config("bigram", tokenizer, {}), numpy.concatenate(documents), starts
    )
    return ServedModel("letters", model.eval(), tokenizer, record)


@pytest.fixture(scope="module")
def address(served):
    with running(build_app(served)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(address, browser):
    """A function that opens a view; at the end nothing may have gone elsewhere, and no error to the
    console but one that was `told` before.
    """
    wrong, contexts = [], []

    def visit(route):
        if route.request.url.startswith(address):
            return route.continue_()
        wrong.append(route.request.url)
        return route.abort()

    def hear(message, told):
        if message.type == "error" and not (told and told in message.text):
            wrong.append(message.text)

    def open_view(tab="side", context=None, prepare=None, locked=False, told=None, **view):
        contexts.append(browser.new_context(**(context or {})))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: hear(message, told))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.route("**/*", visit)
        if prepare:
            prepare(page)
        page.goto(f"{address}/#{urlencode({'tab': tab, **view})}")
        opened = "#lock" if locked else f"#tab-{tab}[aria-selected=true]"
        expect(page.locator(opened)).to_be_visible()
        return page

    yield open_view
    for context in contexts:
        context.close()
    assert not wrong


def cut_off(page):
    """Let questions fail as they do without a server."""
    page.route("**/api/surprisal", lambda route: route.abort())


def hang(page):
    """Let completions neither come nor fail."""
    page.route("**/v1/**", lambda route: None)


def test_every_rung_writes_beside_the_others(open_page):
    page = open_page(max_tokens=20, seed=3)
    page.get_by_label("Prompt").fill("the dog")
    page.get_by_role("checkbox", name="bigram").uncheck()
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_text("All have finished.")).to_be_visible()
    assert page.locator(".card:visible h2").count() == 6
    for card in page.locator(".card:visible").all():
        expect(card.locator("b").nth(1)).to_have_text("the dog")
        expect(card.locator(".note").last).to_contain_text(
            re.compile(r"\d+ tokens · [\d,]+ tokens/s")
        )
        assert len(card.locator(".writing").inner_text()) > len("the dog")
        expect(card.locator(".figures")).to_contain_text("1.50 bits per byte (1.40–1.60)")
    expect(page.get_by_text("zlib 2.50")).to_be_visible()
    page.wait_for_url("**prompt=the+dog**")


@pytest.mark.parametrize("by", ["button", "key"])
@pytest.mark.slow
def test_writing_can_be_stopped(by, open_page):
    page = open_page(prepare=hang)
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.get_by_text("Writing…")).to_be_visible()
    if by == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.get_by_label("Prompt").press("Escape")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


@pytest.mark.slow
def test_events_are_read_however_they_arrive_and_mistakes_are_shown(open_page):
    events = (
        'data: {"choices": [{"text": "caf"}]}\r\n\r\n: waiting\n\ndata: {"choices": '
        '[{"text":\ndata: "é"}]}\n\n'
    )

    def answer(route):
        name = json.loads(route.request.post_data)["model"]
        if name == "gpt2":
            return route.fulfill(status=429, json={"error": {"message": "the queue is full"}})
        late = (
            'data: {"error": {"message": "it took too long"}}\n\n'
            if name == "ngram"
            else "data: [DONE]\n\n"
        )
        return route.fulfill(body=events + late, content_type="text/event-stream")

    page = open_page(prepare=lambda page: page.route("**/v1/completions", answer), told="429")
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_role("article", name="llama3").locator(".writing")).to_have_text(
        "the catcafé"
    )
    expect(page.get_by_role("article", name="gpt2")).to_contain_text("the queue is full")
    expect(page.get_by_role("article", name="ngram")).to_contain_text("it took too long")


@pytest.mark.slow
def test_a_text_goes_on_by_the_tokens_that_are_picked(open_page):
    page = open_page("next", a="ngram", b="gpt2")
    bars = page.get_by_role("listbox").first
    expect(bars.get_by_role("option")).to_have_count(20)
    first = bars.get_by_role("option").first.get_attribute("aria-label").split(",")[0]
    bars.get_by_role("option").first.click()
    expect(page.get_by_label("Text so far")).to_have_value(re.compile(f"the cat ?{first}"))
    expect(page.locator(".trail .picked")).to_have_count(1)
    one = page.get_by_label("Text so far").input_value()
    page.get_by_role("listbox").nth(1).get_by_role("option").nth(2).click()
    expect(page.locator(".trail .picked")).to_have_count(2)
    page.get_by_role("button", name="Step back").click()
    expect(page.get_by_label("Text so far")).to_have_value(one)
    page.get_by_role("button", name="Step back").click()
    expect(page.get_by_label("Text so far")).to_have_value("the cat")
    expect(page.get_by_role("button", name="Step back")).to_be_disabled()


@pytest.mark.slow
def test_the_sliders_are_shown_on_the_bars(open_page):
    page = open_page("next", a="gpt2", b="none")
    rows = page.locator(".bars").first.get_by_role("option")
    expect(rows).to_have_count(20)
    page.get_by_label("Top-k").fill("3")
    expect(page.locator(".bars").first.locator(".cut")).to_have_count(17)
    page.get_by_label("Temperature").fill("0")
    expect(page.locator(".bars").first.locator(".cut")).to_have_count(19)
    expect(rows.first.locator(".drawn")).to_have_text("100.0%")
    expect(page.get_by_text("1 token can be drawn")).to_be_visible()
    own, drawn = (rows.first.locator(kind).bounding_box()["width"] for kind in (".ghost", ".bar"))
    assert own < drawn
    expect(page.locator(".pair .card").nth(1).locator(".bars")).to_be_hidden()
    page.wait_for_url("**temperature=0**")


def test_a_text_is_coloured_by_what_it_costs(open_page):
    page = open_page("surprise", a="ngram", b="llama3")
    pieces = page.locator(".reading .t")
    expect(page.locator(".total")).to_have_count(2)
    expect(page.locator(".total").first).to_contain_text("bits per byte of this text")
    expect(page.get_by_label("difference")).to_be_checked()
    assert page.locator(".reading").inner_text().replace("⏎", "").strip() == "the cat sat\non a mat"
    pieces.nth(1).hover()
    expect(page.locator(".detail:visible")).to_contain_text(
        re.compile(r"ngram [\d.]+ bits, found at order \d.*; llama3")
    )
    page.get_by_label("ngram", exact=True).check()
    expect(pieces.first.locator(".order")).to_have_text(re.compile(r"\d"))
    strengths = [
        piece.evaluate("e => Number(e.style.getPropertyValue('--s'))") for piece in pieces.all()
    ]
    assert len(set(strengths)) > 3 and all(0 <= strength <= 1 for strength in strengths)
    page.get_by_role("combobox", name="Second run").select_option("none")
    expect(page.get_by_label("difference")).to_be_hidden()
    expect(page.locator(".total")).to_have_count(1)


@pytest.mark.slow
def test_runs_with_other_tokens_stand_beside_each_other(open_page):
    page = open_page("surprise", a="letters", b="ngram", text="the cat sat on a mat")
    pieces = page.locator(".reading .t")
    expect(pieces).not_to_have_count(0)
    assert page.locator(".reading").inner_text() == "the cat sat on a mat"
    pieces.first.hover()
    expect(page.locator(".detail:visible")).to_contain_text(
        re.compile(r"letters [\d.]+ bits, in \d tokens; ngram")
    )
    sums = page.evaluate(
        """async () => {
        const { align } = await import("/page/surprisal.js");
        const body = (model) => ({ method: "POST", headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ model, text: "the cat sat on a mat" }) });
        const ask = async (model) => (await fetch("/api/surprisal", body(model))).json();
        const [a, b] = [await ask("letters"), await ask("ngram")];
        const segments = align(a.pieces, b.pieces);
        const sum = (side) => segments.reduce((total, segment) => total + segment[side].bits, 0);
        const counts = [segments.length, a.pieces.length, b.pieces.length];
        return [sum("a"), a.bits, sum("b"), b.bits, ...counts];
        }"""
    )
    assert sums[0] == pytest.approx(sums[1]) and sums[2] == pytest.approx(sums[3])
    assert 2 < sums[4] == min(sums[5:])


@pytest.mark.slow
def test_a_token_picked_by_one_is_read_as_text_by_the_other(open_page):
    page = open_page("next", a="ngram", b="letters", prompt="the ca")
    letters = page.get_by_role("listbox").nth(1).get_by_role("option")
    letters.filter(has_text=re.compile(r"^t")).first.click()
    expect(page.get_by_label("Text so far")).to_have_value("the cat")
    expect(page.locator(".trail .picked")).to_have_count(1)
    expect(page.locator(".trail .tok").last).to_have_text("t")
    page.get_by_role("listbox").first.get_by_role(
        "option", name=re.compile("^sat|^and")
    ).first.click()
    expect(page.get_by_label("Text so far")).to_have_value(re.compile("^the cat (sat|and)$"))


def poison(value):
    """An answer in which every text is markup."""
    if isinstance(value, dict):
        return {key: poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_what_models_and_visitors_write_is_never_markup(open_page):
    def answer(route):
        route.fulfill(json=poison(route.fetch().json()))

    def write(route):
        event = json.dumps({"choices": [{"text": HOSTILE, "delta": {"content": HOSTILE}}]})
        route.fulfill(body=f"data: {event}\n\n", content_type="text/event-stream")

    def prepare(page):
        page.route(re.compile("/api/(next|surprisal|attention)"), answer)
        page.route("**/v1/**", write)

    page = open_page(prepare=prepare, prompt=HOSTILE, text=HOSTILE)
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_text("All have finished.")).to_be_visible()
    for tab, part in TABS.items():
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#{tab} {part}").first).to_be_visible()
    page.get_by_label("Message").fill(HOSTILE)
    page.get_by_label("Message").press("Enter")
    for part in (
        ".writing",
        ".trail",
        ".bars",
        ".reading",
        "#attention .trail",
        ".turn.user",
        ".turn.assistant",
    ):
        expect(page.locator(part).first).to_contain_text("onerror")
    expect(page.locator("#served")).to_have_text(f"7 runs on {HOSTILE}")
    assert page.locator("img").count() == 0


def test_a_token_shows_what_it_looks_at(open_page):
    page = open_page("attention", who="llama3", look="the cat sat on the mat")
    expect(page.locator(".head")).to_have_count(8)
    page.get_by_role("button", name="Layer 2, head 3").click()
    expect(page.get_by_role("button", name="Layer 2, head 3")).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(page.get_by_role("heading", name="Layer 2, head 3")).to_be_visible()
    page.locator("#attention .tok").nth(3).hover()
    told = page.locator("#attention .detail").inner_text()
    assert "looks at" in told and sum(map(float, re.findall(r"([\d.]+)%", told))) <= 100.5
    box = page.locator(".map svg").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    expect(page.locator("#attention .detail")).to_contain_text("looks at")
    expect(page.locator("#attention .detail")).to_contain_text("100.0%")
    page.locator("#attention textarea").fill("the cat sat on the mat " * 30)
    expect(page.locator("#attention .status")).to_contain_text("are left out")
    page.get_by_label("Run").select_option("rnn-attention")
    expect(page.locator(".head")).to_have_count(1)
    page.wait_for_url("**layer=2**")


def test_a_conversation_streams(open_page):
    page = open_page("chat", max_tokens=20)
    page.get_by_label("System prompt").fill("Be brief.")
    box = page.get_by_label("Message")
    for turn in (1, 2):
        box.fill("the cat")
        box.press("Shift+Enter")
        box.press("Enter")
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        expect(page.locator(".turn")).to_have_count(2 * turn)
        expect(page.locator(".turn p").last).not_to_be_empty()
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(".turn")).to_have_count(0)


@pytest.mark.parametrize("tab", ["surprise", "attention", "chat"])
@pytest.mark.slow
def test_a_run_is_named_in_full_where_it_is_chosen(tab, open_page):
    choice = open_page(tab).locator(f"#{tab} select").first
    room, wanted = choice.evaluate(
        "select => [select.offsetWidth, (select.style.width = 'auto', select.offsetWidth)]"
    )
    assert wanted <= room


@pytest.mark.slow
def test_an_answer_that_is_stopped_gives_the_question_back(open_page):
    page = open_page("chat", prepare=hang)
    page.get_by_label("Message").fill("the cat")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_label("Message")).to_have_value("the cat")


@pytest.mark.slow
def test_a_stopped_question_is_forgotten_when_the_next_is_being_written(open_page):
    page = open_page("chat", prepare=hang)
    box = page.get_by_label("Message")
    box.fill("the cat")
    page.get_by_role("button", name="Send").click()
    box.fill("the dog")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    expect(box).to_have_value("the dog")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Send").click()
    assert sent.value.post_data_json["messages"] == [{"role": "user", "content": "the dog"}]


@pytest.mark.slow
def test_an_answer_without_a_word_is_told(open_page):
    def end(route):
        route.fulfill(body="data: [DONE]\n\n", content_type="text/event-stream")

    page = open_page("chat", prepare=lambda page: page.route("**/v1/chat/completions", end))
    page.get_by_label("Message").fill("the cat")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("tuned ended its answer before the first word.")).to_be_visible()


@pytest.mark.slow
def test_without_a_chat_model_the_page_says_how_to_make_one(open_page):
    def forget(route):
        answer = route.fetch().json()
        route.fulfill(json={"rungs": [{**run, "chat": False} for run in answer["rungs"]]})

    page = open_page("chat", prepare=lambda page: page.route("**/api/rungs", forget))
    expect(page.locator("#chat")).to_contain_text("rung tune")
    expect(page.locator("#chat textarea")).to_have_count(0)


@pytest.mark.slow
def test_what_could_not_train_is_marked_and_never_advised(open_page):
    def doubt(names):
        def change(route):
            found = route.fetch().json()["rungs"]
            for run in found:
                run |= {"chat": False, "renormalized": run["name"] == "ngram"}
                run |= {"doubt": "5 steps", "bits_per_byte": 1} if run["name"] in names else {}
            route.fulfill(json={"rungs": found})

        return lambda page: page.route("**/api/rungs", change)

    page = open_page("chat", prepare=doubt(["llama3", "rnn-attention", "tuned"]))
    expect(page.locator("#chat pre")).to_have_text("rung tune runs/…/gpt2")
    page.locator("#tab-side").click()
    for told in (
        "llama3 ‡",
        "‡ llama3: 5 steps.",
        "1.50*",
        "* ngram: no distribution; its scores were divided",
    ):
        expect(page.locator("#side")).to_contain_text(told)
    page = open_page("chat", prepare=doubt([*NAMES, "tuned"]))
    expect(page.locator("#chat pre")).to_contain_text("rung train llama3 --minutes 10")


@pytest.mark.slow
def test_light_and_dark_as_the_system_has_it_or_the_button(open_page):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    colours = {
        scheme: paper(open_page(context={"color_scheme": scheme})) for scheme in ("light", "dark")
    }
    assert colours["light"] != colours["dark"]
    page = open_page("attention", context={"color_scheme": "dark"})
    expect(page.locator(".head").first).to_be_visible()
    page.get_by_role("button", name="Theme: auto").click()
    assert paper(page) == colours["light"]
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert paper(page) == colours["light"]
    page.get_by_role("button", name="Theme: light").click()
    assert paper(page) == colours["dark"]


@pytest.mark.slow
def test_the_page_fits_a_phone(open_page):
    page = open_page(context=PHONE)
    for tab, part in TABS.items():
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#{tab} {part}").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, tab
        outside = page.evaluate(
            """[...document.querySelectorAll(
                "main button, main input, main select, main textarea, #theme")]
            .filter((e) => e.checkVisibility()).map((e) => [e.getBoundingClientRect(), e.outerHTML])
            .filter(([box]) => box.left < 0 || box.right > 360).map(([, html]) => html)"""
        )
        assert not outside


@pytest.mark.parametrize("words", ["the cat sat on the mat", "the cat sat on the mat " * 20])
@pytest.mark.slow
def test_the_map_of_attention_fits_a_phone(words, open_page):
    page = open_page("attention", context=PHONE, who="llama3", look=words)
    expect(page.locator("#attention .map svg text.chosen")).to_be_visible()
    assert page.locator("#attention .map").evaluate("map => map.scrollWidth - map.clientWidth") == 0
    outside = page.locator("#attention .map svg *").evaluate_all(
        "parts => parts.map(p => p.getBoundingClientRect()).filter(box => box.left < 0 || "
        "box.right > 360).length"
    )
    assert outside == 0


@pytest.mark.slow
def test_what_is_looked_at_first_is_of_the_runs_own_text(open_page):
    page = open_page("attention")
    expect(page.locator("#attention textarea")).to_have_value("the cat the cat")


@pytest.mark.slow
def test_every_control_is_reached_and_seen_by_keys(open_page):
    page = open_page()
    for tab, part in TABS.items():
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#{tab} {part}").first).to_be_visible()
        wanted = page.evaluate(
            """[...document.querySelectorAll(
                "main button, input, select, textarea, main [tabindex='0']")]
            .filter((e) => e.tabIndex >= 0 && !e.disabled && e.checkVisibility())
            .filter((e) => e.type !== "radio" || e.checked).length"""
        )
        assert wanted >= 4  # a text, the part itself, and what they are asked with
        reached = [here for _ in range(wanted) if (here := press_tab(page))]
        assert len({place for place, _, _ in reached}) == wanted, tab
        assert not [html for _, outline, html in reached if outline == "none"]


def press_tab(page):
    """What has the focus then: its place in the page, the line drawn around it, its markup."""
    page.keyboard.press("Tab")
    return page.evaluate(
        """() => {
        const e = document.activeElement;
        const shown = e.closest(".chip") ?? e;
        const place = [...document.querySelectorAll("*")].indexOf(e);
        const outline = getComputedStyle(shown).outlineStyle;
        return e === document.body ? null : [place, outline, e.outerHTML.slice(0, 200)];
        }"""
    )


@pytest.mark.slow
def test_the_whole_page_by_keys_alone(open_page):
    page = open_page(max_tokens=20)
    page.get_by_role("tab", name="Side by side").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#next")).to_be_visible()
    bars = page.get_by_role("listbox").first
    expect(bars.get_by_role("option").first).to_be_visible()
    bars.focus()
    page.keyboard.press("ArrowDown")
    chosen = bars.locator("[aria-selected=true]")
    expect(chosen).to_have_attribute("id", re.compile("-1$"))
    assert bars.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    page.keyboard.press("Enter")
    expect(page.locator(".trail .picked")).to_have_count(1)
    page.keyboard.press("Backspace")
    expect(page.locator(".trail .picked")).to_have_count(0)
    page.get_by_role("tab", name="Next token").focus()
    page.keyboard.press("ArrowRight")
    page.locator(".reading .t").first.focus()
    page.keyboard.press("End")
    expect(page.locator(".detail:visible")).to_contain_text("the end of the text")
    page.get_by_role("tab", name="Surprise").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#attention .tok[tabindex='0']").focus()
    page.keyboard.press("Home")
    expect(page.locator("#attention .detail")).to_contain_text("begin_of_text")
    page.get_by_role("tab", name="Attention").focus()
    page.keyboard.press("End")
    expect(page.locator("#chat")).to_be_visible()


@pytest.mark.slow
def test_a_view_is_shared_by_its_address(open_page):
    page = open_page("next", prompt="a dog & a cat", a="ngram", b="none", top_k=5)
    expect(page.get_by_label("Text so far")).to_have_value("a dog & a cat")
    expect(page.get_by_role("combobox", name="First run")).to_have_value("ngram")
    expect(page.get_by_role("combobox", name="Second run")).to_have_value("none")
    expect(page.locator("#next .slider").nth(1)).to_contain_text("5")
    page.get_by_role("combobox", name="First run").select_option("gpt2")
    page.wait_for_url("**a=gpt2**")
    page.goto(page.url)
    page.reload()
    expect(page.get_by_role("combobox", name="First run")).to_have_value("gpt2")


@pytest.mark.slow
def test_an_address_that_names_what_is_not_there_opens_all_the_same(open_page):
    page = open_page("surprise", a="gone", b="../gone", who="gone", temperature="hot")
    expect(page.locator(".total")).to_have_count(2)
    page.get_by_role("tab", name="Next token").click()
    expect(page.get_by_role("listbox").first.get_by_role("option")).to_have_count(20)


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page):
    def lock(route):
        if route.request.headers.get("authorization") == "Bearer secret":
            return route.continue_()
        return route.fulfill(status=401, json={"error": {"message": "wrong key"}})

    page = open_page(prepare=lambda page: page.route("**/api/**", lock), locked=True, told="401")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator(".card").first).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
    page.reload()
    expect(page.locator(".card").first).to_be_visible()


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(open_page):
    page = open_page("surprise", prepare=cut_off, told="ERR_FAILED")
    expect(page.locator("#surprise .status")).to_contain_text("does not answer")
