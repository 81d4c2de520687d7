"""What tests/test_distributed.py has done by one process or by two: torchrun ...
tests/ranks_together.py FOLDER [quick]. Quick, they train in the ways of QUICK, and do not climb.
"""

import io
import json
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy
import torch

from rung import distributed, runs
from rung.cli import main as cli
from rung.data.packing import BlockDataset, PackedTokens
from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RecipeError, RunError
from rung.models import build_model, make_config
from rung.models.ngram.model import NgramForCausalLM
from rung.recipe import make_recipe
from rung.training.callbacks import TrainingCallbacks
from rung.training.settings import TrainSettings
from rung.training.train import train
from rung.workflows.train import execute
from rung.workflows.tune import Tuning, tune

# Not conftest's: it has every shape checked, which takes long to begin with.
SENTENCES = (
    "the cat sat on the mat",
    "the dog sat on the log",
    "a cat and a dog sat on a mat",
    "a dog is not a cat",
)
SHAPES = {
    "rnn": {"hidden_size": 32},
    "gpt2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    | {"resid_pdrop": 0.0},
    "llama3": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
STEPS, STOP = 10, 5
ROWS = 8  # a step
MUON = {
    "learning_rate": 2e-3
}  # its products are rounded to bfloat16: what that adds grows with the rate
# Of every way to train: the rung, and what is set.
WAYS = {
    "plain": ("llama3", MUON),
    "accumulated": ("llama3", MUON | {"per_device_train_batch_size": 2}),
    "sharded": ("llama3", MUON | {"fsdp": True}),
    "adamw": ("gpt2", {"fsdp": True, "optim": "adamw_torch_fused", "learning_rate": 1e-3}),
    "carried": ("rnn", {}),
    "taught": ("llama3", MUON),
}
RESUMED = ("plain", "sharded", "carried")
QUICK = ("plain", "carried")
ALONE = {
    "plain": "plain",
    "accumulated": "plain",
    "sharded": "plain",
    "adamw": "adamw",
    "carried": "carried",
    "taught": "taught",
}


class Ground:
    """Text and models, the same wherever they are made."""

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = build_tokenizer("bpe", SENTENCES * 20, 300)
        documents = list(encode_documents(SENTENCES * 17, self.tokenizer))
        starts = numpy.cumsum([0] + [len(d) for d in documents[:-1]])
        self.packed = PackedTokens(
            tokens=numpy.concatenate(documents).astype(numpy.uint16), starts=starts
        )

        if not (folder / "teacher").exists():  # made before there are two processes
            config = make_config("ngram", self.tokenizer, {"order": 2})
            model = NgramForCausalLM.fit(config, self.packed.tokens, self.packed.starts)
            for part in (model, self.tokenizer):
                part.save_pretrained(folder / "teacher")

    def train(self, way, name, stop=None, sign=1):
        """The losses of a way to train in the folder `name`; after step `stop` the main process is
        interrupted.

        With `sign` -1 what is worst is called best.
        """
        rung, arguments = WAYS[way]
        config = make_config(rung, self.tokenizer, {**SHAPES[rung], "max_position_embeddings": 16})
        torch.manual_seed(0)
        model = build_model(rung, config)
        settings = TrainSettings(
            steps=STEPS,
            arguments={"bf16": False, "eval_steps": STOP, "save_steps": STOP, **arguments},
            global_batch_size=ROWS,
            carry_state=way == "carried",
            teacher=str(self.folder / "teacher") if way == "taught" else None,
        )
        folder = self.folder / name
        folder.mkdir(exist_ok=True)

        def interrupt(progress):
            if progress.done == stop:
                os.kill(os.getpid(), signal.SIGINT)

        callbacks = TrainingCallbacks(
            evaluate=lambda model: sign * self.judge(model),
            sample=lambda model: "",
            on_progress=interrupt if distributed.is_main() else lambda progress: None,
        )
        trained = train(model, self.tokenizer, self.packed, folder, settings, callbacks)
        assert trained.interrupted == (stop is not None)
        assert (trained.steps == STEPS) == (stop is None)
        lines = runs.read_metrics(folder)
        return {
            "losses": [line["loss"] for line in lines if "loss" in line],
            "judged": [line["bits_per_byte"] for line in lines if "bits_per_byte" in line],
            "final": self.judge(model) if distributed.is_main() else None,
        }

    @torch.no_grad()
    def judge(self, model):
        """The loss of a model on the beginning of the text."""
        ids = torch.from_numpy(self.packed.tokens[: 16 * ROWS].astype(numpy.int64)).view(ROWS, 16)
        return model.eval()(ids, labels=ids).loss.item()


def count_fits(folder):
    """How often an n-gram was fitted here, when all processes were to make the same run."""
    fitted, fit = [], NgramForCausalLM.fit.__func__
    NgramForCausalLM.fit = classmethod(
        lambda *args, **options: fitted.append(1) or fit(*args, **options)
    )
    text = folder / "text.txt"
    if distributed.is_main():
        text.write_text(
            "\n\n".join(f"{number}: {sentence}" for number in range(40) for sentence in SENTENCES)
        )
    assert execute(make_recipe({"rung": "ngram", "corpus": str(text)}), folder / "ngram")
    return len(fitted)


def tune_together(folder):
    """What becomes of a run that all processes tune, and of what is refused before any of them
    begins.
    """
    base, text = folder / "base", str(folder / "text.txt")
    shape = SHAPES["llama3"] | {"max_position_embeddings": 32}
    assert execute(
        make_recipe({"rung": "llama3", "corpus": text, "steps": 1, "model": shape}), base
    )
    says = [{"role": "user", "content": "What sat?"}, {"role": "assistant", "content": "The cat."}]
    if distributed.is_main():
        lines = [
            {"messages": [{**says[0], "content": f"{number} What sat?"}, says[1]]}
            for number in range(20)
        ]
        (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = Tuning(base=str(base), data=str(folder / "chats.jsonl"), steps=4)
    assert tune(plan, folder / "tuned")
    refused = []
    for attempt in (
        lambda: execute(
            make_recipe({"rung": "llama3", "corpus": text, "global_batch_size": 7}),
            folder / "refused",
        ),
        lambda: tune(Tuning(base=str(base), preference="pairs.jsonl"), folder / "refused"),
    ):
        try:
            attempt()
        except RecipeError as error:
            refused.append(str(error))
    return refused


def watch_reading():
    """The blocks that this process reads from now on."""
    read, fetch = [], BlockDataset.__getitems__
    BlockDataset.__getitems__ = lambda blocks, indices: (
        read.extend(indices) or fetch(blocks, indices)
    )
    return read


def fail_on_one():
    """What each process hears when only the second fails, and when only the main one may."""
    heard = []

    def fail():
        if distributed.rank() == 1:
            raise RunError("the second has a cold")

    for do in (distributed.raise_together(fail), distributed.on_main(lambda: [][0])):
        try:
            do()
        except Exception as error:
            heard.append(f"{type(error).__name__}: {error}")
    return heard


def run_command(*words):
    """What `rung` does in this process when all are started so: its exit code, what it prints and
    what it says.
    """
    sys.argv = ["rung", *words]
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as end:
            return end.code, printed.getvalue(), said.getvalue()


def ask_together():
    """Commands that train nothing, and some that fail; a process that is to give way is ended, as
    the launcher does.
    """
    asked = {
        "eval": run_command("eval", "base", "--json"),
        "score": run_command("score", "base", "The cat sat.", "--json"),
        "generate": run_command("generate", "base", "The cat", "--temperature", "0", "--json"),
        "no run": run_command("eval", "nowhere"),
    }
    distributed.defer_to_main = lambda: distributed.is_main() or sys.exit(-signal.SIGTERM)
    asked["a bad value"] = run_command(
        "train", "llama3", "text.txt", "--set", "hidden_size=31", "--out", "none"
    )
    asked["a bad key"] = run_command(
        "train", "llama3", "text.txt", "--set", "hiddensize=32", "--out", "none"
    )
    asked["no text"] = run_command("train", "llama3", "missing.txt", "--out", "none")
    return asked


def main():
    ground = Ground(Path(sys.argv[1]))
    ways = QUICK if "quick" in sys.argv else WAYS
    read, found = watch_reading(), {"whole": {}, "went on": {}}
    for way in ways:
        found["whole"][way] = ground.train(way, f"{way}-whole")
        found.setdefault("read", list(read))
    for way in [way for way in RESUMED if way in ways]:
        ground.train(way, f"{way}-to-one", stop=STOP)
        found["went on"][way] = ground.train(way, f"{ALONE[way]}-to-two-{way}")
    kept = {"plain", "sharded"}.intersection(ways)
    found["kept"] = {way: ground.train(way, f"{way}-kept", sign=-1) for way in sorted(kept)}
    found |= {
        "fits": count_fits(ground.folder),
        "refused": tune_together(ground.folder),
        "heard": fail_on_one(),
    }
    os.chdir(ground.folder)
    leave, distributed.destroy_process_group = (
        distributed.destroy_process_group,
        lambda: None,
    )  # one command comes after another here
    if ways is WAYS:
        climb = ["climb", "text.txt", "--rungs", "bigram,gpt2,llama3", "--minutes", "0.03"]
        sys.argv = ["rung", *climb]
        try:
            cli.main()
        except SystemExit as end:
            found["climbed"] = end.code
    found["asked"] = ask_together()
    leave()
    (ground.folder / f"found-{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
