"""The ruler: each byte is charged, and the figures are those of the definitions."""

import math
from collections import Counter

import numpy
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RunError
from rung.evaluation.documents import tokenize_documents
from rung.evaluation.likelihood import compute_nll
from rung.evaluation.metrics import confidence_interval
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.models import bigram, find_rung, make_config
from tests.conftest import SENTENCES, TINY, Largest
from tests.evaluation.conftest import LONG, cost_by_hand, count, wrap


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
