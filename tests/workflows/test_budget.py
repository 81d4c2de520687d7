"""The dial: what minutes buy, and what it says it expects."""

from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest

from rung import runs
from rung.data.packing import PackedTokens
from rung.data.tokenizer import encode_documents
from rung.progress import ignore_progress
from rung.recipe import make_recipe
from rung.training.clock import now
from rung.training.measure import StepTime
from rung.workflows.budget import (
    NEAR,
    Forecast,
    Speed,
    choose_teacher,
    choose_width,
    fit_budget,
    plan_model,
    suggest_parameters,
)
from rung.workflows.difficulty import Difficulty
from rung.workflows.prepare import PreparedText
from rung.workflows.scaling import SCALING_LAWS, Shape
from rung.workflows.train import execute
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def packed(tokenizer):
    documents = list(encode_documents(SENTENCES * 40, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    return PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)


@pytest.fixture
def endless(monkeypatch):
    """A text of which there is more than any run reads, and can feed any model."""
    monkeypatch.setattr("rung.data.packing.PackedTokens.__len__", lambda self: 10**12)


class Bench:
    """A machine whose step takes as long as it is told, by the weights."""

    def __init__(self, monkeypatch, seconds_a_token):
        monkeypatch.setattr(
            "rung.workflows.budget.measure_step",
            lambda model, *_: StepTime(
                seconds_a_token * sum(p.numel() for p in model.parameters()) * 16 * 128, 0.0
            ),
        )


class Clock:
    """A clock that stands until it is moved."""

    seconds = 0.0

    def perf_counter(self):
        return self.seconds


def turn(tokenizer, packed, tmp_path, began=None, **page):
    return plan_model(prepare_text(tokenizer, packed, tmp_path, began, **page))


def prepare_text(tokenizer, packed, tmp_path, began=None, **page):
    recipe = make_recipe(
        {
            "rung": "llama3",
            "model": {"max_position_embeddings": 128},
            "global_batch_size": 16,
            **page,
        }
    )
    corpus = SimpleNamespace(validation={"text": SENTENCES}, bytes={"test": 0})
    return PreparedText(
        recipe=recipe,
        folder=tmp_path,
        tokenizer=tokenizer,
        packed_key=str(tmp_path),
        models={},
        began=now() if began is None else began,
        corpus=corpus,
        packed=packed,
    )


def test_more_time_and_a_faster_machine_make_larger_models(
    tokenizer, packed, tmp_path, monkeypatch, endless
):
    plans = []
    for minutes, speed in ((0.5, 1e-9), (5, 1e-9), (5, 1e-10)):
        Bench(monkeypatch, speed)
        plans.append(turn(tokenizer, packed, tmp_path, minutes=minutes)[1])
    sizes = [plan.parameters for plan in plans]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    expected = [plan.bits_per_byte for plan in plans]
    assert expected == sorted(expected, reverse=True)


def test_a_much_faster_machine_is_measured_again_further_out(
    tokenizer, packed, tmp_path, monkeypatch, endless
):
    """Not bound to what a laptop would train; a text that is long enough is taken for granted."""
    monkeypatch.setattr("rung.data.packing.PackedTokens.__len__", lambda self: 10**12)
    Bench(monkeypatch, 1e-14)
    recipe, plan = turn(tokenizer, packed, tmp_path, minutes=5)
    assert plan.parameters > NEAR * suggest_parameters(5)
    assert recipe.model["hidden_size"] == plan.hidden_size < SCALING_LAWS["llama3"].widths[-1]


def test_measuring_gives_up_where_a_step_takes_its_share(tokenizer, packed, tmp_path, monkeypatch):
    """The second model is not measured, and is taken to be slower by its size."""
    time, measured = Clock(), []

    def measure(model, *_):
        measured.append(model)
        time.seconds += 10.0
        return StepTime(10.0, 10.0)

    monkeypatch.setattr("rung.training.clock.time", time)
    monkeypatch.setattr("rung.workflows.budget.measure_step", measure)
    _, plan = turn(tokenizer, packed, tmp_path, minutes=1)
    assert len(measured) == 1
    assert plan.seconds == 10
    assert plan.parameters < suggest_parameters(1)
    assert plan.tokens == pytest.approx(plan.tokens_per_second * 50 * 0.97, rel=0.01)


def test_what_was_spent_before_buys_nothing(tokenizer, packed, tmp_path, monkeypatch, endless):
    Bench(monkeypatch, 1e-9)
    monkeypatch.setattr("rung.training.clock.time", Clock())
    whole = turn(tokenizer, packed, tmp_path, minutes=1)[1]
    late = turn(tokenizer, packed, tmp_path, minutes=1, began=-30.0)[1]
    none_left = turn(tokenizer, packed, tmp_path, minutes=1, began=-3000.0)[1]
    seconds = [plan.tokens / plan.tokens_per_second for plan in (whole, late, none_left)]
    assert seconds == [pytest.approx(value, rel=0.01) for value in (60 * 0.97, 30 * 0.97, 15)]


def test_a_rung_with_too_little_time_says_how_much_it_needs(
    tokenizer, packed, tmp_path, monkeypatch, endless
):
    monkeypatch.setattr("rung.training.clock.time", Clock())
    hard = Difficulty(ngram=2.1, copying=2.1, whole=2.0)
    monkeypatch.setattr("rung.workflows.difficulty.measure_difficulty", lambda *_: hard)
    Bench(monkeypatch, 2e-9)
    plan = turn(tokenizer, packed, tmp_path, minutes=0.1)[1]
    assert plan.bits_per_byte > hard.whole
    assert plan.pays_from > plan.minutes == 0.1
    assert f"after {plan.pays_from:.2g} minutes here, and has 0.1" in plan.describe_shortage()
    enough = turn(tokenizer, packed, tmp_path, minutes=4 * plan.pays_from)[1]
    assert enough.bits_per_byte < hard.whole
    assert not enough.describe_shortage()
    Bench(monkeypatch, 1.0)
    assert "more than a day" in turn(tokenizer, packed, tmp_path, minutes=1)[1].describe_shortage()


@pytest.mark.parametrize("rung", SCALING_LAWS)
def test_every_rung_with_a_law_is_sized_by_it(
    rung, tokenizer, packed, tmp_path, monkeypatch, endless
):
    """A machine eight times as fast gets a larger model of every rung, never the same for all."""
    widths = []
    for speed in (8e-10, 1e-10):
        Bench(monkeypatch, speed)
        widths.append(turn(tokenizer, packed, tmp_path, rung=rung, minutes=2)[1].hidden_size)
    assert widths[0] < widths[1]


def test_a_small_text_is_seen_coming(tokenizer, packed, tmp_path, monkeypatch):
    Bench(monkeypatch, 1e-9)
    recipe, plan = turn(tokenizer, packed, tmp_path, minutes=5)
    laws = SCALING_LAWS["llama3"]
    assert plan.parameters <= laws.most_weights * len(packed) or plan.hidden_size == 32
    assert plan.epochs == recipe.train["num_train_epochs"] == laws.most_epochs
    assert recipe.train["weight_decay"] == plan.weight_decay == 1
    assert plan.describe().endswith("16.0 epochs, dropout 0.1, weight decay 1")
    assert "ends after 16 epochs and not after 5 minutes" in plan.describe_shortage()
    mine = turn(tokenizer, packed, tmp_path, minutes=5, train={"num_train_epochs": 40})[1]
    assert mine.epochs == 40
    assert "ends after" not in mine.describe_shortage()  # as it was asked to
    recipe, plan = turn(tokenizer, packed, tmp_path, minutes=5, dropout=0.25)
    assert recipe.dropout == 0.25


def test_a_small_text_has_a_small_model_without_minutes_too(tokenizer):
    """Steps and epochs alone chose 1.8 million weights for 20,000 tokens."""
    recipe = make_recipe({"rung": "rnn", "steps": 100})
    widths = [
        choose_width(recipe, tokenizer, tokens).model["hidden_size"]
        for tokens in (1, 20_000, 10**6, 10**9)
    ]
    assert widths[0] < widths[1] < widths[2] == widths[3]


def test_dropout_and_weight_decay_come_with_the_readings():
    recipe, shape = make_recipe({"rung": "llama3"}), Shape(64, 135_488, 94_528)
    difficulty = Difficulty(2.0, 1.9, 2.0)
    forecast = Forecast(recipe, [shape], True, Speed(lambda _: 1e-5, 0.0), difficulty, 100_000)
    assert [forecast.find_dropout(shape, epochs) for epochs in (6, 12)] == [0.0, 0.1]
    assert [forecast.find_arguments(shape, epochs) for epochs in (1, 1.5, 10)] == [
        {},
        {"weight_decay": 0.15},
        {"weight_decay": 1.0, "num_train_epochs": 16.0},
    ]
    decaying = make_recipe({"rung": "llama3", "train": {"weight_decay": 0.3}})
    assert replace(forecast, recipe=decaying).find_arguments(shape, 1.5) == {"weight_decay": 0.3}
    given = replace(forecast, recipe=make_recipe({"rung": "llama3", "dropout": 0.15}))
    assert [given.find_dropout(shape, epochs) for epochs in (1, 10)] == [0.15, 0.15]
    recurrent = replace(forecast, recipe=make_recipe({"rung": "rnn"}))
    assert recurrent.find_dropout(shape, 10) == 0.2
    assert recurrent.find_arguments(shape, 1.5) == {}


def test_what_is_given_is_left_alone(tokenizer, packed, tmp_path):
    recipe, plan = turn(tokenizer, packed, tmp_path, minutes=5, model={"hidden_size": 64})
    assert plan is None
    assert recipe.model["hidden_size"] == 64
    own_names = {"n_embd": 64, "n_positions": 128}
    assert turn(tokenizer, packed, tmp_path, rung="gpt2", minutes=5, model=own_names)[1] is None
    assert turn(tokenizer, packed, tmp_path, steps=5)[1] is None
    assert turn(tokenizer, packed, tmp_path, minutes=5, base="runs/x")[1] is None


@pytest.mark.parametrize("has_law", [True, False])
def test_a_run_keeps_its_plan_and_what_came_of_it(has_law, prose, tmp_path, monkeypatch):
    """The laws say nothing of a text that is far smaller than those they were fitted on."""
    if has_law:
        monkeypatch.setattr("rung.workflows.budget.SMALLEST_TEXT", 0)
    text = tmp_path / "my.txt"
    text.write_text(prose)
    told = []
    recipe = make_recipe({"rung": "llama3", "corpus": str(text), "minutes": 0.1})
    assert execute(recipe, tmp_path / "run", told.append)
    plan = runs.read_record(tmp_path / "run")["plan"]
    if has_law:
        assert plan["error"] == pytest.approx(plan["bits_per_byte"] / plan["reached"] - 1)
    else:
        assert plan["bits_per_byte"] is None and "error" not in plan
    lines = [
        line["bits_per_byte"]
        for line in runs.read_metrics(tmp_path / "run")
        if "bits_per_byte" in line
    ]
    assert plan["reached"] == min(lines)
    assert next(each.note for each in told if each.stage == "planned").count("expecting") == has_law


def test_gpt2_is_planned_under_its_own_names_too(tokenizer, packed, tmp_path, monkeypatch):
    Bench(monkeypatch, 1e-9)
    model = {"n_positions": 64, "n_layer": 3}
    recipe, plan = turn(tokenizer, packed, tmp_path, rung="gpt2", minutes=1, model=model)
    assert plan.layers == 3
    assert recipe.model["hidden_size"] == plan.hidden_size


@pytest.mark.parametrize(
    ("rung", "compiled"), [("rnn", ["fused.c"]), ("gpt2", ["fused.c", "step.c"])]
)
def test_c_is_compiled_before_anything_is_measured(
    rung, compiled, tokenizer, packed, tmp_path, monkeypatch
):
    """On a busy machine it takes 20 s, which counted as the time of each evaluation."""
    order = []
    prepared = prepare_text(tokenizer, packed, tmp_path, rung=rung, model={"hidden_size": 16})
    budget = "rung.workflows.budget"
    monkeypatch.setattr(f"{budget}.compile_source", lambda source: order.append(source.name))
    monkeypatch.setattr(
        f"{budget}.plan_model", lambda p: (order.append("plan"), (p.recipe, None))[1]
    )
    fitted = fit_budget(prepared, ignore_progress)
    assert order == [*compiled, "plan"]
    # The learning rate follows from the width, which is known by now.
    assert fitted.recipe.train["learning_rate"] == fitted.recipe.entry.find_learning_rate(16)


@pytest.mark.parametrize(
    ("page", "share", "teacher"),
    [
        ({}, 0.2, "ngram"),
        ({}, 0.3, None),
        ({"teacher": "none"}, 0.2, "none"),
        ({"rung": "gpt2"}, 0.2, "ngram"),
        ({"rung": "rnn"}, 0.2, None),
        ({"model": {"max_position_embeddings": 1 << 20}}, 0.2, None),
    ],
)
def test_a_run_that_reads_a_small_part_of_its_text_is_taught(
    page, share, teacher, tokenizer, packed, tmp_path
):
    prepared = prepare_text(tokenizer, packed, tmp_path, **page)
    tokens = round(share * len(packed))
    assert choose_teacher(prepared.recipe, prepared, tokens).teacher == teacher
