"""Texts are coded under runs of every rung, come back to the byte, and prove the score."""

import json
import math
import os
import shutil
import threading
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rung
from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RecipeError, RunError
from rung.evaluation.compressed_file import HEADER_SIZES, MAGIC, pack_file, unpack_file
from rung.evaluation.score import score_documents
from rung.ladder import LADDER
from rung.models import load
from rung.models.foreign import wrap_foreign
from rung.workflows import coding_model, compress
from rung.workflows.coding_model import CodingModel, prove_score
from tests.conftest import SENTENCES, examples, run_rung
from tests.evaluation.conftest import count
from tests.models.foreign import build

pytest.importorskip("constriction")
is_smaller = compress.is_smaller
BEFORE = Path(__file__).parents[1] / "contracts" / "runs_of_0_1"
RUNS = sorted(path.name for path in BEFORE.iterdir() if path.is_dir() and path.name != "begun")
# Bytes that texts are made of somewhere, and that a decoder could lose.
ODD_TEXTS = {
    "empty": b"",
    "a NUL": b"before\0after",
    "Windows' line ends": b"one\r\ntwo\rthree\r\n\r\n\r\nfour",
    "a byte order mark": "\ufeffmarked".encode(),
    "no UTF-8": b"caf\xe9 \xff\xfe \xc3( \xed\xa0\x80 fin\n\n\x80",
    "all bytes": bytes(range(256)),
    "names of special tokens": b"<s> </s> <|end_of_text|> <|unknown|> <unk>",
    "only white space": b" \n\t \n\n",
    "blank ends": b"\n\n\ntext\n\n \n\nmore\n\n\n",
    "letters of many scripts": "Ａｆﬁ é é 漢字 🙂👩‍👩‍👧 ﷽ \u2028 \x85".encode(),
}


@pytest.fixture(scope="module", autouse=True)
def with_models():
    """Files that are coded under a model, and never stored as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rung.workflows.compress.is_smaller", lambda coded_bytes, data: True)
        yield


@pytest.fixture
def smallest():
    """Files as users get them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rung.workflows.compress.is_smaller", is_smaller)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of every rung and their text, where tests may write."""
    return Path(shutil.copytree(BEFORE, tmp_path_factory.mktemp("coded") / "runs"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A bigram of words, whose tokenizer loses white space and does not know most words."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = build_tokenizer("word", SENTENCES)
    count("bigram", tokenizer, SENTENCES).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder, words):
    """Models and tokenizers, of bytes and of words."""
    return [load(run) for run in (*(folder / name for name in LADDER), words)]


def test_a_file_says_how_its_run_was_loaded(folder, tmp_path):
    """A window and a type of the weights that are not the run's own are in the file."""
    text = " ".join(SENTENCES * 8).encode()
    options = {"window": 16, "dtype": "bfloat16"}
    round_trip(rung.load(folder / "gpt2", **options), text, tmp_path)
    header, _, _ = unpack_file(tmp_path / "packed", (tmp_path / "packed").read_bytes())
    assert {key: header["models"][0][key] for key in options} == options
    plain = round_trip(folder / "gpt2", text, tmp_path)
    header, _, _ = unpack_file(tmp_path / "packed", (tmp_path / "packed").read_bytes())
    assert not options.keys() & header["models"][0].keys()
    assert plain["bytes"] == len(text)


def round_trip(run, data, folder, **options):
    source, packed, back = (folder / name for name in ("source", "packed", "back"))
    source.write_bytes(data)
    found = rung.compress(run, source, packed, **options)
    rung.decompress(packed, back)
    assert back.read_bytes() == data
    return found


@pytest.mark.parametrize("name", LADDER)
def test_a_text_comes_back_under_every_rung(name, folder, tmp_path):
    text = (folder / "text.txt").read_bytes()[:80]
    found = round_trip(folder / name, text, tmp_path)
    assert found["bytes"] == len(text)
    assert found["compressed_bytes"] == (tmp_path / "packed").stat().st_size
    assert found["code_bytes"] < found["compressed_bytes"] < found["code_bytes"] + 500


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_any_bytes_come_back(name, folder, words, tmp_path):
    for run in (folder / "bigram", words):
        round_trip(run, ODD_TEXTS[name], tmp_path)


@settings(max_examples=examples(20), suppress_health_check=list(HealthCheck), deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_bytes_that_hypothesis_makes_come_back(folder, words, tmp_path, data):
    for run in (folder / "ngram", words):
        round_trip(run, data, tmp_path)


@pytest.mark.parametrize(
    "size", [3_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids="{:,} bytes".format
)
def test_a_long_line_comes_back(size, folder, tmp_path):
    round_trip(folder / "ngram", b"ab " * (size // 3), tmp_path)


@pytest.mark.parametrize("size", [0, 1, 100, 20_000])
def test_what_no_model_makes_smaller_is_stored(size, folder, words, tmp_path, smallest):
    data = numpy.random.default_rng(size).bytes(size)
    found = round_trip(folder / "ngram", data, tmp_path)
    assert found["is_stored"] and found["compressed_bytes"] <= size + 30
    text = round_trip(folder / "ngram", (folder / "text.txt").read_bytes(), tmp_path)
    assert not text["is_stored"] and text["compressed_bytes"] < text["bytes"]


def test_words_are_cheaper_than_their_spelling(words, tmp_path):
    known = round_trip(words, " ".join(SENTENCES * 20).encode(), tmp_path)
    assert known["compressed_bytes"] < 0.3 * known["bytes"]


@pytest.mark.parametrize("options", [{"mix": ["ngram={}/ngram"]}, {"cache": True}], ids=str)
def test_a_text_comes_back_under_a_variant(options, folder, tmp_path):
    text = (folder / "text.txt").read_bytes()[:150]
    mix = [entry.format(folder) for entry in options.get("mix", ())]
    round_trip(folder / "llama3", text, tmp_path, **(options | ({"mix": mix} if mix else {})))


@pytest.mark.parametrize("name", RUNS)
def test_the_coded_size_is_the_score(name, folder, tmp_path):
    text = tmp_path / "new.txt"
    text.write_text("Nobody has read this before.\n\nIt has two paragraphs.\n")
    found = rung.evaluate(folder / name, text, prove=True)
    check_proof(found, found["proof"])


def check_proof(score, proof):
    assert math.isclose(proof["score_bytes"], score["nats"] / math.log(2) / 8)
    assert abs(proof["coded_bytes"] - proof["score_bytes"]) <= 0.001 * proof["score_bytes"] + 64


@pytest.mark.slow
def test_the_coded_size_of_variants_is_their_score(folder):
    mix = [f"ngram={folder / 'ngram'}"]
    found = rung.evaluate(folder / "llama3", split="test", mix=mix, cache=True, prove=True)
    for score in (found, found["mix"], found["cache"]):
        check_proof(score, score["proof"])
    table = run_rung("eval", folder / "gpt2", "--prove", "--split", "test").stdout
    assert "proven" in table


def test_a_model_that_changes_proves_nothing(folder):
    with pytest.raises(RecipeError, match="--dynamic changes them"):
        rung.evaluate(folder / "llama3", dynamic=True, prove=True)
    with pytest.raises(RecipeError, match="choose one"):
        rung.compress(folder / "rnn", folder / "text.txt", folder / "out", mix=["a=b"], cache=True)


@settings(max_examples=examples(20), suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=3))
def test_texts_that_hypothesis_makes_are_proven(loaded, texts):
    """Under the six rungs, and a bigram of words."""
    for model, tokenizer in loaded:
        score = score_documents(model, tokenizer, texts)
        proof = prove_score(CodingModel({"model": model}, tokenizer), texts, score.nats)
        check_proof({"nats": score.nats}, proof)


@pytest.mark.parametrize("kind", ["gpt_neox", "mamba"])
def test_a_score_of_another_architecture_is_proven(kind, tokenizer):
    model = wrap_foreign("here", build(kind, tokenizer))
    texts = [" ".join(SENTENCES[:4]), SENTENCES[4]]  # the first is longer than a window
    score = score_documents(model, tokenizer, texts)
    proof = prove_score(CodingModel({"model": model}, tokenizer), texts, score.nats)
    check_proof({"nats": score.nats}, proof)


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDER)
def test_python_docs_are_proven_under_every_rung(name, tmp_path):
    settings = {"tokenizer.vocab_size": 512}
    if name not in ("bigram", "ngram"):
        settings |= {"hidden_size": 32, "max_position_embeddings": 64, "steps": 20}
    run = rung.train(name, "python-docs", out=tmp_path / "run", set=settings)
    found = rung.evaluate(run, prove=True)
    check_proof(found, found["proof"])


@pytest.fixture(scope="module")
def packed(folder):
    path = folder / "text.rung"
    rung.compress(folder / "ngram", folder / "text.txt", path)
    return path.read_bytes()


class TestDamage:
    def refuse(self, data, folder, says, *options):
        damaged, out = folder / "damaged.rung", folder / "out.txt"
        damaged.write_bytes(data)
        made = run_rung("decompress", damaged, out, *options)
        assert made.returncode == 2
        assert says in made.stderr.replace("\n", " ")
        assert [line[:6] for line in made.stderr.splitlines() if line[:6] == "rung: "] == ["rung: "]
        assert "Traceback" not in made.stderr
        assert not out.exists()

    def test_a_flipped_bit_is_found(self, packed, folder):
        for place in (3, len(MAGIC) + 1, len(MAGIC) + 40, len(packed) // 2, len(packed) - 1):
            flipped = bytearray(packed)
            flipped[place] ^= 8
            self.refuse(bytes(flipped), folder, "damaged")

    def test_a_cut_file_is_found(self, packed, folder):
        for size in (0, 10, len(MAGIC), len(MAGIC) + 2, len(MAGIC) + 50, len(packed) - 1):
            self.refuse(packed[:size], folder, "damaged")
        self.refuse(packed + b"\0", folder, "damaged")

    def test_a_damaged_file_that_is_stored_is_found(self, folder, tmp_path, smallest):
        (tmp_path / "source").write_bytes(bytes(range(256)))
        rung.compress(folder / "bigram", tmp_path / "source", tmp_path / "packed")
        packed = (tmp_path / "packed").read_bytes()
        for place in (3, 20, 25, len(packed) // 2, len(packed) - 1):
            flipped = bytearray(packed)
            flipped[place] ^= 8
            self.refuse(bytes(flipped), folder, "damaged")
        for size in (10, 25, len(packed) - 1):
            self.refuse(packed[:size], folder, "damaged")

    def test_a_file_of_another_version_is_refused(self, packed, folder):
        for version in (1, 3, 10):
            opening = f"rung compressed text {version}\n".encode()
            said = f"another version of rung ('rung compressed text {version}')"
            self.refuse(opening + packed[len(MAGIC) :], folder, said)

    def test_a_header_that_rung_did_not_write_is_refused(self, packed, folder):
        size, _ = HEADER_SIZES.unpack_from(packed, len(MAGIC))
        at = len(MAGIC) + HEADER_SIZES.size
        header = json.loads(packed[at : at + size])
        changes = [{"streams": 0}, {"rest": -1}, {"build": {"threads": 0}}]
        changes += [{"models": models} for models in ([], [1], [{"run": "runs/ngram"}])]
        changes += [{"variant": variant} for variant in ({"sharpness": 1}, {"weights": ["a"]})]
        strange = [header | change for change in changes]
        for value in (*strange, {}, [], 1, {"bytes": True}):
            written = json.dumps(value).encode()
            sizes = HEADER_SIZES.pack(len(written), zlib.crc32(written))
            self.refuse(MAGIC + sizes + written + packed[at + size :], folder, "another version")

    def test_a_code_of_something_else_is_refused(self, packed, folder):
        header, _, code = unpack_file(Path("packed"), packed)
        header = {key: header[key] for key in header if key not in ("rest", "code", "check")}
        for other in (b"", code[:-4], code[:-1], b"\xff" * len(code), b"\0" * len(code)):
            self.refuse(pack_file(header, b"", other), folder, "does not decode here")
        self.refuse(pack_file(header, b"no zlib", code), folder, "does not decode here")
        self.refuse(pack_file(header | {"texts": 10**12}, b"", code), folder, "does not decode")

    def test_another_model_is_refused(self, packed, folder):
        other = ("--run", folder / "bigram")
        self.refuse(packed, folder, "name the right run with --run", *other)
        self.refuse(packed, folder, "cannot be read", "--run", folder / "gone")
        self.refuse(packed, folder, "2 are named", *other, *other)

    def test_the_run_may_lie_elsewhere(self, packed, folder, tmp_path):
        shutil.move(folder / "ngram", tmp_path / "moved")
        try:
            self.refuse(packed, folder, "name it with --run")
            rung.decompress(folder / "damaged.rung", tmp_path / "out", run=tmp_path / "moved")
        finally:
            shutil.move(tmp_path / "moved", folder / "ngram")
        assert (tmp_path / "out").read_bytes() == (folder / "text.txt").read_bytes()

    def test_another_build_is_told(self, folder, tmp_path, monkeypatch):
        source, packed = tmp_path / "source", tmp_path / "packed"
        source.write_text("a few words")
        rung.compress(folder / "llama3", source, packed)
        threads = torch.get_num_threads()
        monkeypatch.setattr(coding_model, "fingerprint_build", lambda _: "another")
        with pytest.raises(RunError, match=r"same build alone.*step \w+ \(here another\)"):
            rung.decompress(packed, tmp_path / "out")
        assert torch.get_num_threads() == threads
        assert not (tmp_path / "out").exists()

    def test_a_model_of_other_numbers_is_told(self, folder, tmp_path, monkeypatch):
        source, packed = tmp_path / "source", tmp_path / "packed"
        source.write_text("a few words of a text")
        rung.compress(folder / "rnn", source, packed)
        softmax = torch.Tensor.softmax  # whose numbers are cut to whole ones
        monkeypatch.setattr(torch.Tensor, "softmax", lambda t, dim: softmax(3 * t, dim=dim))
        with pytest.raises(RunError, match="does not decode here"):
            rung.decompress(packed, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_places_that_cannot_be_read_or_written(self, folder, tmp_path):
        source = tmp_path / "source"
        source.write_text("text")
        os.link(source, tmp_path / "link")
        os.mkfifo(tmp_path / "pipe")
        for file, out, says in (
            (tmp_path / "gone", tmp_path / "out", "not there"),
            (tmp_path, tmp_path / "out", "a folder"),
            (source, tmp_path, "a folder"),
            (source, tmp_path / "gone" / "out", "no folder"),
            (source, source, "is the file that is read"),
            (source, tmp_path / "link", "is the file that is read"),
            (source, tmp_path / "pipe", "a device or a pipe"),
            (source, Path("-"), "a device or a pipe"),
        ):
            with pytest.raises(RunError, match=says):
                rung.compress(folder / "bigram", file, out)
        assert source.read_text() == "text"


def test_a_pipe_is_read_once_and_said_to_be_waited_for(folder, tmp_path):
    pipe, back = tmp_path / "pipe", tmp_path / "back"
    os.mkfifo(pipe)
    text, said = b"what another command prints", []

    def write_when_waited_for(data):
        def show(progress):
            if "pipe" in progress.note:
                said.append(progress.note)
                threading.Thread(target=pipe.write_bytes, args=(data,)).start()

        return show

    rung.compress(
        folder / "bigram", pipe, tmp_path / "packed", on_progress=write_when_waited_for(text)
    )
    packed = (tmp_path / "packed").read_bytes()
    rung.decompress(pipe, back, on_progress=write_when_waited_for(packed))
    assert back.read_bytes() == text and len(said) == 2
    with pytest.raises(RunError, match="/dev/zero is a device, which may have no end: name a file"):
        rung.compress(folder / "bigram", "/dev/zero", tmp_path / "packed")


def test_the_command_prints_sizes(folder, tmp_path):
    (tmp_path / "source").write_text("some words")
    args = ("compress", folder / "ngram", tmp_path / "source", tmp_path / "packed")
    found = json.loads(run_rung(*args, "--json").stdout)
    assert found["compressed_bytes"] == (tmp_path / "packed").stat().st_size
    said = run_rung(*args).stderr
    assert f"in {found['compressed_bytes']:,}" in said
    assert f" rung decompress {tmp_path}/packed {tmp_path}/copy-of-source\n" in said
    made = run_rung("decompress", tmp_path / "packed", tmp_path / "back", "--json")
    assert json.loads(made.stdout)["bytes"] == found["bytes"] == 10
