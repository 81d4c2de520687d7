"""Is it its own: how much of what each run wrote is new, as a table of the report and in words."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rung.report.summaries import ComparableRuns, ReportedRun
from rung.report.table import make_cell

SHOWN_LENGTHS = ("1", "2", "3", "4", "5", "7", "10")
SHOWN_CHARACTERS = 240  # of the longest copy


def format_share(share: float | None) -> str:
    """Format a share in whole per cent; a dash where there is none."""
    return "–" if share is None else f"{share:.0%}"


def describe_nearest(found: Mapping[str, Any]) -> Iterator[str]:
    """Say in words which setting comes nearest to human text, and where sampling should stop."""
    if found.get("train_is_beginning"):
        yield "Of the training text, a stream, only the stored beginning was compared."
    nearest = found["settings"][found["nearest"]]
    if nearest["distance"] is None or nearest["new_share"] is None:
        yield "No setting wrote a word that could be compared."
        return
    yield (
        f"Nearest to human text: {_name_setting(nearest)}, {100 * nearest['distance']:.1f} points "
        "apart on average over 1 to 10."
    )
    said, wanted = (row["new"].get("5") for row in (nearest, found["human"]))
    if said is not None and wanted is not None:
        yield (
            f"Of 100 spans of 5 {found['unit']} that it writes so, {100 * said:.0f} are not in its "
            f"training text; of those that people write, {100 * wanted:.0f}."
        )
    others = {"temperature": "top_p", "top_p": "temperature"}
    for name, other in others.items():
        label, still = name.replace("_", "-"), other.replace("_", "-")
        tried = [row for row in found["settings"] if row[other] == 1 and row["new_share"]]
        at = found["crossings"][name]
        if at is not None:
            yield (
                f"As new as human text at {label} {at:.2f} ({still} 1): below it the run copies "
                "more than people do, above it it babbles."
            )
        elif len(tried) > 1:
            is_newer = tried[0]["new_share"] > (found["human"]["new_share"] or 0)
            what = "is newer" if is_newer else "copies more"
            yield f"At every {label} tried ({still} 1) what it writes {what} than human text."


def build_novelty(group: ComparableRuns) -> str:
    """Build the section of the runs whose record has figures of novelty; else nothing."""
    told = [run for run in group.runs if run.record.get("novelty")]
    if not told:
        return ""
    heads = "".join(f'<th scope="col" class="figure">{n}</th>' for n in SHOWN_LENGTHS)
    rows = "".join(_rows(run) for run in told)
    units = escape(" and ".join(sorted({run.record["novelty"]["unit"] for run in told})))
    notes = "".join(
        f"<li>{escape(run.label)}: {escape(' '.join(describe_nearest(run.record['novelty'])))}</li>"
        for run in told
    )
    return (
        '<section><h2>Is it its own?</h2><p class="caption">The share of n-grams of '
        f"{units} that the training text does not hold, by n, in what each run wrote and in what "
        "people wrote after the same words: the setting of sampling that comes nearest, and that "
        "of <code>rung generate</code>. Less than people is copying, more is babbling.</p>"
        '<div class="scroll" role="region" aria-label="New n-grams" tabindex="0"><table><thead>'
        f'<tr><th scope="col">text</th><th scope="col">sampling</th>{heads}<th scope="col" '
        f'class="figure">longest copy</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f'<ul class="notes">{notes}</ul></section>'
    )


def _rows(run: ReportedRun) -> str:
    found = run.record["novelty"]
    nearest = found["settings"][found["nearest"]]
    usual = [row for row in found["settings"] if (row["temperature"], row["top_p"]) == (0.8, 0.95)]
    shown = [nearest, *(row for row in usual if row is not nearest)]
    unit = escape(found["unit"])
    rows = [_row(f"people, for {run.label}", "", found["human"], unit)]
    return "".join([*rows, *(_row(run.label, _name_setting(row), row, unit) for row in shown)])


def _row(name: str, setting: str, row: Mapping[str, Any], unit: str) -> str:
    cells = "".join(
        make_cell("figure", f"n = {n}", format_share(row["new"].get(n))) for n in SHOWN_LENGTHS
    )
    copied = escape(str(row["longest_text"])[:SHOWN_CHARACTERS], quote=True)
    longest = f'<span title="{copied}">{row["longest"]:,} {unit}</span>'
    return (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(setting)}</td>{cells}'
        f"{make_cell('figure', 'longest copy', longest)}</tr>"
    )


def _name_setting(row: Mapping[str, Any]) -> str:
    return f"temperature {row['temperature']:g}, top-p {row['top_p']:g}"
