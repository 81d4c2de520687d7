"""Compress a file under a run, decompress it, and prove a score by doing both."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rung import runs
from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import RecipeError, RunError, first_line
from rung.evaluation.cache import FIT_CHARACTERS as CACHE_FIT_CHARACTERS
from rung.evaluation.cache import fit_cache
from rung.evaluation.compressed_file import (
    digest_bytes,
    pack_file,
    pack_stored,
    unpack_file,
    unpack_stored,
)
from rung.evaluation.documents import take_texts
from rung.evaluation.mixture import FIT_CHARACTERS, fit_mixture
from rung.evaluation.text_remainder import Remainder, decode_text, encode_text
from rung.files import atomic_replace, check_writable_file
from rung.models import load
from rung.models.base import CausalModel
from rung.models.load_options import AS_STORED, LoadOptions
from rung.progress import OnProgress, Progress, ignore_progress
from rung.workflows.base import fingerprint_weights
from rung.workflows.coding_model import CodingModel
from rung.workflows.evaluate import read_current_text
from rung.workflows.variants import ScoredRun, VariantOptions, check_has_states, load_partner

# The options of loading that a file keeps of its run, where they were given. Whether the code that
# comes with a model may run is for the reader of a file to say.
LOADED_AS = ("window", "dtype")


def compress_file(
    run: str,
    path: Path,
    out: Path,
    variants: VariantOptions,
    on_progress: OnProgress = ignore_progress,
    options: LoadOptions = AS_STORED,
) -> dict[str, Any]:
    """Compress the file at `path` to `out` under a run, and return the figures.

    What the model would make no smaller than it is, is stored without a model (`is_stored`).
    `seconds` is the time of coding, without that of loading the models. Raises `RunError` where
    something cannot be read or written.
    """
    _check_places(path, out)
    data = _read_bytes(path, on_progress)
    coding = _prepare(run, variants, on_progress, options)
    began = time.perf_counter()
    record = runs.find_training_record(Path(run))
    kind = record.get("recipe", {}).get("documents") or "paragraphs"
    documents, remainder, count = encode_text(data, kind, coding.tokenizer)
    streams = coding.choose_streams()
    code = coding.make_coder(streams, on_progress).encode(documents)
    facts = {
        "documents": kind,
        "texts": count,
        "tokens": sum(len(document.ids) - 1 for document in documents),
        "streams": streams,
    }
    loaded_as = {key: value for key in LOADED_AS if (value := getattr(options, key))}
    rest = remainder.pack()
    if is_stored := not is_smaller(len(rest) + len(code), data):
        packed, code = pack_stored(data), b""
    else:
        packed = pack_file(facts | _describe(coding, data, loaded_as), rest, code)
    with atomic_replace(out) as temporary:
        temporary.write_bytes(packed)
    return {
        "run": run,
        "file": str(path),
        "out": str(out),
        "bytes": len(data),
        "compressed_bytes": len(packed),
        "code_bytes": len(code),
        "bits_per_byte": 8 * len(packed) / len(data) if data else None,
        "is_stored": is_stored,
        "seconds": time.perf_counter() - began,
    }


def is_smaller(coded_bytes: int, data: bytes) -> bool:
    """Whether code of this size says the data in fewer bytes than they are."""
    return coded_bytes < len(data)


def _describe(coding: CodingModel, data: bytes, loaded_as: dict[str, Any]) -> dict[str, Any]:
    """Describe the models, the first of which was loaded so, and the text, for the header."""
    models = [
        {"run": name, "type": model.config.model_type, "weights": fingerprint_weights(model)}
        for name, model in coding.models.items()
    ]
    models[0] |= loaded_as
    return {
        "models": models,
        "tokenizer": fingerprint_tokenizer(coding.tokenizer),
        "bytes": len(data),
        "digest": digest_bytes(data),
        "variant": coding.variant,
        "build": coding.describe_build(),
    }


def decompress_file(
    path: Path,
    out: Path,
    named: Sequence[str] = (),
    on_progress: OnProgress = ignore_progress,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Decompress the file at `path` to `out`, and return the figures.

    `named` are the runs it was written with, where they lie elsewhere now. Raises `RunError` for a
    damaged file, another model, and a build that computes other numbers. A file that is stored
    without a model needs none: `run` is None.
    """
    _check_places(path, out)
    packed = _read_bytes(path, on_progress)
    began = time.perf_counter()
    run = None
    if (data := unpack_stored(path, packed)) is None:
        header, rest, code = unpack_file(path, packed)
        coding = _load_named(path, header, named, trust_remote_code)
        run = next(iter(coding.models))
        began = time.perf_counter()
        with _same_build(path, header["build"], coding.describe_build()):
            data = _decode(path, header, rest, code, coding, on_progress)
    with atomic_replace(out) as temporary:
        temporary.write_bytes(data)
    return {
        "run": run,
        "file": str(path),
        "out": str(out),
        "bytes": len(data),
        "seconds": time.perf_counter() - began,
    }


def _prepare(
    run: str, variants: VariantOptions, on_progress: OnProgress, options: LoadOptions
) -> CodingModel:
    """Load the models, and fit what is mixed with the run on its own validation text."""
    if variants.mix and variants.cache:
        raise RecipeError("--mix and --cache are two ways to code a text: choose one")
    model, tokenizer = load(run, options)
    models = {run: model}
    if not variants:
        return CodingModel(models, tokenizer)
    record = runs.find_training_record(Path(run))
    if "recipe" not in record:
        raise RunError(f"{run} has no validation text of its own, on which --mix and --cache fit")
    validation = read_current_text(run, record).validation["text"]
    if variants.cache:
        check_has_states(run, record["rung"], model)
        held = take_texts(validation, CACHE_FIT_CHARACTERS)
        sharpness, weight = fit_cache(model, tokenizer, held, on_progress)
        return CodingModel(models, tokenizer, {"weight": weight, "sharpness": sharpness})
    scored = ScoredRun(run, record["rung"], model, tokenizer)
    models |= dict(load_partner(entry, scored) for entry in variants.mix)
    held = take_texts(validation, FIT_CHARACTERS)
    weights = fit_mixture(list(models.values()), tokenizer, held, on_progress)
    return CodingModel(models, tokenizer, {"weights": weights.tolist()})


def _load_named(
    path: Path, header: dict[str, Any], named: Sequence[str], trust_remote_code: bool
) -> CodingModel:
    """Load the models that a file names, and check that they are the ones it was written with."""
    wanted = header["models"]
    if named and len(named) != len(wanted):
        raise RecipeError(
            f"{path} was written with {' and '.join(facts['run'] for facts in wanted)}, and "
            f"{len(named)} are named: give --run {len(wanted)} times, in this order, or not at all"
        )
    models: dict[str, CausalModel] = {}
    tokenizer = None
    for facts, where in zip(wanted, named or [facts["run"] for facts in wanted], strict=True):
        loaded_as = {key: facts[key] for key in LOADED_AS if key in facts}
        try:
            options = LoadOptions(trust_remote_code=trust_remote_code, **loaded_as)
            model, known = load(where, options)
        except RunError as error:
            raise RunError(
                f"{path} was written with {facts['run']}, a {facts['type']!r} model of weights "
                f"{facts['weights']}, which cannot be read ({error}): name it with --run"
            ) from error
        if (found := fingerprint_weights(model)) != facts["weights"]:
            raise RunError(
                f"{path} was written with a {facts['type']!r} model of weights "
                f"{facts['weights']}, and {where} has {found}: name the right run with --run"
            )
        tokenizer = tokenizer or known
        models[where] = model
    if tokenizer is None or fingerprint_tokenizer(tokenizer) != header["tokenizer"]:
        raise RunError(f"{path} was written with another tokenizer than that of {where}")
    return CodingModel(models, tokenizer, header["variant"])


def _decode(
    path: Path,
    header: dict[str, Any],
    rest: bytes,
    code: bytes,
    coding: CodingModel,
    on_progress: OnProgress,
) -> bytes:
    try:
        remainder = Remainder.unpack(rest)
        coder = coding.make_coder(header["streams"], on_progress)
        count = header["texts"] - len(remainder.kept)
        documents = coder.decode(code, count, header["tokens"])
        data = decode_text(
            documents, remainder, header["documents"], header["texts"], coding.tokenizer
        )
    except Exception as error:  # of any kind: what is decoded is no text
        raise RunError(
            f"{path} does not decode here ({first_line(error)}): the model computes other numbers "
            "than where it was written"
        ) from error
    if digest_bytes(data) != header["digest"]:
        raise RunError(
            f"{path} does not decode here to the text that was coded: the model computes other "
            "numbers than where it was written"
        )
    return data


@contextmanager
def _same_build(path: Path, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[None]:
    """Run the block with the number of threads that a file was written with.

    Raises `RunError` where anything else differs that a neural model's last bits depend on.
    """
    if differ := [key for key in wanted if key != "threads" and wanted[key] != found.get(key)]:
        facts = ", ".join(f"{key} {wanted[key]} (here {found.get(key)})" for key in differ)
        raise RunError(
            f"{path} was coded by a neural model, whose numbers are the same on the same build "
            f"alone, and here it is another: {facts}"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(wanted.get("threads", before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_places(path: Path, out: Path) -> None:
    if path.is_dir() or not path.exists():
        raise RunError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: name a file")
    if not (path.is_file() or path.is_fifo()):
        raise RunError(f"{path} is a device, which may have no end: name a file or a pipe")
    check_writable_file(out, path)


def _read_bytes(path: Path, on_progress: OnProgress) -> bytes:
    """Read a file, or a pipe, which is said to be waited for."""
    on_progress(Progress("reading"))
    if path.is_fifo():
        on_progress(Progress("noted", note=f"{path} is a pipe: waiting for all that is written"))
    return path.read_bytes()
