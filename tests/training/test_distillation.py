"""Distillation: which blocks the teacher counts, how it fades, and that a run with it resumes."""

import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from rung import runs
from rung.data.packing import BlockDataset, PackedTokens, TBPTTDataset
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RecipeError
from rung.models import load
from rung.recipe import make_recipe
from rung.training.distillation import Distillation, RunsTeacher, make_distillation
from rung.training.sampler import permute
from rung.training.settings import TrainSettings
from rung.training.train import train
from tests.conftest import SENTENCES, shake
from tests.models.foreign import build
from tests.training.conftest import FAST, Listener

LENGTH = 32


def make_dataset(packed, tokenizer, length=LENGTH):
    return BlockDataset(packed, length, tokenizer.pad_token_id)


def taught_by(teacher, arguments=None, seed=0):
    return TrainSettings(steps=1, teacher=teacher, arguments=arguments or {}, seed=seed)


def test_the_teacher_counts_no_block_that_is_read_with_it(make_tiny, tokenizer, packed):
    dataset = make_dataset(packed, tokenizer)
    found = make_distillation(make_tiny("llama3"), tokenizer, dataset, taught_by("ngram", seed=7))
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


@pytest.fixture(scope="module")
def teachers(make_tiny, tokenizer, tmp_path_factory):
    """Folders of a rung that counts, of one that has a state, and of a foreign model."""
    folder = tmp_path_factory.mktemp("teachers")
    models = {"ngram": make_tiny("ngram"), "rnn": shake(make_tiny("rnn"))}
    models["gpt_neox"] = build("gpt_neox", tokenizer)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return [str(folder / name) for name in models]


def softened_loss(logits, soft, targets, share):
    """Cross-entropy for soft targets, by torch."""
    counted = targets >= 0
    mixed = share * soft[counted] + (1 - share) * F.one_hot(targets[counted], soft.shape[-1])
    return F.cross_entropy(logits[counted], mixed)


@pytest.mark.parametrize("at_once", [2**26, 7 * 300], ids=["whole", "rows cut within a text"])
@pytest.mark.parametrize("count", [1, 3])
def test_runs_teach_their_averaged_probabilities(
    make_tiny, tokenizer, packed, teachers, count, at_once, monkeypatch
):
    """The gradients of all weights are those that torch finds for the mean, added up by hand."""
    monkeypatch.setattr("rung.models.fused.MAX_LOGITS", at_once)
    dataset, student = make_dataset(packed, tokenizer), shake(make_tiny("llama3"))
    settings = taught_by(",".join(teachers[:count]))
    batch = dict(dataset.__getitems__([0, 2, len(dataset) - 1]))
    taught = make_distillation(student, tokenizer, dataset, settings)
    share = taught.find_share(0.25, 1000)
    assert share == 0.5, "it does not fade"
    options = taught.soften(batch, 0.25, 1000)
    loss = student(**batch, skip_logits=True, **options).loss
    wanted = student(**batch).loss
    torch.testing.assert_close(loss, wanted)  # what is logged is the loss on the text
    models = [load(name)[0] for name in teachers[:count]]
    with torch.no_grad():
        each = [model(batch["input_ids"]).logits.double().softmax(-1) for model in models]
    soft = torch.stack(each).mean(0).float().flatten(0, 1)
    logits = student(input_ids=batch["input_ids"]).logits.flatten(0, 1)
    by_hand = softened_loss(logits, soft, batch["shift_labels"].flatten(), share)
    weights = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, weights), torch.autograd.grad(by_hand, weights)
    )


def test_who_is_taught_by_itself_has_half_the_gradient_of_the_text(make_tiny):
    """And one that is taught nothing else, none; each of the three tokens computed by itself."""
    ids, targets = torch.tensor([[0, 1, 2]]), torch.tensor([1, 2, -100])
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [3.0, 1.0, 0.0]])
    known = RunsTeacher([lambda input_ids, use_cache: CausalLMOutputWithPast(logits=logits[None])])
    plain = torch.zeros(3, 3)
    for row, target in ((0, 1), (1, 2)):
        total = sum(math.exp(value) for value in logits[row].tolist())
        for column in range(3):
            plain[row, column] = math.exp(logits[row, column]) / total - (column == target)
    for share in (0.5, 1.0):
        gradient = plain.clone()
        known.blend(gradient, ids, targets, share, slice(0, 3))
        torch.testing.assert_close(gradient, (1 - share) * plain)


def test_teachers_that_do_not_fit_the_run_are_refused(
    make_tiny, tokenizer, packed, teachers, tmp_path, monkeypatch
):
    student, dataset = make_tiny("llama3"), make_dataset(packed, tokenizer, 128)
    make_tiny("gpt2").save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    other = build_tokenizer("bpe", SENTENCES, 280)
    build("gpt_neox", other).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")

    def refuse(teacher, message):
        with pytest.raises(RecipeError, match=message):
            make_distillation(student, tokenizer, dataset, taught_by(str(teacher)))

    refuse(tmp_path / "short", "reads 64 tokens at once, and rows have 128: set max_position")
    refuse(
        tmp_path / "other", r"has other tokens \(\d+, not \d+ .*: train with its own, --tokenizer"
    )
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10))
    refuse(teachers[1], "GB of memory are free: name a smaller one, or fewer")


def run(make_tiny, tokenizer, packed, folder, steps=12, act=None, at=None, teacher="ngram"):
    folder.mkdir(exist_ok=True)
    arguments = FAST | {"eval_steps": 4, "save_steps": 4, "logging_steps": 1}
    settings = TrainSettings(steps=steps, arguments=arguments, teacher=teacher)
    model = make_tiny("llama3")
    train(model, tokenizer, packed, folder, settings, Listener(at, act).callbacks())
    return [line["loss"] for line in runs.read_metrics(folder) if "loss" in line]


@pytest.mark.parametrize("kind", ["ngram", "runs"])
def test_a_killed_run_goes_on_with_the_same_teacher(
    make_tiny, tokenizer, packed, teachers, tmp_path, kind
):
    def kill():
        raise KeyError("killed")

    teacher = "ngram" if kind == "ngram" else ",".join(teachers[1:])
    whole = run(make_tiny, tokenizer, packed, tmp_path / "whole", teacher=teacher)
    plain = run(make_tiny, tokenizer, packed, tmp_path / "plain", teacher=None)
    with pytest.raises(KeyError):
        run(make_tiny, tokenizer, packed, tmp_path / "killed", at=7, act=kill, teacher=teacher)
    assert run(make_tiny, tokenizer, packed, tmp_path / "killed", teacher=teacher) == whole
    assert whole[0] == plain[0]
    assert whole[-1] != plain[-1]


def test_what_cannot_have_a_teacher_says_why(make_tiny, tokenizer, packed):
    model = make_tiny("llama3")
    streams = TBPTTDataset(packed, LENGTH, tokenizer.pad_token_id, 4)
    short = PackedTokens(tokens=packed.tokens[:40], starts=packed.starts[:1])
    for settings, dataset, missing in (
        (taught_by("ngram"), streams, "a text cut into blocks"),
        (taught_by("ngram"), make_dataset(short, tokenizer), "a longer text"),
        (taught_by("ngram", {"fp16": True}), make_dataset(packed, tokenizer), "without train.fp16"),
        (taught_by("a", {"fsdp": True}), make_dataset(packed, tokenizer), "without train.fsdp"),
    ):
        with pytest.raises(RecipeError, match=f"teacher is .*, which needs .*{missing}"):
            make_distillation(model, tokenizer, dataset, settings)
    model.config.vocab_size = 10_000
    with pytest.raises(RecipeError, match="a vocabulary of 8,192 tokens or less"):
        make_distillation(model, tokenizer, make_dataset(packed, tokenizer), taught_by("ngram"))


@pytest.mark.parametrize(
    "page, message",
    [
        (
            {"rung": "llama3", "teacher": "ngrm"},
            "'ngrm' is no folder of a run; did you mean 'ngram'",
        ),
        ({"rung": "llama3", "teacher": True}, "teacher is True: "),
        ({"rung": "llama3", "teacher": ["a", "b"]}, "write it as a text"),
        ({"rung": "llama3", "teacher": "tests,"}, "'' is no folder of a run; choose from ngram"),
        ({"rung": "llama3", "teacher": "tests,ngram"}, "but ngram stands alone: name only runs"),
        ({"rung": "rnn", "teacher": "ngram"}, "which only gpt2, llama3"),
        ({"rung": "bigram", "teacher": "tests"}, "but bigram counts: leave it out"),
    ],
)
def test_a_teacher_that_is_unknown_is_refused(page, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(page)
