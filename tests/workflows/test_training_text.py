"""A run's own text: found where it lies now, and never scored as if it had not been seen."""

import json

import pytest

from rung import runs
from rung.errors import CorpusError, RecipeError, RunError
from rung.recipe import make_recipe
from rung.workflows.evaluate import ScoredText, evaluate_run
from rung.workflows.run_folder import read_begun
from rung.workflows.train import execute
from rung.workflows.training_text import describe_paths, locate_corpus, relocate_paths
from rung.workflows.variants import VariantOptions


@pytest.fixture
def place(tmp_path, prose, monkeypatch):
    """A folder with a text, typed as a relative path, and an n-gram run of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(prose)
    assert execute(make_recipe({"rung": "ngram", "corpus": "my.txt"}), tmp_path / "run")
    return tmp_path


def score(run, corpus="", split="test", **switches):
    return evaluate_run(str(run), ScoredText(corpus, split), variants=VariantOptions(**switches))


def test_the_training_text_is_never_scored_as_held_out(place, prose):
    """By its name, or under another: it was 0.713 where the test split gives 1.521."""
    own = score(place / "run")
    (place / "copy.txt").write_text(prose)
    for name in ("my.txt", str(place / "my.txt"), "copy.txt"):
        found = score(place / "run", name)
        assert (found["nats"], found["split"], found["bytes"]) == (
            own["nats"],
            "test",
            own["bytes"],
        )
    (place / "more.txt").write_text(prose + "\n\nAnd one more paragraph, of no great length.\n")
    with pytest.raises(RunError, match="was trained on .*% of more.txt"):
        score(place / "run", "more.txt")


def test_other_text_is_scored_whole_and_called_so(place, prose):
    from pydoc_data.topics import topics

    other = "\n\n".join(topics[name].strip() for name in sorted(topics))[60_000:80_000]
    (place / "other.txt").write_text(other)
    found = score(place / "run", "other.txt")
    assert (found["split"], found["bytes"]) == ("whole text", len(other.encode()))
    assert 0 <= found["seen_in_training"] < 0.1
    (place / "some.txt").write_text(other + "\n\n" + prose[:8000])
    assert 0.15 < score(place / "run", "some.txt")["seen_in_training"] < 0.5


def test_a_file_that_was_held_out_as_such_is_scored_whatever_it_has_in_common(tmp_path):
    """A validation file of few kinds of line, as of generated text, was refused by name and scored
    without one.
    """
    lines = [
        f"the {colour} {thing} went home"
        for colour in ("red", "grey", "blue")
        for thing in ("fox", "cat", "hen")
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines * 9))
    (tmp_path / "valid.txt").write_text("\n".join([*lines[::2], "the red owl went home"]))
    (tmp_path / "other.txt").write_text("\n".join([*lines[::2], "the grey owl went home"]))
    settings = {
        "rung": "ngram",
        "corpus": str(tmp_path),
        "documents": "lines",
        "tokenizer": {"kind": "word"},
    }
    execute(make_recipe(settings), tmp_path / "run")
    assert (
        score(tmp_path / "run", str(tmp_path / "valid.txt"))["nats"]
        == score(tmp_path / "run")["nats"]
    )
    with pytest.raises(RunError, match="was trained on .*% of other.txt"):
        score(tmp_path / "run", str(tmp_path / "other.txt"))


def test_a_run_mixed_in_must_not_have_seen_the_text_either(place, prose):
    execute(
        make_recipe(
            {"rung": "ngram", "corpus": "my.txt", "tokenizer": {"path": "run"}}, ["held_out=0"]
        ),
        place / "all",
    )
    with pytest.raises(RunError, match="all was trained on 100% of my.txt"):
        score(place / "run", mix=("ngram=all",))
    with pytest.raises(RunError, match="nothing|held_out is 0"):
        score(place / "all")


def test_the_text_is_found_from_another_folder_and_where_both_moved(place, monkeypatch):
    nats = score(place / "run")["nats"]
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert score(place / "run")["nats"] == nats
    for name in ("run", "my.txt"):
        (place / name).rename(place / "elsewhere" / name)
    assert score("run")["nats"] == nats
    record = runs.read_record(place / "elsewhere" / "run")
    assert record["recipe"]["corpus"] == "my.txt", "a recipe is shared"
    assert record["corpus"]["paths"] == [str(place / "my.txt")]
    monkeypatch.chdir(place)
    assert locate_corpus(place / "elsewhere" / "run", record) == str(place / "elsewhere" / "my.txt")
    (place / "elsewhere" / "my.txt").unlink()
    with pytest.raises(
        CorpusError, match="the text that .*run was trained on is not at .*my.txt: put it back"
    ):
        score(place / "elsewhere" / "run")


def test_what_is_named_is_found_again_from_another_folder(place, monkeypatch):
    """A base, a tokenizer's folder, conversations: as they were typed where that is the same."""
    (place / "elsewhere").mkdir()
    places = describe_paths(
        base="run", path="run", teacher="run,./run", data="python-qa", preference="", other=None
    )
    run = str(place / "run")
    assert places == {"base": run, "path": run, "teacher": f"{run},{run}"}
    typed = {"base": "run", "teacher": "run,./run", "data": "python-qa", "steps": 5}
    assert relocate_paths(typed, places) == typed
    monkeypatch.chdir(place / "elsewhere")
    assert relocate_paths(typed, places) == typed | {"base": run, "teacher": f"{run},{run}"}
    (place / "run").rename(place / "moved")
    assert relocate_paths(typed, places) == typed
    assert relocate_paths({"kind": "bpe"}, places) == {"kind": "bpe"}


def test_a_run_with_its_base_and_tokenizer_goes_on_from_another_folder(place, monkeypatch):
    few = {
        "corpus": "my.txt",
        "rung": "rnn",
        "steps": 2,
        "model": {"hidden_size": 32, "max_position_embeddings": 32},
    }
    few |= {"train": {"per_device_train_batch_size": 2}}
    execute(make_recipe(few | {"tokenizer": {"path": "run"}}), place / "base")
    execute(make_recipe(few | {"base": "base"}), place / "further")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    for name in ("base", "further"):
        record = runs.read_record(place / name)
        del record["scores"]  # as if it had been stopped
        runs.write_record(place / name, record)
        recipe = read_begun(place / name)
        assert recipe.corpus == str(place / "my.txt")
        assert recipe.tokenizer == {"path": str(place / ("base" if name == "further" else "run"))}
        assert recipe.base == (str(place / "base") if name == "further" else None)
        assert execute(recipe, place / name)


def test_another_column_of_the_training_text_is_other_text(tmp_path):
    """It was named, and the column that the run was trained on was scored."""
    rows = [
        {"text": f"the fox {n} went home", "title": f"Of owls, {n * n}, and hens"}
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    execute(
        make_recipe({"rung": "bigram", "corpus": str(tmp_path / "rows.jsonl")}), tmp_path / "run"
    )
    own, title = score(tmp_path / "run"), {"column": "title"}
    assert score(tmp_path / "run", str(tmp_path / "rows.jsonl"))["nats"] == own["nats"]
    found = evaluate_run(
        str(tmp_path / "run"), ScoredText(str(tmp_path / "rows.jsonl"), reading=title)
    )
    assert (found["split"], found["bytes"]) == (
        "whole text",
        sum(len(row["title"]) for row in rows),
    )


def test_documents_are_cut_in_plain_text_only(place):
    text = ScoredText("python-docs", reading={"documents": "lines"})
    with pytest.raises(RecipeError, match="python-docs has documents of its own"):
        evaluate_run(str(place / "run"), text)


def test_text_that_is_cut_otherwise_is_not_said_to_have_changed(place, caplog):
    found = evaluate_run(str(place / "run"), ScoredText(reading={"documents": "lines"}))
    assert found["documents"] > 1
    assert "has changed" not in caplog.text
