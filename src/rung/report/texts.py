"""The report's texts: what each rung wrote, and how much each token of an unseen passage surprised it."""

from collections.abc import Iterable
from html import escape

from rung.report.rows import Group, Run
from rung.report.table import whole

DARKEST = 12.0  # bits: tokens above are shaded like it


def build_samples(group: Group) -> str:
    """A card for each run that wrote something."""
    told = [run for run in group.runs if run.row.sample is not None]
    cards = "".join(_card(escape(run.label), _sample(run)) for run in told)
    return _gallery(
        "The same prompt, continued",
        "Every rung goes on from the words in bold: look at how long it keeps to a word, a sentence, a subject.",
        cards,
    )


def _sample(run: Run) -> str:
    prompt, sample = str(run.record.get("prompt") or ""), run.row.sample or ""
    glue = " " if prompt and _loses_space(run) and not sample[:1].isspace() else ""
    return f"<b>{escape(prompt)}</b>{glue}{escape(sample)}"


def build_surprisal(group: Group) -> str:
    """A card for each run that read the passage, every token on a shade of its bits."""
    told = [run for run in group.runs if run.record.get("passage")]
    cards = "".join(_card(_heading(run), _passage(run)) for run in told)
    scale = "".join(f'<span class="t" style="--b:{bits}"></span>' for bits in range(int(DARKEST) + 1))
    return _gallery(
        "Where each rung is surprised",
        "The same unseen passage for every rung: the stronger a token’s shade, the more bits it "
        "cost (point at one to read how many); ⏎ is a token of line breaks, the square is the end-of-text token.",
        cards,
        f'<p class="scale"><span>0 bits</span><span class="steps">{scale}</span><span>12 or more</span></p>',
    )


def _gallery(title: str, caption: str, cards: str, legend: str = "") -> str:
    if not cards:
        return ""
    return (
        f'<section><h2>{title}</h2><p class="caption">{caption}</p>{legend}<div class="cards">{cards}</div></section>'
    )


def _card(heading: str, text: str) -> str:
    return f'<div class="card"><h3>{heading}</h3><p dir="auto">{text}</p></div>'


def _heading(run: Run) -> str:
    bits = sum(bits for _, bits in run.record["passage"])
    return f"{escape(run.label)} <span>{whole(bits)} bits in all</span>"


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


def _loses_space(run: Run) -> bool:
    return "white space" in (run.tokenizer.get("lost") or ())
