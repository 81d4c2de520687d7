"""The server held to what it says of itself: bodies made from /openapi.json, those that fit and
those that do not.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from rung import runs
from tests.conftest import examples

pytest.importorskip("fastapi", reason="needs the server's packages: pip install 'rung[serve]'")
httpx = pytest.importorskip("httpx", reason="asks the server: pip install httpx")
schemathesis = pytest.importorskip(
    "schemathesis", reason="makes the bodies: pip install schemathesis"
)

BODIES = int(os.environ.get("RUNG_BODIES", examples(30)))  # of each kind, to each address
SECONDS = 300  # for an answer
GROWTH = 6.0  # megabytes that the same bodies may add when they come again
NAMES = ("gpt2", "rnn-attention", "ngram")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
ADDRESSES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/api/next",
    "/api/surprisal",
    "/api/attention",
)
# A body may fit the schema and still ask for more than this server gives: more tokens, other ids.
CHECKS = {
    "positive_data_acceptance": {"enabled": False},
    "negative_data_rejection": {"expected-statuses": ["400", "404", "413"]},
}


class Child:
    """`rung serve` in a process of its own, whose memory is nobody else's."""

    def __init__(self, start: Callable, folder: Path) -> None:
        command = ("rung", "serve", folder, "--port", 0, "--max-tokens", 64)
        self.process = start(*command, stderr=subprocess.PIPE)
        head = "".join(self.process.stderr.readline() for _ in range(4))
        self.url = re.search(r"Open +(\S+)", head)[1]

    def measure(self) -> float:
        """Megabytes of memory that it holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture(scope="module")
def child(make_tiny, tokenizer, tmp_path_factory, start_fork):
    """A server of some rungs, all of which chat."""
    folder, kept = tmp_path_factory.mktemp("runs"), tokenizer.chat_template
    tokenizer.chat_template = TEMPLATE
    for name in NAMES:
        made = runs.make_folder(folder / name)
        runs.save_model(made, make_tiny(name), tokenizer)
        runs.write_record(made, {"rung": name, "scores": {}})
    tokenizer.chat_template = kept
    child = Child(start_fork, folder)
    yield child
    child.process.kill()
    child.process.wait()


@pytest.fixture(scope="module")
def schema(child):
    """What the server says of itself; a model's name is one that it serves, or no body would come
    further.
    """
    said = httpx.get(f"{child.url}/openapi.json", timeout=SECONDS).json()
    assert set(ADDRESSES) == {address for address, ways in said["paths"].items() if "post" in ways}
    for part in said["components"]["schemas"].values():
        if "model" in part.get("required", ()):
            part["properties"]["model"] = {"type": "string", "enum": list(NAMES)}
    return schemathesis.openapi.from_dict(
        said, config=schemathesis.Config.from_dict({"checks": CHECKS})
    )


@pytest.mark.parametrize("kind", ["positive", "negative"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_any_body_is_answered_as_the_schema_says(address, kind, child, schema):
    asked = []

    @settings(max_examples=BODIES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(schema[address]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode(kind)))
    def ask(case):
        answer = case.call(base_url=child.url, timeout=SECONDS)
        case.validate_response(answer)
        assert answer.status_code < 500
        asked.append(case)

    ask()
    # What a body needs when it comes for the first time, as a part of a library, is there by now.
    before = child.measure()
    for case in asked:
        case.call(base_url=child.url, timeout=SECONDS)
    after = child.measure()
    print(
        f"{address:<22}{kind:<10}{len(asked):>6,} bodies {before:>7.1f} MB, again {after:>7.1f} MB"
    )
    assert after - before < GROWTH
    assert httpx.get(f"{child.url}/health", timeout=SECONDS).json() == {"status": "ok"}
