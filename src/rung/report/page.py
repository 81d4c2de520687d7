"""The report's sections as HTML; whatever comes from a run is escaped."""

import math
from collections.abc import Callable, Iterable
from html import escape
from importlib import resources
from string import Template
from typing import Any

from rung.report import charts
from rung.report.rows import COUNTING, IDEAS, UNFINISHED, Group, Row, Run

DARKEST = 12.0  # bits: tokens above are shaded like it
NONE = '<span class="none">–</span>'
MARKS = {
    "lzma after train": "compressor that has read the training text",
}


def build_page(groups: list[Group]) -> str:
    """The whole page: an article for each text, then how it was measured."""
    template = resources.files("rung.report").joinpath("page.html").read_text(encoding="utf-8")
    titles = dict.fromkeys(_title(group) for group in groups)
    body = [_contents(groups)] if len(groups) > 1 else []
    body += [_article(group, f"text-{i}") for i, group in enumerate(groups, 1)]
    body.append(_method(groups))
    return Template(template).substitute(title=escape(f"rung: {', '.join(titles)}"), body="\n".join(body))


def _contents(groups: list[Group]) -> str:
    links = "".join(
        f'<li><a href="#text-{i}">{escape(_title(group))}</a> {_names(run.label for run in group.runs)}</li>'
        for i, group in enumerate(groups, 1)
    )
    return (
        "<nav><p>These runs were scored on different text. Their figures do not compare, "
        f"so each text has a section of its own:</p><ol>{links}</ol></nav>"
    )


def _article(group: Group, anchor: str) -> str:
    sections = [_header(group), _ladder(group), _table(group), _curves(group), _samples(group), _surprisal(group)]
    return f'<article id="{anchor}">{"".join(sections)}</article>'


def _title(group: Group) -> str:
    named = (run.corpus.get("name") for run in group.runs)
    return str(next((name for name in named if name), "Runs without a score"))


def _header(group: Group) -> str:
    facts = "".join(f"<div><dt>{term}</dt><dd>{fact}</dd></div>" for term, fact in _facts(group) if fact)
    return (
        f'<header><p class="eyebrow">rung <span>the ladder of language models, on one ruler</span></p>'
        f"<h1>{escape(_title(group))}</h1>"
        f'<p class="summary">{_summary(group)}</p><dl class="facts">{facts}</dl></header>'
    )


def _summary(group: Group) -> str:
    """The result in one sentence: the best rung, the best of the other kind, and lzma."""
    if not group.scored:
        return "No rung has a score yet."
    best = min(group.scored, key=_cost)
    parts = [f"{_strong(best.label)} needs {_bits(_cost(best))} bits for each byte of text it has never seen"]
    others = [run for run in group.scored if (run.row.rung in COUNTING) != (best.row.rung in COUNTING)]
    if others:
        other = min(others, key=_cost)
        kind = "counting alone" if other.row.rung in COUNTING else "the best trained rung"
        parts.append(f"{kind} ({escape(other.label)}) needs {_bits(_cost(other))}")
    alone, after = group.marks.get("lzma"), group.marks.get("lzma after train")
    if alone is not None:
        parts.append(f"lzma needs {_bits(alone)}")
    if alone is not None and after is not None:
        parts[-1] += f", or {_bits(after)} once it has read the training text"
    return "; ".join(parts) + "."


def _facts(group: Group) -> list[tuple[str, str]]:
    some = (group.scored or group.runs)[0]
    score, documents, size = some.score, some.corpus.get("documents", {}), some.corpus.get("bytes", {})
    kinds = (
        f"{run.tokenizer.get('kind')}, {whole(run.tokenizer.get('vocab_size'))} tokens"
        for run in group.runs
        if run.tokenizer
    )
    return [
        ("Test text", _extent(score.get("documents"), score.get("bytes"))),
        ("Training text", _extent(documents.get("train"), size.get("train"))),
        ("Tokenizer", _distinct(kinds)),
        ("Hardware", _distinct(run.record.get("hardware") for run in group.runs)),
        ("Seed", _distinct(run.record.get("seed") for run in group.runs)),
        ("Corpus fingerprint", _distinct([some.corpus.get("fingerprint")])),
    ]


def _ladder(group: Group) -> str:
    if not group.scored:
        return ""
    shades = _shades(group)
    bars = [
        charts.Bar(
            label=run.label,
            note=run.row.idea,
            value=_cost(run),
            low=run.row.low,
            high=run.row.high,
            shade=shades[run.label],
        )
        for run in group.scored
    ]
    caption = (
        "A dot is what one byte of unseen text costs that rung, and further left is better; the bar through it "
        "is the 95% interval"
        + (", and the upright lines are what compressors pay for the same bytes." if group.marks else ".")
    )
    return _figure("The ladder", caption, [charts.draw_ladder(bars, group.marks, w) for w in _widths()])


def _curves(group: Group) -> str:
    shades = _shades(group)
    learners = [run for run in group.runs if run.curve]
    if not learners:
        return ""
    curves = [
        charts.Curve(label=run.label, points=run.curve, level=run.row.bits_per_byte, shade=shades[run.label])
        for run in group.runs
        if run.curve or run in group.scored
    ]
    caption = (
        "Bits per byte of validation text after so many training tokens: lower is better, and a line that still "
        "falls at its end would gain from more time."
    )
    if len(curves) > len(learners):
        caption += (
            " A dashed line is a rung that has no such steps, at its score on the test text: "
            "other documents, so a rough guide only."
        )
    return _figure("Learning", caption, [charts.draw_curves(curves, w) for w in _widths()])


def _figure(title: str, caption: str, drawings: list[str]) -> str:
    return f"<section><h2>{title}</h2><figure><figcaption>{caption}</figcaption>{''.join(drawings)}</figure></section>"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "parameters": lambda row: whole(row.parameters),
    "training<br>seconds": lambda row: _decimal(row.seconds),
    "tokens / s": lambda row: whole(row.tokens_per_second),
    "token<br>perplexity": lambda row: perplexity(row.token_perplexity),
    "word<br>perplexity": lambda row: perplexity(row.word_perplexity),
    "bits<br>per byte": lambda row: _precise(row.bits_per_byte),
    "95% interval": lambda row: f"{row.low:.3f}–{row.high:.3f}" if row.low and row.high else NONE,
}


def _table(group: Group) -> str:
    star = "" if group.same_tokens else "<sup>†</sup>"
    heads = "".join(f"<th scope=col>{name}{star if 'token<br>' in name else ''}</th>" for name in COLUMNS)
    best = min(group.scored, key=_cost, default=None)
    rows = "".join(_table_row(run, run is best, group.same_tokens) for run in group.runs)
    feet = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{MARKS.get(name, 'compressor, on the test text alone')}</td>"
        f"<td colspan=5></td><td class=key>{_precise(value)}</td><td></td></tr>"
        for name, value in group.marks.items()
    )
    foot = f"<tfoot>{feet}</tfoot>" if feet else ""
    caption = "A row is a run, all on the same text; of perplexities and bits per byte, less is better."
    notes = "".join(f"<li>{note}</li>" for note in _notes(group))
    return (
        f'<section><h2>The figures</h2><p class="caption">{caption}</p><div class="scroll"><table><thead><tr>'
        f"<th scope=col>rung</th><th scope=col>idea</th>{heads}</tr></thead><tbody>{rows}</tbody>{foot}</table></div>"
        f'<ul class="notes">{notes}</ul></section>'
    )


def _table_row(run: Run, best: bool, same_tokens: bool) -> str:
    row = run.row
    idea = row.idea if run.label == row.rung else f"{row.rung}: {row.idea}".removesuffix(": ")
    start = f"<th scope=row>{escape(run.label)}</th><td>{escape(idea)}</td>"
    if row.failed:
        why = row.failed if row.failed == UNFINISHED else f"failed: {row.failed}"
        return f'<tr class="failed">{start}<td colspan={len(COLUMNS)}>{escape(why)}</td></tr>'
    cells = ""
    for name, show in COLUMNS.items():
        kind = "key" if name.startswith("bits") else "aside" if name.startswith("token<") and not same_tokens else ""
        cells += f"<td class={kind}>{show(row)}</td>" if kind else f"<td>{show(row)}</td>"
    return f'<tr{" class=best" if best else ""}>{start}{cells}</tr>'


def _notes(group: Group) -> Iterable[str]:
    """What a reader has to know before comparing two figures of the table."""
    if not group.same_tokens:
        kinds = "; ".join(
            f"{_names(labels)}: {escape(kind)}"
            for kind, labels in _labels_by(group.scored, lambda run: _tokenizer_name(run)).items()
        )
        yield f"† Token perplexities compare only between runs with the same tokenizer ({kinds})."
    for (window, stride), labels in _labels_by(group.scored, _window).items():
        if window is None:
            yield f"{_names(labels)}: the state is carried through the whole of a document."
        else:
            yield (
                f"{_names(labels)}: a long document is read through a window of {whole(window)} tokens "
                f"that moves by {whole(stride)}; each token is scored once."
            )
    for what, labels in _labels_by(group.scored, _losses).items():
        if what:
            yield f"{_names(labels)}: the tokenizer loses {escape(what)}, and the score does not charge for it."
    for run in group.scored:
        if unknown := run.score.get("unknown_words"):
            spelled = run.score.get("unknown_nats", 0) / math.log(2)
            yield f"{_names([run.label])}: {whole(unknown)} unknown words were spelled out, for {whole(spelled)} bits."


def _samples(group: Group) -> str:
    told = [run for run in group.runs if run.row.sample is not None]
    cards = "".join(f'<div class="card"><h3>{escape(run.label)}</h3><p>{_sample(run)}</p></div>' for run in told)
    return _gallery(
        "The same prompt, continued",
        "Every rung goes on from the words in bold: look at how long it keeps to a word, a sentence, a subject.",
        cards,
    )


def _sample(run: Run) -> str:
    prompt, sample = str(run.record.get("prompt") or ""), run.row.sample or ""
    glue = " " if prompt and _loses_space(run) and not sample[:1].isspace() else ""
    return f"<b>{escape(prompt)}</b>{glue}{escape(sample)}"


def _surprisal(group: Group) -> str:
    told = [run for run in group.runs if run.record.get("passage")]
    cards = "".join(
        f'<div class="card"><h3>{escape(run.label)} <span>{whole(sum(b for _, b in run.record["passage"]))} bits '
        f"in all</span></h3><p>{_passage(run)}</p></div>"
        for run in told
    )
    scale = "".join(f'<span class="t" style="--b:{bits}"></span>' for bits in range(int(DARKEST) + 1))
    return _gallery(
        "Where each rung is surprised",
        "The same unseen passage for every rung: the darker a token, the more bits it cost "
        "(point at one to read how many); ⏎ is a token of line breaks, the square is the end of the text.",
        cards,
        f'<p class="scale"><span>0 bits</span><span class="steps">{scale}</span><span>12 or more</span></p>',
    )


def _gallery(title: str, caption: str, cards: str, legend: str = "") -> str:
    if not cards:
        return ""
    return (
        f'<section><h2>{title}</h2><p class="caption">{caption}</p>{legend}<div class="cards">{cards}</div></section>'
    )


def _passage(run: Run) -> str:
    """The passage with each token on its shade."""
    tokens = list(_whole_characters(run.record["passage"]))
    glue = " " if _loses_space(run) else ""
    return glue.join(_token(text, bits) for text, bits in tokens)


def _whole_characters(passage: list[tuple[str, float]]) -> Iterable[tuple[str, float]]:
    """The tokens, with the later bytes of a character (pieces without text) added to its first; the end stays."""
    text, bits = "", 0.0
    for i, (piece, cost) in enumerate(passage):
        is_end = i == len(passage) - 1 and not piece
        if (piece or is_end) and i:
            yield text, bits
            bits = 0.0
        text, bits = piece or ("" if is_end else text), bits + cost
    yield text, bits


def _token(text: str, bits: float) -> str:
    shade = f'style="--b:{min(max(bits, 0), DARKEST):.1f}" title="{bits:.1f} bits'
    if not text:
        return f'<span class="t end" {shade}, end of text" role="img" aria-label="end of text"></span>'
    breaks = " breaks" if "\n" in text and text.isspace() else ""
    return f'<span class="t{breaks}" {shade}">{escape(text)}</span>'


def _method(groups: list[Group]) -> str:
    found = [run for group in groups for run in group.runs]
    terms = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in DEFINITIONS.items())
    versions: dict[str, list[str]] = {}
    for run in found:
        for name, version in (run.record.get("versions") or {}).items():
            versions.setdefault(name, []).append(version)
    listed = " · ".join(f"{escape(name)} {_distinct(numbers)}" for name, numbers in versions.items())
    software = f"<dt>Versions</dt><dd>{listed}</dd>" if listed else ""
    recipes = "".join(map(_recipe, found))
    return (
        f'<section class="method"><h2>How it was measured</h2><dl>{terms}{software}</dl>'
        f'<h3>Recipes</h3><div class="recipes">{recipes}</div></section>'
    )


def _recipe(run: Run) -> str:
    lines = "\n".join(f"{key}: {_plain(value)}" for key, value in _flatten(run.record.get("recipe") or {}))
    name = f"{escape(run.label)} <span>{escape(run.row.name)}</span>" if run.label != run.row.name else run.label
    return f"<details><summary>{name}</summary><pre>{escape(lines) or 'no recipe was recorded'}</pre></details>"


DEFINITIONS = {
    "Bits per byte": "The number of bits the model needs to name the text, −Σ log₂ p over all tokens, divided by the "
    "text’s UTF-8 bytes. It does not depend on how the text is cut into tokens, so it compares any two rungs, and "
    "either with a compressor.",
    "Word perplexity": "e to the power of the negative log-likelihood for each white-space separated word: as many "
    "equally likely words to choose from. It compares across tokenizers on the same text.",
    "Token perplexity": "The same for each token. It compares only where the tokenizer is the same.",
    "95% interval": "A bootstrap over documents: the test documents are drawn again, with replacement, 1,000 times. "
    "It says how far bits per byte would move on other documents of this kind. All rungs read the same documents "
    "and move together, so a difference can be real where two intervals overlap.",
    "What is scored": "Every held-out document, each token of it once, from a begin-of-text token that is not "
    "scored to its end-of-text token, which is. A word that the tokenizer does not know is charged for its spelling, "
    "byte by byte.",
}


def _flatten(value: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flatten(inner, f"{before}{key}.")
        elif inner != {}:
            yield f"{before}{key}", inner


def _plain(value: Any) -> str:
    """As YAML writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def whole(number: float | None) -> str:
    """A count, with separators."""
    return NONE if number is None else f"{number:,.0f}"


def perplexity(number: float | None) -> str:
    """One decimal, and powers of ten where it is beyond imagining."""
    if number is None:
        return NONE
    if not math.isfinite(number) or number < 1e7:
        return f"{number:,.1f}"
    digits, power = f"{number:.1e}".split("e")
    return f"{digits}&#8239;×&#8239;10<sup>{int(power)}</sup>"


def _decimal(number: float | None) -> str:
    return NONE if number is None else f"{number:,.1f}"


def _precise(number: float | None) -> str:
    return NONE if number is None else f"{number:.3f}"


def _cost(run: Run) -> float:
    return run.row.bits_per_byte if run.row.bits_per_byte is not None else math.inf


def _bits(number: float) -> str:
    return _strong(f"{number:.2f}")


def _strong(text: str) -> str:
    return f"<b>{escape(text)}</b>"


def _names(labels: Iterable[str]) -> str:
    return f'<span class="names">{escape(", ".join(labels))}</span>'


def _extent(documents: int | None, size: int | None) -> str:
    return f"{whole(documents)} documents, {whole(size)} bytes" if documents and size else ""


def _distinct(values: Iterable[Any]) -> str:
    return escape("; ".join(dict.fromkeys(str(value) for value in values if value is not None)))


def _labels_by(found: list[Run], key: Callable[[Run], Any]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for run in found:
        groups.setdefault(key(run), []).append(run.label)
    return groups


def _window(run: Run) -> tuple[int | None, int | None]:
    return run.score.get("window"), run.score.get("stride")


def _losses(run: Run) -> str:
    """What goes uncharged: unknown words are spelled out, so they are not in it."""
    return ", ".join(what for what in run.score.get("lost") or () if what != "unknown words")


def _loses_space(run: Run) -> bool:
    return "white space" in (run.tokenizer.get("lost") or ())


def _tokenizer_name(run: Run) -> str:
    return f"{run.tokenizer.get('kind')} {run.tokenizer.get('vocab_size')} ({run.tokenizer.get('fingerprint')})"


def _shades(group: Group) -> dict[str, int]:
    """The depth of colour of each run, from the lowest rung to the highest."""
    last = max(len(group.runs) - 1, 1)
    return {run.label: round(i * (charts.SHADES - 1) / last) for i, run in enumerate(group.runs)}


def _widths() -> tuple[int, int]:
    return charts.WIDE, charts.NARROW
