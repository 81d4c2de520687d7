"""The logs of a training run: `metrics.jsonl`, a line for each logged step, and `samples.md`."""

import json
import re
from pathlib import Path
from typing import Any

from rung import model_files
from rung.files import to_json, write_atomically
from rung.model_files import METRICS

SAMPLES = "samples.md"


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(to_json(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`, and skip a line that a crash cut short."""
    path = folder / METRICS
    if not path.exists():
        return []
    model_files.check_inside(folder, path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def rewind_logs(folder: Path, step: int, *, evaluate: bool) -> None:
    """Drop the metrics and samples after `step`, because training writes them again.

    With `evaluate`, the evaluation at `step` is dropped too.
    """
    kept = [
        line
        for line in read_metrics(folder)
        if line["step"] < step + (not evaluate or "bits_per_byte" not in line)
    ]
    write_atomically(folder / METRICS, "".join(to_json(line) + "\n" for line in kept))
    if (folder / SAMPLES).exists():
        text = (folder / SAMPLES).read_text(encoding="utf-8", errors="ignore")
        parts = re.split(r"^(?=## Step \d)", text, flags=re.MULTILINE)
        kept_parts = [part for part in parts if _step_of_sample(part) < step + (not evaluate)]
        write_atomically(folder / SAMPLES, "".join(kept_parts))


def _step_of_sample(part: str) -> int:
    found = re.match(r"## Step (\d+)", part)
    return int(found[1]) if found else 0
