"""The report: the figures of the records and no others, on one page that needs nothing else."""

import html
import json
import re
import shutil
import subprocess

import pytest

from rung.errors import RunError
from rung.report.page import write_report
from rung.report.summaries import group_runs, read_runs, read_summaries
from tests.report.conftest import CURVE, words_of

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
HOSTILE = '<script>alert("x")</script>&amp;'


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
