"""Python's own text and data sets of the Hub: whole articles, and packages on one side."""

import pytest

from rung.data import corpus as corpus_module
from rung.data import sources
from rung.data.corpus import load_corpus
from rung.data.store import SPLITS
from rung.errors import CorpusError
from tests.conftest import write
from tests.data.conftest import ROWS, SIZES, make_table, texts, write_hub, write_shards


def test_python_docs(monkeypatch):
    pages = list(sources.read_python_docs())  # once: it parses the whole standard library
    monkeypatch.setitem(corpus_module.PYTHON_READERS, "python-docs", lambda: iter(pages))
    corpus = load_corpus("python-docs")
    packages = {}
    for text, package in pages:
        assert text not in packages, "a duplicate"
        packages[text] = package
    assert set(texts(corpus)) == set(packages)
    assert 1.5e6 < sum(len(text.encode()) for text in packages) < 4e6
    check_packages(corpus, packages)
    assert corpus.fingerprint != load_corpus("python-source").fingerprint


def test_python_source():
    corpus = load_corpus("python-source")
    packages = dict(sources.read_python_source())
    assert sorted(texts(corpus)) == sorted(packages)
    check_packages(corpus, packages)
    assert load_corpus("python-source").fingerprint == corpus.fingerprint


def check_packages(corpus, packages):
    sides = [{packages[text] for text in corpus.split(split)["text"]} for split in SPLITS]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_twins_are_one_package():
    twins = {
        "_pydecimal": "decimal",
        "_pyio": "io",
        "_py_abc": "abc",
        "_strptime": "strptime",
        "pydoc": "pydoc",
    }
    assert {top: sources._package_of(top) for top in twins} == twins


WIKI = [
    "",
    " = {0} = \n",
    "",
    " One body = {0} <unk> @-@ 1 . \n",
    " = = Section = = \n",
    "",
    " Two . \n",
    "",
]


def test_wikitext_is_joined_into_articles(hub):
    write_hub(hub / "Salesforce/wikitext/wikitext-2-raw-v1", WIKI)
    corpus = load_corpus("wikitext-2")
    assert {split: len(corpus.split(split)) for split in SPLITS} == SIZES
    lines = [line.format("train 3").strip("\n") or " " for line in WIKI]
    assert (
        corpus.train["text"][3] == "\n".join([*lines[1:], " "]) + "\n"
    )  # the blank line before the next heading
    assert "".join(corpus.test["text"]) == "".join(
        f"{line.format('test 0').strip(chr(10)) or ' '}\n" for line in WIKI
    )
    assert (corpus.name, corpus.fingerprint) == (
        "wikitext-2",
        load_corpus("wikitext-2").fingerprint,
    )
    with pytest.raises(
        CorpusError, match="no configuration 'wikitext-103-raw-v1': choose from wikitext-2-raw-v1"
    ):
        load_corpus("wikitext-103")


@pytest.mark.parametrize("title", ["E", "Valkyria Chronicles III", "1 = 2 ?"])
def test_only_a_heading_of_level_one_opens_an_article(title):
    assert sources.ARTICLE_HEADING.match(f" = {title} = ")
    assert not sources.ARTICLE_HEADING.match(f" = = {title} = = ")
    assert not sources.ARTICLE_HEADING.match(f"{title} = ")


def test_a_folder_laid_out_like_the_hub(hub):
    write_hub(hub / "one", ROWS[:3])
    corpus = load_corpus(f"hf:{hub}/one")
    assert list(corpus.test["text"]) == ROWS[:3]
    assert load_corpus("hf:one").fingerprint == corpus.fingerprint
    write_hub(hub / "two/small", ROWS[:1])
    assert list(load_corpus(f"hf:{hub}/two").test["text"]) == ROWS[:1]
    write_hub(hub / "two/bodies", ROWS[:1], column="body")
    assert list(load_corpus(f"hf:{hub}/two:small").test["text"]) == ROWS[:1]
    write(hub / "three/train.jsonl", make_table(".jsonl", ROWS))
    assert sorted(texts(load_corpus("hf:three"))) == sorted(ROWS)  # only a train split: it is cut
    write(hub / "four/test.jsonl", make_table(".jsonl", ROWS))
    (hub / "five").mkdir()
    for source, message in {
        "two": "has several configurations: choose from bodies, small, as in hf:",
        "two:smal": "has no configuration 'smal': choose from bodies, small",
        "two:bodies": "has no text column: it has id, body; name the one to read with --column",
        "four": "has no train split: it has test",
        "five": "could not be loaded: ",
        "": "names no data set",
    }.items():
        with pytest.raises(CorpusError, match=message):
            load_corpus(f"hf:{source}")


def test_a_full_disk_names_the_stream(hub, monkeypatch):
    write_shards(hub / "my/set", ROWS)
    full = OSError("Not enough disk space. Needed: 9 TB (download: 1 TB)")
    monkeypatch.setattr(sources, "_load_folder", lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(
        CorpusError, match="Needed: 9 TB .*; `stream:my/set` reads it without storing its text"
    ):
        load_corpus("hf:my/set")


def test_an_unreachable_hub_is_one_clear_line_soon(without_hub):
    line, _ = without_hub
    assert line.startswith("CorpusError(")
    assert "'Salesforce/wikitext' could not be loaded: no network; use `python-docs`" in line


def test_offline_mode_is_one_clear_line(monkeypatch, capfd):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it was tried again"))
    why = "'Salesforce/wikitext' could not be loaded: HF_HUB_OFFLINE is set; use `python-docs`"
    with pytest.raises(CorpusError, match=why) as caught:
        load_corpus("wikitext-2")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
