"""The model card of an exported folder: what it says is in the run's record, and nothing else is
said.
"""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from rung import runs
from rung.errors import RunError
from rung.export.card import find_dataset, make_card
from rung.export.export import export
from rung.recipe import make_recipe
from rung.workflows.train import execute
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all that a record has."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "my text.txt").write_text("\n".join(SENTENCES * 20))
    page = {
        "rung": "llama3",
        "corpus": str(folder / "my text.txt"),
        "documents": "lines",
        "steps": 2,
    }
    small = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}
    recipe = make_recipe({**page, "tokenizer": {"kind": "bpe", "vocab_size": 280}, "model": small})
    assert execute(recipe, folder / "run")
    return folder / "run"


def read_card(folder):
    """The front matter and the text, as the Hub takes them apart."""
    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def test_a_card_says_where_a_score_is_of_no_distribution(run, monkeypatch):
    record = runs.read_record(run)
    assert "renormalized" not in make_card(run, "m")
    record["scores"]["test"]["renormalized"] = True
    monkeypatch.setattr(runs, "find_record", lambda folder: record)
    text = make_card(run, "m")
    assert text.count("of renormalized scores") == 3 and "are no distribution" in text


def test_a_run_has_a_card_that_the_hub_reads(run, tmp_path):
    export(str(run), "hf", tmp_path / "small-llama")
    front, text = read_card(tmp_path / "small-llama")
    record = runs.read_record(run)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert front["tags"] == ["rung", "llama3"]
    assert not {"license", "datasets", "base_model"} & set(front), "none of them is known"
    (index,) = front["model-index"]
    assert index["name"] == "small-llama"
    found = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    score = record["scores"]["test"]
    assert found == {
        metric: score[metric] for metric in ("bits_per_byte", "word_perplexity", "token_perplexity")
    }
    for fact in (
        f"{record['parameters']:,} parameters",
        record["corpus"]["fingerprint"],
        f"| train | {record['corpus']['documents']['train']} | "
        f"{record['corpus']['bytes']['train']:,} |",
        f"2 steps, {record['training']['tokens']:,} tokens",
        record["hardware"],
        f"transformers {record['versions']['transformers']}",
        "not trained to answer",
    ):
        assert fact in text
    assert "import rung" not in text
    assert str(tmp_path.parent) not in text, "no folder of this machine"


def test_the_recipe_in_the_card_is_one(run, tmp_path):
    (page,) = re.findall(r"```yaml\n(.*?)```", make_card(run, "x"), re.DOTALL)
    recipe = yaml.safe_load(page)
    assert (recipe["corpus"], recipe["seed"]) == ("my text.txt", 0)
    assert make_recipe(recipe).model == runs.read_record(run)["recipe"]["model"]


def test_the_code_in_the_card_runs(run, tmp_path, monkeypatch, capsys):
    export(str(run), "hf", tmp_path / "small-llama")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "small-llama/README.md").read_text(), re.DOTALL
    )
    exec(code, {})
    assert runs.read_prompt(runs.read_record(run)) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rnn", "ngram", "gpt2"])
def test_a_model_that_transformers_does_not_ship_says_what_to_import(
    name, make_tiny, tokenizer, tmp_path
):
    runs.save_model(runs.make_folder(tmp_path / "run"), make_tiny(name), tokenizer)
    runs.write_record(
        tmp_path / "run", {"rung": name, "imported": "w.arpa.gz", "versions": {"rung": "0"}}
    )
    front, text = read_card_of(tmp_path / "run")
    assert ("import rung.models" in text) == (name != "gpt2")
    assert "model-index" not in front
    assert "## Scores" not in text


def read_card_of(folder):
    (folder / "README.md").write_text(make_card(folder, "x"))
    return read_card(folder)


def test_what_is_not_known_is_not_said(make_tiny, tokenizer, tmp_path):
    folder = runs.make_folder(tmp_path / "run")
    runs.save_model(folder, make_tiny("gpt2"), tokenizer)
    front, text = read_card_of(folder)
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["Use"]
    (folder / "README.md").write_text("---\nlicense: mit\n---\nits own card\n")
    export(str(folder), "hf", tmp_path / "out")
    assert read_card(tmp_path / "out") == ({"license": "mit"}, "its own card\n")


def test_what_else_a_run_may_know(run, tmp_path):
    record = runs.read_record(run)
    more = {
        "tune": {"data": "chat.jsonl", "steps": 10},
        "base": {"path": "openai-community/gpt2", "fingerprint": "f00"},
        "corpus": {**record["corpus"], "name": "hf:roneneldan/TinyStories"},
    }
    score = {
        **record["scores"]["test"],
        "word_perplexity": None,
        "nats": None,
        "low": None,
        "high": None,
    }
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    runs.write_record(tmp_path, {**record, **more, "scores": {"test": score}})
    front, text = read_card_of(tmp_path)
    assert front["base_model"] == "openai-community/gpt2"
    assert front["datasets"] == ["roneneldan/TinyStories"]
    assert len(front["model-index"][0]["results"][0]["metrics"]) == 2
    assert "| word perplexity | infinite |" in text
    assert "tuned:\n\n```yaml\ndata: chat.jsonl\nsteps: 10\n```" in text
    assert "not trained to answer" not in text


def test_half_an_interval_is_left_out_and_a_damaged_record_named(make_tiny, tokenizer, tmp_path):
    runs.save_model(tmp_path, make_tiny("gpt2"), tokenizer)
    score = {"bytes": 9, "documents": 1, "bits_per_byte": 2.0, "low": 1.5, "high": None}
    score |= {"word_perplexity": None, "token_perplexity": None}
    record = {
        "rung": "gpt2",
        "corpus": {"name": "x", "fingerprint": "f", "documents": {}, "bytes": {}},
    }
    runs.write_record(tmp_path, record | {"scores": {"test": score}})
    assert "| bits per byte | 2.0000 |  |" in make_card(tmp_path, "x")
    runs.write_record(tmp_path, record | {"base": {"path": 5}})
    with pytest.raises(RunError, match="rung.json is damaged"):
        make_card(tmp_path, "x")


@pytest.mark.parametrize(
    ("corpus", "found"),
    [
        ("wikitext-2", "Salesforce/wikitext"),
        ("hf:ORG/NAME:CONFIG", "ORG/NAME"),
        ("stream:ORG/NAME@10GB", "ORG/NAME"),
        ("python-docs", None),
        ("my/text", None),
        ("hf:/home/me/data", None),
    ],
)
def test_a_data_set_of_the_hub_is_named(corpus, found):
    assert find_dataset(corpus) == found
