"""Several processes as one: what two compute is what one computes, each reads its own part, and one
speaks for both.
"""

import importlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from rung import distributed
from rung.evaluation.surprisal import score_text
from rung.models import load
from rung.models.llama3 import LlamaForCausalLM
from rung.models.sizes import SIZES
from rung.workflows.evaluate import evaluate_run
from tests.conftest import slow_but
from tests.ranks_together import ALONE, QUICK, RESUMED, ROWS, STEPS, STOP, WAYS, Ground

TOGETHER = Path(__file__).with_name("ranks_together.py")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def ways(request):
    """The ways to train that are tried: all of them where a test that is slow is to run."""
    chosen = [item for item in request.session.items if item.path == request.path]
    return WAYS if any(item.get_closest_marker("slow") for item in chosen) else QUICK


@pytest.fixture(scope="module")
def alone(ground, ways):
    """What one process computes; and its runs, stopped on the way, for two to go on with."""
    found = {}
    for way in sorted({ALONE[way] for way in ways}):
        found[way] = ground.train(way, f"{way}-alone")
        others = [other for other in RESUMED if ALONE[other] == way and other in ways]
        if others:
            ground.train(way, f"{way}-stopped", stop=STOP)
        for other in others:
            shutil.copytree(
                ground.folder / f"{way}-stopped", ground.folder / f"{way}-to-two-{other}"
            )
    return found


@pytest.fixture(scope="module")
def two(ground, alone, ways, start_fork):
    """What each of two processes found, and what torchrun prints as they climb."""
    made = run_torchrun(ground.folder) if ways is WAYS else run_quickly(ground.folder, start_fork)
    found = [
        json.loads((ground.folder / f"found-{number}.json").read_text()) for number in range(2)
    ]
    return [*found, made]


def run_torchrun(folder):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    made = subprocess.run(
        [*torchrun, TOGETHER, folder],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made


def run_quickly(folder, start_fork):
    """Two processes without torchrun, which takes long to begin; what it would tell them, they are
    told.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    processes = []
    for rank in range(2):
        numbers = {name: str(value) for name, value in told.items()}
        numbers |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"said-{rank}").open("w") as said:
            processes.append(
                start_fork(
                    *(TOGETHER, folder, "quick"),
                    env=os.environ | numbers,
                    stdout=said,
                    stderr=said,
                )
            )
    for rank, process in enumerate(processes):
        assert process.wait() == 0, (folder / f"said-{rank}").read_text()


@pytest.mark.parametrize("way", slow_but(WAYS, *QUICK))
def test_two_processes_compute_what_one_does(way, two, alone):
    expected = alone[ALONE[way]]
    assert len(expected["losses"]) == STEPS
    assert expected["losses"][-1] < expected["losses"][0]
    for key in ("losses", "judged", "final"):
        assert two[0]["whole"][way][key] == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.parametrize("way", slow_but(RESUMED, *QUICK))
def test_two_processes_go_on_where_one_stopped(way, two, alone):
    for key in ("losses", "final"):
        assert two[0]["went on"][way][key] == pytest.approx(alone[ALONE[way]][key], rel=1e-5)


@pytest.mark.parametrize("way", slow_but(RESUMED, *QUICK))
def test_one_process_goes_on_where_two_stopped(way, two, alone, ground):
    found = ground.train(way, f"{way}-to-one")
    for key in ("losses", "final"):
        assert found[key] == pytest.approx(alone[ALONE[way]][key], rel=1e-5)


def test_the_states_of_all_streams_are_saved(two, ground):
    name = Path("checkpoints") / f"checkpoint-{STOP + 1}" / f"carried-{ROWS}.safetensors"
    ours, theirs = (
        load_file(ground.folder / run / name) for run in ("carried-to-one", "carried-stopped")
    )
    assert {len(states) for states in ours.values()} == {ROWS}
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # Muon rounds to bfloat16


def test_each_process_reads_its_own_blocks(two, ground):
    one, other = (found["read"] for found in two[:2])
    mine = STEPS * ROWS // 2
    assert mine <= len(one) == len(other) <= mine + ROWS // 2  # one batch is fetched ahead
    one, other = one[:mine], other[:mine]
    blocks = -(-(len(ground.packed) - 1) // 16)
    assert blocks < STEPS * ROWS  # the second epoch is begun
    order = [
        [*one[at : at + ROWS // 2], *other[at : at + ROWS // 2]]
        for at in range(0, len(one), ROWS // 2)
    ]
    order = [block for step in order for block in step]
    assert sorted(order[:blocks]) == list(range(blocks))
    again = [block - blocks for block in order[blocks : 2 * blocks]]  # of the next epoch's own
    assert len(set(again)) == len(again) == min(blocks, len(order) - blocks)
    assert all(0 <= block < blocks for block in again)
    assert order[:10] != again[:10]


def test_an_n_gram_is_fitted_once(two):
    assert [found["fits"] for found in two[:2]] == [1, 0]


def test_a_run_is_tuned_together(two, ground):
    """`torchrun -m rung tune` hung: the second process left at once, and the first waited for
    it.
    """
    record = json.loads((ground.folder / "tuned" / "rung.json").read_text())
    assert record["training"]["steps"] == 4
    assert {"before", "after"} <= record["tune"].keys()
    weights = [load_file(ground.folder / run / "model.safetensors") for run in ("base", "tuned")]
    norms = [weight["model.norm.weight"] for weight in weights]
    assert not torch.equal(*norms)


def test_what_is_refused_leaves_nothing(two, ground):
    assert not (ground.folder / "refused").exists()
    for found in two[:2]:
        batch, preference = found["refused"]
        assert batch == "global_batch_size is 7, for 2 processes: it must be a multiple of that"
        assert preference.startswith("--preference learns in one process, not in 2")


@pytest.mark.parametrize("way", slow_but(["plain", "sharded"], *QUICK))
def test_the_best_weights_are_kept(way, two):
    """The losses fall and are judged the wrong way round: what is kept is of the first
    evaluation.
    """
    kept = two[0]["kept"][way]
    assert kept["final"] == pytest.approx(-kept["judged"][0], rel=1e-6)
    assert kept["final"] > -kept["judged"][-1] + 1e-3


def test_one_that_fails_takes_the_others_with_it(two):
    for found in two[:2]:
        assert found["heard"][0] == "RunError: the second has a cold"
    assert two[0]["heard"][1] == "IndexError: list index out of range"
    assert two[1]["heard"][1] == "OtherProcessError: IndexError: list index out of range"


def test_what_trains_nothing_is_done_and_said_once(two, ground):
    """docs/distributed.md: by the first process alone, as without torchrun."""
    asked, other = (found["asked"] for found in two[:2])
    score = evaluate_run(str(ground.folder / "base"))
    assert json.loads(asked["eval"][1])["bits_per_byte"] == pytest.approx(
        score["bits_per_byte"], rel=1e-6
    )
    model, tokenizer = load(ground.folder / "base")
    bits = sum(piece.bits for piece in score_text(model, tokenizer, "The cat sat."))
    assert json.loads(asked["score"][1])["bits"] == pytest.approx(bits, rel=1e-6)
    assert json.loads(asked["generate"][1])["tokens"] > 0
    for verb in ("eval", "score", "generate"):
        assert (asked[verb][0], other[verb][0], other[verb][1:]) == (0, 0, ["", ""])


@pytest.mark.parametrize("case", ["no run", "a bad value", "a bad key", "no text"])
def test_a_mistake_is_told_once(case, two, ground):
    """By the first process; the launcher ends the other one meanwhile."""
    (code, printed, said), (_, *silent) = (found["asked"][case] for found in two[:2])
    assert (code, printed, silent) == (2, "", ["", ""])
    lines = said.strip().splitlines()
    assert lines[-1].startswith("rung: ") and sum(line.startswith("rung: ") for line in lines) == 1
    assert not (ground.folder / "none").exists()


class Line:
    """What two processes tell each other, without a second one: pickled, as it travels."""

    def __init__(self, monkeypatch):
        self.number = self.other = None
        for name, value in {
            "world_size": lambda: 2,
            "rank": lambda: self.number,
            "_process_group": lambda: None,
        }.items():
            monkeypatch.setattr(distributed, name, value)
        monkeypatch.setattr(distributed, "_torch_distributed", lambda: self)

    def all_gather_object(self, errors, mine, group):
        errors[self.number], errors[1 - self.number] = mine, self.other
        errors[:] = [pickle.loads(pickle.dumps(error)) for error in errors]

    def fail(self, number, error, other=None):
        """What process `number` raises where `error` is raised in it, and `other` told by the other
        one.
        """
        self.number, self.other = number, other

        def make():
            if error:
                raise error

        with pytest.raises(BaseException) as caught:
            distributed.raise_together(make)()
        return caught.value


def test_an_error_is_told_as_it_is_however_often_it_is_passed_on(monkeypatch):
    line, wrong = Line(monkeypatch), IndexError("out of range")
    assert line.fail(1, wrong) is wrong
    assert wrong.__cause__ is None
    told = line.fail(0, None, other=distributed._make_picklable(wrong))
    again = line.fail(1, None, other=distributed._make_picklable(told))
    for error in (told, again, line.fail(0, told), line.fail(0, again)):
        assert str(error) == "IndexError: out of range"
        assert error.__cause__ is None
    missing = line.fail(
        0, None, other=distributed._make_picklable(FileNotFoundError(2, "No such file", "my.txt"))
    )
    assert (type(missing), missing.filename) == (FileNotFoundError, "my.txt")


@pytest.mark.slow
def test_the_command_speaks_once(two, ground):
    *found, made = two
    assert [each["climbed"] for each in found] == [0, 0]
    rows = [
        line.split()[0] for line in made.stdout.splitlines() if line.strip()
    ]  # below them is what is said of each
    assert rows.count("bigram") == rows.count("gpt2") == 1
    assert made.stderr.count("Report:") == 1
    record = json.loads((ground.folder / "runs" / "text" / "gpt2" / "rung.json").read_text())
    assert record["recipe"]["global_batch_size"] == 16
    assert record["training"]["steps"] >= 1  # in minutes, a busy machine comes no further


def test_one_process_is_the_main_one():
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.on_main(lambda: 5)() == distributed.raise_together(lambda: 5)() == 5
    assert distributed.broadcast(5) == 5
    assert distributed.all_reduce_max(3, 4) == [3, 4]
    assert distributed.gather("a") == ["a"]
    assert distributed.launch_command() == "rung"


def test_how_it_was_started_is_said(monkeypatch):
    for key, value in {
        "LOCAL_RANK": "1",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(key, value)
    assert distributed.launch_command() == "torchrun --nproc-per-node 2 -m rung"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.launch_command() == "torchrun --nproc-per-node 2 ... -m rung"
    assert not distributed.is_main()


def test_the_memory_of_a_layer_is_what_autograd_keeps(monkeypatch):
    """docs/distributed.md's formula, against what a small Llama keeps for the backward pass."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    scaling = importlib.import_module("scaling")
    # Where the processor has bfloat16 products, the layers in C keep less.
    monkeypatch.setattr("rung.models.fused._compile", lambda: None)

    def keep(layers):
        shape = {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        config = LlamaConfig(
            **shape, num_hidden_layers=layers, vocab_size=96, max_position_embeddings=64
        )
        model = LlamaForCausalLM(config).bfloat16()
        own = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*model.parameters(), *model.buffers())
        }
        kept = {}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        ids = torch.zeros(2, 64, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(ids, labels=ids).loss
        assert loss.requires_grad
        return (
            sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
            / ids.numel()
        )

    model = scaling.Llama(N=0, L=3, D=64, F=160, H=4, G=2, V=96, tied=True)
    assert keep(3) - keep(2) == pytest.approx(scaling.count_activations(model), rel=0.05)


@pytest.mark.parametrize("name", ["llama3.2-1b", "llama3-8b"])
def test_the_weights_of_a_size_add_up(name, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    scaling = importlib.import_module("scaling")
    model = scaling.read_size(SIZES[name])
    assert model.L * model.P + model.E + model.D == model.N
    assert scaling.count_state(model, "adamw") == 16 * model.N
    assert scaling.count_kept(model, 10, True) < scaling.count_kept(model, 10, False)
