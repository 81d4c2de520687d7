"""What a run will take, before anything of it is written: memory, disk and time, each roughly."""

import timeit
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rung import ranks
from rung.device import choose_device
from rung.evaluate import first_texts
from rung.models import build_model, count_parameters, find_rung, make_config
from rung.models.bigram import PAIRS_AT_ONCE
from rung.models.ngram.budget import BUILDING, PACE, Counting, measure_process
from rung.recipe import Recipe
from rung.recipe.making import check_start, choose_width, complete
from rung.recipe.stages import Stage, Tell
from rung.recipe.text import prepare_tokenizer, read_corpus
from rung.tokenizer import encode_documents
from rung.train import TrainSettings, make_arguments
from rung.train.optimizer import group_parameters

SAMPLED = 2**20  # characters of the training text, of which it is seen how many a token has
# Bytes for each n-gram: of the model, of an engine's files while it counts, of the orders that are kept meanwhile.
MODEL, SCRATCH, ORDERS = 17, 60, 21
PAIR, SUFFIX = 48, 24  # bytes of memory for each pair that is counted, for each suffix that is sorted
UTILIZATION = 0.3  # of a processor's products that training comes to
KEPT = 4  # checkpoints at a time: two, the best, and the one that is being written
MATRIX = 512


def foresee(recipe: Recipe, folder: Path, tell: Tell = lambda stage: None) -> dict[str, str]:
    """What the run in `folder` will take, each under its name; its text is read, and kept in the cache for the run.

    Raises `RungError` for what the run itself would be refused for.
    """
    check_start(recipe, folder)
    tell(Stage(name="reading"))
    corpus = read_corpus(asdict(recipe))
    tell(Stage(name="read", note=corpus.describe()))
    recipe = complete(recipe, corpus)
    tokenizer = prepare_tokenizer(recipe, corpus)
    texts = first_texts(corpus.train["text"], SAMPLED)
    sizes = sum(len(text.encode()) for text in texts), sum(len(ids) for ids in encode_documents(texts, tokenizer))
    tokens = round(corpus.bytes["train"] * sizes[1] / sizes[0])
    found = {"training text": f"{corpus.bytes['train']:,} bytes, about {tokens:,} tokens"}
    if find_rung(recipe.rung).counts:
        return found | _foresee_counting(recipe, tokenizer, tokens)
    return found | _foresee_training(recipe, tokenizer)


def _foresee_counting(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tokens: int) -> dict[str, str]:
    config, here = make_config(recipe.rung, tokenizer, recipe.model), measure_process()
    if recipe.rung != "ngram":
        if recipe.rung != "bigram":
            return {"memory": _gigabytes(here + SUFFIX * tokens), "disk": _gigabytes(SUFFIX / 2 * tokens)}
        most = min(tokens, config.vocab_size**2)  # pairs that differ
        counted = min(tokens, most + PAIRS_AT_ONCE)  # at a time
        return {"memory": _gigabytes(here + PAIR * counted), "disk": _gigabytes(PAIR / 6 * most)}
    counting, most = Counting(**recipe.counting), tokens * (config.order - 1)
    building = here + BUILDING * most
    found = {
        "n-grams": f"{most:,} at the most, of order 2 to {config.order}",
        "memory": _gigabytes(building),
        "smallest memory": f"{_megabytes(Counting(engine='numpy').find_least('duckdb'))} while counting, with --memory",
        "disk": _gigabytes(MODEL * most),
        "time": _time(most / PACE[counting.engine]),
    }
    if counting.engine != "numpy":
        found["memory"] = f"{_megabytes(counting.memory_bytes)} while counting, then {found['memory']} at the most"
        found["disk"] += f", and {_gigabytes(SCRATCH * most)} below {counting.find_scratch(Path()).parent} meanwhile"
    if counting.keeps_orders(tokens):
        found["disk"] += f", and {_gigabytes(ORDERS * most)} for counts to go on from, until the run is complete"
    return found


def _foresee_training(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    chosen = choose_width(recipe, tokenizer)
    with torch.device("meta"):
        model = build_model(chosen.rung, make_config(chosen.rung, tokenizer, chosen.model))
    size, length = count_parameters(model), chosen.model.get("max_position_embeddings") or model.context_length or 256
    optimizer = _count_moments(model, str(recipe.train.get("optim", "muon")))
    settings = TrainSettings(arguments=recipe.train, global_batch_size=recipe.global_batch_size)
    rows = make_arguments(settings, Path(), 1).train_batch_size
    parts = ranks.count() if recipe.train.get("fsdp") else 1
    states, kept = (8 * size + optimizer) / parts, rows * _count_kept(model, length)
    width = ", or what measuring finds best" if recipe.minutes and chosen.model != recipe.model else ""
    found = {
        "parameters": f"{size:,}{width}",
        "memory a process": f"{_gigabytes(measure_process() + states + kept)}: weights, gradients and optimizer "
        f"{_gigabytes(states)}, activations {_gigabytes(kept)}",
        "disk": f"{_gigabytes(4 * size + KEPT * (4 * size + optimizer))} with {KEPT} checkpoints",
    }
    if recipe.minutes:
        return found | {"time": f"{recipe.minutes:g} minutes, as asked"}
    if not recipe.steps:
        return found
    work = recipe.steps * (recipe.global_batch_size or rows) * length * 6 * size
    return found | {"time": _time(work / (UTILIZATION * _measure_products() * ranks.count()))}


def _count_moments(model: Any, optimizer: str) -> int:
    """Bytes of the optimizer's state: of Muon one moment for the matrices, else two."""
    groups = group_parameters(model, weight_decay=0.0)
    sizes = [(sum(p.numel() for p in group["params"]), group["muon"] and optimizer == "muon") for group in groups]
    return sum(size * (4 if is_muon else 8) for size, is_muon in sizes)


def _count_kept(model: Any, length: int) -> int:
    """Bytes that autograd keeps of a row for the backward pass, and of its logits; no number is computed."""
    own = {id(parameter) for parameter in model.parameters()}
    kept = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if id(tensor) in own else tensor.numel() * tensor.element_size()
        return tensor

    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    logits = 12 * length * model.config.vocab_size
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(ids, use_cache=False)
    except (RuntimeError, NotImplementedError):  # what has no form without numbers: as much as its weights touch
        kept = 16 * length * sum(p.shape[0] for p in model.parameters() if p.ndim > 1)
    return kept + logits


def _measure_products() -> float:
    """Floating-point operations a second of this device, in products of two matrices."""
    matrix = torch.ones(MATRIX, MATRIX, device=choose_device())
    seconds = min(timeit.repeat(lambda: (matrix @ matrix)[0, 0].item(), number=1, repeat=5))
    return 2 * MATRIX**3 / max(seconds, 1e-9)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _megabytes(size: float) -> str:
    return f"{-(-size // 1e8) * 100:.0f}MB"


def _time(seconds: float) -> str:
    return f"about {seconds:,.0f} seconds" if seconds < 120 else f"about {seconds / 60:,.0f} minutes"
