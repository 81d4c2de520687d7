"""Doubts: what a score says nothing of, and why."""

from rung.runs import describe_busy_machine, explain_doubtful_score, explain_doubtful_scores


def make_record(rung, bits, steps=1000, fingerprint="text"):
    return {
        "rung": rung,
        "training": {"steps": steps},
        "corpus": {"fingerprint": fingerprint},
        "scores": {"test": {"bits_per_byte": bits, "bytes": 100}},
    }


def test_too_few_steps_say_nothing_of_a_rung():
    assert explain_doubtful_score(make_record("gpt2", 2.0)) is None
    assert explain_doubtful_score(make_record("gpt2", 2.0, steps=1)).startswith("1 training step ")
    assert explain_doubtful_score(make_record("gpt2", 2.0, steps=19)).startswith(
        "19 training steps"
    )
    assert explain_doubtful_score(make_record("gpt2", 2.0, steps=19) | {"base": {}}) is not None
    assert explain_doubtful_score(make_record("gpt2", 2.0, 19) | {"base": {"path": "x"}}) is None


def test_what_is_worse_than_counting_pairs_is_doubted_on_the_same_text_only():
    records = [
        make_record("bigram", 3.0),
        make_record("gpt2", 3.5),
        make_record("gpt2", 2.5),
        make_record("gpt2", 3.5, fingerprint="other"),
        make_record("ngram", 3.5),
        make_record("gpt2", None),
        {"rung": "gpt2", "failed": "no memory"},
    ]
    found = explain_doubtful_scores(records)
    assert [reason is not None for reason in found] == [
        False,
        True,
        False,
        False,
        False,
        True,
        False,
    ]
    assert "counting pairs" in found[1]


def test_a_busy_machine_is_described_by_its_share():
    assert describe_busy_machine({}) is None
    training = {"was_busy": True, "cores": 2, "cpu_share": 0.5}
    assert describe_busy_machine({"training": training}).endswith("50% of 2 cores")
