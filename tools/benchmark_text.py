"""Write the splits of a corpus as .txt into a folder, for the benchmarks that read files.

python tools/benchmark_text.py FOLDER [CORPUS]      # python-source, if no corpus is named
"""

import sys
from pathlib import Path

from rung.data.corpus import load_corpus
from rung.data.store import SPLITS


def main() -> None:
    """Write FOLDER/train/text.txt and the same of the other splits."""
    folder, corpus = Path(sys.argv[1]), load_corpus(*(sys.argv[2:] or ["python-source"]))
    for name in SPLITS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(corpus.split(name)["text"])
        (folder / name / "text.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
