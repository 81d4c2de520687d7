"""N-grams of any length: counts against a list of them all, probabilities against n-grams of fixed
order.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import RecipeError
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from tests.conftest import SENTENCES, examples

pytest.importorskip(
    "pydivsufsort", reason="pydivsufsort is not installed: pip install 'rung[scale]'"
)

from rung.models.ngram import suffix_array
from rung.models.ngram.infinigram import InfinigramConfig, InfinigramForCausalLM

BOS, EOS, PAD = 0, 1, 2
DOCUMENTS = st.lists(st.lists(st.integers(3, 6), max_size=14), min_size=1, max_size=6)
QUERY = st.lists(st.integers(3, 7), min_size=1, max_size=14)


ASK_THEIRS = """
import json, sys
from infini_gram.engine import InfiniGramEngine

engine = InfiniGramEngine(index_dir=sys.argv[1], eos_token_id=0, vocab_size=255, token_dtype="u8")
found = {}
for line in json.loads(sys.argv[2]):
    for query in (line[i:i + n] for n in (2, 3, 5, 9) for i in range(len(line) - n + 1)):
        for asked in {query, "x" + query, query[:-1] + "t"} - found.keys():
            ids = list(asked.encode())
            answer = engine.infgram_prob(prompt_ids=ids[:-1], cont_id=ids[-1])
            count = engine.count(input_ids=ids)["count"]
            found[asked] = [asked, count, answer["prob"], answer["suffix_len"]]
print(json.dumps(list(found.values())))
"""


def make_row(documents, eos=EOS):
    rows = [[BOS, *words, eos] for words in documents]
    return (
        rows,
        numpy.concatenate(rows).astype(numpy.uint32),
        numpy.cumsum([0] + [len(row) for row in rows[:-1]]),
    )


def fit(documents, eos=EOS, vocab_size=8, **settings):
    _, tokens, starts = make_row(documents, eos)
    tokens.flags.writeable = False  # as a packed text is
    config = InfinigramConfig(
        vocab_size=vocab_size, bos_token_id=BOS, eos_token_id=eos, pad_token_id=PAD, **settings
    )
    return InfinigramForCausalLM.fit(config, tokens, starts)


def list_ngrams(documents):
    """How often every n-gram of every length occurs."""
    counts = {}
    for row in make_row(documents)[0]:
        for at in range(len(row)):
            for end in range(at + 1, len(row) + 1):
                ngram = tuple(row[at:end])
                counts[ngram] = counts.get(ngram, 0) + 1
    return counts


@settings(max_examples=examples(100), deadline=None)
@given(documents=DOCUMENTS, query=QUERY)
def test_counts_are_those_of_a_list(documents, query):
    model, listed = fit(documents), list_ngrams(documents)
    places = [(at, end) for at in range(len(query)) for end in range(at + 1, len(query) + 1)]
    for ngram in {tuple(query[at:end]) for at, end in places}:
        assert model.count(torch.tensor(ngram)) == listed.get(ngram, 0)


@settings(max_examples=examples(200), deadline=None)
@given(
    documents=DOCUMENTS,
    query=QUERY,
    stride=st.sampled_from([1, 3, 64]),
    block=st.sampled_from([2, 32]),
)
def test_the_longest_match_is_that_of_a_list(documents, query, stride, block):
    model, listed = fit(documents), list_ngrams(documents)
    ids = [BOS, *query, EOS, BOS, *query[::-1], EOS]
    expected = []
    for at in range(len(ids)):
        opens = max(i for i in range(at + 1) if ids[i] == BOS)
        expected.append(
            max(
                (at + 1 - i for i in range(opens, at + 1) if tuple(ids[i : at + 1]) in listed),
                default=0,
            )
        )
    before = suffix_array.COARSE_STRIDE, suffix_array.COMPARED_AT_ONCE
    suffix_array.COARSE_STRIDE, suffix_array.COMPARED_AT_ONCE = stride, block
    try:
        assert model.longest_match(torch.tensor(ids)).tolist() == expected
    finally:
        suffix_array.COARSE_STRIDE, suffix_array.COMPARED_AT_ONCE = before


def test_copied_text_is_matched_to_its_end():
    words = numpy.random.default_rng(0).integers(3, 7, 5000).tolist()
    model = fit([words, words[::-1]])
    row = torch.tensor([BOS, *words, EOS])
    assert model.longest_match(row).tolist() == list(range(1, len(row) + 1))
    assert model.longest_match(row[1:]).tolist() == list(range(1, len(row)))


@settings(max_examples=examples(100), deadline=None)
@given(documents=DOCUMENTS, query=QUERY)
def test_continuations_are_those_after_the_longest_end_that_occurs(documents, query):
    model, listed = fit(documents), list_ngrams(documents)
    found = model.find_continuations(torch.tensor([BOS, *query]))
    context = (BOS, *query)
    longest = next(
        n for n in range(len(context), -1, -1) if n == 0 or context[len(context) - n :] in listed
    )
    assert found.length == longest
    end = context[len(context) - longest :]
    expected = {
        ngram[-1]: count for ngram, count in listed.items() if ngram[:-1] == end and longest
    }
    if longest:
        assert dict(zip(found.tokens.tolist(), found.counts.tolist(), strict=True)) == expected


@settings(max_examples=examples(100), deadline=None)
@given(documents=DOCUMENTS, query=QUERY, eos=st.sampled_from([EOS, BOS]))
def test_it_is_an_absolutely_discounted_ngram_longer_than_every_document(documents, query, eos):
    _, tokens, starts = make_row(documents, eos)
    order = max(len(words) for words in documents) + 2
    config = NgramConfig(
        vocab_size=8,
        order=order,
        smoothing="absolute",
        bos_token_id=BOS,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    expected = NgramForCausalLM.fit(config, tokens, starts)
    ids = torch.tensor([[BOS, *query]])
    found = fit(documents, eos)(ids).logits.exp()
    torch.testing.assert_close(found.sum(-1), torch.ones(1, ids.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, expected(ids).logits.exp(), rtol=1e-5, atol=1e-6)


@settings(max_examples=examples(100), deadline=None)
@given(
    documents=DOCUMENTS,
    query=QUERY,
    reach=st.sampled_from([1, 2, 3, 32]),
    smoothing=st.sampled_from(["absolute", "none"]),
)
def test_a_looked_up_cost_is_that_of_the_whole_distribution(documents, query, reach, smoothing):
    before, suffix_array.DISCOUNTED_LENGTHS = suffix_array.DISCOUNTED_LENGTHS, reach
    try:
        model = fit(documents, smoothing=smoothing)
    finally:
        suffix_array.DISCOUNTED_LENGTHS = before
    ids = torch.tensor([BOS, *query, EOS, BOS, *query, EOS])
    found, orders = model.score_tokens(ids)
    half = len(query) + 2
    logits = torch.cat([model(ids[None, :half]).logits[0], model(ids[None, half:]).logits[0]])
    expected = logits[torch.arange(len(ids) - 1), ids[1:]] / math.log(10)
    kept = torch.arange(1, len(ids)) != half  # nothing predicts what opens the second document
    torch.testing.assert_close(found[1:][kept], expected[kept], rtol=1e-4, atol=1e-5)
    matches = model.longest_match(ids)
    assert torch.all(orders[1:][kept] <= matches[:-1][kept] + 1)


def test_after_the_end_of_the_last_document_comes_nothing_of_it():
    model = fit([[3, 4]])
    probabilities = model(torch.tensor([[BOS, 3, 4, EOS]])).logits[0, -1].exp()
    torch.testing.assert_close(probabilities, model.unigrams.data)
    assert model.find_continuations(torch.tensor([4, EOS])).tokens.tolist() == []


@settings(max_examples=examples(100), deadline=None)
@given(documents=DOCUMENTS, query=QUERY)
def test_without_smoothing_it_is_the_papers_definition(documents, query):
    """cnt(context w) / cnt(context) of the longest end of the context that occurs (Liu et al. 2024,
    section 2).
    """
    model, listed = fit(documents, smoothing="none"), list_ngrams(documents)
    context = [BOS, *query]
    found = model(torch.tensor([context])).logits[0, -1].exp()
    longest = next(
        n
        for n in range(len(context), -1, -1)
        if n == 0 or tuple(context[len(context) - n :]) in listed
    )
    if longest == 0:
        return  # every token by its frequency
    end = tuple(context[len(context) - longest :])
    for word in range(8):
        assert found[word].item() == pytest.approx(
            listed.get((*end, word), 0) / listed[end], rel=1e-5
        )


def test_it_is_read_through_a_map_of_the_file(tmp_path):
    """A model larger than memory opens: loading touches no page of its tables."""
    tokens = numpy.random.default_rng(0).integers(3, 1000, 2_000_000).astype(numpy.uint16)
    tokens[0], tokens[-1] = BOS, EOS
    config = InfinigramConfig(vocab_size=1000, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    InfinigramForCausalLM.fit(config, tokens, numpy.array([0])).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 12.1 * len(tokens)
    before = _anonymous_memory()
    model = InfinigramForCausalLM.from_pretrained(tmp_path)
    assert model.count(torch.from_numpy(tokens[1000:1003].astype(numpy.int64))) >= 1
    assert _anonymous_memory() - before < size / 4


def _anonymous_memory():
    """Bytes of this process that no file stands behind."""
    try:
        with Path("/proc/self/status").open() as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        pytest.skip("only Linux says what a process's memory is")


@pytest.mark.slow
def test_counts_are_those_of_the_papers_own_package(tmp_path):
    """The package `infini-gram` builds its own index of the same bytes and is asked the same."""
    pytest.importorskip(
        "infini_gram", reason="the package infini-gram, which is only for Linux, is not installed"
    )
    import resource

    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "all.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in SENTENCES)
    )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    folders = ["--data_dir", str(tmp_path / "text"), "--save_dir", str(tmp_path / "index")]
    settings = ["--token_dtype", "u8", "--cpus", "1", "--mem", "1", "--ulimit", str(limit)]
    subprocess.run(
        [sys.executable, "-m", "infini_gram.indexing", *folders, *settings],
        check=True,
        capture_output=True,
    )
    theirs = subprocess.run(
        [sys.executable, "-c", ASK_THEIRS, str(tmp_path / "index"), json.dumps(SENTENCES)],
        check=True,
        capture_output=True,
        text=True,
    )  # in a process of its own: it ends the one that it fails in
    model = fit([line.encode() for line in SENTENCES], vocab_size=256, smoothing="none")
    for query, count, share, length in json.loads(theirs.stdout):
        ids = torch.tensor(list(query.encode()))
        assert model.count(ids) == count, query
        found = model.find_continuations(ids[:-1])
        after = dict(zip(found.tokens.tolist(), found.counts.tolist(), strict=True))
        assert found.length == length, query
        assert after.get(int(ids[-1]), 0) / sum(after.values()) == pytest.approx(share), query


def test_bad_settings_are_refused():
    with pytest.raises(RecipeError, match="smoothing is 'kneser-ney'"):
        fit([[3, 4]], smoothing="kneser-ney")
