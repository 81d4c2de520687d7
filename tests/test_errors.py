"""Messages: they name the nearest choice."""

from rung import errors
from rung.errors import RungError, did_you_mean


def test_the_tree_is_drawn_whole():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RungError)]
    assert all(c.__name__ in errors.__doc__ for c in classes)


def test_did_you_mean():
    assert did_you_mean("lama3", ["gpt2", "llama3"]) == "did you mean 'llama3'?"
    assert did_you_mean("zzz", ["gpt2", "llama3"]) == "choose from gpt2, llama3"


def test_of_many_choices_the_nearest_few_are_named_and_where_all_are():
    many = [f"field_{number}" for number in range(130)]
    said = did_you_mean("zzz", many, "all are the fields of X")
    assert said.startswith("the nearest of 130 are field_")
    assert said.endswith("; all are the fields of X")
    assert said.count(",") == 4


def test_a_setting_that_is_nothing_like_any_is_answered_in_a_line():
    import pytest

    from rung.errors import RecipeError
    from rung.recipe import make_recipe

    for override in ("qqqqqq=1", "model.qqqqqq=1", "train.qqqqqq=1"):
        with pytest.raises(
            RecipeError, match=r"the nearest of \d+ are .*(lists them|all are the fields of)"
        ) as caught:
            make_recipe({"rung": "llama3"}, [override])
        assert len(str(caught.value)) < 300
