"""Counting that is cut short goes on with the order that is missing, and its model is the same to
the last byte.
"""

import shutil

import numpy
import pytest

from rung import runs
from rung.models.ngram import counting_settings, engines, windows
from rung.models.ngram.checkpoints import FACTS_FILE, OrderCheckpoints
from rung.models.ngram.counting import count_ngrams
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.ngram.engines import choose_count_function
from rung.recipe import make_recipe
from rung.workflows.run_folder import read_begun
from rung.workflows.train import execute

needs_spark = pytest.mark.skipif(
    shutil.which("java") is None, reason="Spark needs Java 17, which is not installed"
)
ENGINES = [
    "numpy",
    "duckdb",
    pytest.param("spark", marks=[needs_spark, pytest.mark.slow]),
]  # it starts for long
FACTS = {"text": "a", "order": 4}
ORDER, WORDS = 4, 9


@pytest.fixture(autouse=True)
def installed(request):
    """Skip where the engine's package, an optional one, is missing."""
    name = request.node.callspec.params.get("engine") if hasattr(request.node, "callspec") else None
    packages = counting_settings.PACKAGES
    for module in (
        (counting_settings.PACKAGES[name][0], "ibis") if name in counting_settings.PACKAGES else ()
    ):
        pytest.importorskip(
            module,
            reason=f"{module} is not installed: pip install 'rung[{packages[name][1]}]'",
        )


@pytest.fixture(scope="module")
def row():
    """Documents of 0 to 11 words as token ids, and where each begins."""
    generator = numpy.random.default_rng(0)
    documents = [
        [0, *generator.integers(3, WORDS, generator.integers(0, 12)), 1] for _ in range(40)
    ]
    return numpy.concatenate(documents).astype(numpy.uint16), numpy.cumsum(
        [0, *map(len, documents[:-1])]
    )


@pytest.fixture
def counted(monkeypatch):
    """An entry for every order that is really counted."""
    orders = []
    places = (windows.SortedWindows, "extend"), (windows.KeyedWindows, "extend"), (engines, "_run")
    for place, name in places:
        real = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *args, real=real: (orders.append(args), real(*args))[1]
        )
    return orders


def count(engine, folder, row, facts=FACTS):
    """The levels of the row, one by one, with what is kept in the folder."""
    checkpoints = OrderCheckpoints(folder / "kept", facts)
    counter = choose_count_function(
        CountingSettings(engine=engine), folder / "scratch", checkpoints
    )
    return counter(*row, ORDER, WORDS)


def assert_same(levels, others):
    assert len(levels) == len(others)
    for level, other in zip(levels, others, strict=True):
        for name, array in vars(level).items():
            assert numpy.array_equal(array, getattr(other, name)), name


@pytest.mark.parametrize("engine", ["numpy", "duckdb"])
def test_orders_that_are_kept_are_not_counted_again(engine, row, tmp_path, counted):
    levels = count(engine, tmp_path, row)
    for _ in range(3):
        next(levels)
    levels.close()
    assert sorted(path.name for path in tmp_path.rglob("order-*")) == ["order-2", "order-3"]
    expected = list(count_ngrams(*row, ORDER, WORDS))
    for missing in (1, 0):
        counted.clear()
        assert_same(list(count(engine, tmp_path, row)), expected)
        assert len(counted) == missing
    assert not (tmp_path / "scratch").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit": lambda order: flip(order / "counts.npy"),
    "a file": lambda order: (order / "tokens.npy").unlink(),
    "half a file": lambda order: (order / "parents.npy").write_bytes(
        (order / "parents.npy").read_bytes()[:150]
    ),
    "the manifest": lambda order: (order / "manifest.json").write_text('{"tok'),
    "what it is": lambda order: (order / FACTS_FILE).write_text("{}"),
    "all of it": shutil.rmtree,
}


@pytest.mark.parametrize(
    ("engine", "damage"),
    [*(("numpy", name) for name in DAMAGE), ("duckdb", "a bit"), ("duckdb", "all of it")],
)
def test_what_is_damaged_is_counted_again_and_said(engine, damage, row, tmp_path, counted, caplog):
    expected = list(count(engine, tmp_path, row))
    DAMAGE[damage](tmp_path / "kept" / "order-3")
    counted.clear()
    levels = list(count(engine, tmp_path, row))
    assert len(counted) == 2
    assert ("order-3 is damaged (" in caplog.text) is (damage != "all of it")
    assert_same(levels, expected)
    assert OrderCheckpoints(tmp_path / "kept", FACTS).highest == ORDER


@pytest.mark.parametrize("engine", ["numpy", "duckdb"])
def test_the_orders_of_another_count_are_not_used(engine, row, tmp_path, counted, caplog):
    list(count(engine, tmp_path, row))
    counted.clear()
    other = row[0][::-1].copy(), row[1]
    expected = list(count_ngrams(*other, ORDER, WORDS))
    counted.clear()
    assert_same(list(count(engine, tmp_path, other, FACTS | {"text": "b"})), expected)
    assert len(counted) == 3
    assert "order-2 is of another text, or of other settings: counting it again" in caplog.text


def test_what_cannot_be_kept_is_said_and_counted_on(row, tmp_path, counted, caplog, monkeypatch):
    def refuse(path, array):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(numpy, "save", refuse)
        assert_same(list(count("numpy", tmp_path, row)), list(count_ngrams(*row, ORDER, WORDS)))
    place = str(tmp_path / "kept" / "order-2")
    message = f"order 2 cannot be saved ([Errno 28] No space left on device: {place!r}): counting"
    assert caplog.text.count(message) == 1
    assert "order 3" not in caplog.text  # it would be of no use without the one below
    assert not list((tmp_path / "kept").iterdir())


def test_only_what_takes_long_is_kept():
    assert [CountingSettings().keeps_checkpoints(tokens) for tokens in (9_999_999, 10_000_000)] == [
        False,
        True,
    ]
    for engine, tokens in (("duckdb", 2_000_000), ("spark", 1_000_000)):
        pytest.importorskip(
            counting_settings.PACKAGES[engine][0], reason=f"{engine} is not installed"
        )
        assert [
            CountingSettings(engine=engine).keeps_checkpoints(n) for n in (tokens - 1, tokens)
        ] == [
            False,
            True,
        ]


@pytest.fixture(scope="module")
def text(tmp_path_factory, prose):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(prose)
    return path


@pytest.fixture(scope="module")
def whole(text):
    """A run that nobody stopped, with nothing kept."""
    assert execute(make_page(text, "numpy"), text.parent / "whole")
    return text.parent / "whole"


@pytest.fixture
def small(monkeypatch):
    """A small text's orders are kept, too."""
    monkeypatch.setattr(counting_settings, "MIN_CHECKPOINT_SECONDS", 0.0)


def make_page(text, engine):
    return make_recipe(
        {
            "rung": "ngram",
            "corpus": str(text),
            "model": {"order": ORDER},
            "counting": {"engine": engine},
        }
    )


def stop_after(order):
    """A progress hook that is Ctrl-C once that order is counted."""

    def on_progress(stage):
        if stage.stage == "counting" and stage.note.startswith(f"order {order} of"):
            raise KeyboardInterrupt

    return on_progress


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_stopped_while_it_counted_is_the_same_run(
    engine, text, whole, tmp_path, small, counted
):
    run, told = tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt) as stopped:
        execute(make_page(text, engine), run, stop_after(2))
    assert stopped.value.__notes__[0].startswith(
        f"what was made so far is kept: go on with `rung train --out {run}"
    )
    assert [path.name for path in (run / runs.CHECKPOINTS).iterdir()] == ["order-2"]
    counted.clear()
    assert execute(read_begun(run), run, told.append)
    assert len(counted) == 2
    assert "orders 1 to 2 are kept, going on with 3" in [
        stage.note for stage in told if stage.stage == "noted"
    ]
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in run.iterdir()) == names  # and no checkpoints
    for name in (name for name in names if name != runs.RECORD):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert (
        runs.read_record(run)["scores"]["test"]["nats"]
        == runs.read_record(whole)["scores"]["test"]["nats"]
    )


def test_a_run_that_was_stopped_while_it_was_scored_counts_nothing_again(
    text, tmp_path, small, counted, monkeypatch
):
    run, told = tmp_path / "run", []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            "rung.workflows.train.score_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        execute(make_page(text, "numpy"), run)
    counted.clear()
    assert execute(read_begun(run), run, told.append)
    assert not counted
    assert "orders 1 to 4 are kept" in [stage.note for stage in told]


def test_a_run_does_not_go_on_with_the_orders_of_another_text(
    text, tmp_path, small, counted, caplog
):
    run, changed = tmp_path / "run", tmp_path / "text.txt"
    changed.write_text(text.read_text())
    with pytest.raises(KeyboardInterrupt):
        execute(make_page(changed, "numpy"), run, stop_after(3))
    changed.write_text(changed.read_text() + "\n\nOne more paragraph.\n")
    counted.clear()
    assert execute(read_begun(run), run)
    assert len(counted) == 3
    assert "order-2 is of another text" in caplog.text
    assert not (run / runs.CHECKPOINTS).exists()


def test_a_small_count_keeps_nothing(text, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        execute(make_page(text, "numpy"), tmp_path / "run", stop_after(3))
    assert not list(tmp_path.iterdir())
