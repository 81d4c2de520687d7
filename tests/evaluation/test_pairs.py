"""Minimal pairs: the choices of lm-evaluation-harness, and 50% for a model that knows nothing."""

import itertools
import json
import math
import random

import pytest
import torch
import yaml

from rung import runs
from rung.data.pairs import MinimalPair, read_pairs
from rung.data.tokenizer_training import build_tokenizer
from rung.evaluation.documents import spelling_cost
from rung.evaluation.metrics import wilson_interval
from rung.evaluation.pairs import PairScore, measure_accuracy, measure_groups, score_pairs
from rung.models import build_model, make_config
from rung.workflows.pairs import evaluate_pairs, record_pairs
from tests.conftest import SENTENCES, TINY, run_rung, write
from tests.evaluation.conftest import count

LONG = " ".join(SENTENCES * 4)  # of more tokens than a tiny model's window


def make_pairs(number=40, seed=0):
    """Pairs of a sentence and the same with its words in another order or one word replaced."""
    dice = random.Random(seed)
    words = sorted({*" ".join(SENTENCES).split(), "Naïve", "unheard-of"})
    pairs = []
    for i in range(number):
        good = dice.choices(words, k=dice.randint(2, 9))
        bad = dice.sample(good, len(good)) if i % 2 else [*good[:-1], dice.choice(words)]
        pairs.append(MinimalPair(" ".join(good), " ".join(bad), f"kind {i % 3}", "odd"[: i % 2]))
    return pairs


@pytest.fixture
def blimp(tmp_path):
    """Pairs in a file of BLiMP's format, beside a task of lm-evaluation-harness on them.

    The task has the lines of the harness's own template for BLiMP, but for the place of the data.
    """
    rows = [
        {"sentence_good": p.good, "sentence_bad": p.bad, "UID": p.paradigm, "linguistics_term": "x"}
        for p in make_pairs()
    ]
    path = write(tmp_path / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    page = {
        "task": "local_blimp",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(path)}},
        "output_type": "multiple_choice",
        "validation_split": "train",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    write(tmp_path / "task.yaml", yaml.safe_dump(page))
    return path


@pytest.mark.parametrize("name", list(TINY))
def test_each_choice_and_each_sum_is_the_harnesss(name, make_tiny, tokenizer, blimp):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rung[eval]'")
    from lm_eval.evaluator import evaluate

    from rung.evaluation.harness import HarnessLM, load_tasks

    model = make_tiny(name)
    judged = evaluate(
        HarnessLM(model, tokenizer),
        load_tasks([str(blimp.with_name("task.yaml"))]),
        log_samples=True,
    )
    theirs = {
        (s["doc"]["sentence_good"], s["doc"]["sentence_bad"]): s
        for s in judged["samples"]["local_blimp"]
    }
    scores = score_pairs(model, tokenizer, read_pairs(str(blimp)).pairs)
    assert len(theirs) == len(scores) == 40
    for score in scores:
        sample = theirs[score.pair.good, score.pair.bad]
        logs = [float(response[0]) for response, *_ in sample["resps"]]
        assert [-score.good, -score.bad] == pytest.approx(logs, rel=1e-5)
        if not math.isclose(*logs, rel_tol=1e-6):
            assert score.credit == sample["acc"]
    if not any(math.isclose(s.good, s.bad, rel_tol=1e-6) for s in scores):
        accuracy = judged["results"]["local_blimp"]["acc,none"]
        assert measure_accuracy(scores).accuracy == accuracy


@pytest.mark.parametrize("name", ["ngram", "rnn", "llama3"])
def test_a_sentence_costs_its_tokens_without_its_end(name, make_tiny, tokenizer):
    model = make_tiny(name)
    pair = MinimalPair("the cat sat on the mat", "the cat sat on the naïve", "", "")
    (score,) = score_pairs(model, tokenizer, [pair])
    for cost, text in ((score.good, pair.good), (score.bad, pair.bad)):
        ids = [tokenizer.bos_token_id, *tokenizer(" " + text, add_special_tokens=False).input_ids]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        by_hand = -sum(logits[i, ids[i + 1]].item() for i in range(len(ids) - 1))
        assert cost == pytest.approx(by_hand, rel=1e-5)


def test_a_sentence_longer_than_the_window_is_scored_whole(make_tiny, tokenizer):
    model = make_tiny("llama3")
    (score,) = score_pairs(model, tokenizer, [MinimalPair(LONG, LONG + " dog", "", "")])
    assert len(tokenizer(LONG).input_ids) > model.context_length
    assert score.bad > score.good > 0


def flatten(model):
    """Weights that say the same of every token."""
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


@pytest.mark.parametrize("name", ["rnn", "llama3"])
def test_a_constant_model_gets_half_exactly(name, make_tiny, tokenizer):
    model = flatten(make_tiny(name, tie_word_embeddings=False))
    pairs = [pair for pair in make_pairs(60) if sorted(pair.good) == sorted(pair.bad)]
    pairs = [
        pair
        for pair in pairs
        if len(tokenizer(" " + pair.good).input_ids) == len(tokenizer(" " + pair.bad).input_ids)
    ]
    found = measure_accuracy(score_pairs(model, tokenizer, pairs))
    assert found.accuracy == 0.5
    assert found.ties == found.pairs == len(pairs) > 20
    assert found.low < 0.5 < found.high


def test_the_order_of_equal_terms_makes_no_difference(tokenizer):
    """A unigram model gives a sentence and its words in another order the same probability."""
    words = [f" {word}" for word in ["the", "cat", "sat", "on", "mat", "log", "dog"]]
    config = make_config("llama3", tokenizer, TINY["llama3"] | {"tie_word_embeddings": False})
    torch.manual_seed(0)
    model = build_model("llama3", config).eval()
    with torch.no_grad():  # every position has the same state
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[0]
    orders = ["".join(order)[1:] for order in itertools.islice(itertools.permutations(words), 200)]
    pairs = [MinimalPair(good, bad, "", "") for good, bad in itertools.pairwise(orders)]
    scores = score_pairs(model, tokenizer, pairs)
    assert all(score.is_tie for score in scores)


def test_sentences_of_the_same_tokens_are_a_tie_in_any_batch(monkeypatch):
    """A model whose sums depend on the batch, as the last bit of a float may, is asked once."""
    calls = itertools.count(1.0)

    def compute_nll(model, documents):
        cost = next(calls)
        return [torch.full((len(ids) - 1,), cost) for ids in documents]

    monkeypatch.setattr("rung.evaluation.pairs.SENTENCES_AT_ONCE", 3)
    monkeypatch.setattr("rung.evaluation.pairs.compute_nll", compute_nll)
    words = build_tokenizer("word", SENTENCES * 5, 50)
    pairs = [MinimalPair(s, s.replace(" ", "  "), "", "") for s in SENTENCES]
    assert all(score.is_tie for score in score_pairs(None, words, pairs))


def test_unknown_words_are_charged_their_spelling():
    words = build_tokenizer("word", SENTENCES * 5, 50)
    model = count("bigram", words, SENTENCES)
    pair = MinimalPair("the cat sat", "the zebra sat", "", "")
    (score,) = score_pairs(model, words, [pair])
    assert score.spelled == 1
    ids = words(pair.bad).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    plain = -sum(logits[i, ids[i + 1]].item() for i in range(len(ids) - 1))
    assert score.bad == pytest.approx(plain + spelling_cost("zebra"), rel=1e-6)
    assert score.credit == 1.0


def make_scores(*costs):
    return [
        PairScore(pair=MinimalPair(str(i), "bad", "", ""), good=good, bad=bad, spelled=0)
        for i, (good, bad) in enumerate(costs)
    ]


def test_ties_count_half_and_two_impossible_sentences_tie():
    found = measure_accuracy(make_scores((1, 2), (2, 1), (1, 1), (math.inf, math.inf)))
    assert (found.accuracy, found.pairs, found.ties) == (0.5, 4, 2)


@pytest.mark.parametrize(("right", "wrong"), [(0, 5), (5, 0), (7, 3), (831, 169), (1, 0)])
def test_the_interval_is_wilsons(right, wrong):
    stats = pytest.importorskip("scipy.stats", reason="needs the package scipy")
    found = measure_accuracy(make_scores(*[(1, 2)] * right, *[(2, 1)] * wrong))
    expected = stats.binomtest(right, right + wrong).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_copies_of_a_pair_do_not_narrow_the_interval():
    once, often = make_scores((1, 2), (2, 1)), make_scores((1, 2), (2, 1)) * 50
    assert measure_accuracy(often).pairs == 100
    assert measure_accuracy(often).low == measure_accuracy(once).low == wilson_interval(0.5, 2)[0]


def test_groups_stand_in_their_order():
    scores = [PairScore(pair=pair, good=1, bad=2, spelled=0) for pair in make_pairs(6)]
    found = measure_groups(scores, lambda pair: pair.paradigm)
    assert {name: each.pairs for name, each in found.items()} == dict.fromkeys(
        ["kind 0", "kind 1", "kind 2"], 2
    )


@pytest.fixture
def run(make_tiny, tokenizer, tmp_path):
    folder = runs.make_folder(tmp_path / "run")
    runs.save_model(folder, make_tiny("ngram"), tokenizer)
    runs.write_record(folder, {"rung": "ngram", "scores": {"test": {}}})
    return folder


def test_the_command_prints_the_accuracies(run, blimp):
    found = json.loads(run_rung("eval", run, "--pairs", blimp, "--json").stdout)
    assert found["rung"] == "ngram" and found["name"] == "pairs.jsonl"
    assert [row["paradigm"] for row in found["paradigms"]] == ["kind 0", "kind 1", "kind 2"]
    assert [row["phenomenon"] for row in found["phenomena"]] == ["x"]
    assert sum(row["pairs"] for row in found["paradigms"]) == found["pairs"] == 40
    right = sum(row["accuracy"] * row["pairs"] for row in found["paradigms"])
    assert found["accuracy"] == pytest.approx(right / 40)
    assert found["low"] < found["accuracy"] < found["high"]
    shown = run_rung("eval", run, "--pairs", blimp).stdout
    assert f"{100 * found['accuracy']:.1f}% (" in shown
    assert "kind 2" in shown and "all pairs" in shown


@pytest.mark.parametrize(
    "words",
    [
        ("other.txt",),
        ("--split", "train"),
        ("--limit", 3),
        ("--cache",),
        ("--tasks", "blimp"),
        ("--column", "text"),
    ],
)
def test_pairs_go_with_no_other_text(run, blimp, words):
    made = run_rung("eval", run, "--pairs", blimp, *words)
    assert made.returncode == 2
    assert made.stderr.count("\n") == 1
    assert "--pairs bring their own text" in made.stderr


@pytest.mark.parametrize("words", [("eval", "r"), ("climb", "my.txt")])
def test_pairs_that_are_an_empty_text_are_refused(run, words):
    words = [run if word == "r" else word for word in words]
    made = run_rung(*words, "--pairs", "", "--quiet")
    assert (made.returncode, made.stdout) == (2, "")
    assert "--pairs is an empty text" in made.stderr and made.stderr.count("\n") == 1


def test_a_mistake_in_the_file_is_one_line(run, tmp_path):
    path = write(tmp_path / "bad.csv", "good,bad\na,b\nc,\n")
    made = run_rung("eval", run, "--pairs", path, "--quiet")
    assert made.returncode == 2
    assert made.stderr == f"rung: {path}, line 3: no sentence in the column 'bad': a pair has two\n"


def test_a_record_keeps_the_accuracies_once(run, blimp):
    pairs, told = read_pairs(str(blimp)), []
    record_pairs([run], pairs, told.append)
    kept = runs.read_record(run)["pairs"]
    shown = evaluate_pairs(str(run), str(blimp))
    assert {**kept, "run": str(run), "rung": "ngram"} == shown
    assert told
    told.clear()
    record_pairs([run], pairs, told.append)
    assert not told
