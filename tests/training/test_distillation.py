"""Distillation: which blocks the teacher counts, how it fades, and that a run with it resumes."""

import numpy
import pytest
import torch

from rung import runs
from rung.data.packing import BlockDataset, PackedTokens, TBPTTDataset
from rung.errors import RecipeError
from rung.recipe import make_recipe
from rung.training.distillation import Distillation, make_distillation
from rung.training.sampler import permute
from rung.training.settings import TrainSettings
from rung.training.train import train
from tests.training.conftest import FAST, Listener

LENGTH = 32


def make_dataset(packed, tokenizer, length=LENGTH):
    return BlockDataset(packed, length, tokenizer.pad_token_id)


def test_the_teacher_counts_no_block_that_is_read_with_it(make_tiny, tokenizer, packed):
    dataset = make_dataset(packed, tokenizer)
    found = make_distillation(make_tiny("llama3"), dataset, 7, "ngram")
    last = found.last
    read = permute(numpy.arange(last), len(dataset), (7, 0))
    counted = set(range(len(dataset))) - set(read.tolist())
    tokens = numpy.concatenate(
        [packed.tokens[i * LENGTH : (i + 1) * LENGTH] for i in sorted(counted)]
    )
    opens = numpy.flatnonzero(tokens == tokenizer.bos_token_id)
    occurrences = numpy.bincount(tokens[opens[0] :], minlength=len(tokenizer))
    seen = {
        (a, b)
        for a, b in zip(tokens[opens[0] :], tokens[opens[0] + 1 :], strict=False)
        if b != tokenizer.bos_token_id
    }
    model = found.teacher.model
    firsts = torch.repeat_interleave(
        torch.arange(model.config.vocab_size), model.get_buffer("first_1").diff().long()
    )
    assert set(zip(firsts.tolist(), model.get_buffer("tokens_2").tolist(), strict=True)) == {
        (int(a), int(b)) for a, b in seen
    }
    assert occurrences.sum() < len(packed)


def test_the_share_fades_with_the_run_and_with_the_blocks_left():
    distillation = Distillation(None, 100)
    assert distillation.find_share(0.0, 0) == 1.0
    assert distillation.find_share(0.25, 10) == 0.75
    assert distillation.find_share(0.25, 50) == 0.5
    assert distillation.find_share(1.0, 10) == distillation.find_share(0.5, 300) == 0.0
    assert distillation.soften({"input_ids": None, "shift_labels": torch.zeros(1)}, 1.0, 0) == {}


def run(make_tiny, tokenizer, packed, folder, steps=12, act=None, at=None, teacher="ngram"):
    folder.mkdir(exist_ok=True)
    arguments = FAST | {"eval_steps": 4, "save_steps": 4, "logging_steps": 1}
    settings = TrainSettings(steps=steps, arguments=arguments, teacher=teacher)
    model = make_tiny("llama3")
    train(model, tokenizer, packed, folder, settings, Listener(at, act).callbacks())
    return [line["loss"] for line in runs.read_metrics(folder) if "loss" in line]


def test_a_killed_run_goes_on_with_the_same_teacher(make_tiny, tokenizer, packed, tmp_path):
    def kill():
        raise KeyError("killed")

    whole = run(make_tiny, tokenizer, packed, tmp_path / "whole")
    plain = run(make_tiny, tokenizer, packed, tmp_path / "plain", teacher=None)
    with pytest.raises(KeyError):
        run(make_tiny, tokenizer, packed, tmp_path / "killed", at=7, act=kill)
    assert run(make_tiny, tokenizer, packed, tmp_path / "killed") == whole
    assert whole[0] == plain[0]
    assert whole[-1] != plain[-1]


def test_what_cannot_have_a_teacher_says_why(make_tiny, tokenizer, packed):
    model = make_tiny("llama3")
    streams = TBPTTDataset(packed, LENGTH, tokenizer.pad_token_id, 4)
    short = PackedTokens(tokens=packed.tokens[:40], starts=packed.starts[:1])
    for dataset in (streams, make_dataset(short, tokenizer)):
        with pytest.raises(RecipeError, match="teacher is 'ngram', which needs a longer text"):
            make_distillation(model, dataset, 0, "ngram")
    model.config.vocab_size = 10_000
    with pytest.raises(RecipeError, match="a vocabulary of 8,192 tokens or less"):
        make_distillation(model, make_dataset(packed, tokenizer), 0, "ngram")


@pytest.mark.parametrize(
    "page, message",
    [
        ({"rung": "llama3", "teacher": "ngrm"}, "teacher is 'ngrm': did you mean 'ngram'"),
        ({"rung": "llama3", "teacher": True}, "teacher is True: "),
        ({"rung": "rnn", "teacher": "ngram"}, "which only gpt2, llama3"),
    ],
)
def test_a_teacher_that_is_unknown_is_refused(page, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(page)
