"""ARPA files, the format that every n-gram toolkit reads: log10 probabilities and back-off weights as text.

The words <s>, </s> and <unk> stand for the tokenizer's begin, end and unknown; padding is left out. Columns of
text are made and taken apart by Arrow: there is no loop over n-grams.
"""

import gzip
import itertools
import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy
import pyarrow
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import models
from transformers import PreTrainedTokenizerBase

from rung.errors import RunError
from rung.models.ngram import NgramConfig, NgramForCausalLM
from rung.models.ngram.smoothing import Table
from rung.tokenizer import UNKNOWN, build_tokenizer

BEGIN, END, ARPA_UNKNOWN = "<s>", "</s>", "<unk>"
MISSING_UNKNOWN = -100.0  # log10
SPACE, TAB, NEWLINE, NOTHING = (pyarrow.scalar(text, pyarrow.large_string()) for text in (" ", "\t", "\n", ""))
ROWS_AT_ONCE = 2**20


def write_arpa(model: NgramForCausalLM, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the model as an ARPA file, compressed where the name ends in .gz.

    Raises `RunError` for a tokenizer whose words an ARPA file cannot hold.
    """
    words = pyarrow.array(_arpa_words(tokenizer), type=pyarrow.large_string())
    beside = path.with_name(f".{path.name}.writing")
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
    try:
        with _open(beside, "wb", compressed=path.suffix == ".gz") as file:
            sizes = list(model.config.num_ngrams)
            sizes[0] -= padding is not None
            counts = "".join(f"ngram {order}={size}\n" for order, size in enumerate(sizes, start=1))
            file.write(f"\\data\\\n{counts}".encode())
            for order in range(1, len(sizes) + 1):
                file.write(f"\n\\{order}-grams:\n".encode())
                for lines in _lines(model, words, order, padding):
                    file.write(lines)
            file.write(b"\n\\end\\\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_arpa(path: Path) -> tuple[NgramForCausalLM, PreTrainedTokenizerBase]:
    """The model in an ARPA file, and a tokenizer that splits text on white space into its words.

    Raises `RunError` when it is no ARPA file or an n-gram's beginning is missing from it.
    """
    try:
        with _open(path, "rb", compressed=path.suffix == ".gz") as file:
            data = file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise RunError(f"{path} could not be read as an ARPA file: {error}") from error
    sections = [_parse(text, order, path) for order, text in enumerate(_sections(data, path), start=1)]
    vocabulary = sections[0][1].to_pylist()
    tokenizer = _make_tokenizer(vocabulary)
    ids = tokenizer.get_vocab()
    renamed = {BEGIN: tokenizer.bos_token, END: tokenizer.eos_token, ARPA_UNKNOWN: UNKNOWN}
    number = numpy.array([ids[renamed.get(word, word)] for word in vocabulary], dtype=numpy.int64)
    tables = _build_tables(sections, number, len(ids), tokenizer, path)
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = NgramConfig(vocab_size=len(ids), **special)
    return NgramForCausalLM.from_tables(config, tables), tokenizer


def _arpa_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token as a word of an ARPA file, by id."""
    if tokenizer.bos_token_id == tokenizer.eos_token_id:
        raise RunError("this tokenizer opens and ends documents with one token; an ARPA file needs <s> and </s>")
    words = cast(list[str], tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    words[tokenizer.bos_token_id], words[tokenizer.eos_token_id] = BEGIN, END
    if tokenizer.unk_token_id is not None:
        words[tokenizer.unk_token_id] = ARPA_UNKNOWN
    for word in words:
        if not word or re.search(r"[ \t\n\r]", word):
            raise RunError(f"the token {word!r} holds white space; an ARPA file separates words by it")
    return words


def _lines(
    model: NgramForCausalLM, words: pyarrow.LargeStringArray, order: int, padding: int | None
) -> Iterator[bytes]:
    """The lines of one order, many at a time."""
    columns = _ngram_columns(model, order)
    probability = model.get_parameter(f"log10_probability_{order}").detach().numpy().copy()
    if order == 1:
        probability[numpy.isneginf(probability)] = 0  # <s> is never predicted; lmplz writes 0 for it
    is_highest = order == len(model.config.num_ngrams)
    backoff = None if is_highest else model.get_parameter(f"log10_backoff_{order}").detach().numpy()
    for start in range(0, len(probability), ROWS_AT_ONCE):
        rows = numpy.arange(start, min(start + ROWS_AT_ONCE, len(probability)))
        rows = rows[rows != padding] if order == 1 else rows
        ngrams = pc.binary_join_element_wise(*(words.take(pyarrow.array(c[rows])) for c in columns), SPACE)
        fields = [_format(probability[rows]), ngrams, *([] if backoff is None else [_format(backoff[rows])])]
        lines = pc.binary_join_element_wise(pc.binary_join_element_wise(*fields, TAB), NOTHING, NEWLINE)
        yield "".join(lines.to_pylist()).encode()


def _format(values: NDArray[numpy.float32]) -> pyarrow.LargeStringArray:
    """The shortest text that gives the same float32 back."""
    return pyarrow.array(values).cast(pyarrow.large_string())


def _ngram_columns(model: NgramForCausalLM, order: int) -> list[NDArray[numpy.int64]]:
    """The first, second, ... token of every n-gram of `order`."""
    columns: list[NDArray[numpy.int64]] = []
    rows = numpy.arange(model.config.num_ngrams[order - 1])
    for level in range(order, 1, -1):
        columns.append(model.get_buffer(f"tokens_{level}").numpy()[rows].astype(numpy.int64))
        rows = numpy.searchsorted(model.get_buffer(f"first_{level - 1}").numpy(), rows, side="right") - 1
    return [rows, *reversed(columns)]


def _sections(data: str, path: Path) -> Iterator[str]:
    """The text under each \\N-grams: heading."""
    headings = list(re.finditer(r"^\\(?:(\d+)-grams:|end\\)[ \t\r]*$", data, flags=re.MULTILINE))
    if not data.lstrip().startswith("\\data\\") or len(headings) < 2 or headings[-1][1]:
        raise RunError(f"{path} is not a whole ARPA file: it must begin with \\data\\ and close with \\end\\")
    for heading, following in itertools.pairwise(headings):
        yield data[heading.end() : following.start()].strip("\r\n")


def _parse(text: str, order: int, path: Path) -> tuple[NDArray[numpy.float32], pyarrow.Array, NDArray[numpy.float32]]:
    """Probabilities, n-grams and back-off weights of one section; a missing weight is 0, which is 1 in log10."""
    lines = pc.split_pattern(pyarrow.array([text.replace("\r", "")], type=pyarrow.large_string()), "\n").flatten()
    fields = pc.split_pattern(lines, "\t")
    sizes = pc.list_value_length(fields).to_numpy(zero_copy_only=False)
    bad = numpy.flatnonzero((sizes < 2) | (sizes > 3))
    if len(bad):
        raise RunError(f"{path}: {lines[int(bad[0])].as_py()!r} is no line of \\{order}-grams")
    try:
        probability = pc.list_element(fields, 0).cast(pyarrow.float32()).to_numpy()
        backoff = numpy.zeros(len(lines), dtype=numpy.float32)
        weighted = numpy.flatnonzero(sizes == 3)
        backoff[weighted] = pc.list_element(fields.take(pyarrow.array(weighted)), 2).cast(pyarrow.float32()).to_numpy()
    except pyarrow.ArrowInvalid as error:
        raise RunError(f"{path}: a number among the {order}-grams cannot be read ({error})") from error
    return probability, pc.list_element(fields, 1), backoff


def _make_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerBase:
    """White space apart, these words known; the kind that `--tokenizer whitespace` trains."""
    tokenizer = build_tokenizer("whitespace", [])
    known = tokenizer.get_vocab()
    for word in vocabulary:
        if word not in (BEGIN, END, ARPA_UNKNOWN):
            known.setdefault(word, len(known))
    tokenizer.backend_tokenizer.model = models.WordLevel(vocab=known, unk_token=UNKNOWN)
    return tokenizer


def _build_tables(
    sections: list[tuple[NDArray[numpy.float32], pyarrow.Array, NDArray[numpy.float32]]],
    number: NDArray[numpy.int64],
    vocab_size: int,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
) -> list[Table]:
    """Sort every order by parent and token."""
    words = sections[0][1]
    keys: list[NDArray[numpy.int64]] = []  # parent * V + token, of order 2, 3, ...
    tables = [_unigrams(sections[0][0], sections[0][2], number, vocab_size, tokenizer)]
    for order, (probability, ngrams, backoff) in enumerate(sections[1:], start=2):
        flat = pc.index_in(pc.split_pattern(ngrams, " ").flatten(), value_set=words)
        if flat.null_count or len(flat) != order * len(ngrams):
            raise RunError(f"{path}: an n-gram of order {order} has a word that is not among the 1-grams")
        ids = number[flat.to_numpy()].reshape(-1, order)
        parents = ids[:, 0]
        for column, known in zip(ids.T[1:-1], keys, strict=True):
            wanted = parents * vocab_size + column
            parents = numpy.searchsorted(known, wanted)
            missing = numpy.flatnonzero(known[numpy.minimum(parents, len(known) - 1)] != wanted) if len(known) else [0]
            if len(missing):
                raise RunError(f"{path}: {ngrams[int(missing[0])].as_py()!r} is there, but not what it begins with")
        found = parents * vocab_size + ids[:, -1]
        by_key = numpy.argsort(found)
        keys.append(found[by_key])
        tables.append(
            Table(
                tokens=ids[by_key, -1],
                parents=parents[by_key],
                log10_probability=probability[by_key],
                log10_backoff=backoff[by_key],
            )
        )
    return tables


def _unigrams(
    probability: NDArray[numpy.float32],
    backoff: NDArray[numpy.float32],
    number: NDArray[numpy.int64],
    vocab_size: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Table:
    """Order 1: a row for each token. Padding cannot come; an <unk> that the file lacks costs what KenLM says."""
    by_id = numpy.full(vocab_size, -numpy.inf, dtype=numpy.float32)
    by_id[tokenizer.unk_token_id] = MISSING_UNKNOWN
    by_id[number] = probability
    by_id[tokenizer.bos_token_id] = -numpy.inf
    weights = numpy.zeros(vocab_size, dtype=numpy.float32)
    weights[number] = backoff
    return Table(
        tokens=numpy.arange(vocab_size),
        parents=numpy.zeros(vocab_size, dtype=numpy.int64),
        log10_probability=by_id,
        log10_backoff=weights,
    )


def _open(path: Path, mode: str, *, compressed: bool) -> BufferedIOBase:
    return cast(BufferedIOBase, gzip.open(path, mode, compresslevel=6) if compressed else path.open(mode))
