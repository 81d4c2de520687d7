"""Messages: they name the nearest choice."""

from rung import errors
from rung.errors import RungError, did_you_mean


def test_the_tree_is_drawn_whole():
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RungError)]
    assert all(c.__name__ in errors.__doc__ for c in classes)


def test_did_you_mean():
    assert did_you_mean("lama3", ["gpt2", "llama3"]) == "did you mean 'llama3'?"
    assert did_you_mean("zzz", ["gpt2", "llama3"]) == "choose from gpt2, llama3"
