"""Shared ground for the tests of training: a packed text, callbacks that remember, a clock."""

import numpy
import pytest

import rung.training.trainer
from rung.data.packing import PackedTokens
from rung.data.tokenizer import encode_documents
from rung.training.callbacks import TrainingCallbacks
from rung.training.settings import TrainSettings
from tests.conftest import SENTENCES

FAST = {"per_device_train_batch_size": 4, "bf16": False}


@pytest.fixture(scope="session")
def packed(tokenizer):
    documents = list(encode_documents(SENTENCES * 40, tokenizer))
    starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
    return PackedTokens(tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts)


class Listener:
    """TrainingCallbacks that remember, and may act at a step."""

    def __init__(self, at=None, act=None):
        self.steps = []
        self.at, self.act = at, act

    def callbacks(self):
        return TrainingCallbacks(
            evaluate=lambda model: 1.5,
            sample=lambda model: "a sample\n## not a heading",
            on_progress=self.progress,
        )

    def progress(self, progress):
        self.steps.append(progress.done)
        if progress.done == self.at:
            self.act()


def settings_of(**changes):
    arguments = {**FAST, **changes.pop("arguments", {})}
    return TrainSettings(arguments=arguments, **{"steps": 20, **changes})


class Machine:
    """A clock of its own: a step and a look take as long as it is told, and nothing else takes
    time.
    """

    def __init__(self, monkeypatch, step, look=0.0):
        self.time, self.step, self.look = 0.0, step, look
        self.evaluated = []
        monkeypatch.setattr("rung.training.clock.time", self)
        real = rung.training.trainer.RungTrainer.training_step
        monkeypatch.setattr(
            "rung.training.trainer.RungTrainer.training_step",
            lambda *args, **options: (self.wait(self.pace()), real(*args, **options))[1],
        )

    def perf_counter(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds

    def pace(self):
        return self.step(self.time) if callable(self.step) else self.step

    def callbacks(self, **more):
        return TrainingCallbacks(
            evaluate=self.evaluate, sample=self.sample, on_progress=lambda _: None, **more
        )

    def evaluate(self, model):
        self.wait(self.look / 2)
        self.evaluated.append(self.time)
        return 1.5

    def sample(self, model):
        self.wait(self.look / 2)
        return "a sample"
