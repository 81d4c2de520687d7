"""Minimal pairs in the report: a chart for each phenomenon, a line over the numbers of probes."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rung import runs
from rung.cli.run_tables import climb_table
from rung.evaluation.metrics import wilson_interval
from rung.report.pairs import _find_series
from rung.report.summaries import group_runs, read_runs, read_summaries
from tests.report.conftest import words_of

HOSTILE = '<script>alert("x")</script>&amp;'
PROBES = {f"recall at distance {n}": 0.5 + 0.5 / n for n in (1, 2, 12, 100)}


def make_accuracy(accuracy, pairs=100):
    low, high = wilson_interval(accuracy, pairs)
    return {"accuracy": accuracy, "low": low, "high": high, "pairs": pairs, "ties": 0}


def make_pairs(phenomena, fingerprint="f"):
    """The accuracies of a record, from those of each phenomenon's paradigms."""
    rows = [
        {"phenomenon": phenomenon, "paradigm": name, **make_accuracy(accuracy)}
        for phenomenon, paradigms in phenomena.items()
        for name, accuracy in paradigms.items()
    ]
    means = {name: sum(each.values()) / len(each) for name, each in phenomena.items()}
    return {
        "name": "blimp",
        "fingerprint": fingerprint,
        **make_accuracy(sum(row["accuracy"] for row in rows) / len(rows), 100 * len(rows)),
        "spelled": 0,
        "renormalized": False,
        "phenomena": [
            {"phenomenon": name, **make_accuracy(mean)} for name, mean in means.items() if name
        ],
        "paradigms": rows,
    }


@pytest.fixture
def scored(make_run):
    """Two runs with accuracies on a phenomenon and a probe, and one without any."""
    return [
        make_run(
            name,
            rung=name,
            pairs=make_pairs({"binding": {"one": 0.25 + shift, "two": 0.75}, "recall": PROBES}),
        )
        for name, shift in (("rnn", 0), ("llama3", 0.5))
    ] + [make_run("gpt2", rung="gpt2")]


def test_the_table_has_the_accuracies(scored, make_page):
    words = words_of(make_page(*scored))
    share = json.loads((scored[0] / "rung.json").read_text())["pairs"]["accuracy"]
    assert f"{share:.1%}" in words
    assert "Minimal pairs: the share of 600 pairs of blimp whose good sentence is likelier" in words
    assert "gpt2 : not scored on these minimal pairs." in words
    assert "Accuracy by paradigm" in words and "75.0% (65.7-82.5)" in words


def test_a_phenomenon_has_a_row_for_each_run_and_a_probe_a_line(scored, make_page):
    page = make_page(*scored)
    drawings = re.findall(r'<svg class="(wide|narrow)"[^>]*aria-label="([^"]*)"', page)
    said = [label for kind, label in drawings if kind == "wide"]
    assert "Accuracy on minimal pairs: binding: rnn 50%, llama3 75%" in said
    lines = "recall at distance: rnn 100% to 50%, llama3 100% to 50%"
    assert f"Accuracy on minimal pairs by distance or depth: {lines}" in said
    assert len([1 for kind, _ in drawings if kind == "narrow"]) == len(said)
    assert "<title>rnn, 12: 54.2% (44.4–63.6)</title>" in page
    for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "nan" not in chart and "inf" not in chart


def test_without_pairs_there_is_no_part_on_them(make_run, make_page):
    page = make_page(make_run("a"))
    assert "inimal pairs" not in page and "minimal<br>pairs" not in page


def test_accuracies_on_other_pairs_are_not_in_one_column(make_run):
    folders = [
        make_run(name, rung=name, pairs=make_pairs({"binding": {"one": 0.5}}, fingerprint))
        for name, fingerprint in (("rnn", "f"), ("gpt2", "g"), ("llama3", "f"))
    ]
    (group,) = group_runs(read_runs(folders))
    assert [run.label for run in group.runs if run.row.pairs] == ["rnn", "llama3"]
    assert [bool(row.pairs) for row in read_summaries(folders)] == [True, False, True]


def test_what_pairs_are_called_is_escaped(make_run, make_page):
    pairs = make_pairs({HOSTILE: {HOSTILE: 0.5}, "": {f"{HOSTILE} 1": 0.5, "b": 0.5}})
    page = make_page(make_run("a", pairs={**pairs, "name": HOSTILE}))
    assert "<script" not in page


def test_a_series_is_of_names_that_differ_in_their_last_number():
    assert _find_series(list(PROBES)) == {"recall at distance": list(PROBES)}
    both = [*PROBES, "copying at distance 1", "copying at distance 2"]
    assert list(_find_series(both)) == ["recall at distance", "copying at distance"]
    for names in (["npi_1", "npi_2"], ["a 1"], ["a 1", "b 2"], ["a 1", "a 2", "plain"]):
        assert _find_series(names) == {}


def test_the_terminals_table_has_the_column(scored):
    table = climb_table(read_summaries(scored), scored)
    heads = [column.header for column in table.columns]
    cells = list(table.columns[heads.index("minimal pairs")].cells)
    assert [str(cell).split("%")[0] for cell in cells[:2]] == ["63.3", "–"]
    assert "Minimal pairs: the share of 600 pairs" in str(table.caption)


def test_a_record_with_a_wrong_accuracy_is_damaged(make_run):
    folder = make_run("a", pairs={"accuracy": "high"})
    assert "pairs.accuracy" in runs.read_record_or_failure(folder)["failed"]


def test_a_recorded_climb_has_its_table_and_its_charts(make_run, tmp_path, monkeypatch):
    """By the tool that writes docs/results, without the climb itself."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools")
    import record_climb

    monkeypatch.setattr(record_climb.subprocess, "run", lambda *_, **__: None)
    for name in ("rnn", "llama3"):
        pairs = make_pairs({"binding": {"one": 0.25, "two": 0.75}, "recall": PROBES})
        make_run(f"runs/{name}", rung=name, pairs=pairs, versions__python="3.11")
    out = tmp_path / "blimp.txt"
    record_climb.record_climb(
        out, ["novels", "--pairs", str(tmp_path), "--out", str(out.parent / "runs")]
    )
    text = out.read_text()
    assert text.startswith(f"$ rung climb novels --pairs {tmp_path.name} --out runs  ")
    assert re.search(r"binding +100 +50\.0 +50\.0\n +one +100 +25\.0", text)
    images = [out.with_suffix(".svg"), out.with_name("blimp-2.svg")]
    assert all(ElementTree.parse(image).getroot().get("width") == "880" for image in images)
