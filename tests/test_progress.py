"""Progress: what whoever draws a bar is told, and no more."""

from rung.progress import Stage


def test_what_nobody_knows_is_none():
    stage = Stage(name="reading")
    assert (stage.done, stage.total, stage.note, stage.seconds_left) == (0, None, "", None)
