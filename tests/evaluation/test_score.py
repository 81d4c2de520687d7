"""The ruler: each token once, each byte charged, and nothing a tokenizer can hide."""

import bz2
import itertools
import lzma
import math
import os
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rung.data.tokenizer import lossy_features
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RunError
from rung.evaluation import compressors
from rung.evaluation.alignment import Aligner
from rung.evaluation.compressors import compressor_marks, lzma_after_train
from rung.evaluation.documents import (
    TokenizedDocument,
    spelling_cost,
    take_texts,
    tokenize_documents,
)
from rung.evaluation.likelihood import choose_stride, compute_nll, sliding_windows
from rung.evaluation.metrics import confidence_interval
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.models import bigram, find_rung, make_config
from tests.conftest import NEURAL, SENTENCES, TINY, Largest, overflow

LONG = " ".join(SENTENCES * 8)


def cost_by_hand(model, tokenizer, text):
    """Nats of a document, one prediction at a time, from all that came before it."""
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return -sum(logits[i].log_softmax(-1)[ids[i + 1]].item() for i in range(len(ids) - 1))


@pytest.mark.parametrize("name", list(TINY))
def test_scores_are_the_definitions(name, make_tiny, tokenizer):
    model = make_tiny(name)
    score = score_documents(model, tokenizer, SENTENCES)
    nats = sum(cost_by_hand(model, tokenizer, text) for text in SENTENCES)
    sizes, words = sum(len(t.encode()) for t in SENTENCES), sum(len(t.split()) for t in SENTENCES)
    tokens = sum(
        len(tokenizer(t).input_ids) for t in SENTENCES
    )  # BOS is not scored, the end of text is
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / sizes, rel=1e-5)
    assert score.word_perplexity == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert score.token_perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert (score.documents, score.bytes, score.words, score.tokens) == (5, sizes, words, tokens)
    assert score.low < score.bits_per_byte < score.high


@pytest.mark.parametrize("name", NEURAL)
def test_weights_whose_sums_are_no_numbers_have_no_score(name, make_tiny, tokenizer):
    untied = {} if name == "swaps" else {"tie_word_embeddings": False}
    model = overflow(make_tiny(name, **untied))
    assert all(weight.isfinite().all() for weight in model.parameters())
    asks = [
        lambda: score_documents(model, tokenizer, SENTENCES),
        lambda: score_text(model, tokenizer, "the cat"),
    ]
    for ask in asks:
        with pytest.raises(
            RunError, match="the model computes (nan|inf) in place of a number: its weights are too"
        ):
            ask()


@pytest.mark.parametrize("name", list(TINY))
def test_the_batch_does_not_change_the_score(name, make_tiny, tokenizer, monkeypatch):
    model = make_tiny(name)
    texts = [*SENTENCES, LONG, "", "a"]
    whole = score_documents(model, tokenizer, texts)
    monkeypatch.setattr("rung.evaluation.score.DOCUMENTS_AT_ONCE", 1)
    monkeypatch.setattr("rung.evaluation.likelihood.LOGITS_AT_ONCE", 1)
    monkeypatch.setattr("rung.evaluation.likelihood.STATEFUL_TOKENS", 7)
    alone = score_documents(model, tokenizer, texts)
    assert alone.nats == pytest.approx(whole.nats, rel=1e-5)
    assert alone.tokens == whole.tokens


@pytest.mark.parametrize("name", ["gpt2", "llama3", "rnn-attention"])
def test_the_window_scores_each_token_once_with_enough_before_it(name, make_tiny, tokenizer):
    model = make_tiny(name, max_position_embeddings=16)
    ids = [*tokenizer(LONG).input_ids, tokenizer.eos_token_id]
    assert len(ids) > 100
    costs = compute_nll(model, [ids])[0]
    assert len(costs) == len(ids) - 1
    for at in range(len(costs)):  # prediction `at` is of token at + 1
        end = 16 if at < 16 else 16 + (at - 16) // 8 * 8 + 8
        end = min(end, len(costs))
        window = torch.tensor([ids[max(0, end - 16) : at + 1]])
        with torch.no_grad():
            wanted = -model(window).logits[0, -1].log_softmax(-1)[ids[at + 1]].item()
        assert costs[at].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["bigram", "ngram", "rnn"])
def test_a_carried_state_sees_the_whole_document(name, make_tiny, tokenizer, monkeypatch):
    monkeypatch.setattr("rung.evaluation.likelihood.STATEFUL_TOKENS", 10)
    model = make_tiny(name)
    score = score_documents(model, tokenizer, [LONG])
    assert score.nats == pytest.approx(cost_by_hand(model, tokenizer, LONG), rel=1e-5)
    assert score.window is None
    assert score.low is None


@pytest.mark.parametrize("window", range(1, 8))
def test_windows_score_each_prediction_once_half_a_window_on(window):
    stride = max(1, window // 2)
    for predictions in range(4 * window + 2):
        found = list(sliding_windows(predictions, window))
        assert [at for _, end, done in found for at in range(done, end)] == list(range(predictions))
        assert found[:1] == [(0, min(window, predictions), 0)] * (predictions > 0)
        assert all(
            first == end - window and done - first >= window - stride
            for first, end, done in found[1:]
        )
        assert len(found) == (predictions > 0) + max(0, math.ceil((predictions - window) / stride))


@pytest.mark.parametrize("name", ["rnn", "rnn-attention", "llama3"])
def test_documents_of_any_length_side_by_side_cost_what_each_does_alone(
    name, make_tiny, tokenizer, monkeypatch
):
    """Of a window, one more and one less, of strides more; short ones among long ones, and the
    empty one.
    """
    model = make_tiny(name, **({} if name == "rnn" else {"max_position_embeddings": 8}))
    generator = torch.Generator().manual_seed(0)
    sizes = [18, 2, 9, 3, 14, 8, 10, 13, 6, 2, 11, 12]  # tokens, of which the first is not scored
    documents = [torch.randint(4, 250, (size,), generator=generator).tolist() for size in sizes]
    wanted = []
    with torch.no_grad():
        for ids in documents:
            ends = [8 if at < 8 else 8 + (at - 8) // 4 * 4 + 4 for at in range(len(ids) - 1)]
            firsts = [0 if name == "rnn" else max(0, min(end, len(ids) - 1) - 8) for end in ends]
            logits = [
                model(torch.tensor([ids[first : at + 1]])).logits[0, -1]
                for at, first in enumerate(firsts)
            ]
            wanted.append(
                -torch.stack(logits).log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
            )
    monkeypatch.setattr("rung.evaluation.likelihood.STATEFUL_TOKENS", 5)
    for at_once in (1, 11 * model.config.vocab_size, 40 * model.config.vocab_size, 2**24):
        monkeypatch.setattr("rung.evaluation.likelihood.LOGITS_AT_ONCE", at_once)
        for found, each in zip(compute_nll(model, documents), wanted, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)


def test_the_window_and_its_stride_are_said(make_tiny, tokenizer):
    for window, stride in ((1, 1), (2, 1), (3, 1), (4, 2), (9, 4)):
        assert choose_stride(window) == stride
    score = score_documents(make_tiny("gpt2", max_position_embeddings=16), tokenizer, SENTENCES)
    assert (score.window, score.stride) == (16, 8)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1, ["a"]), (3, ["abc"]), (4, ["abc"]), (5, ["abc", "de"]), (6, ["abc", "de", "f"])],
)
def test_the_first_texts_up_to_a_limit(limit, kept):
    assert take_texts(iter(["abc", "de", "f"]), limit) == kept
    assert take_texts([], limit) == []


def test_documents_are_copies_where_tokens_and_what_is_spelled_are_the_same():
    document = TokenizedDocument([1, 2], 3, 1, ["a"], ["b"], ())
    assert document.key == replace(document, bytes=9, words=9, lost=("case",)).key
    others = (
        {"ids": [1, 3]},
        {"unknown": ["b"]},
        {"dropped": ["a"]},
        {"unknown": ["b"], "dropped": ["a"]},
    )
    assert all(document.key != replace(document, **other).key for other in others)


def test_the_figures_of_a_score_are_those_of_its_documents(monkeypatch):
    """With unknown words, dropped text and empty lines among them, two documents at a time."""
    words = {
        "<?>": 0,
        "<s>": 1,
        "</s>": 2,
        **{word: 3 + i for i, word in enumerate(sorted({*LONG.split()}))},
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<?>"))
    cut = [pre_tokenizers.Split(",", "removed"), pre_tokenizers.WhitespaceSplit()]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer = wrap(backend)
    model, heard = count("ngram", tokenizer, SENTENCES, order=2), []
    texts = [
        "the zebra sat on, the mat",
        "",
        "a cat",
        "the okapi, and the héron",
        " ",
        SENTENCES[0],
    ]
    monkeypatch.setattr("rung.evaluation.score.DOCUMENTS_AT_ONCE", 2)
    found = score_documents(model, tokenizer, texts, heard.append)
    documents = list(tokenize_documents(texts, tokenizer))
    assert [(len(d.unknown), len(d.dropped)) for d in documents] == [(1, 1), (0, 0), (2, 1), (0, 0)]
    costs = [compute_nll(model, [d.ids])[0].tolist() for d in documents]
    spelled, dropped = (
        [sum((len(word.encode()) + 1) * math.log(257) for word in kind) for kind in kinds]
        for kinds in ([d.unknown for d in documents], [d.dropped for d in documents])
    )
    nats = [
        sum(cost) + more + most for cost, more, most in zip(costs, spelled, dropped, strict=True)
    ]
    assert found.nats == pytest.approx(sum(nats))
    assert (found.unknown_nats, found.dropped_nats) == pytest.approx((sum(spelled), sum(dropped)))
    assert found.dropped_bytes == sum(len("".join(d.dropped).encode()) for d in documents)
    assert (found.documents, found.words, found.unknown_words) == (
        4,
        sum(len(t.split()) for t in texts),
        3,
    )
    assert (found.bytes, found.tokens) == (
        sum(len(t.strip().encode()) for t in texts),
        sum(map(len, costs)),
    )
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / found.bytes)
    interval = confidence_interval(
        [n / math.log(2) for n in nats], [d.bytes for d in documents], least=0.0
    )
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    ends = compute_nll(model, [[1, 2]])[0].item()
    pairs = [
        pair
        for d, cost in zip(documents, costs, strict=True)
        for pair in zip(d.ids[1:], cost, strict=True)
    ]
    unknown = sum(cost for token, cost in pairs if token == words["<?>"])
    plain = sum(map(sum, costs)) + 2 * ends
    assert found.kenlm["tokens"] == found.tokens + 2 and found.kenlm["oov"] == 3
    assert math.log(found.kenlm["perplexity_including_oov"]) == pytest.approx(
        plain / (found.tokens + 2)
    )
    assert math.log(found.kenlm["perplexity_excluding_oov"]) == pytest.approx(
        (plain - unknown) / (found.tokens - 1)
    )
    assert [each.done for each in heard] == [4, 6]
    assert {"unknown words", "dropped text"} <= set(found.lost) and len(set(found.lost)) == len(
        found.lost
    )


def test_an_interval_begins_at_zero(make_tiny, tokenizer):
    """Of two documents whose costs are far apart: no code takes less than nothing."""
    score = score_documents(make_tiny("ngram"), tokenizer, [SENTENCES[0], "日本語"])
    assert score.low == 0.0 < score.bits_per_byte < score.high


def test_an_unknown_word_costs_its_spelling(make_tiny):
    from rung.data.tokenizer import encode_documents
    from rung.models import RUNGS, make_config

    words = build_tokenizer("word-split", SENTENCES)
    documents = list(encode_documents(SENTENCES, words))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    fit = RUNGS["bigram"].model_class.fit
    model = fit(make_config("bigram", words, {}), numpy.concatenate(documents), starts)
    known = score_documents(model, words, ["the cat"])
    unknown = score_documents(model, words, ["the zèbra"])
    assert (known.unknown_words, known.unknown_nats) == (0, 0.0)
    assert unknown.unknown_words == 1
    assert unknown.unknown_nats == pytest.approx((len("zèbra".encode()) + 1) * math.log(257))
    assert unknown.nats > unknown.unknown_nats
    assert unknown.lost == ["case", "white space", "unknown words"]
    pieces = score_text(model, words, "the  zèbra ")
    assert [piece.text for piece in pieces] == [
        "the",
        "  zèbra",
        " ",
    ]  # the end has what was dropped before it
    assert sum(piece.bits for piece in pieces) == pytest.approx(
        unknown.nats / math.log(2), rel=1e-5
    )


def count(rung, tokenizer, texts, **settings):
    """A counting rung of these texts."""
    from rung.data.tokenizer import encode_documents
    from rung.models import RUNGS, make_config

    documents = list(encode_documents(texts, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    return RUNGS[rung].model_class.fit(
        make_config(rung, tokenizer, settings), numpy.concatenate(documents), starts
    )


@pytest.mark.parametrize("rung", ["bigram", "ngram"])
@pytest.mark.parametrize("mark", ["<unk>", "<s>", "</s>", "<pad>"])
def test_a_mark_that_stands_in_the_text_costs_what_any_word_would(rung, mark):
    """Tokenized WikiText-2 and PTB are full of `<unk>`: it is a word, known if the training text
    had it.
    """
    texts = [text.replace("cat", "{0}").replace("a ", "a {0} ") for text in SENTENCES] * 3
    scores = []
    for name in (mark, "unkw"):
        named = [text.format(name) for text in texts]
        words = build_tokenizer("whitespace", named)
        scores.append(score_documents(count(rung, words, named), words, named[:4]))
    assert scores[0].word_perplexity == scores[1].word_perplexity
    assert scores[0].nats == scores[1].nats
    assert scores[0].unknown_words == 0


def test_bytes_of_one_character_are_one_piece(make_tiny, tokenizer):
    text = "Le café 日本語"
    model = make_tiny("bigram")
    pieces = score_text(model, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text for piece in pieces[:-1])
    score = score_documents(model, tokenizer, [text])
    assert sum(piece.tokens for piece in pieces) == score.tokens > len(pieces)
    assert sum(piece.bits for piece in pieces) * math.log(2) == pytest.approx(score.nats, rel=1e-5)


def wrap(backend):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def byte_pairs(left_out="", affixes=None, **parts):
    """Byte pairs of others: without some bytes, with affixes, a normalizer or a pre-tokenizer of
    its own.
    """
    letters = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in left_out]
    backend = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(letters)}, [], **affixes or {})
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    return wrap(backend)


def score_by(tokenizer, text):
    """The score of a text by counts of the sentences."""
    return score_documents(count("bigram", tokenizer, SENTENCES), tokenizer, [text])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
LEVEL = pre_tokenizers.Sequence([pre_tokenizers.Split(",", "removed"), BYTES])
DROPS = {  # a tokenizer, a text, what of it is dropped, and what is lost
    # The library misplaces what stands behind a dropped byte of a word: the word's rest is charged
    # with it.
    "bytes": ({"left_out": "ac"}, "the cat sat", ["cat", "at"], {"dropped text"}),
    "bytes of characters": ({"left_out": "æ"}, "the 日日 sat", ["日日"], {"dropped text"}),
    "ends of words": (
        {"affixes": {"end_of_word_suffix": "@"}},
        "the cat",
        ["e", "t"],
        {"dropped text"},
    ),
    "insides of words": (
        {"affixes": {"continuing_subword_prefix": "@"}},
        "a cat",
        ["cat"],
        {"dropped text"},
    ),
    "separators": ({"pre_tokenizer": LEVEL}, "the,cat,,sat", [",", ",,"], {"dropped text"}),
    "replaced": (
        {"normalizer": normalizers.Replace("cat", "dog")},
        "the cat",
        ["cat"],
        {"dropped text"},
    ),
    "nothing": ({"normalizer": normalizers.Replace("cat", "dog")}, "the mat", [], set()),
    "stripped": ({"normalizer": normalizers.Strip()}, "  the mat ", [], {"white space"}),
    "folded": ({"normalizer": normalizers.Lowercase()}, "The mat", [], {"case"}),
    "form": ({"normalizer": normalizers.NFKC()}, "the ﬁsh", [], {"Unicode form"}),
}


def test_the_name_of_a_byte_in_a_text_is_charged():
    spelt = [("<unk>", -9.0), *((f"<0x{byte:02X}>", -1.0) for byte in range(256))]
    backend = Tokenizer(models.Unigram(spelt, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = wrap(backend)
    assert lossy_features(tokenizer) == ()
    assert [
        aligned.dropped for _, aligned in Aligner(tokenizer).align(["the A", "the <0x41>"])
    ] == [
        [],
        [(4, 10)],
    ]


@pytest.mark.parametrize("case", list(DROPS))
def test_text_that_a_tokenizer_drops_is_charged_and_named(case):
    settings, text, dropped, lost = DROPS[case]
    tokenizer = byte_pairs(**settings)
    model = count("bigram", tokenizer, SENTENCES)
    score = score_documents(model, tokenizer, [text])
    assert score.dropped_nats == pytest.approx(sum(map(spelling_cost, dropped)))
    assert score.dropped_bytes == len("".join(dropped).encode())
    assert lost <= set(score.lost)
    assert ("dropped text" in score.lost) == bool(dropped)
    pieces = score_text(model, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.bits for piece in pieces) * math.log(2) == pytest.approx(score.nats, rel=1e-5)


def test_an_unknown_word_is_one_by_whatever_name(tmp_path):
    """The tokenizer's settings need not say which token stands for unknown words: its model
    does.
    """
    words = {
        "<?>": 0,
        "<s>": 1,
        "</s>": 2,
        **{word: 3 + i for i, word in enumerate(sorted({*LONG.split()}))},
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<?>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain, named = wrap(backend), wrap(backend)
    named.unk_token = "<?>"
    scores = [score_by(tokenizer, "the zebra sat") for tokenizer in (plain, named)]
    assert scores[0].unknown_words == scores[1].unknown_words == 1
    assert scores[0].nats == scores[1].nats > spelling_cost("zebra")


def test_an_added_token_that_takes_white_space_says_so():
    tokenizer = byte_pairs()
    tokenizer.add_tokens([AddedToken("heron", lstrip=True, rstrip=True)])
    assert "white space" in score_by(tokenizer, "the   heron   sat").lost


def test_a_lossless_tokenizer_has_nothing_unknown(make_tiny, tokenizer):
    score = score_documents(make_tiny("bigram"), tokenizer, ["日本 ∑ <|end_of_text|> <unk>"])
    assert score.unknown_words == 0
    assert score.lost == []


def test_score_text_spells_the_text_and_adds_up(make_tiny, tokenizer):
    model = make_tiny("ngram")
    text = "the cat ∑ sat"
    pieces = score_text(model, tokenizer, text)
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].text == ""
    assert score_documents(model, tokenizer, [text]).nats == pytest.approx(
        sum(p.bits for p in pieces) * math.log(2)
    )
    assert sum(p.bits for p in pieces) * math.log(2) == pytest.approx(
        cost_by_hand(model, tokenizer, text), rel=1e-5
    )


def test_the_bigram_of_the_cat_is_the_formula_by_hand():
    """Five lines, words split at white space; each factor is (C(hw) + 1) / (C(h) + V), worked out
    on paper.
    """
    from rung.data.tokenizer import encode_documents
    from rung.models import RUNGS, make_config

    words = build_tokenizer("word-split", SENTENCES)
    documents = list(encode_documents(SENTENCES, words))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    model = RUNGS["bigram"].model_class.fit(
        make_config("bigram", words, {}), numpy.concatenate(documents), starts
    )
    vocabulary = 4 + len(set(" ".join(SENTENCES).split()))
    assert len(words) == vocabulary == 15
    # (C(hw), C(h)): begin the, the cat, cat sat, sat on, on the, the mat, mat end
    counts = [(3, 5), (1, 6), (1, 3), (3, 3), (3, 4), (2, 6), (2, 3)]
    wanted = math.prod((pair + 1) / (history + vocabulary) for pair, history in counts)
    pieces = score_text(model, words, "the cat sat on the mat")
    assert math.prod(2**-piece.bits for piece in pieces) == pytest.approx(wanted, rel=1e-5)


def test_copies_are_one_document_and_the_score_says_so(make_tiny, tokenizer):
    """A test split of 35 copies was given an interval from 0.414 to 0.414."""
    model = make_tiny("ngram")
    same = score_documents(model, tokenizer, [SENTENCES[0]] * 35)
    assert (same.low, same.high, same.interval) == (None, None, "none: all 35 documents are equal")
    once = score_documents(model, tokenizer, SENTENCES)
    often = score_documents(model, tokenizer, SENTENCES * 7)
    assert (often.low, often.high) == pytest.approx((once.low, once.high), rel=1e-4)
    assert once.interval == "Student's t over 5 documents"
    assert often.interval == "Student's t over 5 different documents of 35"
    assert score_documents(model, tokenizer, [LONG]).interval == "none: one document"


def test_perplexities_beyond_a_float_are_infinite_and_have_a_logarithm(make_tiny, tokenizer):
    """A text without spaces is one word: exp(nats / words) was 1.0142e304 for every model."""
    text = "今天天气很好我们去公园散步" * 40
    found = score_documents(make_tiny("bigram"), tokenizer, [text])
    assert found.nats > 1000
    assert found.word_perplexity == math.inf
    assert found.as_dict()["log10_word_perplexity"] == pytest.approx(found.nats / math.log(10))
    assert found.as_dict()["log10_token_perplexity"] == pytest.approx(
        math.log10(found.token_perplexity)
    )


def test_compressors_mark_repetition():
    marks = compressor_marks(["abc " * 500])
    assert list(marks) == ["zlib", "bz2", "lzma"]
    assert all(0 < bits < 1 for bits in marks.values())
    after, _ = lzma_after_train([LONG], [LONG])
    assert after < compressor_marks([LONG])["lzma"] / 2


def test_lzma_reads_the_end_of_the_train_text_before_the_test_text(monkeypatch):
    monkeypatch.setattr("rung.evaluation.compressors.PRIMING_BYTES", 10_000)
    draw = numpy.random.default_rng(0)
    first, last = ("".join(map(chr, draw.integers(32, 127, 10_000))) for _ in range(2))
    at_the_end, _ = lzma_after_train([last], [first, last])
    at_the_beginning, _ = lzma_after_train([first], [first, last])
    assert at_the_end < 0.5
    assert at_the_beginning > 6
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 20_000}]
    sizes = [
        len(lzma.compress(text.encode(), lzma.FORMAT_RAW, filters=filters))
        for text in (last, last + first)
    ]
    assert at_the_beginning == pytest.approx(8 * (sizes[1] - sizes[0]) / len(first), rel=1e-3)


def test_the_marks_of_documents_are_those_of_their_text():
    documents = [f"{i} {LONG[i:]}" for i in range(0, 400, 7)]
    text = "".join(documents).encode()
    marks = compressor_marks(documents)
    squeezed = {"zlib": zlib.compress(text, 9), "bz2": bz2.compress(text, 9)}
    for name, found in squeezed.items():
        assert marks[name] == 8 * len(found) / len(text)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**20}]
    whole = lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters)
    assert marks["lzma"] == pytest.approx(8 * len(whole) / len(text), rel=1e-3)


class SlowRows(list):
    """Documents of which any number is read at one price, as of an Arrow column."""

    reads = 0

    def __getitem__(self, places):
        self.reads += 1
        return super().__getitem__(places)


def test_lzma_reads_documents_in_batches(monkeypatch):
    """Row by row, 300,000 lines of an Arrow column took 182 s instead of 0.4 s."""
    rows = SlowRows(f"line {number}" for number in range(30_000))
    text = "".join(rows).encode()
    assert compressors._end_of(rows, len(text) * 2) == text
    assert rows.reads < 20
    end = compressors._end_of(rows, 100)
    assert text.endswith(end) and 100 <= len(end) < 120 and end.startswith(b"line")
    monkeypatch.setattr(compressors, "READ_BYTES", 1000)
    wide = SlowRows("x" * 400 for number in range(40))
    assert compressors._end_of(wide, 10**6) == b"x" * 16_000
    assert 40 / 4 < wide.reads <= 40  # no more at a time than are wanted in memory


def test_lzma_looks_back_over_both_texts_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(
        compressors.lzma, "LZMACompressor", lambda _, filters: filters[0]["dict_size"]
    )
    assert [compressors._begin_lzma(size) for size in (10, 10_000, 2**40)] == [4096, 10_000, 2**26]


@pytest.mark.parametrize(
    ("limit", "end"),
    [(0, b""), (1, b"cc"), (2, b"cc"), (3, b"bbcc"), (5, b"aabbcc"), (9, b"aabbcc")],
)
def test_the_end_of_documents_is_of_whole_ones(limit, end):
    assert compressors._end_of(["aa", "bb", "cc"], limit) == end


def test_lzma_is_left_out_where_it_takes_too_long(monkeypatch):
    """By a clock of our own: a second for each thing that it is given."""
    seconds = iter(range(1000))
    monkeypatch.setattr(compressors, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(compressors, "LZMA_CHUNK_BYTES", 1000)
    heard, train = [], ["0123456789" * 5000]

    def hear(progress):
        heard.append((progress.done, progress.total))

    mark, takes = lzma_after_train(["abc"], train, 10.0, hear)
    assert mark is None and 90 < takes < 220
    assert 1 <= len(heard) < 5  # foreseen, not waited for
    mark, takes = lzma_after_train(["abc"], train, 300.0, hear)
    assert mark is not None and takes > 90
    assert heard[-1] == (100_003, 100_003)
    assert lzma_after_train(["abc"], train, 300.0)[1] == takes  # whatever the clock's hour was


def test_a_slow_start_is_no_proof_that_lzma_takes_too_long(monkeypatch):
    """Nine seconds for the first hundredth and none for the rest: a tenth of the hundred had not
    gone by.
    """
    monkeypatch.setattr(compressors, "LZMA_CHUNK_BYTES", 1000)
    for first, is_given in ((9, True), (11, False)):
        hours = itertools.chain([1000], itertools.repeat(1000 + first))
        monkeypatch.setattr(compressors, "perf_counter", lambda hours=hours: next(hours))
        mark, takes = lzma_after_train(["abc"], ["0123456789" * 5000], 100.0)
        assert (mark is not None) == is_given
        assert takes == pytest.approx(first if is_given else 11 * 100_003 / 1000)


def test_an_empty_line_is_a_sentence_for_kenlm_alone():
    """KenLM charges the end of a sentence for it; the ruler's documents have text."""
    tokenizer = build_tokenizer("whitespace", ["a b a"])
    packed = [
        tokenizer.bos_token_id,
        *tokenizer("a b a", add_special_tokens=False).input_ids,
        tokenizer.eos_token_id,
    ]
    config = make_config("ngram", tokenizer, {"order": 2})
    model = find_rung("ngram").model_class.fit(config, numpy.array(packed), numpy.array([0])).eval()
    texts, more = ["a b", "b"], ["", "a b", " ", "b", ""]
    plain, with_empty = (score_documents(model, tokenizer, each) for each in (texts, more))
    assert with_empty.nats == plain.nats
    assert with_empty.documents == plain.documents == 2
    assert (plain.kenlm["tokens"], with_empty.kenlm["tokens"]) == (5, 8)
    ends = compute_nll(model, [[tokenizer.bos_token_id, tokenizer.eos_token_id]])[0].item()
    wanted = math.exp((5 * math.log(plain.kenlm["perplexity_including_oov"]) + 3 * ends) / 8)
    assert with_empty.kenlm["perplexity_including_oov"] == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(RunError, match="every line is empty"):
        score_documents(model, tokenizer, ["", " "])


@pytest.mark.parametrize("name", ["rnn-attention", "gpt2", "llama3", "swaps", "rnn", "bigram"])
def test_the_logits_of_a_whole_window_never_stand_in_memory(
    name, make_tiny, tokenizer, monkeypatch
):
    """64 MiB hold the logits and what a softmax makes of them, of whatever window and
    vocabulary.
    """
    model, ids = make_tiny(name), list(range(4, 68))
    whole = compute_nll(model, [ids])[0]
    monkeypatch.setattr("rung.evaluation.likelihood.LOGITS_AT_ONCE", 8 * len(tokenizer))
    with Largest() as largest:
        parts = compute_nll(model, [ids])[0]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert largest.bytes < 64 * len(tokenizer) * 4 / 2


def read_memory(name):
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def test_a_window_of_a_large_vocabulary_is_scored_in_little_memory():
    """The logits of 2,048 positions of 128,256 tokens are 1 GB, and were held three times."""
    resets = Path("/proc/self/clear_refs")
    if not os.access(resets, os.W_OK):
        pytest.skip("the most memory that a process held is counted anew on Linux alone")
    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = LlamaConfig(vocab_size=128_256, max_position_embeddings=2048, **small)
    model, ids = find_rung("llama3").model_class(config).eval(), list(range(4, 2053))
    compute_nll(model, [ids[:9]])
    resets.write_text("5")
    before = read_memory("VmRSS")
    costs = compute_nll(model, [ids])[0]
    assert (
        read_memory("VmHWM") - before < 160 * 2**20
    )  # 95 are taken: logits, their softmax, attention
    assert costs.mean() == pytest.approx(math.log(128_256), rel=0.05)


def test_pairs_are_counted_a_part_of_the_text_at_a_time(monkeypatch):
    tokenizer = build_tokenizer("word", SENTENCES, 100)
    generator = numpy.random.default_rng(0)
    tokens = generator.integers(0, len(tokenizer), 20_000).astype(numpy.uint16)
    starts = numpy.array([0, 1, 1000, 1001, 7777, 19_999])
    fitted = []
    for at_once in (2**22, 500):
        monkeypatch.setattr(bigram, "PAIRS_AT_ONCE", at_once)
        with Largest() as largest:
            fitted.append(
                find_rung("bigram").model_class.fit(
                    make_config("bigram", tokenizer, {}), tokens, starts
                )
            )
    assert largest.bytes < 20_000
    pairs = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    pairs.subtract((tokens[at - 1].item(), tokens[at].item()) for at in starts[1:])
    for model in fitted:
        rows = torch.repeat_interleave(torch.arange(len(tokenizer)), model.first.diff().long())
        triples = zip(rows.tolist(), model.tokens.tolist(), model.counts.tolist(), strict=True)
        assert {(h, w): count for h, w, count in triples} == +pairs
        wanted = [
            sum(count for (h, _), count in pairs.items() if h == row)
            for row in range(len(tokenizer))
        ]
        assert model.contexts.tolist() == wanted
