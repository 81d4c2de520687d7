"""What a run will take: said for every kind of rung, of things that are so, and nothing is
written.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from rung.errors import RecipeError
from rung.models import count_parameters
from rung.models.ngram.counting_settings import process_memory
from rung.recipe import make_recipe
from rung.training.arguments import make_training_arguments
from rung.training.lora import LoraAdapter
from rung.training.settings import TrainSettings
from rung.workflows import estimate
from rung.workflows.estimate import estimate_costs
from rung.workflows.train import execute

SMALL = {"hidden_size": 64, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def text(tmp_path_factory, prose):
    path = tmp_path_factory.mktemp("foreseen") / "text.txt"
    path.write_text(prose)
    return str(path)


@pytest.mark.parametrize(
    "rung", ["bigram", "ngram", "infini-gram", "rnn", "rnn-attention", "gpt2", "llama3"]
)
def test_every_rung_says_what_it_takes(rung, text, tmp_path):
    counts = rung in ("bigram", "ngram", "infini-gram")
    page = {"rung": rung, "corpus": text} | ({} if counts else {"steps": 10, "model": SMALL})
    found = estimate_costs(make_recipe(page), tmp_path / "run")
    assert "tokens" in found["training text"] and "GB" in found["disk"]
    assert "GB" in (found["memory"] if counts else found["memory a process"])
    assert counts or int(found["parameters"].replace(",", "")) > 10_000
    assert not list(tmp_path.iterdir())


def test_a_long_count_says_what_its_checkpoints_take(text, tmp_path, monkeypatch):
    recipe = make_recipe({"rung": "ngram", "corpus": text})
    assert "to go on from" not in estimate_costs(recipe, tmp_path / "run")["disk"]
    monkeypatch.setattr("rung.models.ngram.counting_settings.MIN_CHECKPOINT_SECONDS", 0.0)
    assert (
        "GB for counts to go on from, until the run is complete"
        in estimate_costs(recipe, tmp_path / "run")["disk"]
    )


def test_counting_says_the_smallest_memory(text, tmp_path):
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    page = {"rung": "ngram", "corpus": text}
    least = estimate_costs(make_recipe(page), tmp_path / "run")["smallest memory"].split()[0]
    enough = str(int(least.removesuffix("MB")) + 200) + "MB"  # this process may grow meanwhile
    found = estimate_costs(make_recipe(page | {"counting": {"memory": enough}}), tmp_path / "run")
    assert enough in found["memory"]
    with pytest.raises(RecipeError, match="MB suffices"):
        estimate_costs(make_recipe(page | {"counting": {"memory": "100MB"}}), tmp_path / "run")


def read_gigabytes(text):
    """The first number of gigabytes that is named."""
    return float(text.split(" GB")[0].split()[-1]) * 1e9


def test_what_training_grows_by_is_foreseen_within_a_factor_of_two(text, tmp_path, watch_memory):
    shape = {"hidden_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 256}
    train = {"per_device_train_batch_size": 4}
    recipe = make_recipe(
        {"rung": "llama3", "corpus": text, "steps": 2, "model": shape, "train": train}
    )
    found = estimate_costs(recipe, tmp_path / "run")["memory a process"]
    assert "an estimate" in found
    said = read_gigabytes(found) - process_memory()
    grown = watch_memory()
    assert execute(recipe, tmp_path / "run")
    assert said / 2 < grown() < 2 * said


@pytest.fixture
def base(make_tiny, tokenizer, tmp_path):
    """A model folder."""
    for part in (make_tiny("llama3"), tokenizer):
        part.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_a_base_is_what_is_counted(text, base, make_tiny, tmp_path):
    found = estimate_costs(
        make_recipe({"rung": "llama3", "corpus": text, "base": base, "steps": 5}), tmp_path / "run"
    )
    assert found["parameters"] == f"{count_parameters(make_tiny('llama3')):,}"
    assert not (tmp_path / "run").exists()
    changed = {"rung": "llama3", "corpus": text, "base": base, "model": {"hidden_size": 64}}
    with pytest.raises(RecipeError, match="model.hidden_size is 64, but .* was made with 32"):
        estimate_costs(make_recipe(changed), tmp_path / "run")


@pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs PEFT: pip install 'rung[lora]'"
)
@pytest.mark.parametrize("rung", ["llama3", "gpt2", "rnn"])
def test_of_a_base_with_adapters_they_alone_have_gradients_and_moments(
    rung, text, base, make_tiny, tmp_path
):
    with torch.device("meta"):
        model = type(make_tiny(rung))(make_tiny(rung).config)
        learner = LoraAdapter(model, 4).peft_model
    trained = sum(
        parameter.numel() for parameter in learner.parameters() if parameter.requires_grad
    )
    memory = estimate._count_memory(
        model, learner, make_training_arguments(TrainSettings(lora=4), Path(), 1), 1000
    )
    assert (memory.gradients, memory.moments) == (4 * trained, 8 * trained)
    assert memory.weights >= 4 * sum(parameter.numel() for parameter in learner.parameters())
    if rung == "llama3":
        page = {"rung": rung, "corpus": text, "base": base, "lora": 4, "steps": 5}
        found = estimate_costs(make_recipe(page), tmp_path / "run")
        assert found["parameters"] == f"{trained:,} trained beside {count_parameters(model):,}"
