"""`rung tune` and `rung chat`, end to end: a tiny run learns to answer, is stopped, gone on with,
and talked to.
"""

import copy
import functools
import json
import os
import signal
import socket
import time

import pytest
import torch
from typer.testing import CliRunner

from rung import runs
from rung.chat.dpo import DPOSettings, Preference, preference_accuracy, train_dpo
from rung.chat.session import ChatSession
from rung.cli.main import app
from rung.errors import CorpusError, RecipeError, RunError
from rung.generation.decoder import Decoder
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.models import load
from rung.recipe import make_recipe
from rung.workflows.record import warn_if_unchanged
from rung.workflows.run_folder import read_begun
from rung.workflows.train import execute
from rung.workflows.tune import Tuning, tune
from tests.conftest import run_rung as rung
from tests.conftest import slow_but

COLOURS = ("red", "blue", "green", "black", "white", "grey")
THINGS = ("cat", "dog", "mat", "log", "sun", "sea", "tree", "hat", "box", "cup")
RUNGS = ("rnn", "rnn-attention", "gpt2", "llama3")
SMALL = {"hidden_size": 32, "max_position_embeddings": 64}


def talk(number):
    thing = THINGS[number % len(THINGS)]
    way = ("Which colour has the {}?", "Tell me the colour of the {}.", "The {} is")[
        number // len(THINGS) % 3
    ]
    colour = COLOURS[number % len(THINGS) % len(COLOURS)]
    return [
        {"role": "user", "content": way.format(thing)},
        {"role": "assistant", "content": f"It is {colour}."},
    ]


@pytest.fixture(scope="module")
def ground(tmp_path_factory, prose):
    """Text, conversations, preferences, a tiny run of every rung that can be tuned, and one of one
    that cannot.
    """
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "my.txt").write_text(prose)
    (folder / "talks.jsonl").write_text(
        "\n".join(json.dumps({"messages": talk(i)}) for i in range(30))
    )
    pairs = [
        {"prompt": f"The {thing} is", "chosen": "It is red.", "rejected": "It is blue."}
        for thing in THINGS
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for name in RUNGS:
        page = {"rung": name, "corpus": str(folder / "my.txt"), "steps": 2, "model": SMALL}
        execute(make_recipe(page), folder / name)
    execute(make_recipe({"rung": "bigram", "corpus": str(folder / "my.txt")}), folder / "bigram")
    return folder


@pytest.fixture(scope="module")
def tuned_run(ground):
    """A function that tunes the run of a rung when it is first asked for, and gives its folder."""

    @functools.cache
    def make(name):
        out = ground / f"{name}-chat"
        plan = Tuning(base=str(ground / name), data=str(ground / "talks.jsonl"), steps=60)
        assert tune(plan, out)
        return out

    return make


@pytest.mark.parametrize("name", slow_but(RUNGS, "gpt2", "llama3"))
def test_every_neural_rung_learns_to_answer(name, tuned_run):
    out = tuned_run(name)
    record = runs.read_record(out)
    tuned = record["tune"]
    before, after = (
        tuned[side]["answers"]["test"]["token_perplexity"] for side in ("before", "after")
    )
    assert after < before / 4
    assert tuned["after"]["bits_per_byte"] == record["scores"]["test"]["bits_per_byte"]
    assert {"f1", "exact", "questions"} <= tuned["lookup"]["test"]["n-grams"].keys()
    assert len(tuned["best"]) > 0
    assert not any(answer in tuned["best"] for answer in tuned["worst"])
    model, tokenizer = load(out)
    assert tokenizer.chat_template
    assert model.config.vocab_size == len(tokenizer) == record["tokenizer"]["vocab_size"]


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_a_tuned_run_opens_in_stock_transformers(name, tuned_run, run_fork):
    chat = tuned_run(name)
    program = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(chat)!r})
tokenizer = AutoTokenizer.from_pretrained({str(chat)!r})
asked = tokenizer.apply_chat_template([{{"role": "user", "content": "The cat is"}}],
                                      add_generation_prompt=True,
                                      return_tensors="pt")["input_ids"]
out = model.generate(asked, max_new_tokens=20, do_sample=False)
print(out[0, asked.shape[1]:].tolist())
assert "rung" not in sys.modules
"""
    made = run_fork("-c", program)
    assert made.returncode == 0, made.stderr
    from rung.chat.template import encode_prompt, find_chat_stop_ids
    from rung.generation.decoder import generate_tokens

    model, tokenizer = load(chat)
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "The cat is"}])
    with torch.inference_mode():
        sampling = Sampling(max_new_tokens=20, temperature=0)
        ours = [
            step[0]
            for step in generate_tokens(
                Decoder(model), [ids], sampling, find_chat_stop_ids(model, tokenizer)
            )
        ]
    assert json.loads(made.stdout.splitlines()[-1]) == ours


# The program `transformers`, which does not ask its own server when the Hub is not to be asked.
TRANSFORMERS = """
from huggingface_hub import constants
from transformers.cli.transformers import main
constants.HF_HUB_OFFLINE = False
main()
"""


@pytest.fixture(scope="module")
def stock_server(ground, start_fork):
    """The address of `transformers serve`, which loads the runs that it is asked for."""
    pytest.importorskip("uvicorn", reason="transformers serves with it: pip install 'rung[serve]'")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    said = ground / "said"
    command = ("-c", TRANSFORMERS, "serve", "--host", "127.0.0.1", "--port", port)
    with said.open("w") as stream:
        process = start_fork(*command, cwd=ground, stdout=stream, stderr=stream)
    while "startup complete" not in said.read_text():
        assert process.poll() is None, said.read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.mark.parametrize("name", slow_but(["gpt2", "llama3"], "llama3"))
def test_stock_transformers_serves_and_chats(name, ground, tuned_run, stock_server, run_fork):
    """`transformers serve` and `transformers chat` answer with rung's own tokens."""
    httpx = pytest.importorskip("httpx", reason="asks the server: pip install httpx")
    model, tokenizer = load(ground / name)
    asked = {"model": name, "prompt": "The cat", "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{stock_server}/v1/completions", json=asked, timeout=None)
    wanted = generate(model, tokenizer, "The cat", Sampling(max_new_tokens=12, temperature=0)).text
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == wanted
    chat = tuned_run(name)
    talked = run_fork(
        *("-c", TRANSFORMERS, "chat", chat.name, stock_server),
        *("max_new_tokens=20", "do_sample=False"),
        text="The cat is\nn\n!exit\n",  # n: not to go on, where it asks after a long answer
        cwd=ground,
    )
    assert talked.returncode == 0, talked.stderr
    model, tokenizer = load(chat)
    ours = (
        ChatSession(Decoder(model), tokenizer)
        .answer("The cat is", Sampling(max_new_tokens=20, temperature=0))
        .text.split()
    )
    answer = talked.stdout.split(f"<{chat.name}>:")[1].split()
    assert ours and answer[: len(ours)] == ours


def test_a_tuning_that_was_stopped_goes_on_as_if_it_had_not(ground, tmp_path, monkeypatch):
    """From another folder, too."""
    monkeypatch.chdir(ground)
    plan = Tuning(base="llama3", data="talks.jsonl", steps=20, train={"logging_steps": 1})

    def stop(progress):
        if progress.stage == "tuning" and progress.done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    assert tune(plan, tmp_path / "whole")
    assert not tune(plan, tmp_path / "stopped", stop)
    with pytest.raises(RunError, match="rung tune --out"):
        read_begun(tmp_path / "stopped")
    monkeypatch.chdir(tmp_path)
    made = rung("tune", "--out", tmp_path / "stopped", "--resume")
    assert made.returncode == 0, made.stderr
    assert runs.read_metrics(tmp_path / "stopped") == runs.read_metrics(tmp_path / "whole")
    again = rung("tune", "--out", tmp_path / "stopped", "--resume")
    assert again.returncode == 2
    assert "finished" in again.stderr


def test_what_cannot_be_tuned_is_refused(ground, tmp_path):
    talks = str(ground / "talks.jsonl")
    with pytest.raises(RunError, match="counts"):
        tune(Tuning(base=str(ground / "bigram"), data=talks), tmp_path / "a")
    with pytest.raises(CorpusError, match="no conversations at"):
        tune(Tuning(base=str(ground / "llama3"), data="nowhere.jsonl"), tmp_path / "b")
    with pytest.raises(RecipeError, match="choose one"):
        Tuning(base="x", steps=3, minutes=1.0)
    with pytest.raises(RecipeError, match="lora is 4, which is a setting of `rung train` alone: l"):
        Tuning(base="x", train={"lora": 4})
    with pytest.raises(RecipeError, match="learning_rate"):
        Tuning(base="x", train={"learning_rat": 1})
    with pytest.raises(RunError, match="answers nothing yet"):
        tune(
            Tuning(base=str(ground / "llama3"), preference=str(ground / "pairs.jsonl")),
            tmp_path / "c",
        )
    long = [
        {"messages": [{"role": "user", "content": f"{i} cat" * 99}, talk(0)[1]]} for i in range(9)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, long)))
    with pytest.raises(CorpusError, match="no answer begins within the 64 tokens"):
        tune(
            Tuning(base=str(ground / "llama3"), data=str(tmp_path / "long.jsonl"), steps=1),
            tmp_path / "d",
        )
    assert not any((tmp_path / name).exists() for name in "abcd")
    made = rung("tune", ground / "llama3", talks, "--out", ground / "gpt2")
    assert made.returncode == 2
    assert "not empty" in made.stderr


def test_a_run_may_be_the_folder_one_is_in(ground, monkeypatch):
    monkeypatch.chdir(ground / "llama3")
    made = CliRunner().invoke(app, ["tune", ".", "--preference", "nowhere.jsonl"])
    assert made.exit_code == 2
    assert "no preferences at nowhere.jsonl" in made.stderr


def test_preferences_are_learned(ground, tuned_run):
    chat = tuned_run("llama3")
    made = rung(
        "tune",
        chat,
        "--preference",
        ground / "pairs.jsonl",
        "--out",
        ground / "preferring",
    )
    assert made.returncode == 0, made.stderr
    tuned = runs.read_record(ground / "preferring")["tune"]
    assert tuned["preferences"] + tuned["held_out"] == len(THINGS)
    assert "chosen answer likelier" in made.stdout
    model, tokenizer = load(chat)
    pairs = [
        Preference(
            prompt=[{"role": "user", "content": f"The {t} is"}],
            chosen="It is blue.",
            rejected="It is red.",
        )
        for t in THINGS
    ]
    train_dpo(model, tokenizer, pairs, DPOSettings(epochs=30, learning_rate=1e-3))
    assert preference_accuracy(model, tokenizer, pairs) == 1.0
    swapped = [Preference(prompt=p.prompt, chosen=p.rejected, rejected=p.chosen) for p in pairs]
    assert preference_accuracy(model, tokenizer, swapped) == 0.0


def test_a_training_that_moves_no_weight_says_so(make_tiny, caplog):
    model = copy.deepcopy(make_tiny("llama3"))
    with warn_if_unchanged(model):
        next(model.parameters()).data.add_(0.1)
    assert "nothing was learned" not in caplog.text
    with warn_if_unchanged(model):
        pass
    assert "nothing was learned: every weight is as it was" in caplog.text


def test_chat_works_piped(ground, tuned_run, run_fork):
    run = tuned_run("llama3")
    said = [
        "The cat is",
        "/temperature 0.5",
        "/system be kind",
        f"/save {ground / 'said.jsonl'}",
        "/nothing",
        "/reset",
    ]
    said += [
        "caf\udce9?",
        f"/load {ground / 'said.jsonl'}",
        "/temperature hot",
        "/save nowhere/said.jsonl",
        "/load nowhere.jsonl",
        "/help",
        "The dog is",
        "/quit",
    ]
    made = run_fork(
        *("rung", "chat", run),
        text="\n".join([*said, "never asked"]),
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert made.returncode == 2, made.stderr  # for what could not be done
    assert made.stdout.count("\n") >= 2
    assert "never asked" not in made.stderr
    model, tokenizer = load(run)
    answer = ChatSession(decoder=Decoder(model), tokenizer=tokenizer).answer(
        "The cat is", Sampling(temperature=0)
    )
    assert made.stdout.startswith(answer.text[:40])
    for heard in (
        "Saved",
        "unknown command /nothing",
        "2 messages",
        "rung: the question is not UTF-8: byte 3 is 0xe9; write it in UTF-8\n",
        "/temperature: hot is no number",
        "/save: No such file or directory: nowhere/said.jsonl\n",
        "nowhere.jsonl",
        "/quit",
    ):
        assert heard in made.stderr
    saved = json.loads((ground / "said.jsonl").read_text())["messages"]
    assert [m["role"] for m in saved] == ["system", "user", "assistant"]


def test_a_question_that_is_not_utf8_is_one_line(capsys):
    from rung.cli.chat import _Terminal

    terminal = _Terminal(None, None)  # nothing is asked
    terminal._ask("caf\udce9?")
    terminal._obey("/system caf\udce9")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "rung: the question is not UTF-8: byte 3 is 0xe9; write it in UTF-8"
    assert second.startswith("rung: /system: /system is not UTF-8")


def test_chat_with_what_was_never_tuned_says_what_to_do(ground):
    made = rung("chat", ground / "llama3")
    assert made.returncode == 2
    assert f"rung tune {ground / 'llama3'}" in made.stderr
