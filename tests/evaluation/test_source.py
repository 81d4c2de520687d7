"""The mark of the source itself, on text of toy-language and on other text."""

import pytest

from rung.data.toy_language import ToyLanguage, draw_documents
from rung.data.toy_probes import toy_language_probes
from rung.evaluation.metrics import SOURCE_MARK
from rung.evaluation.source import source_mark
from rung.workflows.record import find_marks
from tests.evaluation.conftest import LONG


def test_the_mark_is_the_code_length_by_the_bytes():
    documents = list(draw_documents(20_000))
    bits = [sum(cost.bits for cost in ToyLanguage().measure(text)) for text in documents]
    assert source_mark(documents) == pytest.approx(sum(bits) / len("".join(documents).encode()))


def test_text_of_another_source_has_no_such_mark():
    document = ToyLanguage().draw(0, 0)
    assert source_mark([document, LONG]) is None
    assert source_mark([document + "\n"]) is None
    assert source_mark([]) is None


def test_it_stands_after_the_compressors(tmp_path, monkeypatch):
    from rung.data.corpus import load_corpus

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path))
    for _ in range(2):  # the second time, from the cache
        marks = find_marks(load_corpus("toy-language@60KB"), lambda _: None, 60)["marks"]
        assert list(marks) == ["zlib", "bz2", "lzma", "lzma after train", SOURCE_MARK]
        assert marks[SOURCE_MARK] < marks["lzma after train"] / 1.5


def test_no_model_beats_the_source(tmp_path, monkeypatch):
    import rung

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rung.data.pairs.toy_language_probes", lambda: toy_language_probes(6))
    ladder = rung.climb("toy-language@100KB", rungs=["bigram", "ngram"], out=tmp_path / "runs")
    bigram, ngram = (run.record for run in ladder)
    source = ngram["marks"][SOURCE_MARK]
    scores = [record["scores"]["test"] for record in (bigram, ngram)]
    assert scores[0]["low"] > scores[1]["high"]
    assert scores[1]["low"] > source
    # A climb on the language is scored on its probes unasked.
    assert {record["pairs"]["name"] for record in (bigram, ngram)} == {"toy-language"}
    assert len(ngram["pairs"]["paradigms"]) == 26
    page = ladder.report.read_text(encoding="utf-8")
    assert "the source itself needs" in page
    assert "which no model can be expected to beat" in page
    assert "recall at distance" in page
