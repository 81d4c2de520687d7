"""Documents on disk: whole or read again, from any number on, in little memory."""

import sys

import pytest

from rung.data import store
from rung.data.corpus import load_corpus
from rung.errors import CorpusError
from rung.files import cache_folder
from tests.conftest import make_text, write
from tests.data.conftest import read_stream, texts


def test_the_fingerprint_knows_content_and_split(tmp_path):
    for folder in ("a", "b"):
        for name in ("train", "valid", "test"):
            write(tmp_path / folder / f"{name}.txt", name)
    assert (
        load_corpus(str(tmp_path / "a")).fingerprint == load_corpus(str(tmp_path / "b")).fingerprint
    )
    write(tmp_path / "a/valid.txt", "b\nc")
    write(tmp_path / "b/train.txt", "train\nb")
    write(tmp_path / "b/valid.txt", "c")  # the same documents in the same order
    first, second = (load_corpus(str(tmp_path / folder), "lines") for folder in "ab")
    assert texts(first) == texts(second)
    assert first.fingerprint != second.fingerprint


def test_a_failure_leaves_nothing_in_the_cache(tmp_path):
    before = {path.name for path in (cache_folder() / "corpora").glob("[!.]*")}
    with pytest.raises(CorpusError, match="not UTF-8"):
        load_corpus(str(write(tmp_path / "a.txt", b"a\n" * 3000 + b"\xff")), "lines")
    assert {path.name for path in (cache_folder() / "corpora").glob("[!.]*")} == before
    assert not [path for path in (cache_folder() / "corpora").glob(".*") if path.suffix != ".lock"]


def test_a_stored_text_that_was_cut_short_is_read_again(tmp_path, monkeypatch):
    """Cut where one batch ends and the next begins, an Arrow file is one of fewer documents: no
    reader complains.
    """
    import pyarrow

    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "WRITE_BUFFER_CHARACTERS", 2_000)
    path = write(tmp_path / "a.txt", make_text(300))
    whole = load_corpus(str(path), whole=True)
    (arrow,) = (tmp_path / "cache").rglob("*.arrow")
    with pyarrow.memory_map(str(arrow)) as file:
        reader = pyarrow.ipc.open_stream(file)
        first = len(reader.read_next_batch())
        border = file.tell()
    cut = arrow.with_name("cut")
    cut.write_bytes(arrow.read_bytes()[:border])
    cut.replace(arrow)
    again = load_corpus(str(path), whole=True)
    assert len(again.test) == len(whole.test) > first
    assert texts(again) == texts(whole) and again.fingerprint == whole.fingerprint


FLAT = """
import re, sys, threading
from pathlib import Path
from rung.data import store, words
from rung.data.corpus import load_corpus
from rung.workflows.prepare import pack_train
from rung.data.tokenizer_training import build_tokenizer

# Buffers so small that what grows with the documents shows beside them.
store.READ_BATCH_BYTES, store.WRITE_BUFFER_CHARACTERS = 1 << 12, 1 << 18
words.KEPT_BYTES = 1 << 20

def own():  # of the resident pages those that no file backs: mapped ones can be dropped
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

peak, done = 0.0, threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, own())

tokenizer = build_tokenizer("whitespace", map(str, range(100)))
few, many = sys.argv[1:]
pack_train(load_corpus(few, "lines"), tokenizer)  # fills buffers, and imports what it needs
before = own()
threading.Thread(target=watch).start()
packed = pack_train(load_corpus(many, "lines"), tokenizer)
done.set()
print(len(packed.starts), peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measured in /proc")
@pytest.mark.slow
def test_memory_stays_flat(tmp_path, run_fork):
    """So many documents more that thirty bytes for each would show."""
    paths = [tmp_path / "few.txt", tmp_path / "many.txt"]
    for path, lines in zip(paths, (20_000, 200_000), strict=True):
        path.write_text("".join(f"{i} {i % 97}\n" for i in range(lines)))
    ran = run_fork("-c", FLAT, *paths)
    assert ran.returncode == 0, ran.stderr
    documents, megabytes = ran.stdout.split()
    assert int(documents) > 170_000
    assert float(megabytes) < 16, megabytes


def test_documents_are_read_from_any_number(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WRITE_BUFFER_CHARACTERS", 640)
    monkeypatch.setattr(store, "READ_BATCH_BYTES", 100)
    corpus = load_corpus(
        str(write(tmp_path / "a.txt", "\n".join(f"number {i}" for i in range(300)))), "lines"
    )
    train = list(corpus.train["text"])
    assert corpus.train.data.column("text").num_chunks > 3
    for start in (0, 1, 64, 100, len(train) - 1, len(train)):
        assert read_stream(corpus, start) == train[start:]
    done = [state for _, state in corpus.read_train()]
    assert done[-1] == len(train)
    assert len(done) > 10
