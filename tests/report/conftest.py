"""Runs and pages that the tests of the report share."""

import copy
import html
import json
import re

import pytest

from rung.report.page import write_report

SCORE = {
    "bits_per_byte": 1.934,
    "low": 1.852,
    "high": 2.021,
    "word_perplexity": 9123.4,
    "token_perplexity": 20.3,
    "documents": 45,
    "bytes": 90618,
    "words": 12000,
    "tokens": 38000,
    "unknown_words": 0,
    "unknown_nats": 0.0,
    "window": 256,
    "stride": 128,
    "lost": [],
}
RECORD = {
    "rung": "llama3",
    "recipe": {
        "rung": "llama3",
        "model": {"hidden_size": 192},
        "train": {},
        "steps": None,
        "seed": 0,
    },
    "corpus": {
        "name": "python-docs",
        "fingerprint": "96c1",
        "documents": {"train": 620, "validation": 56, "test": 45},
        "bytes": {"train": 2228560, "validation": 176444, "test": 90618},
    },
    "tokenizer": {"kind": "bpe", "fingerprint": "ab12", "vocab_size": 1024, "lost": []},
    "parameters": 1820352,
    "training": {"seconds": 74.2, "steps": 533, "tokens": 1091584, "tokens_per_second": 14711.0},
    "scores": {"test": SCORE},
    "marks": {"zlib": 2.552, "bz2": 2.414, "lzma": 2.361, "lzma after train": 1.893},
    "prompt": "The statement",
    "sample": " is used to\n    return a value.",
    "passage": [["The", 5.1], [" first", 13.0], ["\n\n", 0.5], ["", 0.4]],
    "versions": {"rung": "0.1.0", "torch": "2.13.0"},
    "seed": 0,
    "hardware": "2 cores of a processor",
}
CURVE = [{"step": 1, "tokens": 1000, "loss": 5.0}] + [
    {"step": 100 * i, "tokens": 200_000 * i, "bits_per_byte": 2.5 - i / 8} for i in range(1, 5)
]


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run's folder: the record above, changed."""

    def make(name, metrics=(), **changes):
        record = copy.deepcopy(RECORD)
        for path, value in changes.items():
            *sections, key = path.split("__")
            inner = record
            for section in sections:
                inner = inner[section]
            inner.pop(key, None) if value is None else inner.update({key: value})
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "rung.json").write_text(json.dumps(record))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        return folder

    return make


@pytest.fixture
def make_page(tmp_path):
    """A function that makes the report and returns it."""

    def make(*folders):
        out = tmp_path / "out" / "report.html"
        write_report(folders, out)
        return out.read_text(encoding="utf-8")

    return make


@pytest.fixture
def ladder(make_run):
    """A run of every rung, with marks that stand close together."""
    costs = {
        "bigram": 3.2,
        "ngram": 2.15,
        "rnn": 2.16,
        "rnn-attention": 2.155,
        "gpt2": 2.0,
        "llama3": 1.93,
    }
    return [
        make_run(
            name,
            metrics=[] if name in ("bigram", "ngram") else CURVE,
            rung=name,
            scores__test__bits_per_byte=cost,
            scores__test__low=cost - 0.08,
            scores__test__high=cost + 0.08,
            marks={"zlib": 2.12, "bz2": 2.13, "lzma": 2.11, "lzma after train": 2.1},
        )
        for name, cost in costs.items()
    ]


def words_of(page):
    """What a reader sees."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())
