"""Documents as the ruler scores them."""

from dataclasses import replace

import pytest

from rung.evaluation.documents import TokenizedDocument, take_texts


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1, ["a"]), (3, ["abc"]), (4, ["abc"]), (5, ["abc", "de"]), (6, ["abc", "de", "f"])],
)
def test_the_first_texts_up_to_a_limit(limit, kept):
    assert take_texts(iter(["abc", "de", "f"]), limit) == kept
    assert take_texts([], limit) == []


def test_documents_are_copies_where_tokens_and_what_is_spelled_are_the_same():
    document = TokenizedDocument([1, 2], 3, 1, ["a"], ["b"], ())
    assert document.key == replace(document, bytes=9, words=9, lost=("case",)).key
    others = (
        {"ids": [1, 3]},
        {"unknown": ["b"]},
        {"dropped": ["a"]},
        {"unknown": ["b"], "dropped": ["a"]},
    )
    assert all(document.key != replace(document, **other).key for other in others)
