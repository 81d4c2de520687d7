"""A record that fits is read as it is, and of one that does not the first misfit is named."""

import pytest

from rung.runs.schema import find_schema_error


def test_any_part_may_be_missing_and_what_is_not_known_may_be_anything():
    assert find_schema_error({}) is None
    assert (
        find_schema_error({"rung": "gpt2", "scores": {}, "new": [1], "scores_of": {"a": object()}})
        is None
    )
    assert (
        find_schema_error(
            {"scores": {"test": {"bits_per_byte": None, "new": "x"}}, "recipe": {"corpus": 5}}
        )
        is None
    )


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (5, {}, "it is 5, and must be a mapping"),
        ({"a": {"b": 1}}, {"a": {"b": (str,)}}, "a.b is 1, and must be a text"),
        ({"a": [1, "b"]}, {"a": [(int,)]}, "a[1] is 'b', and must be a number"),
        ({"a": 1}, {"a": [(int,)]}, "a is 1, and must be a list"),
        ({"a": [["b"]]}, {"a": [((str,), (int,))]}, "a[0] is ['b'], and must be a list of 2"),
        ({"a": [["b", "c"]]}, {"a": [((str,), (int,))]}, "a[0][1] is 'c', and must be a number"),
        ({"a": 1, "b": "x"}, {"*": (int,)}, "b is 'x', and must be a number"),
        ({"a": 5}, {"a": {}}, "a is 5, and must be a mapping"),
        ({"a": "x" * 99}, {"a": (bool,)}, f"a is '{'x' * 39}, and must be true or false"),
    ],
)
def test_the_first_misfit_is_named(value, kind, said):
    assert find_schema_error(value, kind) == said
