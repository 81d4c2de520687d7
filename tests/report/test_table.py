"""The table of the report and the notes below it."""

from rung.cli.run_tables import climb_table
from rung.report.summaries import group_runs, read_runs, read_summaries
from rung.report.table import _set_powers
from tests.report.conftest import RECORD, words_of


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


def test_what_a_tokenizer_loses_is_said(make_run, make_page):
    folder = make_run(
        "a", scores__test__lost=["case", "unknown words"], scores__test__unknown_words=12
    )
    words = words_of(make_page(folder))
    assert "the tokenizer loses case, and the score does not charge for it" in words
    assert "12 unknown words were spelled out" in words


BUSY = {"cpu_share": 0.309, "cores": 2, "was_busy": True}


def test_a_text_that_is_too_small_wants_no_more_time(make_run):
    ended = {"plan": {"ends_early": True}}
    folders = [
        make_run("bigram", rung="bigram", scores__test__bits_per_byte=2.785),
        make_run("gpt2", rung="gpt2", training={**RECORD["training"], "steps": 16}, **ended),
        make_run("llama3", scores__test__bits_per_byte=3.1, **ended),
    ]
    rows = {row.name: row for row in read_summaries(folders)}
    assert rows["gpt2"].doubt == (
        "16 training steps only: the text is too small to learn anything from"
    )
    assert rows["llama3"].doubt == "worse than counting pairs: the text is too small"


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


def test_perplexities_keep_their_meaning():
    assert _set_powers("9,123") == "9,123"
    assert _set_powers("1.9×10^7") == "1.9\u202f×\u202f10<sup>7</sup>"
