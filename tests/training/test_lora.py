"""Going on from a trained model: what it must be, and a change of low rank to it in the place of
all its weights.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from rung import runs
from rung.data.corpus import load_corpus
from rung.errors import RecipeError, RunError
from rung.evaluation.documents import take_texts
from rung.evaluation.score import score_documents
from rung.models import count_parameters, load
from rung.recipe import Recipe, make_recipe
from rung.workflows.base import load_base, read_base_config
from rung.workflows.prepare import VALIDATION_BYTES
from rung.workflows.run_folder import read_begun
from rung.workflows.train import execute
from tests.conftest import NEURAL, TINY, slow_but

TRAIN = {"per_device_train_batch_size": 2, "bf16": False}
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="needs PEFT: pip install 'rung[lora]'"
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory, prose):
    """The base's text and another one."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "one.txt").write_text(prose[:6_000])
    (folder / "other.txt").write_text(prose[10_000:14_000])
    return folder


@pytest.fixture(scope="module")
def make_base(texts, tmp_path_factory):
    """A function that gives the folder of a run of a rung, made once."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def make(name):
        if name not in made:
            made[name] = root / name
            page = {
                "rung": name,
                "corpus": str(texts / "one.txt"),
                "model": TINY[name],
                "steps": 10,
                "train": TRAIN,
            }
            assert execute(make_recipe(page), made[name])
        return str(made[name])

    return make


def page_of(name, texts, its_base, **changes):
    page = {
        "rung": name,
        "corpus": str(texts / "other.txt"),
        "base": its_base,
        "steps": 6,
        "train": TRAIN,
    }
    return page | changes


def random_ids(model):
    return torch.randint(
        3, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1)
    )


def losses_of(folder):
    return [line["loss"] for line in runs.read_metrics(folder) if "loss" in line]


def test_a_run_goes_on_from_a_model(make_base, texts, tmp_path):
    base = make_base("gpt2")
    recipe = make_recipe(page_of("gpt2", texts, base))
    assert recipe.tokenizer == {"path": base}
    assert execute(recipe, tmp_path / "on")
    record = runs.read_record(tmp_path / "on")
    assert record["base"]["path"] == base
    assert record["recipe"]["base"] == base
    assert Recipe(**record["recipe"]).base == base
    assert record["training"]["trainable_parameters"] == record["parameters"]
    assert (
        record["tokenizer"]["fingerprint"]
        == runs.read_record(Path(base))["tokenizer"]["fingerprint"]
    )
    model, tokenizer = load(base)
    assert (
        losses_of(tmp_path / "on")[0] < math.log(len(tokenizer)) - 0.01
    )  # it has learned a little to begin with
    assert not torch.equal(
        load(tmp_path / "on")[0](random_ids(model)).logits, model(random_ids(model)).logits
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokenizer": {"kind": "characters"}}, RecipeError, "reads its own tokens: leave it out"),
        (
            {"model": {"hidden_size": 64}},
            RecipeError,
            "model.hidden_size is 64, but .* was made with 32: leave it out",
        ),
        ({"model": {"n_positions": 32}}, RecipeError, "n_positions is 32, but"),
        (
            {"model": {"max_position_embeddings": 32}},
            RecipeError,
            "has learned a vector for each of its positions",
        ),
        ({"rung": "llama3"}, RunError, "is a 'gpt2' model and no llama3"),
        ({"rung": "ngram"}, RecipeError, "ngram is fitted by counting in one pass"),
        ({"base": "./nowhere"}, RunError, "no run at ./nowhere"),
        ({"base": 5}, RecipeError, "base is 5: it must name"),
        (
            {"base": None, "lora": 8},
            RecipeError,
            "lora is 8, but there is no model to adapt: .* --from RUN",
        ),
        ({"lora": 0}, RecipeError, "lora is 0: it must be a rank"),
        ({"lora": True}, RecipeError, "lora is True: it must be a rank"),
    ],
)
def test_what_contradicts_the_base_is_refused(changes, error, message, make_base, texts):
    for read in (load_base, read_base_config):
        with pytest.raises(error, match=message):
            read(make_recipe(page_of("gpt2", texts, make_base("gpt2"), **changes)))


def test_a_file_is_no_base(texts):
    for read in (load_base, read_base_config):
        with pytest.raises(RecipeError, match="a file: name a run .* of an ARPA file"):
            read(make_recipe(page_of("gpt2", texts, str(texts / "one.txt"))))


def test_what_says_how_to_train_may_be_set_anew(make_base, texts):
    model = load_base(
        make_recipe(
            page_of("gpt2", texts, make_base("gpt2"), model={"resid_pdrop": 0.5, "n_layer": 2})
        )
    )
    assert model.transformer.h[0].mlp.dropout.p == 0.5
    changed = page_of("llama3", texts, make_base("llama3"), model={"max_position_embeddings": 32})
    model = load_base(make_recipe(changed))
    assert model.context_length == 32
    assert read_base_config(make_recipe(changed)).max_position_embeddings == 32


def test_a_run_is_not_resumed_from_another_base(make_base, texts, tmp_path):
    recipe = make_recipe(page_of("gpt2", texts, make_base("gpt2")))
    stop_at(3, recipe, tmp_path)
    record = runs.read_record(tmp_path)
    runs.write_record(tmp_path, record | {"base": record["base"] | {"fingerprint": "another"}})
    with pytest.raises(RunError, match="the model that it goes on from has changed since"):
        execute(recipe, tmp_path)


@needs_peft
@pytest.mark.parametrize("name", slow_but(NEURAL, "gpt2", "llama3"))
def test_every_rung_learns_by_a_change_of_low_rank(name, make_base, texts, tmp_path):
    """The run opens as any; base + adapter has its logits; only the change was trained."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_base(name)
    train = TRAIN | {"learning_rate": 2e-2}
    assert execute(make_recipe(page_of(name, texts, base, lora=4, steps=12, train=train)), tmp_path)
    model = load(tmp_path)[0]
    ids = random_ids(model)
    logits, before = model(ids).logits, load(base)[0](ids).logits
    assert (logits - before).abs().max() > 1e-3
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    torch.testing.assert_close(adapted(ids).logits, logits, rtol=1e-4, atol=1e-5)
    record = runs.read_record(tmp_path)
    trained = record["training"]["trainable_parameters"]
    assert 0 < trained < record["parameters"] == count_parameters(model)
    assert not [key for key in model.state_dict() if "lora" in key]
    head = model.get_output_embeddings().weight
    assert torch.equal(head, load(base)[0].get_output_embeddings().weight)
    watched = [
        line["bits_per_byte"] for line in runs.read_metrics(tmp_path) if "bits_per_byte" in line
    ]
    assert watched[-1] < watched[0]


@needs_peft
@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_merged_run_opens_in_stock_transformers(name, make_base, texts, tmp_path):
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    execute(make_recipe(page_of(name, texts, make_base(name), lora=4)), tmp_path)
    model = load(tmp_path)[0]
    stock = (
        {"gpt2": GPT2LMHeadModel, "llama3": LlamaForCausalLM}[name].from_pretrained(tmp_path).eval()
    )
    torch.testing.assert_close(
        stock(random_ids(model)).logits, model(random_ids(model)).logits, rtol=1e-4, atol=1e-5
    )
    assert not (tmp_path / "adapter_config.json").exists()


@needs_peft
@pytest.mark.parametrize(
    "changes", [{}, {"train": TRAIN | {"optim": "muon"}}], ids=["adamw", "muon"]
)
@pytest.mark.parametrize("name", slow_but(["rnn-attention", "gpt2"], "gpt2"))
def test_a_change_is_resumed_to_the_bit(name, changes, make_base, texts, tmp_path):
    recipe = make_recipe(page_of(name, texts, make_base(name), lora=4, **changes))
    assert execute(recipe, tmp_path / "whole")
    stop_at(4, recipe, tmp_path / "stopped")
    assert execute(read_begun(tmp_path / "stopped"), tmp_path / "stopped")
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    one, other = (load(tmp_path / folder)[0].state_dict() for folder in ("whole", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@needs_peft
def test_the_ruler_reads_the_change_as_it_is_by_then(make_base, texts, tmp_path):
    """What was read at the best step is what the run's own model, that of this step, gives."""
    train = TRAIN | {"learning_rate": 0.05}
    assert execute(
        make_recipe(page_of("gpt2", texts, make_base("gpt2"), lora=4, train=train)), tmp_path
    )
    watched = [
        line["bits_per_byte"] for line in runs.read_metrics(tmp_path) if "bits_per_byte" in line
    ]
    text = take_texts(load_corpus(str(texts / "other.txt")).validation["text"], VALIDATION_BYTES)
    assert min(watched) == pytest.approx(
        score_documents(*load(tmp_path), text).bits_per_byte, rel=1e-6
    )
    assert watched[-1] != pytest.approx(watched[-2], rel=1e-6)


@needs_peft
def test_a_change_trains_with_streams_parts_and_activations_computed_again(
    make_base, texts, tmp_path
):
    page = page_of("rnn", texts, make_base("rnn"), lora=2, carry_state=True)
    assert execute(make_recipe(page, ["gradient_accumulation_steps=2"]), tmp_path / "rnn")
    losses = []
    for again in ("false", "true"):
        page = page_of("llama3", texts, make_base("llama3"), lora=2)
        execute(make_recipe(page, [f"gradient_checkpointing={again}"]), tmp_path / again)
        losses.append(losses_of(tmp_path / again))
    assert losses[0] == losses[1]


def test_without_peft_the_line_that_installs_it_is_said(make_base, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'rung\[lora\]'"):
        make_recipe(page_of("gpt2", texts, "runs/x", lora=8))


def stop_at(step, recipe, folder):
    """Train so far and then have the machine go away."""

    def on_progress(stage):
        if stage.stage == "training" and stage.done == step:
            raise ConnectionError("the machine went away")

    with pytest.raises(ConnectionError):
        execute(recipe, folder, on_progress)
    assert json.loads((folder / runs.RECORD).read_text())["recipe"]["base"]
