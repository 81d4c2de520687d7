"""Train one small model in many ways on a text that is read again and again, at equal tokens.

Each way differs from the recipe in one thing. `cost` is the tokens that it trains on, those of all
its models, as a multiple of the recipe's, and `time` the same of CPU time in training, in which
teachers answer too (as in `rung train --set teacher=RUN,RUN`). A difference is of bits per byte,
the recipe's seeds against as many others: its 95% interval is paired over held-out documents, and
each seed's own difference stands behind it. The weights are those of the best of five evaluations,
with † those of the last step; averages of weights are taken in the same runs. The loop is that of
`rung.training` without its files (`--check` trains both, and compares). What was trained lies in
`--keep FOLDER`, and is not trained again; with `--show` nothing is trained.

    python benchmarks/recipe/small_data.py [TEXT@PART,EPOCHS ...] > benchmarks/recipe/small_data.txt
    python benchmarks/recipe/small_data.py --tiny    # all parts in a minute; no figure counts

All rows take an hour or more a text. Those of teachers at equal time, beside what `--minutes`
chooses from 16 readings on, were recorded by themselves:

    python benchmarks/recipe/small_data.py --weight-decay 1 --rows \\
        "1 model of 0,averaged,distilled: 0.27" shakespeare.txt@8,40 shakespeare.txt@32,40 \\
        shakespeare.txt@32,100 --held-out 60000 --keep FOLDER

So were those of how the text is cut, with `--rows "the same blocks,documents"` and 16 epochs. The
others were made when every epoch cut the text into the same blocks.

A TEXT is a corpus, or a folder of which 1 MB is read, as much of each file. One training document
in PART is read, EPOCHS times; held-out text is read whole.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import math
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

SLICE = 1_000_000  # bytes of a folder
LENGTH, ROWS = 512, 4  # of a training row, and rows a step: the rung's own
REGIMES = ("8,10", "32,40")  # one training document in so many, and epochs
TINY = (
    "the recipe",
    "documents",
    "the same blocks",
    "constant",
    "2 models of half",
    "distilled: half",
)
EMAS = (0.02, 0.05)  # time constants, as shares of the run
TAILS = (0.1, 0.2, 0.4)  # last shares of the run
EVALUATIONS = 5  # of which the best one's weights are kept, as `rung train` does
# Of two teachers and their student, which reads as many tokens and asks both about each: together
# they take the time of one model of all tokens.
SHORT = 0.27
SHARES = {0.5: "half", 1.0: "whole", None: "fading"}


@dataclass(frozen=True)
class Trial:
    """One training. `length` is that of the run as a share of the recipe's."""

    seed: int = 0
    weight_decay: float = 0.1
    dropout: float = 0.1
    length: float = 1.0
    schedule: str = "wsd"  # or "constant", after the warm-up
    # Blocks cut at another offset in each epoch, or always at the same, or documents put in another
    # order.
    rows: str = "offsets"  # or "blocks", "documents"
    teachers: tuple["Trial", ...] = ()
    share: float | None = 0.5  # of the targets, that is the teachers'; None: from 1 down to 0

    @property
    def cost(self):
        return self.length + sum(teacher.cost for teacher in self.teachers)


# A way is a list of groups of trials: a group's probabilities are averaged, and there is a group
# for each of the recipe's seeds that it is compared with.
def list_ways(recipe, seeds):
    def change(seeds=1, **fields):
        return [dataclasses.replace(recipe, seed=seed, **fields) for seed in range(seeds)]

    alone = [[trial] for trial in change(seeds)]
    values = f"weight decay {recipe.weight_decay:g}, dropout {recipe.dropout:g}"
    ways = {f"the recipe: {values}": alone}
    for name, field, values in (
        ("weight decay", "weight_decay", (0.3, 1.0, 3.0)),
        ("dropout", "dropout", (0.0, 0.2)),
    ):
        for value in values:
            ways[f"{name} {value:g}"] = [[trial] for trial in change(seeds, **{field: value})]
    for rows, name in (
        ("blocks", "the same blocks each epoch"),
        ("documents", "documents in another order each epoch"),
    ):
        ways[name] = [[trial] for trial in change(seeds, rows=rows)]
    # A pair of models for each seed: that seed's and the next one's.
    pairs = [*itertools.pairwise(change(seeds + 1))]
    halves = [*itertools.pairwise(change(seeds + 1, length=0.5))]
    quarters = change(4 * seeds, length=0.25)
    ways["half the tokens"] = [[first] for first, _ in halves]
    ways["constant learning rate"] = [[trial] for trial in change(seeds, schedule="constant")]
    ways["2 models of half the tokens"] = [list(pair) for pair in halves]
    ways["4 models of a quarter of the tokens"] = [
        quarters[n : n + 4] for n in range(0, 4 * seeds, 4)
    ]
    ways["2 models of all tokens"] = [list(pair) for pair in pairs]
    ways["3 models of all tokens"] = [change(3)]
    ways["1 model of twice the tokens"] = [[trial] for trial in change(seeds, length=2.0)]
    ways["distilled: from 2 models of all tokens"] = [
        [dataclasses.replace(recipe, seed=20 + seed, teachers=pair)]
        for seed, pair in enumerate(pairs)
    ]
    ways["distilled: half the tokens, from one of half"] = [
        [dataclasses.replace(first, teachers=(second,))] for first, second in halves
    ]
    return ways | list_ensembles(recipe, seeds)


def list_ensembles(recipe, seeds):
    """List the ways whose teachers and student together take as much time as the recipe alone."""
    pairs = [
        tuple(dataclasses.replace(recipe, seed=seed + more, length=SHORT) for more in (10, 20))
        for seed in range(seeds)
    ]
    ways = {f"1 model of {SHORT:g}": [[first] for first, _ in pairs]}
    ways[f"averaged: 2 models of {SHORT:g}"] = [list(pair) for pair in pairs]
    for share, name in SHARES.items():
        ways[f"distilled: {SHORT:g} from 2 of {SHORT:g} {name}"] = [
            [dataclasses.replace(first, seed=seed, teachers=(first, second), share=share)]
            for seed, (first, second) in enumerate(pairs)
        ]
    return ways


class Laboratory:
    """Trains and scores on one text, and keeps what it has trained."""

    def __init__(self, source, keep, options):
        from rung.data.corpus import load_corpus
        from rung.evaluation.documents import take_texts, tokenize_documents
        from rung.progress import ignore_progress
        from rung.recipe import make_recipe
        from rung.training.clock import now
        from rung.workflows.prepare import prepare, sample_validation

        source, _, regime = source.partition("@")
        self.part, self.epochs = (int(number) for number in (regime or REGIMES[0]).split(","))
        if options.tiny:
            self.part, self.epochs = 256, 1
        cut = cut_text(source, keep, self.part)
        self.recipe = Trial(weight_decay=options.weight_decay, dropout=options.dropout)
        page = {"rung": options.rung, "corpus": str(cut), "steps": 1, "dropout": options.dropout}
        page["model"] = {"hidden_size": options.width, "num_hidden_layers": 2}
        page["model"]["max_position_embeddings"] = LENGTH
        with tempfile.TemporaryDirectory() as folder:
            self.prepared = prepare(make_recipe(page), Path(folder) / "run", ignore_progress, now())
        self.packed, self.tokenizer = self.prepared.packed, self.prepared.tokenizer
        corpus = load_corpus(str(cut))
        self.watched = take_texts(sample_validation(corpus), options.held_out)
        texts = [*corpus.validation["text"], *corpus.test["text"]]
        self.documents = list(
            tokenize_documents(take_texts(texts, options.held_out), self.tokenizer)
        )
        self.steps = max(1, round(self.epochs * len(self.packed) / (LENGTH * ROWS)))
        self.rung = options.rung
        self.rows = TINY if options.tiny else tuple(options.rows.split(","))
        self.keep, self.only_show = keep, options.show
        self.averages = [f"EMA of {share:.0%}" for share in EMAS]
        self.averages += [f"mean of the last {share:.0%}" for share in TAILS]
        if options.rows:
            self.averages = []
        facts = (corpus.fingerprint, self.epochs, self.rung, options.width, len(self.tokenizer))
        self.key = " ".join(map(str, facts))

    def describe(self):
        sizes = [document.bytes for document in self.documents]
        weights = sum(weight.numel() for weight in self.build(self.recipe).parameters())
        return (
            f"one training document in {self.part}, {self.epochs} epochs: {weights:,} weights,"
            f"  {len(self.tokenizer)} tokens of vocabulary; "
            f"{len(self.packed):,} training tokens, {self.steps * LENGTH * ROWS:,} read; "
            f"{len(sizes)} held-out documents of {sum(sizes):,} bytes"
        )

    def place(self, trial):
        name = hashlib.sha256(f"{self.key} {trial}".encode()).hexdigest()[:16]
        return self.keep / f"{name}.pt"

    def has(self, group):
        return all(self.place(trial).exists() for trial in group)

    def find(self, trial):
        """Return what a trial left, trained now if it was not: nats by average, and weights."""
        path = self.place(trial)
        if not path.exists():
            teachers = [self.load(teacher) for teacher in trial.teachers]
            began = time.process_time()
            model, averages = self.train(trial, teachers)
            seconds = time.process_time() - began
            found = {"seconds": seconds, "nats": {}, "weights": averages["kept"]}
            averaged = trial == dataclasses.replace(
                self.recipe, seed=trial.seed, schedule=trial.schedule
            )
            for average, weights in averages.items():
                if average not in ("kept", "last") and not averaged:
                    continue
                write_weights(model, weights)
                found["nats"][average] = self.score(model)
            torch.save(found, path)
            bits = self.bits(found["nats"]["kept"])
            progress(f"{trial}: {bits:.4f} bits per byte, {seconds:.0f} s of CPU")
        return torch.load(path, weights_only=True)

    def seconds(self, trial):
        """Return the CPU time of a trial and of its teachers, scoring left out."""
        return self.find(trial)["seconds"] + sum(map(self.seconds, trial.teachers))

    def load(self, trial):
        weights = self.find(trial)["weights"]
        model = self.build(trial)
        write_weights(model, weights)
        return model.eval()

    def build(self, trial):
        from transformers import set_seed

        from rung.models import build_model, make_config
        from rung.models.starts import start_model

        set_seed(trial.seed)
        fields = dict(self.prepared.recipe.model)
        model = build_model(self.rung, make_config(self.rung, self.tokenizer, fields))
        start_model(model, self.rung, None, self.packed.tokens, self.packed.starts)
        return model

    def train(self, trial, teachers):
        """Train as `RungTrainer` does, and return the averages of the weights too."""
        from rung.training.arguments import DEFAULT_ARGUMENTS
        from rung.training.dropout import apply_dropout
        from rung.training.optimizer import Muon, group_parameters
        from rung.training.schedule import WSDSchedule

        model = self.build(trial)
        steps = max(1, round(self.steps * trial.length))
        rate, schedule = DEFAULT_ARGUMENTS["learning_rate"], WSDSchedule(steps)
        if trial.schedule == "constant":
            schedule.turn = steps
        optimizer = Muon(
            group_parameters(model, weight_decay=trial.weight_decay),
            lr=rate,
            betas=(0.9, DEFAULT_ARGUMENTS["adam_beta2"]),
            eps=1e-8,
            dtype=torch.float32,
        )
        averages, batches = Averages(model, steps), self.read_batches(trial)
        with apply_dropout(model, trial.dropout):
            model.train()
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule(step)
                share = 1 - step / steps if trial.share is None else trial.share
                compute_loss(model, next(batches), teachers, share).backward()
                torch.nn.utils.clip_grad_norm_(
                    model.parameters(), DEFAULT_ARGUMENTS["max_grad_norm"]
                )
                optimizer.step()
                optimizer.zero_grad()
                averages.add(step)
                if (step + 1) * EVALUATIONS // steps > step * EVALUATIONS // steps:
                    averages.evaluate(self.watch(model.eval()))
                    model.train()
        return model.eval(), averages.results()

    def read_batches(self, trial):
        """Yield batches without end, one epoch flowing into the next."""
        from rung.data.packing import BlockDataset
        from rung.training.sampler import permute

        rows = []
        for epoch in itertools.count():
            packed = self.packed
            if trial.rows == "documents":
                packed = shuffle_documents(packed, trial.seed, epoch)
            seed = trial.seed if trial.rows == "offsets" else None
            data = BlockDataset(packed, LENGTH, self.tokenizer.pad_token_id, seed)
            first = epoch * len(data) if trial.rows == "offsets" else 0
            for index in permute(numpy.arange(len(data)), len(data), (trial.seed, epoch)).tolist():
                rows.append(data[first + index])
                if len(rows) == ROWS:
                    yield {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
                    rows = []

    def score(self, model):
        """Compute the nats of every token of the held-out documents, in one row."""
        from rung.evaluation.likelihood import compute_nll

        return torch.cat(compute_nll(model, [document.ids for document in self.documents]))

    def watch(self, model):
        """Score the validation text that training watches."""
        from rung.evaluation.score import score_documents

        return score_documents(model, self.tokenizer, self.watched).bits_per_byte

    def by_document(self, nats):
        lengths = [len(document.ids) - 1 for document in self.documents]
        return numpy.array([part.double().sum().item() for part in nats.split(lengths)])

    def bits(self, nats):
        size = sum(document.bytes for document in self.documents)
        return nats.double().sum().item() / math.log(2) / size

    def mix(self, group, average="kept"):
        """Return the nats of the averaged probabilities of a group."""
        from rung.evaluation.mixture import mix_nll

        each = [self.find(trial)["nats"] for trial in group]
        nats = torch.stack([found.get(average, found["last"]) for found in each])
        return mix_nll(nats, torch.full((len(nats),), 1 / len(nats), dtype=torch.float64))


class Averages:
    """Averages of a model's weights while it trains: exponential ones, and those of its end."""

    def __init__(self, model, steps):
        self.model, self.steps = model, steps
        self.ema = {f"EMA of {share:.0%}": (share, read_weights(model)) for share in EMAS}
        self.tails = {f"mean of the last {share:.0%}": share for share in TAILS}
        self.sums = dict.fromkeys(self.tails, 0.0)
        self.best = math.inf

    def add(self, step):
        weights = read_weights(self.model)
        for share, mean in self.ema.values():
            mean.lerp_(weights, 1 - math.exp(-1 / max(1.0, share * self.steps)))
        for name, share in self.tails.items():
            if step >= self.steps - max(1, round(share * self.steps)):
                self.sums[name] = self.sums[name] + weights

    def evaluate(self, bits):
        if bits < self.best:
            self.best, self.kept = bits, read_weights(self.model)

    def results(self):
        counts = {name: max(1, round(share * self.steps)) for name, share in self.tails.items()}
        found = {"kept": self.kept, "last": read_weights(self.model)}
        found |= {name: mean for name, (_, mean) in self.ema.items()}
        return found | {name: total / counts[name] for name, total in self.sums.items()}


def read_weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@torch.no_grad()
def write_weights(model, weights):
    torch.nn.utils.vector_to_parameters(weights, model.parameters())


def compute_loss(model, batch, teachers, share):
    """Cross-entropy, whose gradient is softened by the teachers' share as in `rung train`."""
    from rung.training.distillation import RunsTeacher

    options = {}
    if teachers:
        ids, targets = batch["input_ids"], batch["shift_labels"].flatten()
        blend = RunsTeacher(teachers).blend
        options["blend_targets"] = lambda gradient, rows: blend(gradient, ids, targets, share, rows)
    return model(**batch, skip_logits=True, **options).loss


def shuffle_documents(packed, seed, epoch):
    """Return the row of tokens with its documents in another order."""
    from rung.data.packing import PackedTokens

    documents = numpy.split(packed.tokens, packed.starts[1:])
    order = numpy.random.default_rng((seed, epoch)).permutation(len(documents))
    return PackedTokens(
        tokens=numpy.concatenate([documents[place] for place in order]), starts=packed.starts
    )


def cut_text(source, keep, part):
    """Write one training document in `part` of a text, and all its held-out documents, as splits.

    Of a folder `SLICE` bytes are read, as many of each file.
    """
    from rung.data.corpus import load_corpus

    if Path(source).is_dir():
        files = sorted(Path(source).glob("**/*.txt"))
        share = SLICE // len(files)
        texts = [file.read_bytes()[share : 2 * share].decode(errors="ignore") for file in files]
        source = keep / f"{Path(source).name}.txt"
        source.write_text("\n\n".join(texts), encoding="utf-8")
    corpus = load_corpus(str(source))
    folder = keep / f"{Path(source).stem}-{part}"
    for name, texts in (
        ("train", list(corpus.train["text"])[::part]),
        ("validation", corpus.validation["text"]),
        ("test", corpus.test["text"]),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


def progress(line):
    print(line, file=sys.stderr, flush=True)


def show(laboratory, seeds):
    """Print a row for each way, beside the recipe."""
    ways = list_ways(laboratory.recipe, seeds)
    ways = {name: ways[name] for name in ways if name.startswith(("the recipe", *laboratory.rows))}
    if laboratory.only_show:
        ways = {
            name: [group if laboratory.has(group) else None for group in groups]
            for name, groups in ways.items()
        }
    recipe = next(iter(ways.values()))
    print(f"{'':46}  cost  time    bits  difference (95% interval)      of each seed")
    for name, groups in ways.items():
        show_way(laboratory, name, groups, recipe)
    for name in ("the recipe", "constant learning rate"):
        groups = next((groups for way, groups in ways.items() if way.startswith(name)), [])
        for average in laboratory.averages if any(groups) else ():
            show_way(laboratory, f"{name}, {average}", groups, recipe, average)


def show_way(laboratory, name, groups, recipe, average="kept"):
    from rung.evaluation.compare import paired_difference

    sizes = [document.bytes for document in laboratory.documents]
    found = [
        (laboratory.mix(group, average), laboratory.mix(plain))
        for group, plain in zip(groups, recipe, strict=False)
        if group and plain
    ]
    if not found:
        return
    trials = next(filter(None, groups))
    last = any("kept" not in laboratory.find(trial)["nats"] for trial in trials)
    bits = [[laboratory.bits(nats) for nats in pair] for pair in found]
    sides = zip(*found, strict=True)
    means = [numpy.mean([laboratory.by_document(nats) for nats in side], axis=0) for side in sides]
    difference = paired_difference(*means, sizes)
    cost = sum(trial.cost for trial in trials)
    plain = recipe[groups.index(trials)]
    seconds = sum(map(laboratory.seconds, trials)) / sum(map(laboratory.seconds, plain))
    mean = numpy.mean([ours for ours, _ in bits])
    print(
        f"{name + ' †' * last:46} {cost:5.2f} {seconds:5.2f}  {mean:.4f}  "
        f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})  "
        + " ".join(f"{ours - plain:+.4f}" for ours, plain in bits),
        flush=True,
    )


def check(laboratory):
    """Train once with `rung train`'s own Trainer, and say how far this loop's score is from it."""
    from rung.recipe import make_recipe
    from rung.workflows.train import execute

    page = dataclasses.asdict(laboratory.prepared.recipe) | {"steps": laboratory.steps}
    page = {key: page[key] for key in ("rung", "corpus", "steps", "dropout", "model")}
    with tempfile.TemporaryDirectory() as folder:
        execute(make_recipe(page), Path(folder) / "run")
        from rung.models import load
        from rung.runs import read_metrics

        lines = [line.get("bits_per_byte") for line in read_metrics(Path(folder) / "run")]
        print("watched:", [round(bits, 4) for bits in lines if bits])
        model, _ = load(str(Path(folder) / "run"))
        theirs = laboratory.bits(laboratory.score(model.eval()))
    ours = laboratory.bits(laboratory.mix([laboratory.recipe]))
    print(f"rung train {theirs:.4f}, this loop {ours:.4f}")


def main():
    from rung.device import choose_device, describe_device

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = [f"python-docs@{regime}" for regime in REGIMES]
    parser.add_argument("texts", nargs="*", metavar="TEXT", default=default)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--rung", default="llama3", choices=("gpt2", "llama3"))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of the recipe")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the recipe")
    parser.add_argument(
        "--rows", default="", metavar="START,START", help="only the ways that begin so"
    )
    parser.add_argument("--held-out", type=int, default=10**9, metavar="CHARACTERS")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.width, options.seeds, options.held_out = 32, 1, 8000
        options.texts = options.texts[:1]
    torch.set_num_threads(1)
    print(f"$ python benchmarks/recipe/small_data.py {shlex.join(sys.argv[1:])}")
    print(f"{describe_device(choose_device())}, one used")
    with contextlib.ExitStack() as stack:
        keep = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keep.mkdir(parents=True, exist_ok=True)
        for text in options.texts:
            laboratory = Laboratory(text, keep, options)
            print(
                f"\n{'/'.join(Path(text).parts[-2:])}, {options.width} wide, "
                f"{laboratory.describe()}",
                flush=True,
            )
            if options.check:
                check(laboratory)
            else:
                show(laboratory, options.seeds)


if __name__ == "__main__":
    main()
