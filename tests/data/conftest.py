"""Shared ground for the tests of corpora: rows, tables, and folders laid out as the Hub is."""

import os
import subprocess
import sys

import pytest

from rung.data.store import SPLITS

ROWS = [f"row {i} says “{i * i}”" for i in range(60)]


def make_table(suffix, rows):
    """Return the bytes of a table of that kind, with the rows in its column `text`."""
    import pandas

    frame = pandas.DataFrame({"id": range(len(rows)), "text": rows})
    if suffix == ".parquet":
        return frame.to_parquet()
    if suffix in (".csv", ".tsv"):
        return frame.to_csv(index=False, sep="," if suffix == ".csv" else "\t").encode()
    return frame.to_json(orient="records", lines=suffix != ".json", force_ascii=False).encode()


def texts(corpus):
    """Return the documents of all splits."""
    return [text for split in SPLITS for text in corpus.split(split)[:]["text"]]


SIZES = {"train": 5, "validation": 2, "test": 1}


def write_hub(folder, rows, column="text"):
    """Parquet files as the Hub keeps them: `rows` copies the lines for each of so many articles."""
    import datasets

    folder.mkdir(parents=True)
    for split, count in SIZES.items():
        lines = [line.format(f"{split} {i}") for i in range(count) for line in rows]
        datasets.Dataset.from_dict({"id": range(len(lines)), column: lines}).to_parquet(
            folder / f"{split}-00000-of-00001.parquet"
        )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the Hub."""
    monkeypatch.setenv("RUNG_HUB_MIRROR", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    return tmp_path / "hub"


def write_shards(folder, rows, count=3, names=("train",)):
    """The rows as parquet files for each split that is named, several of them for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for shard in range(count):
            path = folder / f"{name}-{shard:05}-of-{count:05}.parquet"
            path.write_bytes(
                make_table(".parquet", [f"{name} {row}" for row in rows[shard::count]])
            )


def read_stream(corpus, state=None):
    """Return the training documents after `state`."""
    return [text for batch, _ in corpus.read_train(state) for text in batch]


ASK_THE_HUB = """
import sys, time
slept = []
time.sleep = slept.append
from rung.data.corpus import load_corpus
from rung.data.tokenizer_loading import load_tokenizer
for load, name in ((load_corpus, "wikitext-2"), (load_tokenizer, "gpt2")):
    try:
        load(name)
    except Exception as error:
        print(repr(error))
sys.exit(sum(slept) > 10)
"""


@pytest.fixture(scope="session")
def without_hub(tmp_path_factory):
    """The errors of a corpus and of a tokenizer in a process that cannot reach the Hub.

    The client reads its endpoint when it is imported, hence the process. It may not wait and try
    again, nor write to standard error.
    """
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path_factory.mktemp("home"))}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", ASK_THE_HUB]
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert output.returncode == 0, "it was tried again and again"
    assert output.stderr == ""
    corpus, tokenizer = output.stdout.splitlines()
    return corpus, tokenizer
