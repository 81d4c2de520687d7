"""ARPA files: n-grams as text, with log10 probabilities and back-off weights.

The words <s>, </s> and <unk> stand for the tokenizer's begin, end and unknown; padding is left out.
Arrow writes the columns of text, and takes them apart (`arpa_parser.py`): there is no loop over
n-grams.
"""

import gzip
import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import models
from transformers import PreTrainedTokenizerBase

from rung import model_files
from rung.data.tokenizer_training import BOS, EOS, PAD, UNKNOWN, build_tokenizer
from rung.errors import RunError
from rung.export.arpa_parser import IMPOSSIBLE, ArpaSection, ArpaText
from rung.export.hf import write_file, write_folder
from rung.models import count_parameters, load
from rung.models.ngram.model import NgramConfig, NgramForCausalLM
from rung.models.ngram.tables import NgramTable

BEGIN, END = "<s>", "</s>"
ARPA_UNKNOWN = ("<unk>", "<UNK>")  # the first is written, both are read
MISSING_UNKNOWN = -100.0  # log10
SPACE, TAB, NEWLINE, NOTHING = (
    pyarrow.scalar(text, pyarrow.large_string()) for text in (" ", "\t", "\n", "")
)
LINES_AT_ONCE = 2**20


def export_arpa(run: str, out: Path) -> None:
    """Write the n-grams of the run at `run` to the file `out`.

    Raises `RunError` for another rung, and when something would be lost.
    """
    model, tokenizer = load(run)
    if not isinstance(model, NgramForCausalLM):
        raise RunError(
            f"{run} is a {model.config.model_type!r} model: ARPA holds n-grams, `rung train ngram` "
            f"makes them"
        )
    with write_file(out) as beside:
        write_arpa(model, tokenizer, beside)


def import_arpa(path: Path, out: Path) -> str:
    """Write the model in an ARPA file as a Hugging Face folder, and return a line about it.

    Raises `RunError` where the file is no ARPA file, or something in `out` would be lost.
    """
    model, tokenizer = read_arpa(path)
    with write_folder(out) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        model_files.spell_for_transformers_4(beside)
    return f"{count_parameters(model):,} n-grams of order 1 to {model.config.order}"


def write_arpa(model: NgramForCausalLM, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the model as an ARPA file, compressed where the name ends in .gz.

    Raises `RunError` for a tokenizer whose words an ARPA file cannot hold, and for scores that are
    no probabilities, which a reader would take for such.
    """
    if not model.is_normalized:
        raise RunError(
            f"an ARPA file holds probabilities, and the scores of {model.config.smoothing} are "
            f"none: count again with "
            "another smoothing, as in --set smoothing=kneser-ney"
        )
    words = pyarrow.array(_arpa_words(tokenizer), type=pyarrow.large_string())
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
    with _open(path, compressed=path.suffix == ".gz") as file:
        sizes = list(model.config.num_ngrams)
        sizes[0] -= padding is not None
        counts = "".join(f"ngram {order}={size}\n" for order, size in enumerate(sizes, start=1))
        file.write(f"\\data\\\n{counts}".encode())
        for order in range(1, len(sizes) + 1):
            file.write(f"\n\\{order}-grams:\n".encode())
            for lines in _lines(model, words, order, padding):
                file.write(lines)
        file.write(b"\n\\end\\\n")


def read_arpa(path: Path) -> tuple[NgramForCausalLM, PreTrainedTokenizerBase]:
    """Read the model in an ARPA file, and make a tokenizer of its words, split on white space.

    Raises `RunError` for a file that is not ARPA, and for one that would give wrong figures
    (`arpa_parser.py`).
    """
    text = ArpaText.read(path)
    sections = list(text.sections())
    vocabulary = cast(list[str], sections[0].words[0].to_pylist())
    tokenizer = _make_tokenizer(vocabulary)
    number = _number_words(text, sections[0], vocabulary, tokenizer)
    tables = _build_tables(text, sections, number, tokenizer)
    special = {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = NgramConfig(vocab_size=len(tokenizer), **special)
    return NgramForCausalLM.from_tables(config, tables), tokenizer


def _arpa_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return each token as a word of an ARPA file, by id."""
    if tokenizer.bos_token_id == tokenizer.eos_token_id:
        raise RunError(
            "this tokenizer opens and ends documents with one token; an ARPA file needs <s> and "
            "</s>"
        )
    words = cast(list[str], tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    special = {tokenizer.bos_token_id: BEGIN, tokenizer.eos_token_id: END}
    if tokenizer.unk_token_id is not None:
        special[tokenizer.unk_token_id] = ARPA_UNKNOWN[0]
    for number, word in enumerate(words):
        if number in special:
            words[number] = special[number]
        elif word in (BEGIN, END, *ARPA_UNKNOWN):
            raise RunError(
                f"{word!r} is a word of this model's text, and in an ARPA file it means something "
                f"else: "
                "give it another name in the text and train again"
            )
        elif not word or re.search(r"[ \t\n\r]", word):
            raise RunError(
                f"the token {word!r} holds white space; an ARPA file separates words by it"
            )
    return words


def _lines(
    model: NgramForCausalLM, words: pyarrow.LargeStringArray, order: int, padding: int | None
) -> Iterator[bytes]:
    """Yield the lines of one order, many at a time."""
    columns = _ngram_columns(model, order)
    probability = model.get_parameter(f"log10_probability_{order}").detach().numpy().copy()
    if order == 1:
        probability[model.config.bos_token_id] = 0  # <s> is never predicted; lmplz writes 0 for it
    is_highest = order == len(model.config.num_ngrams)
    backoff = None if is_highest else model.get_parameter(f"log10_backoff_{order}").detach().numpy()
    probability[numpy.isneginf(probability)] = IMPOSSIBLE
    for start in range(0, len(probability), LINES_AT_ONCE):
        rows = numpy.arange(start, min(start + LINES_AT_ONCE, len(probability)))
        rows = rows[rows != padding] if order == 1 else rows
        ngrams = pc.binary_join_element_wise(
            *(words.take(pyarrow.array(c[rows])) for c in columns), SPACE
        )
        fields = [
            _format(probability[rows]),
            ngrams,
            *([] if backoff is None else [_format(backoff[rows])]),
        ]
        lines = pc.binary_join_element_wise(
            pc.binary_join_element_wise(*fields, TAB), NOTHING, NEWLINE
        )
        yield "".join(lines.to_pylist()).encode()


def _format(values: NDArray[numpy.float32]) -> pyarrow.LargeStringArray:
    """Format each value as the shortest text that gives the same float32 back."""
    return pyarrow.array(values).cast(pyarrow.large_string())


def _ngram_columns(model: NgramForCausalLM, order: int) -> list[NDArray[numpy.int64]]:
    """Return the first, the second and each further token of every n-gram of `order`."""
    columns: list[NDArray[numpy.int64]] = []
    rows = numpy.arange(model.config.num_ngrams[order - 1])
    for level in range(order, 1, -1):
        columns.append(model.get_buffer(f"tokens_{level}").numpy()[rows].astype(numpy.int64))
        rows = (
            numpy.searchsorted(model.get_buffer(f"first_{level - 1}").numpy(), rows, side="right")
            - 1
        )
    return [rows, *reversed(columns)]


def _make_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerBase:
    """Make a tokenizer that splits on white space, as `--tokenizer whitespace` trains it."""
    tokenizer = build_tokenizer("whitespace", [])
    known = tokenizer.get_vocab()
    for word in vocabulary:
        if word not in (BEGIN, END, *ARPA_UNKNOWN):
            known.setdefault(word, len(known))
    tokenizer.backend_tokenizer.model = models.WordLevel(vocab=known, unk_token=UNKNOWN)
    return tokenizer


def _number_words(
    text: ArpaText, unigrams: ArpaSection, vocabulary: list[str], tokenizer: PreTrainedTokenizerBase
) -> NDArray[numpy.int64]:
    """Return the id of each of the 1-grams."""
    ids = tokenizer.get_vocab()
    renamed = {
        BEGIN: tokenizer.bos_token,
        END: tokenizer.eos_token,
        **dict.fromkeys(ARPA_UNKNOWN, UNKNOWN),
    }
    for needed in (BEGIN, END):
        if needed not in vocabulary:
            raise text.refuse(
                int(unigrams.lines[0]),
                f"the 1-grams that begin here hold no {needed}: sentences have no bounds",
            )
    for special in {BOS, EOS, PAD, UNKNOWN} - {*ARPA_UNKNOWN}:
        if special in vocabulary:
            line = int(unigrams.lines[vocabulary.index(special)])
            raise text.refuse(
                line, f"the word {special!r} is the name of a special token here: give it another"
            )
    number = numpy.array([ids[renamed.get(word, word)] for word in vocabulary], dtype=numpy.int64)
    _, first = numpy.unique(number, return_index=True)
    again = numpy.ones(len(number), dtype=bool)
    again[first] = False
    text.check(
        unigrams.lines, again, lambda place: f"the word {vocabulary[place]!r} is there twice"
    )
    return number


def _build_tables(
    text: ArpaText,
    sections: list[ArpaSection],
    number: NDArray[numpy.int64],
    tokenizer: PreTrainedTokenizerBase,
) -> list[NgramTable]:
    """Sort every order by parent and token."""
    words, vocab_size = sections[0].words[0], len(tokenizer)
    keys: list[NDArray[numpy.int64]] = []  # parent * V + token, of order 2, 3, ...
    tables = [
        _unigrams(
            sections[0].log10_probability, sections[0].log10_backoff, number, vocab_size, tokenizer
        )
    ]
    for order, section in enumerate(sections[1:], start=2):
        ids = numpy.stack(
            [_look_up(text, section, column, words, number) for column in section.words]
        )
        parents = _find_parents(text, section, ids[:-1], keys, vocab_size)
        found = parents * vocab_size + ids[-1]
        by_key = numpy.argsort(found, kind="stable")
        keys.append(found[by_key])
        again = numpy.zeros(len(found), dtype=bool)
        again[by_key[1:]] = keys[-1][1:] == keys[-1][:-1]
        text.check(section.lines, again, lambda _: "this n-gram is there twice")
        if order == len(sections):
            weighted = section.log10_backoff != 0
            text.check(
                section.lines,
                weighted,
                lambda _: "an n-gram of the highest order has a back-off weight",
            )
        tables.append(
            NgramTable(
                tokens=ids[-1][by_key],
                parents=parents[by_key],
                log10_probability=section.log10_probability[by_key],
                log10_backoff=section.log10_backoff[by_key],
            )
        )
    return tables


def _find_parents(
    text: ArpaText,
    section: ArpaSection,
    histories: NDArray[numpy.int64],
    keys: list[NDArray[numpy.int64]],
    vocab_size: int,
) -> NDArray[numpy.int64]:
    """Find the row of each history (order - 1, n-grams) in the table of its own order."""
    parents = histories[0]
    for column, known in zip(histories[1:], keys, strict=True):
        wanted = parents * vocab_size + column
        parents = numpy.searchsorted(known, wanted)
        is_there = (
            known[numpy.minimum(parents, len(known) - 1)] == wanted if len(known) else wanted < 0
        )
        text.check(
            section.lines,
            ~is_there,
            lambda _: "this n-gram is there, but not what it begins with",
        )
    return parents


def _look_up(
    text: ArpaText, section: ArpaSection, column: Any, words: Any, number: NDArray[numpy.int64]
) -> NDArray[numpy.int64]:
    """Return the ids of a column of words."""
    found = pc.index_in(column, value_set=words)
    missing = found.is_null().to_numpy(zero_copy_only=False)
    text.check(
        section.lines,
        missing,
        lambda place: f"the word {column[place].as_py()!r} is not among the 1-grams",
    )
    return number[found.to_numpy()]


def _unigrams(
    probability: NDArray[numpy.float32],
    backoff: NDArray[numpy.float32],
    number: NDArray[numpy.int64],
    vocab_size: int,
    tokenizer: PreTrainedTokenizerBase,
) -> NgramTable:
    """Make the table of order 1, with a row for each token.

    Padding has probability 0; an <unk> that the file lacks costs what KenLM charges.
    """
    by_id = numpy.full(vocab_size, -numpy.inf, dtype=numpy.float32)
    by_id[tokenizer.unk_token_id] = MISSING_UNKNOWN
    by_id[number] = probability
    by_id[tokenizer.bos_token_id] = -numpy.inf
    weights = numpy.zeros(vocab_size, dtype=numpy.float32)
    weights[number] = backoff
    return NgramTable(
        tokens=numpy.arange(vocab_size),
        parents=numpy.zeros(vocab_size, dtype=numpy.int64),
        log10_probability=by_id,
        log10_backoff=weights,
    )


def _open(path: Path, *, compressed: bool) -> BufferedIOBase:
    return cast(
        BufferedIOBase, gzip.open(path, "wb", compresslevel=6) if compressed else path.open("wb")
    )
