"""The n-gram room: counts, smoothing, look-up and ARPA files; KenLM's figures to the digit."""

import functools
import gzip
import json
import math
import re
import shutil
import tracemalloc

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models

from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RecipeError, RunError
from rung.evaluation.mixture import score_mixture
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.export.arpa import read_arpa, write_arpa
from rung.models.ngram import discounts as discounts_module
from rung.models.ngram import smoothing as smoothing_module
from rung.models.ngram import windows as windows_module
from rung.models.ngram.counting import count_ngrams, unigram_level
from rung.models.ngram.discounts import estimate_discounts
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from rung.models.ngram.smoothing import SMOOTHINGS
from tests.conftest import examples

WORDS = ["the", "cat", '"sat"', "on", "a,", "mát"]
TEXTS = st.lists(st.lists(st.integers(3, 7), max_size=12), min_size=1, max_size=6)


def fit(documents, vocab_size=8, **settings):
    """A model of documents of ids 3 to `vocab_size`; 0 opens, 1 ends, 2 pads."""
    rows = [[0, *words, 1] for words in documents]
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    config = NgramConfig(
        vocab_size=vocab_size, bos_token_id=0, eos_token_id=1, pad_token_id=2, **settings
    )
    return NgramForCausalLM.fit(config, numpy.concatenate(rows).astype(numpy.uint16), starts)


def fit_texts(texts, tokens=("whitespace", None), **settings):
    """A model of white-space words, or of other tokens, and its tokenizer."""
    kind, size = tokens
    tokenizer = build_tokenizer(kind, texts, size)
    ids = list(encode_documents(texts, tokenizer))
    starts = numpy.cumsum([0] + [len(row) for row in ids[:-1]])
    special = {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = NgramConfig(vocab_size=len(tokenizer), **special, **settings)
    return NgramForCausalLM.fit(
        config, numpy.concatenate(ids).astype(numpy.uint32), starts
    ), tokenizer


@settings(max_examples=examples(100), deadline=None)
@given(documents=TEXTS, order=st.integers(1, 7))
def test_counts_are_those_of_a_dictionary(documents, order):
    rows = [[0, *words, 1] for words in documents]
    expected = {}
    for row in rows:
        for size in range(1, order + 1):
            for at in range(len(row) - size + 1):
                ngram = tuple(row[at : at + size])
                expected[ngram] = expected.get(ngram, 0) + (
                    ngram != (0,)
                )  # what opens a document is not predicted
    expected.pop((0,))
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    levels = list(count_ngrams(numpy.concatenate(rows).astype(numpy.uint16), starts, order, 8))
    spelled = [[(token,) for token in levels[0].tokens.tolist()]]
    for level in levels[1:]:
        spelled.append(
            [
                spelled[-1][p] + (t,)
                for p, t in zip(level.parents, level.tokens.tolist(), strict=True)
            ]
        )
        assert spelled[-1] == sorted(spelled[-1])
        assert [spelled[-2][s] for s in level.suffixes] == [ngram[1:] for ngram in spelled[-1]]
        assert level.opens.tolist() == [ngram[0] == 0 for ngram in spelled[-1]]
    found = {
        n: c
        for level, ngrams in zip(levels, spelled, strict=True)
        for n, c in zip(ngrams, level.counts, strict=True)
    }
    assert {n: c for n, c in found.items() if c} == expected


@settings(max_examples=examples(200), deadline=None)
@given(
    documents=TEXTS,
    order=st.integers(1, 10),
    smoothing=st.sampled_from([name for name in SMOOTHINGS if name != "stupid-backoff"]),
    prune=st.sampled_from([None, [0, 1], [0, 0, 2]]),
)
@example(
    documents=[[3, 3, 6, 6, 6, 7, 6, 6, 7, 7, 3], [7, 6, 6, 6, 6, 7, 6, 6, 7, 7, 4]],
    order=3,
    smoothing="kneser-ney",
    prune=None,
)  # a discount of 0
def test_every_smoothing_is_a_distribution_on_any_text(documents, order, smoothing, prune):
    """Also for one word, one repeated word, empty documents and orders longer than every
    document.
    """
    model = fit(documents, order=order, smoothing=smoothing, prune=prune)
    probabilities = model(torch.tensor([[0, 3, 4, 5, 6, 7, 3, 3, 3, 1]])).logits.double().exp()
    assert torch.all(probabilities >= 0)
    torch.testing.assert_close(
        probabilities.sum(-1), torch.ones(1, 10, dtype=torch.double), rtol=0, atol=1e-5
    )
    assert torch.all(probabilities[..., [0, 2]] == 0)  # nothing is followed by BOS or PAD
    assert torch.all(probabilities[..., 3:] > 0)


@settings(max_examples=examples(50), deadline=None)
@given(
    documents=TEXTS,
    order=st.integers(1, 5),
    smoothing=st.sampled_from(list(SMOOTHINGS)),
    prune=st.sampled_from([None, [0, 1], [0, 0, 2]]),
)
def test_c_smooths_as_numpy_does_also_a_few_at_a_time(documents, order, smoothing, prune):
    """To the last bit."""
    settings = {"order": order, "smoothing": smoothing, "prune": prune}
    with pytest.MonkeyPatch.context() as changed:
        for module in (smoothing_module, discounts_module):
            changed.setattr(module, "compile_smoothing", lambda: None)
        expected = fit(documents, **settings).state_dict()
    assert discounts_module.compile_smoothing() or not shutil.which("cc")
    for at_once in (smoothing_module.ROWS_AT_ONCE, 3):
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(smoothing_module, "ROWS_AT_ONCE", at_once)
            found = fit(documents, **settings).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@settings(max_examples=examples(100), deadline=None)
@given(
    documents=TEXTS,
    order=st.integers(1, 4),
    smoothing=st.sampled_from(["kneser-ney", "absolute", "witten-bell"]),
)
def test_a_token_that_opens_and_ends_is_counted_as_an_end(documents, order, smoothing):
    """GPT-2's tokenizer has one for both: nothing changes but its number."""
    probabilities = []
    for end, pad in ((1, None), (0, 1)):
        rows = [[0, *words, end] for words in documents]
        starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
        config = NgramConfig(
            vocab_size=8,
            order=order,
            smoothing=smoothing,
            bos_token_id=0,
            eos_token_id=end,
            pad_token_id=pad,
        )
        model = NgramForCausalLM.fit(config, numpy.concatenate(rows).astype(numpy.uint16), starts)
        probabilities.append(model(torch.tensor([[0, 3, 4, 5, 5, 3, 4]])).logits[0].exp())
    apart, shared = probabilities
    torch.testing.assert_close(shared[:, 2:], apart[:, 2:], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(shared[:, 0], apart[:, 1], rtol=1e-5, atol=1e-7)


@settings(max_examples=examples(100), deadline=None)
@given(documents=TEXTS, order=st.integers(2, 7), resumed=st.integers(1, 6))
def test_numpy_counts_as_c_does(documents, order, resumed):
    """Also where one goes on from an order of the other."""
    if (library := windows_module._compile()) is None:
        pytest.skip("there is no compiler")
    rows = [[0, *words, 1] for words in documents]
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    ids = numpy.concatenate(rows).astype(numpy.int32)
    tokens = unigram_level(numpy.bincount(ids, minlength=8), 0, len(rows))
    keyed = windows_module.KeyedWindows(ids, starts, tokens)
    compiled = windows_module.SortedWindows(library, ids, starts, tokens)
    for size in range(2, order + 1):
        level, found = keyed.extend(), compiled.extend()
        if level is None:
            assert found is None
            break
        for name, array in vars(level).items():
            assert array.dtype == getattr(found, name).dtype
            numpy.testing.assert_array_equal(getattr(found, name), array)
        numpy.testing.assert_array_equal(compiled.list_rows(), keyed.list_rows())
        if size == resumed:
            compiled = windows_module.SortedWindows(library, ids, starts, tokens)
            compiled.resume(level, keyed.list_rows(), size)


def test_kneser_ney_by_hand():
    """Order 2 on `a b a b a c`, with the fallback discounts 0.5, 1, 1.5: every step can be checked
    on paper.
    """
    a, b, c, end = 3, 4, 5, 1
    tokens = numpy.array([0, a, b, a, b, a, c, end], dtype=numpy.uint16)
    config = NgramConfig(vocab_size=6, order=2, bos_token_id=0, eos_token_id=end, pad_token_id=2)
    model = NgramForCausalLM.fit(config, tokens, numpy.array([0]))
    # Continuation counts: a follows BOS and b: 2; b, c and end follow one token each: 1. Their sum
    # is 5. Discounts take 1 from a and 0.5 from the others, 2.5 in all: half of the mass is spread
    # over 4 tokens.
    spread = 2.5 / 5 / 4
    unigram = {
        a: (2 - 1) / 5 + spread,
        b: 0.5 / 5 + spread,
        c: 0.5 / 5 + spread,
        end: 0.5 / 5 + spread,
    }
    # After a: b twice, c once; 1 and 0.5 of 3 are given up.
    expected = {w: 1.5 / 3 * unigram[w] for w in unigram}
    expected[b] += (2 - 1) / 3
    expected[c] += (1 - 0.5) / 3
    found = model(torch.tensor([[0, a]])).logits[0, -1].exp()
    for word, probability in expected.items():
        assert found[word].item() == pytest.approx(probability, rel=1e-6)


def test_discounts_fall_back_and_say_so(caplog):
    with caplog.at_level("INFO", logger="rung"):
        assert estimate_discounts(numpy.array([1, 1, 1]), 2) == [0.5, 1.0, 1.5]
    assert "leave a discount undefined" in caplog.text


def test_golden_discounts(shared):
    """The counts and discounts that KenLM prints for these texts."""
    figures = json.loads((shared / "golden/kenlm/figures.json").read_text())["orders"]["5"][
        "levels"
    ]
    ids = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>"])}
    rows = []
    for line in (shared / "golden/kenlm/train.txt").read_text().splitlines():
        rows.append([0, *(ids.setdefault(word, len(ids)) for word in line.split()), 1])
    config = NgramConfig(
        vocab_size=len(ids), order=5, bos_token_id=0, eos_token_id=1, pad_token_id=None
    )
    starts = numpy.cumsum([0] + [len(row) for row in rows[:-1]])
    model = NgramForCausalLM.fit(config, numpy.concatenate(rows).astype(numpy.uint32), starts)
    for order, level in figures.items():
        assert model.config.num_ngrams[int(order) - 1] == level["ngrams"]
        assert model.config.discounts[int(order) - 1] == pytest.approx(
            [level["D1"], level["D2"], level["D3+"]], rel=1e-5
        )


@pytest.fixture(scope="module")
def fit_golden(shared):
    """A function that gives the model of KenLM's training text of an order, and its tokenizer."""
    lines = (shared / "golden/kenlm/train.txt").read_text().splitlines()
    return functools.cache(lambda order: fit_texts(lines, order=order))


@pytest.mark.parametrize(
    "order", [*(pytest.param(order, marks=pytest.mark.slow) for order in (2, 3, 4)), 5]
)
def test_golden_sentences(shared, fit_golden, order):
    """KenLM's perplexities, and its log10 of each of 300 sentences, to five digits."""
    folder = shared / "golden/kenlm"
    figures = json.loads((folder / "figures.json").read_text())["orders"][str(order)]
    model, tokenizer = fit_golden(order)
    sentences = (folder / "valid.txt").read_text().splitlines()
    found = score_documents(model, tokenizer, sentences).kenlm
    for name in ("perplexity_including_oov", "perplexity_excluding_oov", "oov", "tokens"):
        assert found[name] == pytest.approx(figures[name], rel=5e-6), name
    expected = figures["sentence_log10"]
    assert len(expected) == 300
    scores = [model.score(sentence, tokenizer) for sentence in sentences[:300]]
    assert scores == pytest.approx(expected, rel=5e-6)


def test_byte_pairs_have_kenlm_s_probabilities(shared):
    """What `lmplz -o 3 --vocab_pad 8191` and `query` print for the ids as words.

    Some tokens of the four sentences are not in the text, and share what is left for them.
    """
    folder = shared / "golden/kenlm"
    lines = (folder / "train.txt").read_text().splitlines()[:400]
    model, tokenizer = fit_texts(lines, tokens=("bpe", 8192), order=3)
    sentences = (folder / "valid.txt").read_text().splitlines()[:4]
    expected = [-17.577555, -34.342537, -33.11493, -72.34465]
    scores = [model.score(sentence, tokenizer) for sentence in sentences]
    assert scores == pytest.approx(expected, rel=1e-5)


@settings(max_examples=examples(60), deadline=None)
@given(
    documents=TEXTS,
    order=st.integers(1, 5),
    row=st.lists(st.integers(3, 7), min_size=1, max_size=9),
    prune=st.sampled_from([None, [0, 1]]),
)
def test_a_looked_up_cost_is_that_of_the_whole_distribution(documents, order, row, prune):
    model = fit(documents, order=order, prune=prune)
    ids = torch.tensor([0, *row, 1, 0, *row, 1])  # two documents, one after the other
    found, orders = model.score_tokens(ids)
    logits = torch.cat(
        [model(ids[None, : len(row) + 2]).logits[0], model(ids[None, len(row) + 2 :]).logits[0]]
    )
    expected = logits[torch.arange(len(ids) - 1), ids[1:]] / math.log(10)
    torch.testing.assert_close(found[1:], expected, rtol=1e-5, atol=1e-5)
    assert orders.min() >= 1
    assert orders.max() <= model.config.order


def test_the_count_and_discount_of_each_word():
    """Order 2 on `a b a b a c`: of pairs raw counts, of single tokens how many came before them."""
    a, b, c, end = 3, 4, 5, 1
    model = fit([[a, b, a, b, a, c]], vocab_size=7, order=2)
    ids = torch.tensor([0, a, b, c, end, 6])
    counts, discounts = model.find_counts(ids)
    orders = model.score_tokens(ids)[1]
    assert orders[1:].tolist() == [2, 2, 1, 2, 1]  # c never followed b, nor the unknown 6 the end
    assert counts[1:].tolist() == [1, 2, 1, 1, 0]
    assert discounts[1:].tolist() == [0.5, 1.0, 0.5, 0.5, 0.0]
    many = fit([[a] * 400], vocab_size=7, order=2)
    counts, discounts = many.find_counts(torch.tensor([0, a, a]))
    assert counts[1:].tolist() == [1, 255]
    assert discounts[1:].tolist() == [0.5, 1.5]


def test_each_smoothing_by_hand():
    """Order 2 on `a b a b a c`: after a came b twice and c once, 4 tokens can come."""
    a, b, c, end = 3, 4, 5, 1
    document = [[a, b, a, b, a, c]]

    def after_a(**settings):
        return (
            fit(document, vocab_size=6, order=2, **settings)(torch.tensor([[0, a]]))
            .logits[0, -1]
            .exp()
        )

    add_k = after_a(smoothing="add-k", k=0.5)
    assert add_k[b].item() == pytest.approx(2.5 / (3 + 0.5 * 4))
    assert add_k[end].item() == pytest.approx(0.5 / (3 + 0.5 * 4))
    counts = {a: 3, b: 2, c: 1, end: 1}
    witten_bell = after_a(smoothing="witten-bell")
    unigram = {w: (n + 4 / 4) / (7 + 4) for w, n in counts.items()}
    for word, seen in {a: 0, b: 2, c: 1, end: 0}.items():
        assert witten_bell[word].item() == pytest.approx((seen + 2 * unigram[word]) / (3 + 2)), word
    absolute = after_a(smoothing="absolute")
    low, high = 2 / (2 + 2 * 1), 3 / (3 + 2 * 2)  # n1 / (n1 + 2 n2): of single tokens; of pairs
    unigram = {w: (n - low) / 7 + 4 * low / 7 / 4 for w, n in counts.items()}
    assert absolute[b].item() == pytest.approx((2 - high) / 3 + 2 * high / 3 * unigram[b])
    stupid = after_a(smoothing="stupid-backoff")
    assert stupid[b].item() == pytest.approx(2 / 3)
    assert stupid[end].item() == pytest.approx(0.4 * 1 / 7)


def test_the_ruler_divides_stupid_scores_by_their_sum_and_says_so():
    texts = ["a b a b a c", "a c b"]
    model, tokenizer = fit_texts(texts, order=2, smoothing="stupid-backoff")
    found = score_documents(model, tokenizer, ["a b c"])
    ids = torch.tensor([tokenizer("a b c").input_ids])
    scores = model(ids).logits[0].exp()
    assert abs(scores.sum(-1) - 1).max() > 0.1
    wanted = [*ids[0, 1:].tolist(), tokenizer.eos_token_id]
    expected = -(scores[range(4), wanted] / scores.sum(-1)).log().sum().item()
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.renormalized
    assert found.as_dict()["renormalized"]
    assert not score_documents(*fit_texts(texts, order=2), ["a b c"]).renormalized
    for pieces, mark in (
        (score_text(model, tokenizer, "a b c"), True),
        (score_text(*fit_texts(texts), "a b"), False),
    ):
        assert {piece.renormalized for piece in pieces} == {mark}
    both = {"counts": fit_texts(texts, order=2)[0], "stupid": model}
    mixed = score_mixture(both, tokenizer, texts, texts, lambda *_: None)
    assert mixed.as_dict()["renormalized"] == ["stupid"]


def test_scores_that_are_no_probabilities_are_not_written_as_such(tmp_path):
    """An ARPA file does not say of what smoothing it is: whoever read it, rung too, took them for
    probabilities.
    """
    with pytest.raises(
        RunError, match="holds probabilities, and the scores of stupid-backoff are none"
    ):
        write_arpa(*fit_texts(["a b a"], order=2, smoothing="stupid-backoff"), tmp_path / "x.arpa")
    assert not (tmp_path / "x.arpa").exists()


def test_pruning_drops_what_was_seen_so_often_or_less():
    documents = [[3, 4, 5], [3, 4, 5], [3, 4, 6]]
    whole, pruned = fit(documents, order=3), fit(documents, order=3, prune=[0, 0, 1])
    assert whole.config.num_ngrams[:2] == pruned.config.num_ngrams[:2]
    assert pruned.config.num_ngrams[2] < whole.config.num_ngrams[2]


@pytest.mark.parametrize(
    "bad", [{"smoothing": "laplace"}, {"prune": [1]}, {"prune": [0, 2, 1]}, {"k": 0.0}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(
        RecipeError, match=f"{next(iter(bad.values()))}".replace("[", r"\[").replace("]", r"\]")
    ):
        fit([[3, 4]], order=2, **bad)


@settings(max_examples=examples(60), deadline=None)
@given(documents=st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=6))
@pytest.mark.parametrize("suffix", [".arpa", ".arpa.gz"])
def test_arpa_comes_back_to_the_last_bit(documents, suffix, tmp_path_factory):
    model, tokenizer = fit_texts([" ".join(words) for words in documents], order=3)
    path = tmp_path_factory.mktemp("arpa") / f"model{suffix}"
    write_arpa(model, tokenizer, path)
    again, words = read_arpa(path)
    path_again = path.with_name(f"again{suffix}")
    write_arpa(again, words, path_again)
    read = gzip.open if suffix == ".arpa.gz" else open
    with read(path, "rb") as first, read(path_again, "rb") as second:
        assert sorted(first) == sorted(second)
    for text in [" ".join(words) for words in documents] + ["the mát unheard"]:
        assert again.score(text, words) == model.score(text, tokenizer)


def test_kenlm_reads_what_is_written_and_agrees(shared, fit_golden, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="the package kenlm is not installed")
    folder = shared / "golden/kenlm"
    model, tokenizer = fit_golden(5)
    write_arpa(model, tokenizer, tmp_path / "ours.arpa")
    theirs = kenlm.Model(str(tmp_path / "ours.arpa"))
    for sentence in (folder / "valid.txt").read_text().splitlines()[:300]:
        words = (
            log10 for log10, _, _ in theirs.full_scores(sentence)
        )  # `score` adds them up in float32
        score = model.score(sentence, tokenizer)
        assert score == pytest.approx(math.fsum(words), abs=1e-4)
        assert score == pytest.approx(theirs.score(sentence), abs=1e-4, rel=1e-6)


def test_kenlm_parts_words_where_we_do(tmp_path):
    """At ASCII white space alone: no-break and other Unicode spaces are parts of words."""
    kenlm = pytest.importorskip("kenlm", reason="the package kenlm is not installed")
    spaces = " \t\r\x0b\f\x1c\x85\xa0\u2003\u2028\u202f\u3000"
    model, tokenizer = fit_texts([f"the mule{space}went 5{space}km" for space in spaces], order=3)
    write_arpa(model, tokenizer, tmp_path / "ours.arpa")
    theirs = kenlm.Model(str(tmp_path / "ours.arpa"))
    texts = [f"the mule went{space}home 5{space}km" for space in spaces] + [""]
    scores = [score for text in texts for score in theirs.full_scores(text)]
    found = score_documents(model, tokenizer, texts).kenlm
    assert found["tokens"] == len(scores)
    assert found["oov"] == sum(unknown for *_, unknown in scores)
    expected = 10 ** (-math.fsum(log10 for log10, *_ in scores) / len(scores))
    assert found["perplexity_including_oov"] == pytest.approx(expected, rel=1e-6)


ARPA = """\\data\\
ngram 1=6
ngram 2=4
ngram 3=3

\\1-grams:
-0.9\t<unk>
-99\t<s>\t-0.3
-0.8\t</s>
-0.6\tred\t-0.2
-0.7\tfox\t-0.1
-0.9\truns\t-0.25

\\2-grams:
-0.2\t<s> red\t-0.1
-0.3\tred fox\t-0.15
-0.4\tfox runs\t-0.05
-0.25\truns </s>

\\3-grams:
-0.1\t<s> red fox
-0.12\tred fox runs
-0.05\tfox runs </s>

\\end\\
"""
TRIGRAMS = ARPA[ARPA.index("\\3-grams:") + 9 : ARPA.index("\n\\end")]


def read_text(text, folder, name="model.arpa"):
    path = folder / name
    path.write_bytes((gzip.compress if name.endswith(".gz") else bytes)(text.encode()))
    return read_arpa(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("<unk>", "<UNK>"),
        lambda text: "# Input file: my.txt\nmade by hand\n\n" + text,
        lambda text: text.replace("\n\n", "\n \t\n"),
        lambda text: text.replace("\t", " ").replace("-0.3 ", "  -0.3   "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("=", " =  ").replace("\n\\", "\n\\").removesuffix("\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("=6", "=7").replace(
            "-0.9\truns", "-0.7\t5\u00a0km\t-0.1\n-0.9\truns"
        ),
        lambda text: text.replace("-0.8\t</s>", "-0.8\t</s>\t0.0").replace(
            "\tred fox\n", "\tred fox\t0\n"
        ),
    ],
)
@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz", "zipped.gz"])
def test_arpa_is_read_as_others_write_it(change, name, tmp_path):
    """KenLM's perplexity of these two sentences, with the unknown word: 3.2266."""
    model, tokenizer = read_text(change(ARPA), tmp_path, name)
    found = score_documents(model, tokenizer, ["red fox runs", "fox red blue"]).kenlm
    assert found["perplexity_including_oov"] == pytest.approx(3.2266363, rel=1e-6)
    assert (found["oov"], found["tokens"]) == (1, 8)


def test_missing_backoff_weights_are_none(tmp_path):
    model, tokenizer = read_text(ARPA.replace("\t-0.2\n", "\n"), tmp_path)
    expected, _ = read_text(ARPA.replace("\t-0.2\n", "\t0\n"), tmp_path)
    assert model.score("red red", tokenizer) == expected.score("red red", tokenizer)


@pytest.mark.parametrize("line", ["{}\t<s>\t", "{}\tred fox runs"])
def test_minus_infinity_is_read_as_the_99_that_others_write(line, tmp_path):
    text = re.sub(line.format("-[0-9.]+"), line.format("-99"), ARPA)
    model, tokenizer = read_text(text, tmp_path)
    again, _ = read_text(text.replace("-99", "-inf"), tmp_path)
    assert again.score("red fox runs", tokenizer) == model.score("red fox runs", tokenizer)


@pytest.mark.parametrize("heading", ["\\3-grams:\n", ""])
def test_an_order_without_an_ngram_still_backs_off(heading, tmp_path):
    """KenLM gives 4.2781: what the bigrams hand down is taken, though no trigram takes it up."""
    text = ARPA.replace("ngram 3=3", "ngram 3=0").replace("\\3-grams:" + TRIGRAMS, heading)
    model, tokenizer = read_text(text, tmp_path)
    found = score_documents(model, tokenizer, ["red fox runs", "fox red blue"]).kenlm
    assert found["perplexity_including_oov"] == pytest.approx(4.2780910, rel=1e-6)
    ids = torch.tensor([tokenizer("red fox runs").input_ids])
    looked_up = model.score_tokens(ids[0])[0][1:] * math.log(10)
    found = model(ids).logits[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, looked_up)
    write_arpa(model, tokenizer, tmp_path / "again.arpa")
    assert read_arpa(tmp_path / "again.arpa")[0].score("red fox runs", tokenizer) == model.score(
        "red fox runs", tokenizer
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ARPA, "nothing", "not a whole ARPA file: it has no line"),
        (ARPA, "iARPA\n" + ARPA, "compile-lm"),
        ("\\end\\", "", "not a whole ARPA file: it breaks off at line 26"),
        (ARPA[200:], "", "not a whole ARPA file: it breaks off"),
        ("\\end\\", "\\end\\\nmore", "'more' follows"),
        ("ngram 2=4", "ngram 2=5", r"line 14: 4 n-grams of order 2 follow, but \\data\\ counts 5"),
        ("ngram 2=4", "ngram 2=3", "line 14: 4 n-grams of order 2"),
        ("ngram 3=3", "ngram 3=3\nngram 4=1", r"line 26: \\end\\ stands where \\4-grams: must"),
        ("ngram 3=3\n", "", r"line 19: \\data\\ does not count \\3-grams:"),
        ("ngram 1=6\nngram 2=4\nngram 3=3\n", "", "line 1: .* counts no words"),
        ("ngram 2=4", "ngram 2=" + "4" * 5000, "line 3: 'ngram 2=4.* is not 'ngram 2='"),
        ("ngram 2=4", "two: 4", "line 3: 'two: 4' is not 'ngram 2='"),
        ("\\2-grams:", "\\4-grams:", r"line 14: \\4-grams: stands where \\2-grams: must"),
        ("-0.8\t</s>", "0.8\t</s>", "line 9: .* probability above 1"),
        ("-0.12\tred", "0.12\tred", "line 22: .* probability above 1"),
        ("-0.12\tred", "nan\tred", "line 22: 'nan' is no finite number"),
        ("-0.15", "-inf", "line 16: '-inf' is no finite number"),
        ("-0.15", "x", "line 16: the number 'x' cannot be read"),
        ("\tfox\t", "\tred\t", "line 11: the word 'red' is there twice"),
        ("\tfox\t", "\t<UNK>\t", "line 11: the word '<UNK>' is there twice"),
        ("\tfox runs\t", "\tred fox\t", "line 17: this n-gram is there twice"),
        (
            "red fox runs",
            "fox red runs",
            "line 22: this n-gram is there, but not what it begins with",
        ),
        ("red fox runs", "red fox flies", "line 22: the word 'flies' is not among the 1-grams"),
        ("red fox runs", "red fox", "line 22: .* is no line of .3-grams"),
        (
            "red fox runs",
            "red fox runs\t-0.1",
            "line 22: an n-gram of the highest order has a back-off weight",
        ),
        ("\t</s>\n", "\tend\n", "line 7: .* hold no </s>"),
        ("\t<s>\t", "\tbegin\t", "line 7: .* hold no <s>"),
        ("\tfox\t", "\t<|pad|>\t", r"line 11: the word '<\|pad\|>' is the name of a special token"),
    ],
)
def test_an_arpa_file_that_would_give_wrong_figures_is_refused(old, new, message, tmp_path):
    assert old in ARPA
    with pytest.raises(RunError, match=message) as refused:
        read_text(ARPA.replace(old, new, 1), tmp_path)
    assert str(tmp_path / "model.arpa") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_zip_that_would_fill_the_memory_is_refused_before_it_does(tmp_path):
    (tmp_path / "x.arpa.gz").write_bytes(gzip.compress(b"\\data\\\n" + bytes(1 << 26), 9))
    tracemalloc.start()
    with pytest.raises(
        RunError, match="x.arpa.gz is no ARPA file: its .* bytes unzip to more than 16,777,216"
    ):
        read_arpa(tmp_path / "x.arpa.gz")
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


def test_a_zipped_arpa_file_that_breaks_off_is_refused(tmp_path):
    (tmp_path / "x.arpa.gz").write_bytes(gzip.compress(ARPA.encode())[:-20])
    with pytest.raises(RunError, match="could not be read as an ARPA file"):
        read_arpa(tmp_path / "x.arpa.gz")


@pytest.mark.parametrize("word", ["<s>", "</s>", "<unk>", "<UNK>"])
def test_a_word_that_means_something_else_in_arpa_is_not_written(word, tmp_path):
    model, tokenizer = fit_texts(["a b", "b a"], order=2)
    vocabulary = {word if w == "b" else w: number for w, number in tokenizer.get_vocab().items()}
    unknown = tokenizer.unk_token if word != tokenizer.unk_token else "<other>"
    vocabulary[unknown] = tokenizer.unk_token_id
    tokenizer.backend_tokenizer.model = models.WordLevel(vocab=vocabulary, unk_token=unknown)
    tokenizer.unk_token = unknown
    with pytest.raises(RunError, match=f"'{word}' is a word of this model's text"):
        write_arpa(model, tokenizer, tmp_path / "x.arpa")
    assert not (tmp_path / "x.arpa").exists()


def test_tokens_with_white_space_are_refused(tmp_path, make_tiny):
    tokenizer = build_tokenizer("char", ["a b"])
    with pytest.raises(RunError, match="holds white space"):
        write_arpa(make_tiny("ngram"), tokenizer, tmp_path / "x.arpa")
