"""Runs read, ordered, grouped and labelled for the report."""

from rung.report.summaries import group_runs, read_runs, read_summaries
from tests.report.conftest import words_of


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
