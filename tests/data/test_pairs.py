"""Minimal pairs in files: each row is a pair or an error that names it."""

import json

import pytest

from rung.data.pairs import MinimalPair, natural_key, read_pairs
from rung.errors import CorpusError
from tests.conftest import write

BLIMP = {
    "sentence_good": "The cats sleep.",
    "sentence_bad": "The cats sleeps.",
    "field": "syntax",
    "linguistics_term": "agreement",
    "UID": "plural",
    "simple_LM_method": True,
    "pairID": "0",
}
TABLES = {
    "blimp.jsonl": json.dumps(BLIMP) + "\n",
    "array.json": json.dumps([BLIMP], indent=2),
    "named.csv": "phenomenon,bad,good,paradigm\nagreement,The cats sleeps.,The cats sleep.,"
    "plural\n",
    "tabs.tsv": "good\tbad\tphenomenon\tparadigm\r\nThe cats sleep.\tThe cats sleeps.\tagreement"
    "\tplural\r\n",
    "first.tsv": "this\tthat\tparadigm\tphenomenon\nThe cats sleep.\tThe cats sleeps.\tplural\t"
    "agreement\n",
}


@pytest.mark.parametrize("name", list(TABLES))
def test_each_format_gives_the_same_pair(tmp_path, name):
    found = read_pairs(str(write(tmp_path / name, TABLES[name])))
    expected = MinimalPair("The cats sleep.", "The cats sleeps.", "plural", "agreement")
    assert found.pairs == [expected]
    assert found.name == name
    said = "no columns called good and bad: 'this' and 'that' of the first line are read as these"
    assert found.notes == ([f"{said}: first.tsv"] if name == "first.tsv" else [])


def test_a_row_without_a_paradigm_has_the_files_name(tmp_path):
    path = write(tmp_path / "plural.v2.csv", 'good,bad,paradigm\na,b,\n"c, d",e,odd\n')
    found = read_pairs(str(path))
    assert [(pair.paradigm, pair.phenomenon) for pair in found.pairs] == [
        ("odd", ""),
        ("plural", ""),
    ]


def test_a_folder_is_read_whole_in_natural_order(tmp_path):
    for distance in (12, 2, 1):
        write(
            tmp_path / "probes" / f"{distance}.tsv",
            f"good\tbad\tparadigm\tphenomenon\na\tb\tagreement at distance {distance}\tagreement\n",
        )
    write(tmp_path / "probes" / "README.md", "What these are.\n")
    found = read_pairs(str(tmp_path / "probes"))
    assert [pair.paradigm.split()[-1] for pair in found.pairs] == ["1", "2", "12"]
    assert found.notes == ["skipped 1 file that cannot hold pairs: README.md"]
    assert found.describe() == "3 pairs, 3 paradigms of probes"
    moved = (tmp_path / "probes").rename(tmp_path / "other")
    assert read_pairs(str(moved)).fingerprint == found.fingerprint


def test_a_number_in_the_place_of_a_sentence_is_noted(tmp_path):
    path = write(tmp_path / "pairs.jsonl", '{"sentence_good": 17, "sentence_bad": "18"}\n' * 2)
    found = read_pairs(str(path))
    assert (found.pairs[0].good, found.pairs[0].bad) == ("17", "18")
    assert "2 numbers in column 'sentence_good' read as digits: pairs.jsonl" in found.notes


def test_numbers_in_names_sort_as_numbers():
    order = ["a", "a 2 b 9", "a 2 b 10", "a 12", "b", "2", "12"]
    assert sorted(sorted(order), key=natural_key) == order


def test_equal_sentences_are_read_and_noted(tmp_path):
    found = read_pairs(str(write(tmp_path / "a.csv", "good,bad\nsame,same\na,b\n")))
    assert len(found.pairs) == 2
    assert found.notes == ["1 pair of equal sentences, which count as ties: a.csv"]


def test_sentences_stand_as_in_the_file(tmp_path):
    path = write(tmp_path / "a.csv", "good,bad\n 007 ,1e5\n".encode("utf-16"))
    (pair,) = read_pairs(str(path)).pairs
    assert (pair.good, pair.bad) == (" 007 ", "1e5")
    latin = write(tmp_path / "b.csv", "good,bad\nnaïve,naive\n".encode("latin-1"))
    (pair,) = read_pairs(str(latin), "latin-1").pairs
    assert pair.good == "naïve"


BROKEN = {
    "empty.tsv": ("", "empty.tsv has no minimal pairs"),
    "head.csv": ("good,bad\n", "head.csv has no minimal pairs"),
    "blank.jsonl": ("\n\n", "blank.jsonl has no minimal pairs"),
    "one.csv": ("sentence\na\n", r"one.csv has one column \(sentence\): a pair has two sentences"),
    "tabs.csv": ("good\tbad\na\tb\n", "if a tab parts them, name it .tsv"),
    "half.csv": ("good,text\na,b\n", "half.csv has a column 'good' but none called sentence_bad"),
    "twice.csv": ("good,bad,good\na,b,c\n", "several columns called 'good'"),
    "gap.csv": ("good,bad\na,b\nc, \n", "gap.csv, line 3: no sentence in the column 'bad'"),
    "wide.csv": ("good,bad\na,b\nc,d,e\n", "wide.csv, line 3: the row has 3 columns"),
    "cut.csv": ('good,bad\na,"b\n', "cut.csv, line 2: .*a quote is opened and not closed"),
    "keys.jsonl": ('{"good": "a", "bad": "b"}\n{"text": "c"}\n', "line 2: .* and there is text"),
    "list.jsonl": ('"c"\n', "line 1: must be an object"),
    "null.jsonl": ('{"good": "a", "bad": null}\n', "line 1: no sentence in the column 'bad'"),
    "kind.jsonl": ('{"good": "a", "bad": [1]}\n', "line 1: the column 'bad' holds list"),
    "lone.jsonl": ('{"good": "a", "bad": "\\ud800"}\n', "line 1: .*lone surrogate"),
    "broken.jsonl": ('{"good": "a",\n', "broken.jsonl, line 1: cannot be read as json"),
    "binary.csv": (b"good,bad\n\0\1\2,b\n", "binary.csv is binary"),
    "latin.csv": ("good,bad\nnaïve,b\n".encode("latin-1"), "latin.csv is not UTF-8"),
    "pairs.txt": ("a\tb\n", "pairs.txt has no minimal pairs: they stand in .jsonl"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_is_no_pair_is_named(tmp_path, name):
    data, message = BROKEN[name]
    with pytest.raises(CorpusError, match=message) as raised:
        read_pairs(str(write(tmp_path / name, data)))
    assert "\n" not in str(raised.value)


def test_a_folder_without_pairs_and_a_path_to_nothing_are_named(tmp_path):
    write(tmp_path / "texts" / "a.txt", "words\n")
    (tmp_path / "none").mkdir()
    for name in ("texts", "none"):
        with pytest.raises(CorpusError, match=f"{name} has no minimal pairs"):
            read_pairs(str(tmp_path / name))
    with pytest.raises(CorpusError, match="no such file or folder: .*absent.csv"):
        read_pairs(str(tmp_path / "absent.csv"))


def test_the_paradigms_of_blimp_are_read(shared):
    found = read_pairs(str(shared / "data" / "blimp"))
    assert found.describe() == "34,000 pairs, 34 paradigms, 13 phenomena of blimp"
    assert found.notes == [
        "7 pairs of equal sentences, which count as ties: passive_1.jsonl, principle_A_case_2.jsonl"
    ]
