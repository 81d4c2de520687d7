"""Shared ground for the tests of corpora and tokenizers: rows, tables, folders laid out as the Hub
is, and a tokenizer of every kind.
"""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rung.data.store import SPLITS
from rung.data.tokenizer import encode_ordinary
from rung.data.tokenizer_loading import PUBLISHED_TOKENIZERS, load_tokenizer
from rung.data.tokenizer_training import (
    BOS,
    EOS,
    PAD,
    TOKENIZERS,
    UNKNOWN,
    build_tokenizer,
    make_untrained,
)
from tests.conftest import SENTENCES

ROWS = [f"row {i} says “{i * i}”" for i in range(60)]
KINDS = [kind for kind in TOKENIZERS if kind not in PUBLISHED_TOKENIZERS]
GPT2_END = "<|endoftext|>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARD = "\n\tThe  café, e\u0301 and 𝔘ñí😀 don't 1234\r\n at  <unk>. "
# Any text, the names of special tokens among it.
TEXTS = st.lists(
    st.text(max_size=9) | st.sampled_from([BOS, EOS, PAD, UNKNOWN, GPT2_END, " ", HARD])
).map("".join)


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


def train_by_library(kind, texts, vocab_size=None):
    """Train a tokenizer of a kind by the library's own trainer, which counts the text itself."""
    tokenizer = make_untrained(kind)
    if kind == "bpe":
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size or 1024,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=letters,
            show_progress=False,
        )
    else:
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size or 2**31,
            special_tokens=[BOS, EOS, PAD, UNKNOWN],
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_bytes(normalizer=None, pre_tokenizer=None, special=(GPT2_END,), alphabet=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def save_gpt2(folder):
    """GPT-2's files: a vocabulary, merges, and one special token that begins and ends."""
    train_bytes().model.save(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def save_llama3(folder):
    """Llama 3's tokenizer.json: its own pattern, BOS put in front, no padding token."""
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = train_bytes(
        pre_tokenizer=pre_tokenizers.Sequence([split, level]), special=(BOS, EOS)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=True
    )
    whole.save_pretrained(folder)


def wrap(backend, **special):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **({"eos_token": GPT2_END} | special))


@pytest.fixture(scope="module", params=[*KINDS, *PUBLISHED_TOKENIZERS])
def any_tokenizer(request, tmp_path_factory):
    if request.param in KINDS:
        return build_tokenizer(request.param, [*SENTENCES, HARD])
    folder = tmp_path_factory.mktemp(request.param)
    {"gpt2": save_gpt2, "llama3": save_llama3}[request.param](folder)
    return load_tokenizer(str(folder))


def ids_of(tokenizer, text):
    return encode_ordinary(tokenizer, [text])[0].ids
