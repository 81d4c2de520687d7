"""The model card of an exported folder: `README.md` as the Hub reads it, from `rung.json`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from rung import hub, runs
from rung.data.corpus import WIKITEXT_CONFIGS
from rung.data.sources import WIKITEXT
from rung.errors import RunError
from rung.evaluation.metrics import RENORMALIZED, format_token_perplexity, format_word_perplexity
from rung.ladder import IDEAS
from rung.models import read_checked_config

RunRecord = Mapping[str, Any]

CARD = "README.md"
STOCK = ("gpt2", "llama")  # model types that transformers itself loads
CARD_METRICS = {
    metric: metric.replace("_", " ")
    for metric in ("bits_per_byte", "word_perplexity", "token_perplexity")
}
PERPLEXITIES = {
    "word_perplexity": format_word_perplexity,
    "token_perplexity": format_token_perplexity,
}


def make_card(folder: Path, name: str) -> str:
    """Write the card of the run or Hugging Face model in `folder`, published as `name`.

    Without `rung.json` it says how the model is loaded, and nothing that is not known.
    """
    record = runs.find_record(folder)
    try:
        return _write_card(folder, name, record)
    except KeyError as error:
        raise RunError(
            f"{folder / runs.RECORD} is damaged (it has no {error}): train the run again"
        ) from error
    except (
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # a part that no reader of runs computes with
        raise RunError(
            f"{folder / runs.RECORD} is damaged ({error}): train the run again"
        ) from error


def _write_card(folder: Path, name: str, record: RunRecord) -> str:
    model_type = read_checked_config(folder).model_type
    sections = [f"# {name}", *_describe(record, model_type)]
    for title, lines in (
        ("Use", _use(name, model_type, runs.read_prompt(dict(record)) or "Once")),
        ("Scores", _scores(record)),
        ("Data", _data(record)),
        ("Training", _training(record)),
        ("Limits", _limits(record)),
        ("Made by", _recipe(record)),
    ):
        if text := "\n".join(lines):
            sections.append(f"## {title}\n\n{text}")
    return f"---\n{_front_matter(record, name).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(record: RunRecord, name: str) -> ModelCardData:
    """Make what the Hub sorts and finds models by. No licence is named: it is not known."""
    corpus, base = record.get("corpus", {}).get("name", ""), record.get("base", {}).get("path", "")
    dataset = find_dataset(corpus)
    score = record.get("scores", {}).get("test", {})
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or corpus,
            dataset_name=corpus,
            dataset_split="test",
            metric_type=metric,
            metric_name=CARD_METRICS[metric]
            + " of renormalized scores" * bool(score.get("renormalized")),
            metric_value=score[metric],
        )
        for metric in CARD_METRICS
        if score.get(metric) is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rung", record["rung"]] if record else None,
        datasets=[dataset] if dataset else None,
        base_model=base if hub.is_hub_id(base) else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def find_dataset(corpus: str) -> str | None:
    """Return the Hub's name of a corpus, where it has one."""
    if corpus in WIKITEXT_CONFIGS:
        return WIKITEXT
    kind, _, rest = corpus.partition(":")
    path = rest.partition("@")[0].partition(":")[0]
    return path if kind in ("hf", "stream") and hub.is_hub_id(path) else None


def _describe(record: RunRecord, model_type: str) -> Iterator[str]:
    if not record:
        yield f"A `{model_type}` model."
        return
    rung = record["rung"]
    idea = IDEAS.get(rung, "")
    size = f" of {record['parameters']:,} parameters" if "parameters" in record else ""
    corpus = f", trained from scratch on `{record['corpus']['name']}`" if "corpus" in record else ""
    if "base" in record:
        corpus = f", a trained model that learned further on `{record['corpus']['name']}`"
    told = f" The idea of this rung: {idea}." if idea else ""
    yield f"A `{rung}` language model{size}{corpus}, made with rung.{told}"


def _use(name: str, model_type: str, prompt: str) -> Iterator[str]:
    yield "```python"
    if model_type not in STOCK:
        yield (
            "import rung.models  # pip install rung: transformers does not ship this kind of model"
        )
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield (
        f'model, tokenizer = (kind.from_pretrained("{name}") for kind in (AutoModelForCausalLM, '
        f"AutoTokenizer))"
    )
    yield f'inputs = tokenizer({json.dumps(prompt, ensure_ascii=False)}, return_tensors="pt")'
    yield "print(tokenizer.decode(model.generate(**inputs)[0]))"
    yield "```"


def _scores(record: RunRecord) -> Iterator[str]:
    score = record.get("scores", {}).get("test")
    if not score:
        return
    text = (
        f"{score['bytes']:,} bytes in {score['documents']:,} documents that it was not trained on"
    )
    yield f"On the test split of `{record['corpus']['name']}`, {text}:"
    yield ""
    yield "| metric | value | 95% interval |"
    yield "| --- | --- | --- |"
    for metric, shown in CARD_METRICS.items():
        value = score[metric]
        bounded = metric == "bits_per_byte" and None not in (score["low"], score["high"])
        interval = f"{score['low']:.3f} to {score['high']:.3f}" if bounded else ""
        figure = "infinite" if value is None else f"{value:.4f}"
        if show := PERPLEXITIES.get(metric):
            figure = show(score)
        yield f"| {shown} | {figure} | {interval} |"
    yield ""
    yield (
        "Bits per byte compares models across tokenizers: the negative log2-likelihood of the "
        "whole text, ends of"
    )
    yield "documents included, by its UTF-8 bytes. Less is better."
    if score.get("renormalized"):
        yield f"The model's own scores (stupid back-off) are no distribution: {RENORMALIZED}."


def _data(record: RunRecord) -> Iterator[str]:
    corpus, tokenizer = record.get("corpus"), record.get("tokenizer", {})
    if not corpus:
        return
    yield f"`{corpus['name']}`, fingerprint `{corpus['fingerprint']}`."
    yield ""
    yield "| split | documents | bytes |"
    yield "| --- | --- | --- |"
    yield from (
        f"| {split} | {count:,} | {corpus['bytes'][split]:,} |"
        for split, count in corpus["documents"].items()
    )
    if tokenizer:
        kind, size = _shorten(tokenizer["kind"]), tokenizer["vocab_size"]
        yield f"\nTokenizer: {kind}, {size:,} tokens, fingerprint `{tokenizer['fingerprint']}`."


def _training(record: RunRecord) -> Iterator[str]:
    training = record.get("training")
    if training:
        steps = f"{training['steps']:,} steps, " if training["steps"] else "One pass of counting, "
        yield (
            f"{steps}{training['tokens']:,} tokens, {training['seconds']:,.0f} seconds on "
            f"{record['hardware']}."
        )
    if "base" in record:
        yield (
            f"It began with the weights of `{_shorten(record['base']['path'])}` "
            f"({record['base']['fingerprint']})."
        )
    if "versions" in record:
        yield (
            "Versions: "
            + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            + "."
        )
    if "tune" in record:
        yield from ("\nIt was then tuned:\n", "```yaml", _to_yaml(record["tune"]), "```")


def _limits(record: RunRecord) -> Iterator[str]:
    if not record:
        return
    yield (
        "Made for learning, teaching and comparing how language models work. It goes on from a "
        "text as its training"
    )
    yield (
        "text would, mistakes, bias and all; what it says may be false, and may be the training "
        "text word for word."
    )
    if "tune" not in record:
        yield "It was not trained to answer or to follow instructions."
    if lost := record.get("tokenizer", {}).get("lost"):
        yield f"Its tokenizer does not keep {', '.join(lost)}."


def _recipe(record: RunRecord) -> Iterator[str]:
    if "recipe" in record:
        kept = {
            key: value
            for key, value in record["recipe"].items()
            if value not in (None, {}) and value is not False
        }
        yield from (
            "`rung train --recipe FILE`, with this in the file:\n",
            "```yaml",
            _to_yaml(kept),
            "```",
        )


def _to_yaml(facts: Any) -> str:
    return yaml.safe_dump(_shorten(facts), sort_keys=False, allow_unicode=True).strip()


def _shorten(facts: Any) -> Any:
    """Leave the machine's folders out of the facts: a card is published."""
    if isinstance(facts, dict):
        return {key: _shorten(value) for key, value in facts.items()}
    if isinstance(facts, list):
        return [_shorten(value) for value in facts]
    return Path(facts).name if isinstance(facts, str) and facts.startswith(("/", "~")) else facts
