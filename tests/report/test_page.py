"""The report: the figures of the records and no others, one page that needs nothing else, labels
that can be read.
"""

import copy
import html
import itertools
import json
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.cli.run_tables import climb_table
from rung.errors import RunError
from rung.report import charts, svg
from rung.report.page import write_report
from rung.report.summaries import group_runs, read_runs, read_summaries
from rung.report.table import _set_powers

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
HOSTILE = '<script>alert("x")</script>&amp;'
SCORE = {
    "bits_per_byte": 1.934,
    "low": 1.852,
    "high": 2.021,
    "word_perplexity": 9123.4,
    "token_perplexity": 20.3,
    "documents": 45,
    "bytes": 90618,
    "words": 12000,
    "tokens": 38000,
    "unknown_words": 0,
    "unknown_nats": 0.0,
    "window": 256,
    "stride": 128,
    "lost": [],
}
RECORD = {
    "rung": "llama3",
    "recipe": {
        "rung": "llama3",
        "model": {"hidden_size": 192},
        "train": {},
        "steps": None,
        "seed": 0,
    },
    "corpus": {
        "name": "python-docs",
        "fingerprint": "96c1",
        "documents": {"train": 620, "validation": 56, "test": 45},
        "bytes": {"train": 2228560, "validation": 176444, "test": 90618},
    },
    "tokenizer": {"kind": "bpe", "fingerprint": "ab12", "vocab_size": 1024, "lost": []},
    "parameters": 1820352,
    "training": {"seconds": 74.2, "steps": 533, "tokens": 1091584, "tokens_per_second": 14711.0},
    "scores": {"test": SCORE},
    "marks": {"zlib": 2.552, "bz2": 2.414, "lzma": 2.361, "lzma after train": 1.893},
    "prompt": "The statement",
    "sample": " is used to\n    return a value.",
    "passage": [["The", 5.1], [" first", 13.0], ["\n\n", 0.5], ["", 0.4]],
    "versions": {"rung": "0.1.0", "torch": "2.13.0"},
    "seed": 0,
    "hardware": "2 cores of a processor",
}
CURVE = [{"step": 1, "tokens": 1000, "loss": 5.0}] + [
    {"step": 100 * i, "tokens": 200_000 * i, "bits_per_byte": 2.5 - i / 8} for i in range(1, 5)
]


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run's folder: the record above, changed."""

    def make(name, metrics=(), **changes):
        record = copy.deepcopy(RECORD)
        for path, value in changes.items():
            *sections, key = path.split("__")
            inner = record
            for section in sections:
                inner = inner[section]
            inner.pop(key, None) if value is None else inner.update({key: value})
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "rung.json").write_text(json.dumps(record))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return folder

    return make


@pytest.fixture
def make_page(tmp_path):
    """A function that makes the report and returns it."""

    def make(*folders):
        out = tmp_path / "out" / "report.html"
        write_report(folders, out)
        return out.read_text(encoding="utf-8")

    return make


@pytest.fixture
def ladder(make_run):
    """A run of every rung, with marks that stand close together."""
    costs = {
        "bigram": 3.2,
        "ngram": 2.15,
        "rnn": 2.16,
        "rnn-attention": 2.155,
        "gpt2": 2.0,
        "llama3": 1.93,
    }
    return [
        make_run(
            name,
            metrics=[] if name in ("bigram", "ngram") else CURVE,
            rung=name,
            scores__test__bits_per_byte=cost,
            scores__test__low=cost - 0.08,
            scores__test__high=cost + 0.08,
            marks={"zlib": 2.12, "bz2": 2.13, "lzma": 2.11, "lzma after train": 2.1},
        )
        for name, cost in costs.items()
    ]


def words_of(page):
    """What a reader sees."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_figures_are_those_of_the_record(make_run, make_page):
    words = words_of(make_page(make_run("a")))
    for figure in (
        "1,820,352",
        "74.2",
        "14,711",
        "20.3",
        "9,123",
        "1.934",
        "1.852–2.021",
        "2.552",
        "1.893",
    ):
        assert figure in words
    assert "llama3 needs 1.93 bits for each byte" in words
    assert "lzma needs 2.36 , or 1.89 once it has read the training text" in words
    assert "45 documents, 90,618 bytes" in words
    assert "a window of 256 tokens that moves by 128" in words
    assert "model.hidden_size: 192" in words


def test_rows_are_in_the_order_of_the_ladder(ladder):
    rows = read_summaries(reversed(ladder))
    assert [row.rung for row in rows] == [
        "bigram",
        "ngram",
        "rnn",
        "rnn-attention",
        "gpt2",
        "llama3",
    ]
    assert rows[-1].idea == "modernise"
    assert (rows[-1].bits_per_byte, rows[-1].seconds, rows[-1].failed) == (1.93, 74.2, None)


@pytest.mark.parametrize("change", [{"corpus__fingerprint": "77"}, {"scores__test__bytes": 90617}])
def test_different_text_is_never_in_one_table_or_chart(change, make_run, make_page):
    one, same, other = (
        make_run("one"),
        make_run("same", rung="gpt2"),
        make_run("other", rung="rnn", **change),
    )
    groups = group_runs(read_runs([one, same, other]))
    assert [[run.label for run in group.runs] for group in groups] == [["rnn"], ["gpt2", "llama3"]]
    articles = re.findall(r"<article.*?</article>", make_page(one, same, other), re.DOTALL)
    assert len(articles) == 2
    for article, here, elsewhere in zip(articles, ("rnn", "gpt2"), ("gpt2", "rnn"), strict=True):
        assert f'<th scope="row">{here}</th>' in article
        assert elsewhere not in article


def test_token_perplexity_is_set_apart_where_tokenizers_differ(make_run, make_page):
    same = make_page(make_run("a"), make_run("b", rung="gpt2"))
    assert "class=mixed" not in same
    assert "†" not in words_of(same)
    mixed = make_page(
        make_run("c"),
        make_run("d", rung="gpt2", tokenizer__fingerprint="f", tokenizer__kind="char"),
    )
    assert "class=mixed" in mixed
    assert "gpt2 : char with 1,024 tokens, fingerprint f" in words_of(mixed)


def test_scores_that_are_no_distribution_are_marked(make_run, make_page):
    marked = make_run("a", scores__test__renormalized=True, scores__test__bits_per_byte=1.9)
    words = words_of(make_page(marked, make_run("b", rung="gpt2")))
    assert "1.900*" in words and "llama3 needs 1.90 * bits for each byte" in words
    assert "llama3*" in words and "gpt2*" not in words
    assert "no distribution; its scores were divided by their sum" in words
    assert "no distribution" not in words_of(make_page(make_run("c")))


def test_broken_characters_are_explained(make_run, make_page):
    reason = "breaks characters of several"
    assert reason in words_of(
        make_page(make_run("a", rung="bigram", sample="\u2031\ufffdz\ufffdV"))
    )
    assert reason not in words_of(make_page(make_run("b", sample="whole")))


def test_what_a_tokenizer_loses_is_said(make_run, make_page):
    folder = make_run(
        "a", scores__test__lost=["case", "unknown words"], scores__test__unknown_words=12
    )
    words = words_of(make_page(folder))
    assert "the tokenizer loses case, and the score does not charge for it" in words
    assert "12 unknown words were spelled out" in words


BUSY = {"cpu_share": 0.309, "cores": 2, "was_busy": True}


def test_runs_that_could_not_train_are_marked_and_ground_nothing(make_run, make_page):
    """Two steps each on a busy machine: no best of the trained rungs, and none of those that
    train.
    """
    folders = [
        make_run("bigram", rung="bigram", scores__test__bits_per_byte=2.785, training__steps=0),
        make_run("ngram", rung="ngram", scores__test__bits_per_byte=2.158, training__steps=0),
        make_run(
            "gpt2",
            rung="gpt2",
            scores__test__bits_per_byte=1.5,
            training={**RECORD["training"], "steps": 2} | BUSY,
        ),
        make_run("llama3", scores__test__bits_per_byte=3.1),
    ]
    rows = {row.name: row for row in read_summaries(folders)}
    assert rows["gpt2"].doubt == "2 training steps only: too few to have learned anything"
    assert rows["gpt2"].busyness == "the machine was busy: this run got 31% of 2 cores"
    assert rows["llama3"].doubt == "worse than counting pairs: trained for too short a time"
    assert (rows["bigram"].doubt, rows["ngram"].doubt, rows["llama3"].busyness) == (
        None,
        None,
        None,
    )
    (group,) = group_runs(read_runs(folders))
    assert group.best.label == "ngram"
    words = words_of(make_page(*folders))
    assert "ngram needs 2.16 bits" in words
    assert "the trained rungs had too little time to be compared" in words
    assert (
        "2 training steps only: too few to have learned anything. The figures say nothing" in words
    )
    assert "the machine was busy: this run got 31% of 2 cores." in words
    assert words.count("‡") == 4  # beside two names, and before two notes
    table = climb_table(list(rows.values()), folders)
    assert "‡ llama3: worse than counting pairs" in table.caption.plain
    assert "gpt2: the machine was busy" in table.caption.plain
    assert [str(cell) for cell in table.columns[0].cells][:4] == [
        "bigram",
        "ngram",
        "gpt2 ‡",
        "llama3 ‡",
    ]


def test_a_base_had_learned_before_and_text_that_differs_is_no_measure(make_run):
    few = make_run("few", base={"path": "x"}, training__steps=5)
    bigram = make_run(
        "bigram", rung="bigram", scores__test__bits_per_byte=1.0, corpus__fingerprint="other"
    )
    assert [row.doubt for row in read_summaries([few, bigram])] == [None, None]


def test_failed_and_unfinished_runs_are_listed(make_run, make_page, tmp_path):
    early = tmp_path / "early"
    early.mkdir()
    (early / "rung.json").write_text('{"rung": "rnn", "failed": "out of memory"}')
    unfinished = make_run("unfinished", rung="gpt2", scores=None, marks=None)
    page = make_page(make_run("done"), early, unfinished)
    assert page.count("<article") == 1
    assert "failed: out of memory" in words_of(page)
    assert "gpt2 drop recurrence not finished" in words_of(page)
    assert [row.failed for row in read_summaries([early, unfinished])] == [
        "out of memory",
        "not finished",
    ]


def test_a_page_of_nothing_but_failures(tmp_path, make_page):
    (tmp_path / "rung.json").write_text('{"rung": "rnn", "failed": "out of memory"}')
    words = words_of(make_page(tmp_path))
    assert "No rung has a score yet." in words
    assert "failed: out of memory" in words


@pytest.mark.parametrize(
    "missing",
    [
        *(
            "recipe",
            "tokenizer",
            "parameters",
            "training",
            "marks",
            "prompt",
            "sample",
            "passage",
            "versions",
        ),
        *(
            "seed",
            "hardware",
            "corpus",
            "corpus__documents",
            "scores__test__low",
            "scores__test__window",
        ),
    ],
)
def test_every_optional_key_may_be_missing(missing, make_run, make_page):
    page = make_page(make_run("a", metrics=CURVE, **{missing: None}), make_run("b", rung="gpt2"))
    assert "1.934" in page
    assert "None" not in words_of(page)


def test_a_run_that_scores_are_all_there_is_of(tmp_path, make_page):
    (tmp_path / "rung.json").write_text(
        json.dumps({"rung": "my-own", "scores": {"test": {"bits_per_byte": 2.5}}})
    )
    assert "my-own needs 2.50 bits" in words_of(make_page(tmp_path))


@pytest.mark.parametrize(
    "metrics", [[], CURVE[:1], CURVE[:2], [{"step": 1, "tokens": 0, "bits_per_byte": 3.0}]]
)
def test_short_learning_curves(metrics, make_run, make_page):
    page = make_page(
        make_run("a", metrics=metrics), make_run("b", rung="ngram", metrics=metrics[-1:])
    )
    drawn = any("bits_per_byte" in line for line in metrics)
    assert ("training tokens read" in page) == drawn
    assert ('class="level"' in page) == drawn
    assert "NaN" not in page


def test_what_comes_from_a_run_is_escaped(make_run, make_page):
    folders = [
        make_run(
            f"<b>{i}",
            sample=HOSTILE,
            prompt=HOSTILE,
            passage=[[HOSTILE, 1.0]],
            hardware=HOSTILE,
            corpus__name=HOSTILE,
            tokenizer__kind=HOSTILE,
            tokenizer__fingerprint=str(i),
            versions={HOSTILE: HOSTILE},
            recipe={HOSTILE: HOSTILE},
            marks={HOSTILE: 2.0},
        )
        for i in range(2)
    ]
    page = make_page(*folders)
    assert "<script" not in page
    assert "<b>0" not in page
    assert html.escape(HOSTILE) in page


def test_the_page_needs_nothing_else(ladder, make_page):
    page = make_page(*ladder)
    assert not re.findall(r"https?://", page)
    assert not re.search(r"<script|<link[^>]+stylesheet|@import|@font-face|url\(", page)
    assert all(
        target.startswith(("#", "data:")) for target in re.findall(r'(?:src|href)="([^"]*)"', page)
    )
    assert "default-src 'none'" in page


def test_the_bytes_of_one_character_are_one_token(make_run, make_page):
    page = make_page(
        make_run("a", passage=[["n", 1.0], ["ï", 2.0], ["", 3.0], ["ve", 4.0], ["", 0.5]])
    )
    shown = re.findall(r'title="([\d.]+) bits(?:, end of text)?"[^>]*>([^<]*)<', page)
    assert shown == [("1.0", "n"), ("5.0", "ï"), ("4.0", "ve"), ("0.5", "")]


def test_runs_of_one_rung_go_by_their_folders(make_run):
    small, large, twin = make_run("a/small"), make_run("a/large"), make_run("b/large")
    labels = {run.label for group in group_runs(read_runs([small, large])) for run in group.runs}
    assert labels == {"small", "large"}
    labels = {
        run.label
        for group in group_runs(read_runs([small, large, twin, twin]))
        for run in group.runs
    }
    assert labels == {"a/small", "a/large", "b/large"}


def test_perplexities_keep_their_meaning():
    assert _set_powers("9,123") == "9,123"
    assert _set_powers("1.9×10^7") == "1.9\u202f×\u202f10<sup>7</sup>"


def test_what_cannot_be_reported_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no runs to report on"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(RunError, match="no run at"):
        read_summaries([tmp_path / "nowhere"])
    with pytest.raises(RunError, match="is not a run"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_full_disk_is_one_clear_line_and_the_page_before_stands(make_run, tmp_path, limit_files):
    (tmp_path / "out").mkdir()
    page = tmp_path / "out" / "report.html"
    page.write_text("the one before")
    folder = make_run("a")
    with (
        limit_files(1000),
        pytest.raises(RunError, match="could not be written to .*: make room there"),
    ):
        write_report([folder], page)
    assert [path.name for path in page.parent.iterdir()] == [
        "report.html"
    ] and page.read_text() == "the one before"


positions = st.lists(st.floats(-50, 400), min_size=1, max_size=12)


@given(positions)
def test_spread_labels_do_not_overlap(wanted):
    placed = svg.place_labels(wanted, 17, 0, 300)
    stacked = sorted(placed)
    assert all(b - a >= 17 - 1e-6 for a, b in itertools.pairwise(stacked))
    assert sorted(range(len(wanted)), key=wanted.__getitem__) == sorted(
        range(len(wanted)), key=placed.__getitem__
    )
    assert stacked[0] >= -1e-6
    assert stacked[-1] <= 300 + 1e-6


def test_spread_moves_labels_no_more_than_needed():
    assert svg.place_labels([10, 100, 200], 17, 0, 300) == [10, 100, 200]
    assert svg.place_labels([100, 100], 20, 0, 300) == [90, 110]
    assert svg.place_labels([295, 300], 20, 0, 300) == [280, 300]
    assert svg.place_labels([5, 5, 5], 20, 0, 30) == [0, 20, 40]


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(10, 150)), min_size=1, max_size=8))
def test_a_flag_meets_no_other_flag_and_no_pole(flags):
    levels = svg.stack_flags(flags)
    for i, (x, width) in enumerate(flags):
        for j, (pole, _) in enumerate(flags):
            if i != j and x < pole < x + width:
                assert levels[j] < levels[i]
            if i != j and x == pole:
                assert levels[j] != levels[i]


@given(
    st.dictionaries(
        st.sampled_from(["zlib", "bz2", "lzma", "lzma after train"]), st.floats(0.1, 9), min_size=1
    ),
    st.floats(0.1, 9),
    st.sampled_from(svg.CHART_WIDTHS),
)
def test_every_flag_stays_on_the_chart(marks, value, width):
    bar = charts.Bar(label="llama3", note="", value=value, low=None, high=None, shade=0)
    drawing = charts.draw_ladder([bar], marks, width)
    for x, text in re.findall(r'<text x="([\d.-]+)"[^>]*class="flag">(.*?)</text>', drawing):
        assert float(x) + svg.text_width(re.sub("<[^>]+>", "", text), svg.LABEL_SIZE) <= width


def test_ticks_are_round():
    assert svg.round_ticks(1.83, 3.4, 5) == pytest.approx([2.0, 2.5, 3.0])
    assert svg.round_ticks(0, 1_090_000, 5) == pytest.approx(
        [0, 250_000, 500_000, 750_000, 1_000_000]
    )


MEASURE = """
<body><iframe src="report.html" style="width:{width}px;height:3000px;border:0"></iframe><script>
document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument, found = [];
  const places = page.querySelectorAll(".scroll, .card, figure, nav, .facts");
  for (const part of [page.documentElement, ...places])
    if (part.scrollWidth > part.clientWidth)
      found.push(part.className + " is wider than its place");
  for (const drawing of page.querySelectorAll("svg")) {{
    const texts = [...drawing.querySelectorAll("text")]
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    const shown = texts.filter(([, box]) => box.width > 0);
    shown.forEach(([a, p], i) => shown.slice(i + 1).forEach(([b, q]) => {{
      const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (across > 1 && down > 3) found.push(a + " on " + b);
    }}));
    const lines = [...drawing.querySelectorAll(".mark, path.axis")];
    for (const line of lines.map(l => l.getBoundingClientRect()))
      for (const [text, box] of shown)
        if (line.height > 8 && line.left > box.left && line.right < box.right
          && line.top < box.bottom - 4 && line.bottom > box.top + 4)
          found.push("a line through " + text);
  }}
  document.body.textContent = "found: " + JSON.stringify(found);
}};
</script></body>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium to look at the page")
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_overlaps_in_a_browser(width, ladder, make_page, tmp_path):
    make_page(*ladder)
    wrapper = tmp_path / "out" / "measure.html"
    wrapper.write_text(MEASURE.format(width=width))
    quiet = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    )
    quiet += (
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    )
    command = [BROWSER, *quiet, "--allow-file-access-from-files", "--dump-dom", wrapper.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "found: []" in html.unescape(seen)
