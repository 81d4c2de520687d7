"""Every rung under lm-evaluation-harness: its `hf` backend reads the model, and gives the ruler's
numbers.
"""

import json
import math
import sys

import pytest
import torch
import yaml
from typer.testing import CliRunner

from rung import runs
from rung.cli.score_tables import tasks_table
from rung.data.corpus import load_corpus
from rung.errors import CorpusError, RecipeError, RunError
from rung.evaluation.score import score_documents
from rung.evaluation.surprisal import score_text
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.recipe import make_recipe
from rung.workflows.evaluate import evaluate_tasks
from rung.workflows.train import execute
from tests.conftest import SENTENCES, TINY, overflow

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-eval is not installed: pip install 'rung[eval]'"
)

TEXTS = (
    "the cat sat on the mat",
    "a dog is not a cat,  and naïve",
    "an unheard-of log\n\n<|end_of_text|> the dog",
)
QUESTIONS = [
    {"question": "the cat sat on", "choices": ["the mat", "not a is"], "answer": 0},
    {"question": "the dog sat on", "choices": ["cat the and", "the log"], "answer": 1},
    {"question": "a dog is", "choices": ["not a cat", "mat"], "answer": 0},
]


@pytest.fixture
def make_run(make_tiny, tokenizer, tmp_path):
    """A function that makes a run of a tiny model."""

    def make(name, **fields):
        runs.save_model(runs.make_folder(tmp_path / name), make_tiny(name, **fields), tokenizer)
        return str(tmp_path / name)

    return make


@pytest.fixture
def tasks(tmp_path):
    """A folder of three tasks, their text beside them."""
    folder = runs.make_folder(tmp_path / "tasks")
    whole = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    metrics = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    choose = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
    }
    answer = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
    }
    until = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 500}}
    pages = {
        "whole": (whole | {"metric_list": metrics}, [{"text": text} for text in TEXTS]),
        "choose": (
            choose | {"doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}]},
            QUESTIONS,
        ),
        "answer": (answer | until | {"metric_list": [{"metric": "exact_match"}]}, QUESTIONS),
    }
    for name, (page, rows) in pages.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        page = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": files,
            "test_split": "test",
            **page,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(page))
    return folder


@pytest.mark.parametrize("name", list(TINY))
def test_the_harness_gives_the_rulers_numbers(name, make_tiny, tokenizer, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = make_tiny(name)
    runs.save_model(runs.make_folder(tmp_path / name), model, tokenizer)
    harness = HFLM(
        pretrained=str(tmp_path / name),
        backend="causal",
        batch_size=2,
        device="cpu",
        max_length=64,
        add_bos_token=False,
    )
    texts = [*SENTENCES, "an unheard-of log"]
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=i)
        for i, text in enumerate(texts)
    ]
    for text, nats in zip(
        texts, harness.loglikelihood_rolling(requests, disable_tqdm=True), strict=True
    ):
        expected = sum(piece.bits for piece in score_text(model, tokenizer, text)[:-1]) * math.log(
            2
        )  # no end there
        assert -nats == pytest.approx(expected, rel=1e-4)
    pairs = [
        Instance(
            request_type="loglikelihood", doc={}, arguments=("the cat sat on", " the mat"), idx=i
        )
        for i in range(3)
    ]
    assert (
        len({harness_nats for harness_nats, _ in harness.loglikelihood(pairs, disable_tqdm=True)})
        == 1
    )


@pytest.mark.parametrize("name", list(TINY))
def test_its_figures_are_ours_without_the_ends_of_documents(name, make_run, tasks, tokenizer):
    """The harness cannot be told to score the end-of-text token, which our ruler scores: so the two
    are compared on the sum without it. The texts fit the window, for the harness moves it further
    than we do; they begin and end with a word, for it counts the nothing before a space as one; the
    tokenizer knows every byte, for it spells nothing.
    """
    from rung.models import load

    run = make_run(name)
    model, _ = load(run)
    found = evaluate_tasks(run, [str(tasks / "whole.yaml")])["tasks"]["whole"]
    figures = {row["metric"]: row["value"] for row in found["metrics"]}
    ruler = score_documents(model, tokenizer, TEXTS)
    ends = sum(score_text(model, tokenizer, text)[-1].bits for text in TEXTS)
    bits = ruler.nats / math.log(2) - ends
    assert found["documents"] == ruler.documents == len(TEXTS)
    assert figures["bits_per_byte"] == pytest.approx(bits / ruler.bytes, rel=1e-6)
    assert figures["word_perplexity"] == pytest.approx(2 ** (bits / ruler.words), rel=1e-6)
    assert math.log(figures["word_perplexity"]) == pytest.approx(
        bits * math.log(2) / ruler.words, rel=1e-6
    )


@pytest.mark.parametrize("name", list(TINY))
def test_every_rung_answers(name, make_run, tasks):
    run = make_run(name)
    found = evaluate_tasks(run, [str(tasks)], limit=2)
    assert set(found["tasks"]) == {"whole", "choose", "answer"}
    assert all(figures["documents"] == 2 for figures in found["tasks"].values())
    accuracy = found["tasks"]["choose"]["metrics"][0]
    assert accuracy["metric"] == "acc"
    assert accuracy["stderr"] is not None
    if name in ("ngram", "infini-gram"):
        assert accuracy["value"] == 1.0, "its answers stand in the text that was counted"


def test_weights_whose_sums_are_no_numbers_have_no_figures(make_tiny, tokenizer):
    from rung.evaluation.harness import HarnessLM

    judged = HarnessLM(overflow(make_tiny("llama3", tie_word_embeddings=False)), tokenizer)
    with pytest.raises(RunError, match="the model computes (nan|inf) in place of a number"):
        judged._model_call(torch.tensor([[0, 5, 7]]))


@pytest.mark.parametrize("name", [name for name in TINY if name != "bigram"])
def test_its_answers_are_what_the_rung_writes(name, make_tiny, tokenizer):
    """Questions of several lengths, side by side; a limit that is beyond the window."""
    from lm_eval.api.instance import Instance

    from rung.evaluation.harness import HarnessLM

    model = make_tiny(name)
    prompts = ["the cat", "a dog and a cat sat on", "the"]
    options = {"until": ["log"], "max_gen_toks": 8 if model.context_length is None else 500}
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, dict(options)), idx=0)
        for prompt in prompts
    ]
    found = HarnessLM(model, tokenizer).generate_until(asked, disable_tqdm=True)
    sampling = Sampling(
        temperature=0, max_new_tokens=8 if model.context_length is None else 32, stop=("log",)
    )
    ours = [generate(model, tokenizer, prompt, sampling).text for prompt in prompts]
    assert [text.rstrip("\ufffd") for text in found] == [
        text.rstrip("\ufffd") for text in ours
    ]  # half a character


def test_a_text_longer_than_the_window_is_read_whole(make_run, tasks, tokenizer):
    long = " ".join(SENTENCES * 10)
    (tasks / "whole.jsonl").write_text(json.dumps({"text": long}) + "\n")
    for name in ("gpt2", "rnn"):
        found = evaluate_tasks(make_run(name), [str(tasks / "whole.yaml")])["tasks"]["whole"]
        assert (
            0
            < next(row["value"] for row in found["metrics"] if row["metric"] == "bits_per_byte")
            < 20
        )


def test_a_text_without_spaces_has_an_infinite_word_perplexity(make_run, tasks):
    """Its 500 characters are one word, and the harness's exp overflowed: a traceback."""
    (tasks / "whole.jsonl").write_text(
        json.dumps({"text": "今天天气很好我们去公园散步" * 40}) + "\n"
    )
    found = evaluate_tasks(make_run("bigram"), [str(tasks / "whole.yaml")])["tasks"]["whole"]
    figures = {row["metric"]: row["value"] for row in found["metrics"]}
    assert figures["word_perplexity"] == math.inf
    assert 1 < figures["byte_perplexity"] < math.inf
    assert "infinite" in str(
        tasks_table({"rung": "bigram", "harness": "", "limit": None, "tasks": {"x": found}})
        .columns[3]
        ._cells
    )


def test_text_that_a_run_was_trained_on_is_no_test(tasks, prose, tmp_path):
    (tmp_path / "my.txt").write_text(prose)
    assert execute(
        make_recipe({"rung": "ngram", "corpus": str(tmp_path / "my.txt")}), tmp_path / "run"
    )
    corpus = load_corpus(str(tmp_path / "my.txt"))
    texts = [corpus.train["text"][0], corpus.test["text"][0]]
    (tasks / "whole.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    names = [str(tasks / f"{name}.yaml") for name in ("whole", "choose")]
    for limit, share in (
        (1, 1.0),
        (None, len(texts[0].encode()) / sum(len(text.encode()) for text in texts)),
    ):
        found = evaluate_tasks(str(tmp_path / "run"), names, limit)
        seen = {name: task["seen_in_training"] for name, task in found["tasks"].items()}
        assert seen == {"whole": pytest.approx(share, abs=0.05), "choose": 0.0}
        caption = str(tasks_table(found).caption)
        assert f"whole: {seen['whole']:.0%} of its bytes, by lines, were trained on" in caption
        assert "choose" not in caption
    (tmp_path / "my.txt").unlink()
    found = evaluate_tasks(str(tmp_path / "run"), names[:1], 1)
    assert "seen_in_training" not in found["tasks"]["whole"] and not found["renormalized"]


def test_what_cannot_be_asked_is_said(make_run, tasks, monkeypatch):
    own = runs.make_folder(
        tasks.parent / "own"
    )  # instead of the harness's own: listing those takes seconds
    for name in ("hellaswag", "wikitext"):
        page = {"task": name, "dataset_path": f"nobody/{name}", "test_split": "test"}
        (own / f"{name}.yaml").write_text(yaml.safe_dump(page))
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(own / "manager.py"))
    run = make_run("gpt2", max_position_embeddings=16)
    with pytest.raises(
        RecipeError, match="no task is called 'hellaswagg': did you mean 'hellaswag'"
    ):
        evaluate_tasks(run, ["wikitext,hellaswagg"])

    def fail(**_):
        raise ConnectionError("Couldn't reach the Hub")

    with monkeypatch.context() as patched:
        patched.setattr("datasets.load_dataset", fail)
        with pytest.raises(
            CorpusError,
            match="the task wikitext could not be loaded .ConnectionError: Couldn't reach .* needs "
            "a network",
        ):
            evaluate_tasks(run, ["wiki*"])
    with pytest.raises(RecipeError, match=r"no task at nowhere\.yaml: a YAML file"):
        evaluate_tasks(run, ["nowhere.yaml"])
    with pytest.raises(RecipeError, match="--tasks names no task"):
        evaluate_tasks(run, [""])
    page = yaml.safe_load((tasks / "whole.yaml").read_text())
    for text, said in (
        ("task: [a\nb: :", "ParserError: .* line 2, column 2.* A task is a YAML page"),
        (yaml.safe_dump({**page, "test_split": "exam"}), "KeyError: 'exam'"),
    ):
        (own / "mine.yaml").write_text(text)
        with pytest.raises(CorpusError, match=f"the task .*mine.yaml could not be loaded .{said}"):
            evaluate_tasks(run, [str(own / "mine.yaml")])
    (own / "mine.yaml").unlink()
    with pytest.raises(RecipeError, match="has no task"):
        evaluate_tasks(run, [str(runs.make_folder(tasks / "empty"))])
    long = {"question": "the", "choices": [" ".join(SENTENCES), "mat"], "answer": 0}
    (tasks / "choose.jsonl").write_text(json.dumps(long) + "\n")
    with pytest.raises(RunError, match="reads 16 tokens, and an answer in the task has"):
        evaluate_tasks(run, [str(tasks / "choose.yaml")])


def test_the_command_prints_a_table_or_one_object(make_run, tasks, monkeypatch):
    from rung.cli.main import app

    run = make_run("bigram")

    def call(*args):
        result = CliRunner().invoke(app, ["eval", run, *args])
        return result.exit_code, result.stdout, result.stderr

    code, said, _ = call(
        "--tasks", str(tasks / "choose.yaml"), "--tasks", str(tasks / "answer.yaml")
    )
    assert code == 0
    assert "bigram under lm_eval" in said
    assert "acc" in said
    assert "exact_match" in said
    code, said, _ = call("--tasks", str(tasks), "--limit", "1", "--json")
    found = json.loads(said)
    assert (code, found["limit"], found["tasks"]["whole"]["documents"]) == (0, 1, 1)
    assert "leave out CORPUS" in call("other.txt", "--tasks", "arc_easy")[2]
    assert "--limit is 3, but it is of --tasks" in call("--limit", "3")[2]
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'rung[eval]'" in call("--tasks", "arc_easy")[2]
