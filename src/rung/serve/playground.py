"""The playground: the page at the server's address, and the API that the page asks.

The page asks no other server, and what comes from a model or a visitor is text in it, never markup.
A body costs a bounded amount of work. Questions are answered one at a time in a thread of their
own, so that texts go on streaming; each is admitted, timed and cancelled like any request.
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
from rung.ladder import FOREIGN_IDEA, IDEAS, is_counting
from rung.models import count_parameters, find_rung_name
from rung.models.foreign import ForeignForCausalLM
from rung.serve.api_errors import ERROR_RESPONSES, ApiError, check_token_ids, find_model
from rung.serve.engine import Engine
from rung.serve.middleware import find_arrival
from rung.serve.registry import ServedModel
from rung.serve.responses import finish_unless_gone
from rung.serve.schemas import RequestBody

MAX_TEXT = 8_000  # characters of a text, or tokens where ids are given
MAX_ATTENTION_TOKENS = 96
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PlaygroundRequest(RequestBody):
    """A request of the page to one of the served runs."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str = Field(max_length=1_000)


class NextTokenRequest(PlaygroundRequest):
    """Asks for the next token after a text, or after token ids, under sampling settings."""

    text: str = Field("", max_length=MAX_TEXT)
    ids: list[int] | None = Field(None, max_length=MAX_TEXT)
    temperature: float = Field(Sampling.temperature, ge=0, le=100, allow_inf_nan=False)
    top_k: int = Field(Sampling.top_k, ge=0)
    top_p: float = Field(Sampling.top_p, ge=0, le=1, allow_inf_nan=False)  # 0 is greedy
    count: int = Field(20, ge=1, le=100)


class TextRequest(PlaygroundRequest):
    """Asks what a run makes of a text."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)


def make_router(engines: dict[str, Engine]) -> APIRouter:
    """Make the routes of the page (`/`), its files (`/page/`) and its API (`/api/`)."""
    router = APIRouter(responses=ERROR_RESPONSES)
    described = describe_models([engine.served for engine in engines.values()])
    limiter = CapacityLimiter(1)
    _add_page(router)

    async def ask(
        find: Callable[[ServedModel, Any], dict[str, Any]],
        body: PlaygroundRequest,
        request: Request,
    ) -> Response:
        engine = find_model(engines, body.model)
        work = partial(_run, find, engine.served, body)
        return await finish_unless_gone(
            request, engine.prepare(work, find_arrival(request.scope), limiter)
        )

    @router.get("/api/rungs")
    async def rungs() -> Response:
        """Describe the served runs."""
        return _respond({"rungs": described})

    @router.post("/api/next")
    async def next_token(body: NextTokenRequest, request: Request) -> Response:
        """Compute the next token's distribution, of the model and after sampling settings."""
        return await ask(find_next_token, body, request)

    @router.post("/api/surprisal")
    async def surprisal(body: TextRequest, request: Request) -> Response:
        """Compute the bits that each token of a text costs."""
        return await ask(find_surprisal, body, request)

    @router.post("/api/attention")
    async def attention(body: TextRequest, request: Request) -> Response:
        """Read the attention weights of every layer and head."""
        return await ask(find_attention, body, request)

    return router


def _add_page(router: APIRouter) -> None:
    """Add the page's files. They are read once: no address ever reaches the disk."""
    folder = resources.files("rung.serve").joinpath("page")
    parts = {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.split(".")[-1] in MEDIA_TYPES
    }

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return await part("index.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in parts:
            raise ApiError(404, f"the page has no part {name!r}")
        return Response(
            parts[name], media_type=MEDIA_TYPES[name.split(".")[-1]], headers=PAGE_HEADERS
        )


def _run(
    find: Callable[[ServedModel, Any], dict[str, Any]], run: ServedModel, body: PlaygroundRequest
) -> Response:
    with torch.no_grad():
        return _respond(find(run, body))


def describe_models(served: Sequence[ServedModel]) -> list[dict[str, Any]]:
    """Describe the runs, each with the reason why its scores may say nothing of its rung."""
    doubts = runs.explain_doubtful_scores([run.record for run in served])
    return [
        describe_model(run) | {"doubt": doubt} for run, doubt in zip(served, doubts, strict=True)
    ]


def describe_model(run: ServedModel) -> dict[str, Any]:
    """Describe a run: what it is, what it scored, and what it can be asked."""
    model, record = run.model, run.record
    score = (record.get("scores") or {}).get("test") or {}
    layers, heads = attention_shape(model)
    is_foreign = isinstance(model, ForeignForCausalLM)
    name = model.config.model_type if is_foreign else find_rung_name(type(model))
    return {
        "name": run.name,
        "rung": name,
        "idea": FOREIGN_IDEA if is_foreign else IDEAS[name],
        "parameters": record.get("parameters") or count_parameters(model),
        "bits_per_byte": score.get("bits_per_byte"),
        "low": score.get("low"),
        "high": score.get("high"),
        "renormalized": needs_renormalization(run.model),
        "counts": is_counting(name),
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


def find_next_token(run: ServedModel, body: NextTokenRequest) -> dict[str, Any]:
    """Find the most probable next tokens, with their probability before and after sampling
    settings.
    """
    ids = _encode(run, body.text) if body.ids is None else body.ids
    check_token_ids(ids, run.model.config.vocab_size, "ids")
    logits = _read_logits(run, ids)
    sampling = Sampling(temperature=body.temperature, top_k=body.top_k, top_p=body.top_p)
    probabilities = logits.float().softmax(-1)[0]
    drawn = find_probabilities(logits, sampling)[0]
    top, tokens = probabilities.topk(min(body.count, len(probabilities)))
    kept = drawn[tokens]
    return {
        "ids": ids,
        "pieces": [token_to_text(run.tokenizer, id) for id in ids],
        "text": run.tokenizer.decode(ids, skip_special_tokens=True),
        "entropy": _entropy(probabilities),
        "drawn_entropy": _entropy(drawn),
        "kept": int((drawn > 0).sum()),
        "tokens": [
            {
                "id": id,
                "text": token_to_text(run.tokenizer, id),
                "probability": probability,
                "drawn": drawn_probability,
                "end": id == run.tokenizer.eos_token_id,
            }
            for id, probability, drawn_probability in zip(
                tokens.tolist(), top.tolist(), kept.tolist(), strict=True
            )
        ],
        "rest": {
            "tokens": len(probabilities) - len(tokens),
            "probability": max(0.0, 1 - top.double().sum().item()),
            "drawn": max(0.0, 1 - kept.double().sum().item()),
        },
    }


def find_surprisal(run: ServedModel, body: TextRequest) -> dict[str, Any]:
    """Compute the bits of each piece of a text; the last piece is its end."""
    _encode(run, body.text)  # raises for tokens that the model does not have
    pieces = score_text(run.model, run.tokenizer, body.text)
    bits, size = sum(piece.bits for piece in pieces), len(body.text.encode())
    return {
        "pieces": [asdict(piece) for piece in pieces],
        "bits": bits,
        "bytes": size,
        "bits_per_byte": bits / size,
        "renormalized": needs_renormalization(run.model),
    }


def find_attention(run: ServedModel, body: TextRequest) -> dict[str, Any]:
    """Read the tokens of a text's beginning and their weights (layer, head, query, key)."""
    if not attention_shape(run.model)[0]:
        raise ApiError(
            400, f"{run.name} has no attention: choose an rnn-attention, gpt2 or llama3 run"
        )
    found = _add_bos(run, _encode(run, body.text))
    ids = found[: min(MAX_ATTENTION_TOKENS, run.model.context_length or MAX_ATTENTION_TOKENS)]
    if len(ids) < 2:
        raise ApiError(400, "text: nothing in it is a token; write a word")
    weights = read_attention(run.model, ids).double().numpy().round(3)
    tokens = [token_to_text(run.tokenizer, id) for id in ids]
    return {"tokens": tokens, "left_out": len(found) - len(ids), "weights": weights.tolist()}


def _add_bos(run: ServedModel, ids: list[int]) -> list[int]:
    """Put the begin-of-text token before the ids, where there is one."""
    bos = run.tokenizer.bos_token_id
    return ids if bos is None else [bos, *ids]


def _encode(run: ServedModel, text: str) -> list[int]:
    ids = list(encode_ordinary(run.tokenizer, [text])[0].ids)
    check_token_ids(ids, run.model.config.vocab_size, "text")
    return ids


def _read_logits(run: ServedModel, ids: list[int]) -> Tensor:
    """Compute logits (1, V) of the next token; of a long text the model sees the end."""
    ids = _add_bos(run, ids)
    if not ids:
        raise ApiError(
            400, "text has no token, and this model has none to begin with: write a word"
        )
    seen = ids[-(run.model.context_length or len(ids)) :]
    rows = torch.tensor([seen], device=run.model.device)
    return run.model(rows, use_cache=False, logits_to_keep=1).logits[:, -1]


def _entropy(probabilities: Tensor) -> float:
    """Compute the entropy in bits."""
    return torch.special.entr(probabilities.double()).sum().item() / math.log(2)


def _respond(facts: Any) -> Response:
    return Response(to_json(facts), 200, {"X-Content-Type-Options": "nosniff"}, "application/json")
