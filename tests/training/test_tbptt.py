"""Truncated back-propagation through time: streams read in order, states carried, and nothing that
disturbs them.
"""

import itertools
import math

import numpy
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.nn import functional as F
from torch.utils.data import BatchSampler, SequentialSampler
from typer.testing import CliRunner

import rung.training.dataset
import rung.training.measure
from rung import runs
from rung.cli.main import app
from rung.data.packing import IGNORE_INDEX, PackedTokens, TBPTTDataset
from rung.data.tokenizer import encode_documents
from rung.errors import RecipeError, RunError
from rung.recipe import make_recipe
from rung.training.callbacks import TrainingCallbacks
from rung.training.checkpoints import last_checkpoint
from rung.training.settings import TrainSettings
from rung.training.train import train
from rung.workflows.run_folder import read_begun
from tests.conftest import SENTENCES

LENGTH, ROWS = 8, 4


@pytest.fixture(scope="module")
def packed(tokenizer):
    documents = list(encode_documents(SENTENCES * 8, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    return PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)


@pytest.fixture
def run(make_tiny, tokenizer, packed, tmp_path):
    """A function that trains a tiny RNN and gives the losses of its steps."""

    def run(
        name="run",
        steps=20,
        act=None,
        evaluate=lambda model: 1.5,
        model=None,
        carry=True,
        **arguments,
    ):
        def progress(now):
            if act:
                act(now.done)

        (tmp_path / name).mkdir(exist_ok=True)
        settings = TrainSettings(
            steps=steps,
            arguments={"per_device_train_batch_size": ROWS, "bf16": False, **arguments},
            carry_state=carry,
        )
        callbacks = TrainingCallbacks(
            evaluate=evaluate, sample=lambda model: "", on_progress=progress
        )
        model = model or make_tiny(
            "rnn", max_position_embeddings=LENGTH, num_hidden_layers=2, dropout=0.2
        )
        train(model, tokenizer, packed, tmp_path / name, settings, callbacks)
        return [line["loss"] for line in runs.read_metrics(tmp_path / name) if "loss" in line]

    return run


def watch(model):
    """What the model is given as it trains: ids, labels, the state before and the state after."""
    seen, forward = [], model.forward

    def note(input_ids, **inputs):
        output = forward(input_ids, **inputs)
        if model.training:
            before = inputs.get("past_key_values")
            seen.append((input_ids, inputs["shift_labels"], before, output.past_key_values))
        return output

    model.forward = note
    return seen


def stretches_of(packed, streams):
    return math.ceil(math.ceil((len(packed) - 1) / streams) / LENGTH)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_model_sees_streams_that_go_on_and_all_of_the_text(accumulated, run, make_tiny, packed):
    model = make_tiny("rnn", max_position_embeddings=LENGTH)
    seen = watch(model)
    stretches = stretches_of(packed, ROWS * accumulated)
    run(steps=2 * stretches, model=model, gradient_accumulation_steps=accumulated)
    assert len(seen) == 2 * stretches * accumulated
    for epoch in (seen[: len(seen) // 2], seen[len(seen) // 2 :]):
        read, predicted = [], []
        for batch in range(accumulated):
            mine = epoch[batch::accumulated]
            assert mine[0][2] is None
            for (*_, left), (*_, before, _) in itertools.pairwise(mine):
                for ours, theirs in zip(before.tensors, left.tensors, strict=True):
                    assert torch.equal(ours, theirs)
                    assert not ours.requires_grad
            for row in range(ROWS):
                counted = torch.cat([labels[row] for _, labels, *_ in mine]) != IGNORE_INDEX
                read += torch.cat([ids[row] for ids, *_ in mine])[counted].tolist()
                predicted += torch.cat([labels[row] for _, labels, *_ in mine])[counted].tolist()
        assert read == packed.tokens[:-1].tolist()
        assert predicted == packed.tokens[1:].tolist()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_every_process_has_streams_of_its_own(accumulated, packed):
    """As accelerate deals the batches to two processes; each reads its own in order."""
    streams = TBPTTDataset(packed, LENGTH, 0, ROWS * accumulated * 2)
    batches = BatchSampler(SequentialSampler(streams), ROWS, drop_last=False)
    owned = []
    for process in range(2):
        dealt = [
            streams.__getitems__(b)
            for b in BatchSamplerShard(batches, num_processes=2, process_index=process)
        ]
        assert [b["segment"] for b in dealt] == [n // accumulated for n in range(len(dealt))]
        owned.append({b["stream"] for b in dealt})
        assert all(
            len({b["stream"] for b in dealt[n::accumulated]}) == 1 for n in range(accumulated)
        )
    assert len(owned[0]) == len(owned[1]) == accumulated
    assert not owned[0] & owned[1]


def test_it_is_back_propagation_through_time_written_out(run, make_tiny, packed):
    """Plain SGD by hand: the state detached and carried; the second epoch begins without one."""
    assert stretches_of(packed, ROWS) < 30
    ours = run(
        model=make_tiny("rnn", max_position_embeddings=LENGTH),
        optim="sgd",
        learning_rate=0.5,
        # Fmt: skip.
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        steps=30,
    )
    model, row = make_tiny("rnn"), torch.from_numpy(packed.tokens.astype(numpy.int64))
    part = -(-(len(row) - 1) // ROWS)
    losses = []
    while len(losses) < 30:
        state = None
        for start in range(0, part, LENGTH):
            inputs = torch.zeros(ROWS, LENGTH, dtype=torch.long)
            targets = torch.full((ROWS, LENGTH), -100)
            for stream in range(ROWS):
                begin, end = stream * part + start, stream * part + min(start + LENGTH, part)
                piece = row[begin : min(end, len(row) - 1) + 1]
                inputs[stream, : len(piece) - 1], targets[stream, : len(piece) - 1] = (
                    piece[:-1],
                    piece[1:],
                )
            hidden, state = model.recurrence.cell(model.embedding(inputs), state)
            state = tuple(t.detach() for t in state)
            loss = F.cross_entropy(model.head(hidden).flatten(0, 1), targets.flatten())
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.5 * parameter.grad
            losses.append(loss.item())
    assert ours == pytest.approx(losses[:30], rel=1e-4)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("killed", [6, 19])
def test_a_resumed_run_goes_on_with_the_same_state(killed, accumulated, run, packed, tmp_path):
    def kill(step):
        if step == killed:
            raise RuntimeError("the machine went away")

    assert stretches_of(packed, ROWS * accumulated) in (
        6,
        11,
    )  # epochs end within, and no checkpoint stands at an end
    options = {"gradient_accumulation_steps": accumulated, "save_steps": 5}
    whole = run("whole", **options)
    with pytest.raises(RuntimeError, match="went away"):
        run("stopped", act=kill, **options)
    checkpoint = last_checkpoint(tmp_path / "stopped")
    assert checkpoint.name == f"checkpoint-{killed // 5 * 5}"
    assert run("stopped", **options) == whole


def test_evaluating_or_measuring_changes_nothing(run, make_tiny, tokenizer, packed, tmp_path):
    def read(model):
        with torch.no_grad():
            model(
                torch.arange(5)[None], past_key_values=model(torch.arange(6)[None]).past_key_values
            )
        return 1.5

    alone = run("alone", eval_strategy="no")
    assert run("evaluated", evaluate=read, eval_steps=3) == alone
    model = make_tiny("rnn", max_position_embeddings=LENGTH, num_hidden_layers=2, dropout=0.2)
    settings = TrainSettings(
        arguments={"per_device_train_batch_size": ROWS, "bf16": False}, carry_state=True
    )
    blocks = rung.training.dataset.make_dataset(model, tokenizer, packed, tmp_path, settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rung.training.measure, "MEASURED_SECONDS", 0.1)
        step = rung.training.measure.measure_step(model, tokenizer, blocks, tmp_path, settings)
        assert 0 < step.seconds < step.measuring
    assert run("measured", model=model, eval_strategy="no") == alone


def test_without_it_blocks_come_at_random(run, packed):
    assert run("carried", carry=True) != run("blocks", carry=False)


def test_an_epoch_is_as_many_steps_as_a_stream_has_stretches(run, packed):
    losses = run(steps=None, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=1)
    assert len(losses) == 2 * stretches_of(packed, 2 * ROWS)


@pytest.mark.parametrize("name", ["bigram", "ngram", "rnn-attention", "gpt2", "llama3"])
def test_a_rung_that_has_nothing_to_carry_says_which_has(
    name, make_tiny, tokenizer, packed, tmp_path
):
    message = rf"carry_state is true, but {name} cannot carry its state; of the rungs, rnn can"
    with pytest.raises(RecipeError, match=message):
        make_recipe({"rung": name, "carry_state": True})
    if name == "gpt2":
        with pytest.raises(RecipeError, match=message):
            train(
                make_tiny(name),
                tokenizer,
                packed,
                tmp_path,
                TrainSettings(steps=1, carry_state=True),
                None,
            )


def test_what_would_mix_the_streams_up_is_refused(run, tmp_path):
    with pytest.raises(RecipeError, match="carry_state is 'yes please': it must be true or false"):
        make_recipe({"rung": "rnn", "carry_state": "yes please"})
    for key, value, why in (
        ("auto_find_batch_size", True, "cannot be set: it would change the rows of a step"),
        ("train_sampling_strategy", "random", "is 'random': leave it out"),
    ):
        with pytest.raises(RecipeError, match=f"train.{key} {why}"):
            make_recipe({"rung": "rnn", "carry_state": True, "train": {key: value}})
    run(steps=5)
    with pytest.raises(
        RunError, match=r"has no carried-6.safetensors .*: resume with the batch size of before"
    ):
        run(steps=5, per_device_train_batch_size=6)
    run("other", steps=20, act=lambda step: None, gradient_accumulation_steps=2, save_steps=7)
    (last_checkpoint(tmp_path / "other") / "trainer_state.json").unlink()
    again = run(
        "other", per_device_train_batch_size=2 * ROWS, save_steps=7
    )  # the same streams, all at a time
    assert len(again) == 20


def test_the_command_trains_so_and_the_run_remembers_it(prose, tmp_path):
    (tmp_path / "text.txt").write_text(prose)
    text, settings = (
        str(tmp_path / "text.txt"),
        ("--set", "hidden_size=16", "--set", "max_position_embeddings=16"),
    )
    refused = CliRunner().invoke(
        app, ["train", "gpt2", text, "--set", "carry_state=true", "--out", str(tmp_path / "gpt2")]
    )
    assert refused.exit_code == 2
    assert "gpt2 cannot carry its state; of the rungs, rnn can" in refused.output
    command = [
        "train",
        "rnn",
        text,
        "--set",
        "carry_state=true",
        "--steps",
        "3",
        *settings,
        "--out",
        str(tmp_path / "run"),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    record = runs.read_record(tmp_path / "run")
    assert record["recipe"]["carry_state"] is True
    del record["scores"]
    runs.write_record(tmp_path / "run", record)
    assert read_begun(tmp_path / "run").carry_state
