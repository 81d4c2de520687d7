"""The playground: the page that opens at the server's address, and what it asks of the models.

The page is files of our own and asks nobody but this server; whatever comes from a model or a
visitor is text in it, never markup. A question costs a bounded amount of work, and they are
answered one at a time, in a thread of their own: texts that stream go on meanwhile. Each is
admitted, timed and given up as any request to its model is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any

import torch
from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field
from torch import Tensor

from rung import runs
from rung.data.tokenizer import encode_ordinary, fingerprint_tokenizer
from rung.evaluation.attention import attention_shape, read_attention
from rung.evaluation.likelihood import needs_renormalization
from rung.evaluation.surprisal import score_text
from rung.files import to_json
from rung.generation.detokenize import token_to_text
from rung.generation.sampling import Sampling, find_probabilities
from rung.models import count_parameters, find_rung, find_rung_name
from rung.serve.engine import Engine
from rung.serve.middleware import ApiError, check_ids, find_arrival, look_up
from rung.serve.registry import ServedModel
from rung.serve.responses import finish_unless_gone
from rung.serve.schemas import REFUSALS, Body

LONGEST = 8_000  # characters of a text; of ids as many tokens
WIDEST = 96  # tokens whose attention is shown
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Question(Body):
    """Which of the served runs is asked."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str = Field(max_length=1_000)


class NextQuestion(Question):
    """What comes after a text, or after token ids, under these settings."""

    text: str = Field("", max_length=LONGEST)
    ids: list[int] | None = Field(None, max_length=LONGEST)
    temperature: float = Field(Sampling.temperature, ge=0, le=100, allow_inf_nan=False)
    top_k: int = Field(Sampling.top_k, ge=0)
    top_p: float = Field(Sampling.top_p, ge=0, le=1, allow_inf_nan=False)  # 0 takes the likeliest
    count: int = Field(20, ge=1, le=100)


class TextQuestion(Question):
    """What a run makes of a text."""

    text: str = Field(min_length=1, max_length=LONGEST)


def make_router(engines: dict[str, Engine]) -> APIRouter:
    """`GET /` the page, `/page/...` its parts, and `/api/...` what it asks."""
    router = APIRouter(responses=REFUSALS)
    described, turn = (
        describe_all([engine.served for engine in engines.values()]),
        CapacityLimiter(1),
    )
    _add_page(router)

    async def ask(
        find: Callable[[ServedModel, Any], dict[str, Any]], question: Question, request: Request
    ) -> Response:
        engine = look_up(engines, question.model)
        work = partial(_find, find, engine.served, question)
        return await finish_unless_gone(
            request, engine.prepare(work, find_arrival(request.scope), turn)
        )

    @router.get("/api/rungs")
    async def rungs() -> Response:
        """What is known of every served run."""
        return _answer({"rungs": described})

    @router.post("/api/next")
    async def next_token(question: NextQuestion, request: Request) -> Response:
        """The distribution of the next token, as the model gives it and as it would be drawn
        from.
        """
        return await ask(find_next, question, request)

    @router.post("/api/surprisal")
    async def surprisal(question: TextQuestion, request: Request) -> Response:
        """The bits that each token of a text costs."""
        return await ask(find_surprisal, question, request)

    @router.post("/api/attention")
    async def attention(question: TextQuestion, request: Request) -> Response:
        """How much each token looks at each earlier one, in every layer and head."""
        return await ask(find_attention, question, request)

    return router


def _add_page(router: APIRouter) -> None:
    """The page's files, read once: no address ever reaches the disk."""
    folder = resources.files("rung.serve").joinpath("page")
    parts = {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.split(".")[-1] in KINDS
    }

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return await part("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in parts:
            raise ApiError(404, f"the page has no part {name!r}")
        return Response(parts[name], media_type=KINDS[name.split(".")[-1]], headers=HEADERS)


def _find(
    find: Callable[[ServedModel, Any], dict[str, Any]], run: ServedModel, question: Question
) -> Response:
    with torch.no_grad():
        return _answer(find(run, question))


def describe_all(served: Sequence[ServedModel]) -> list[dict[str, Any]]:
    """What the page says of each run, and why its scores say nothing of its rung, where that is
    so.
    """
    doubts = runs.explain_doubtful_scores([run.record for run in served])
    return [describe(run) | {"doubt": doubt} for run, doubt in zip(served, doubts, strict=True)]


def describe(run: ServedModel) -> dict[str, Any]:
    """What the page says of a run: what it is, what it scored, and what can be asked of it."""
    model, record = run.model, run.record
    score = (record.get("scores") or {}).get("test") or {}
    layers, heads = attention_shape(model)
    name = find_rung_name(type(model))
    rung = find_rung(name)
    return {
        "name": run.name,
        "rung": name,
        "idea": rung.idea,
        "parameters": record.get("parameters") or count_parameters(model),
        "bits_per_byte": score.get("bits_per_byte"),
        "low": score.get("low"),
        "high": score.get("high"),
        "renormalized": needs_renormalization(run.model),
        "counts": rung.counts,
        "chat": bool(getattr(run.tokenizer, "chat_template", None)),
        "layers": layers,
        "heads": heads,
        "context_length": model.context_length,
        "corpus": (record.get("corpus") or {}).get("name"),
        "tokenizer": fingerprint_tokenizer(run.tokenizer),
        "marks": record.get("marks") or {},
        "prompt": record.get("prompt"),
        "passage": runs.read_passage(record) or None,
    }


def find_next(run: ServedModel, question: NextQuestion) -> dict[str, Any]:
    """The likeliest next tokens, each with the model's probability and the one that it would be
    drawn with.
    """
    ids = _encode(run, question.text) if question.ids is None else question.ids
    check_ids(ids, run.model.config.vocab_size, "ids")
    logits = _read_logits(run, ids)
    sampling = Sampling(
        temperature=question.temperature, top_k=question.top_k, top_p=question.top_p
    )
    shares, drawn = logits.float().softmax(-1)[0], find_probabilities(logits, sampling)[0]
    likely, tokens = shares.topk(min(question.count, len(shares)))
    kept = drawn[tokens]
    return {
        "ids": ids,
        "pieces": [token_to_text(run.tokenizer, id) for id in ids],
        "text": run.tokenizer.decode(ids, skip_special_tokens=True),
        "entropy": _entropy(shares),
        "drawn_entropy": _entropy(drawn),
        "kept": int((drawn > 0).sum()),
        "tokens": [
            {
                "id": id,
                "text": token_to_text(run.tokenizer, id),
                "probability": share,
                "drawn": chance,
                "end": id == run.tokenizer.eos_token_id,
            }
            for id, share, chance in zip(
                tokens.tolist(), likely.tolist(), kept.tolist(), strict=True
            )
        ],
        "rest": {
            "tokens": len(shares) - len(tokens),
            "probability": max(0.0, 1 - likely.double().sum().item()),
            "drawn": max(0.0, 1 - kept.double().sum().item()),
        },
    }


def find_surprisal(run: ServedModel, question: TextQuestion) -> dict[str, Any]:
    """The pieces of a text with their bits; the last piece is its end."""
    _encode(run, question.text)  # refuses what the model has no tokens for
    pieces = score_text(run.model, run.tokenizer, question.text)
    bits, size = sum(piece.bits for piece in pieces), len(question.text.encode())
    return {
        "pieces": [asdict(piece) for piece in pieces],
        "bits": bits,
        "bytes": size,
        "bits_per_byte": bits / size,
        "renormalized": needs_renormalization(run.model),
    }


def find_attention(run: ServedModel, question: TextQuestion) -> dict[str, Any]:
    """The tokens of a text, or of its beginning, and the weights (layer, head, token, token it
    looks at).
    """
    if not attention_shape(run.model)[0]:
        raise ApiError(
            400, f"{run.name} has no attention: choose an rnn-attention, gpt2 or llama3 run"
        )
    found = [run.tokenizer.bos_token_id, *_encode(run, question.text)]
    ids = found[: min(WIDEST, run.model.context_length or WIDEST)]
    if len(ids) < 2:
        raise ApiError(400, "text: nothing in it is a token; write a word")
    weights = read_attention(run.model, ids).double().numpy().round(3)
    tokens = [token_to_text(run.tokenizer, id) for id in ids]
    return {"tokens": tokens, "left_out": len(found) - len(ids), "weights": weights.tolist()}


def _encode(run: ServedModel, text: str) -> list[int]:
    ids = list(encode_ordinary(run.tokenizer, [text])[0].ids)
    check_ids(ids, run.model.config.vocab_size, "text")
    return ids


def _read_logits(run: ServedModel, ids: list[int]) -> Tensor:
    """Logits (1, V) of the token after these; of a long text the model sees the end."""
    seen = [run.tokenizer.bos_token_id, *ids][-(run.model.context_length or len(ids) + 1) :]
    rows = torch.tensor([seen], device=run.model.device)
    return run.model(rows, use_cache=False, logits_to_keep=1).logits[:, -1]


def _entropy(shares: Tensor) -> float:
    """In bits."""
    return torch.special.entr(shares.double()).sum().item() / math.log(2)


def _answer(facts: Any) -> Response:
    return Response(to_json(facts), 200, {"X-Content-Type-Options": "nosniff"}, "application/json")
