"""Preferences read and split, and the loss that learns from them."""

import copy
import itertools
import json

import pytest
import torch

from rung.chat.dpo import (
    Preference,
    dpo_loss,
    filter_by_length,
    read_preferences,
    split_preferences,
)
from rung.chat.template import LLAMA3_FORMAT, set_up_chat_format
from rung.errors import CorpusError


def answered(role, content):
    return {"role": role, "content": content}


def test_some_preferences_are_learned_and_some_asked(tmp_path):
    pairs = [Preference(prompt=[], chosen=str(i), rejected="no") for i in range(200)]
    for some in (pairs, *itertools.pairwise(pairs)):
        learned, asked = split_preferences(some)
        assert learned and asked and sorted([*learned, *asked], key=str) == sorted(some, key=str)
    line = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (tmp_path / "same.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(CorpusError, match="1 different preferences"):
        read_preferences(tmp_path / "same.jsonl")
    (tmp_path / "half.jsonl").write_text(line.replace('"b"', '"\\ud83d"'))
    with pytest.raises(CorpusError, match="half a character"):
        read_preferences(tmp_path / "half.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {
            "prompt": [answered("user", [{"type": "text", "text": "a"}])],
            "chosen": "b",
            "rejected": "c",
        },
        {
            "prompt": "a",
            "chosen": [answered("assistant", [{"type": "text", "text": "b"}])],
            "rejected": "c",
        },
        {
            "prompt": "a",
            "chosen": [answered("user", "a"), answered("assistant", "b")],
            "rejected": [answered("user", "a"), answered("assistant", "c")],
        },
        {
            "chosen": [answered("user", "a"), answered("assistant", "b")],
            "rejected": [answered("user", "a"), answered("assistant", "c")],
        },
    ],
    ids=str,
)
def test_preferences_are_read_in_every_form(row, tmp_path):
    other = {"prompt": "a", "chosen": "d", "rejected": "e"}
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    wanted = Preference(prompt=[answered("user", "a")], chosen="b", rejected="c")
    assert read_preferences(tmp_path / "x.jsonl")[0] == wanted


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": [answered("system", None), answered("user", "a")],
            "chosen": "b",
            "rejected": "c",
        },
        {"prompt": "a", "chosen": [answered("assistant", None)], "rejected": "c"},
        {"prompt": "a", "chosen": None, "rejected": "c"},
        {"prompt": "a", "chosen": "b"},
        {"chosen": "b", "rejected": "c"},
        {
            "prompt": "a",
            "chosen": [answered("assistant", "b"), answered("user", "b")],
            "rejected": "c",
        },
        ["a", "b", "c"],
    ],
    ids=str,
)
def test_what_is_no_preference_is_refused_by_its_place(row, tmp_path):
    (tmp_path / "x.jsonl").write_text(
        f'{{"prompt": "a", "chosen": "b", "rejected": "c"}}\n{json.dumps(row)}\n'
    )
    with pytest.raises(CorpusError, match="x.jsonl, preference 2: "):
        read_preferences(tmp_path / "x.jsonl")


def test_pairs_of_equal_answers_are_left_out(tmp_path, caplog):
    rows = [
        {"prompt": f"What is {x}?", "chosen": x, "rejected": "no" if x in "ab" else x}
        for x in "abcd"
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [pair.chosen for pair in read_preferences(tmp_path / "x.jsonl")] == ["a", "b"]
    assert "2 preferences are left out: `chosen` and `rejected` are the same answer" in caplog.text
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows[1:])))
    with pytest.raises(CorpusError, match="1 different preferences"):
        read_preferences(tmp_path / "x.jsonl")


def test_preferences_beyond_the_window_are_left_out_or_refused(tokenizer, make_tiny, caplog):
    tokenizer, model = copy.deepcopy(tokenizer), copy.deepcopy(make_tiny("llama3"))
    set_up_chat_format(model, tokenizer, LLAMA3_FORMAT)

    def prefer(asked, chosen):
        return Preference(prompt=[answered("user", asked)], chosen=chosen, rejected="no")

    short, other, cut, long = (
        prefer(*p) for p in (("a", "b"), ("a", "c"), ("a", "cat " * 99), ("cat " * 99, "b"))
    )
    assert filter_by_length(tokenizer, [short, long, cut, other], 64) == [short, cut, other]
    assert "1 preferences are left out: an answer begins beyond 64 tokens" in caplog.text
    assert "1 preferences are cut off after 64 tokens, 1 of them on one side" in caplog.text
    with pytest.raises(CorpusError, match="begin within the 64 tokens that the model looks at"):
        filter_by_length(tokenizer, [long, prefer("dog " * 99, "b")], 64)


def test_the_loss_of_preferences_is_that_of_the_paper():
    scores, reference = (
        torch.tensor([[-3.0, -2.0], [-1.0, -4.0]]),
        torch.tensor([[-4.0, -2.5], [-1.0, -3.0]]),
    )
    gained = [(-3 + 4) - (-2 + 2.5), (-1 + 1) - (-4 + 3)]
    expected = -sum(torch.log(torch.sigmoid(torch.tensor(0.1 * g))) for g in gained) / 2
    torch.testing.assert_close(dpo_loss(scores, reference, 0.1), expected)
    assert dpo_loss(reference, reference, 0.1).item() == pytest.approx(0.6931, abs=1e-4)
