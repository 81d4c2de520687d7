"""toy-language: the same bytes everywhere, and the exact probability of a text."""

import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.data.corpus import CORPORA, load_corpus
from rung.data.toy_choices import SplitMix64, Words
from rung.data.toy_grammar import Document, Grammar, GrammarLimits
from rung.data.toy_language import ToyLanguage, draw_documents, join_words, parse_name, split_words
from rung.data.toy_lexicon import Lexicon
from rung.data.toy_probes import toy_language_probes
from rung.errors import CorpusError
from rung.evaluation.metrics import confidence_interval
from tests.conftest import examples
from tests.data.conftest import texts

SOURCE = Path(__file__).parents[2] / "src"
LANGUAGE = ToyLanguage()
# Of 200,000 bytes of seed 0. Where it changes, so does every score of the corpus: raise VERSION.
FINGERPRINT = "0a87a8e37cf684331aa8b9062cab9442026f204a13eb961e277917d2d2ac47bf"
DRAW = """
import hashlib
from rung.data.toy_language import draw_documents
from rung.data.toy_probes import toy_language_probes
for texts in draw_documents(200_000), [row["bad"] for row in toy_language_probes(4)]:
    print(hashlib.sha256("\\n".join(texts).encode()).hexdigest())
"""
BARE = Lexicon(
    nouns=("dog",), adjectives=(), adverbs=(), intensifiers=(), prepositions=(),
    singular_determiners=(), plural_determiners=(), intransitive=("sing",), transitive=(),
    names=("Ado",), notes=("la",),
)  # fmt: skip
SHORT = GrammarLimits(
    introduced=1, names=1, adjectives=1, phrases=1, depth=1, items=1, song=(1, 1), sentences=(1, 1)
)
# Grammars small enough for all their texts to be written, each with some of the rules in full.
TINY = {
    "phrases": Grammar(
        replace(BARE, prepositions=("by",), adverbs=("often",), intensifiers=("very",)), SHORT
    ),
    "brackets": Grammar(BARE, replace(SHORT, depth=2, items=2)),
    "names": Grammar(
        replace(BARE, names=("Ado", "Bea", "Cyr"), transitive=("find",)),
        replace(SHORT, introduced=2, names=2),
    ),
    "songs": Grammar(
        replace(BARE, names=("Ado", "Bea"), notes=("la", "ko")),
        replace(SHORT, names=2, song=(1, 2), sentences=(0, 2)),
    ),
}


def find_interpreters():
    """Other Pythons on this machine that rung runs under."""
    names = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    names += map(str, sorted(pyenv.glob("versions/3.1[1-9]*/bin/python")))
    found = {}
    for name in filter(None, names):
        command = [name, "-c", "import sys; print(*sys.version_info[:2])"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode == 0:
            found.setdefault(tuple(map(int, answer.stdout.split())), name)
    found.pop(sys.version_info[:2], None)
    return found


def digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def test_its_bytes_are_those_of_every_machine():
    assert digest(draw_documents(200_000)) == FINGERPRINT


def test_its_bytes_are_those_of_every_python():
    others = find_interpreters()
    if not others:
        pytest.skip(f"no other Python than {sys.version_info[:2]} on this machine")
    expected = [FINGERPRINT, digest(row["bad"] for row in toy_language_probes(4))]
    for python in (others[min(others)], others[max(others)]):
        environment = {"PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "random"}
        answer = subprocess.run([python, "-c", DRAW], env=environment, capture_output=True)
        assert answer.stdout.decode().split() == expected, answer.stderr.decode()


def test_the_generator_is_splitmix64():
    random = SplitMix64(0)
    random.state = 1234567  # the published reference's first numbers of this state
    drawn = [random.below(2**64) for _ in range(3)]
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_words_are_drawn_by_their_weights():
    words, random = Words(["a", "b", "c"], [1, 2, 7]), SplitMix64(3)
    counts = Counter(words.draw(random) for _ in range(10_000))
    assert [counts[word] / 10_000 for word in "abc"] == pytest.approx([0.1, 0.2, 0.7], abs=0.02)


def test_more_text_of_a_seed_begins_with_the_same_documents():
    few, many = list(draw_documents(20_000)), list(draw_documents(50_000))
    assert many[: len(few)] == few
    assert sum(map(len, few[:-1])) < 20_000 <= sum(map(len, few))
    assert list(draw_documents(20_000, seed=1)) != few


def enumerate_documents(grammar):
    """Yield the words of every document, with the probability that its choices multiply to."""
    waiting = [((), Fraction(1))]
    while waiting:
        before, probability = waiting.pop()
        rule = Document(grammar).write()
        choice = next(rule)
        try:
            for word in before:
                choice = rule.send(word)
        except StopIteration:
            yield list(before), probability
            continue
        for word in choice:
            waiting.append(((*before, word), probability * Fraction(*choice.odds(word))))


@pytest.mark.parametrize("rules", TINY)
def test_the_probabilities_of_all_texts_sum_to_one(rules):
    language, total, seen = ToyLanguage(TINY[rules]), Fraction(0), set()
    entropy = 0.0
    for words, probability in enumerate_documents(TINY[rules]):
        text = join_words(words)
        assert text not in seen, "a text has two derivations"
        seen.add(text)
        odds = list(language.find_odds(text))
        assert [word for word, _ in odds] == words
        assert math.prod((Fraction(*o) for _, o in odds), start=Fraction(1)) == probability
        total += probability
        entropy -= float(probability) * math.log2(probability)
    assert len(seen) > 1_500
    assert total == 1
    # The mean code length of documents that are drawn is the entropy, within its interval.
    costs = [language.code_length(language.draw(5, number)) for number in range(1_000)]
    interval = confidence_interval(costs, [1] * len(costs))
    assert interval.low < entropy < interval.high


def test_the_classes_of_a_choice_share_no_word():
    for seed in range(20):
        rule, random = Document(LANGUAGE.grammar).write(), SplitMix64(seed)
        choice = next(rule)
        while True:
            words = list(choice)
            assert len(words) == len(set(words))
            try:
                choice = rule.send(choice.draw(random))
            except StopIteration:
                break


@settings(max_examples=examples(100), deadline=None)
@given(seed=st.integers(0, 2**63 - 1), number=st.integers(0, 10**6))
def test_a_document_has_the_derivation_it_was_drawn_by(seed, number):
    words = LANGUAGE.draw_words(SplitMix64(seed, number))
    text = join_words(words)
    assert text.isascii()
    assert split_words(text, LANGUAGE.grammar.names) == words
    costs = LANGUAGE.measure(text)
    assert [cost.word for cost in costs] == words
    assert all(0 <= cost.bits < 30 for cost in costs)


@settings(max_examples=examples(100), deadline=None)
@given(number=st.integers(0, 10**6), data=st.data())
def test_a_text_that_was_changed_is_refused_or_another_text(number, data):
    text = LANGUAGE.draw(0, number)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.sampled_from(["", " ", "x", ".", "\n"])) + text[at + 1 :]
    try:
        costs = LANGUAGE.measure(changed)
    except CorpusError as error:
        assert "not a text of toy-language" in str(error)
    else:
        assert join_words(cost.word for cost in costs) == changed


START = "This is the tale of Bado. "


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "at first comes the end, and could come 'this'"),
        ("Once upon a time", "at first comes 'once', and could come 'this'"),
        (START, "after 'This is the tale of Bado.' comes the end, and could come 'the', 'a'"),
        (START + "The dogs singes.", "after 'This is the tale of Bado. The dogs' comes 'singes'"),
        (START + "Kelda singes.", "comes 'Kelda', and could come"),
        (START + "The dog packes (lamp].", "comes ']', and could come"),
        (START + 'A dog chantes "la la la la". A dog chantes "la la la ko".', "comes 'ko'"),
        ("This is  the", "comes the end"),
        (LANGUAGE.draw(0, 0) + "\n", "would be written"),
        (LANGUAGE.draw(0, 0).replace("The", "the", 1), "would be written"),
    ],
)
def test_a_text_outside_the_language_is_refused(text, message):
    with pytest.raises(CorpusError) as error:
        LANGUAGE.code_length(text)
    assert message in str(error.value)


def test_names_of_the_corpus():
    assert parse_name("toy-language") == (3_000_000, 0)
    assert parse_name("toy-language@5MB") == (5_000_000, 0)
    assert parse_name("toy-language@0.5mb#12") == (500_000, 12)
    with pytest.raises(CorpusError, match="'toy-language@5TB' names .*; a size is in KB, MB, GB"):
        parse_name("toy-language@5TB")
    assert parse_name("toy-language#3") == (3_000_000, 3)
    for other in ("toy-language.txt", "texts/toy-language", "toy-languages", "python-docs"):
        assert parse_name(other) is None
    with pytest.raises(CorpusError, match="1KB is too little text.*larger size, as in toy-lang"):
        load_corpus("toy-language@1KB")


@pytest.mark.parametrize(
    "name", ["@", "@5", "@5XB", "@-1MB", "#", "#x", "@5MB#-1", "@0MB", f"#{2**63}"]
)
def test_a_size_or_a_seed_that_there_is_not(name):
    with pytest.raises(CorpusError, match=f"toy-language{name}"):
        load_corpus(f"toy-language{name}")


def test_the_corpus_is_cut_into_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path))
    corpus = load_corpus("toy-language@60KB#2")
    assert sorted(texts(corpus)) == sorted(draw_documents(60_000, 2))
    assert corpus.name == "toy-language@60KB#2"
    assert corpus.is_auto_split
    assert corpus.bytes["test"] > 4_000
    assert any("toy-language" in name for name in CORPORA)
    for option in ({"column": "text"}, {"encoding": "latin-1"}):
        with pytest.raises(CorpusError, match="leave it out"):
            load_corpus("toy-language", **option)


def test_the_documents_that_the_docs_show_are_of_the_language():
    page = (SOURCE.parent / "docs" / "data.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(This is the tale of .*?)\n```", page, re.DOTALL)
    assert LANGUAGE.code_length(shown[1].replace("\n", " ")) > 100
