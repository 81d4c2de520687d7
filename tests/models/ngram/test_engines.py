"""Counting beyond memory: every engine finds what sorting in memory finds."""

import shutil
from pathlib import Path

import numpy
import pytest
import torch

from rung.errors import RecipeError, RunError
from rung.models.ngram import counting_settings, engines
from rung.models.ngram.counting import count_ngrams
from rung.models.ngram.counting_settings import CountingSettings
from rung.models.ngram.engines import choose_count_function
from rung.models.ngram.model import NgramConfig, NgramForCausalLM

FIELDS = ("tokens", "parents", "counts", "suffixes", "opens")
needs_spark = pytest.mark.skipif(
    shutil.which("java") is None, reason="Spark needs Java 17, which is not installed"
)
ENGINES = ["duckdb", pytest.param("spark", marks=[needs_spark, pytest.mark.slow])]


@pytest.fixture(autouse=True)
def installed(request):
    """Skip where the engine's package, an optional one, is missing."""
    name = request.node.callspec.params.get("engine") if hasattr(request.node, "callspec") else None
    if name in counting_settings.PACKAGES:
        module, extra = counting_settings.PACKAGES[name]
        pytest.importorskip(
            module, reason=f"{module} is not installed: pip install 'rung[{extra}]'"
        )
        pytest.importorskip("ibis", reason=f"ibis is not installed: pip install 'rung[{extra}]'")


def make_row(documents):
    """Ids with 0 opening and 1 ending every document, and where each begins."""
    rows = [[0, *words, 1] for words in documents]
    return numpy.concatenate(rows).astype(numpy.uint16), numpy.cumsum(
        [0] + [len(row) for row in rows[:-1]]
    )


def counter(engine, folder, memory="1GB"):
    return choose_count_function(
        CountingSettings(engine=engine, memory=memory), folder / "counting"
    )


def random_documents(seed, count=40):
    generator = numpy.random.default_rng(seed)
    return [generator.integers(3, 9, generator.integers(0, 12)).tolist() for _ in range(count)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_finds_the_same_levels(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "ROWS_AT_ONCE", 32)  # pieces that cut documents and families
    tokens, starts = make_row(random_documents(0))
    expected = list(count_ngrams(tokens, starts, 5, 9))
    found = list(counter(engine, tmp_path)(tokens, starts, 5, 9))
    assert len(found) == len(expected)
    for level, other in zip(found, expected, strict=True):
        for name in FIELDS:
            assert numpy.array_equal(getattr(level, name), getattr(other, name)), name
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_same_model(engine, tmp_path):
    tokens, starts = make_row(random_documents(1, count=200))
    settings = {
        "vocab_size": 9,
        "order": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    expected = NgramForCausalLM.fit(NgramConfig(**settings), tokens, starts).state_dict()
    found = NgramForCausalLM.fit(
        NgramConfig(**settings), tokens, starts, counter(engine, tmp_path)
    ).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("engine", ["duckdb"])
def test_an_order_longer_than_every_document_ends_early(engine, tmp_path):
    tokens, starts = make_row([[], [3], []])
    assert len(list(counter(engine, tmp_path)(tokens, starts, 7, 9))) == 3


@pytest.mark.parametrize("engine", ["duckdb"])
def test_an_engine_that_fails_is_one_clear_line(engine, tmp_path, monkeypatch):
    monkeypatch.setitem(counting_settings.MIN_ENGINE_BYTES, engine, 2 * counting_settings.MB)
    monkeypatch.setattr(counting_settings, "process_memory", lambda: 400 * counting_settings.MB)
    generator = numpy.random.default_rng(0)
    tokens, starts = make_row([generator.integers(3, 5000, 300_000).tolist()])
    with pytest.raises(
        RunError, match="duckdb could not count .* more memory, as in --set counting.memory=2GB"
    ):
        list(counter(engine, tmp_path, memory="2MB")(tokens, starts, 5, 5000))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["duckdb"])
def test_ctrl_c_in_an_engine_is_ctrl_c(engine, tmp_path, monkeypatch):
    from ibis.backends.duckdb import Backend

    def interrupt(*_, **__):
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr(Backend, "to_parquet", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(counter(engine, tmp_path)(*make_row([[3, 4]]), 3, 9))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_full_disk_is_one_clear_line(engine, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines.parquet, "write_table", refuse)
    with pytest.raises(RunError, match="No space left on device.*make room there"):
        list(counter(engine, tmp_path)(*make_row([[3, 4]]), 3, 9))


@pytest.mark.parametrize("engine", ["duckdb"])
def test_what_a_killed_try_left_is_cleared(engine, tmp_path):
    (tmp_path / "counting" / "order-2").mkdir(parents=True)
    (tmp_path / "counting" / "order-2" / "all.parquet").write_text("half")
    assert len(list(counter(engine, tmp_path)(*make_row([[3, 4]]), 3, 9))) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "duckd"}, "unknown engine 'duckd': did you mean 'duckdb'"),
        ({"engine": "numpy", "memory": "2GB"}, "numpy counts in as much as it needs"),
        ({"memory": "lots"}, "memory is 'lots'"),
        ({"memory": "-1GB"}, "memory is '-1GB'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    with pytest.raises(RecipeError, match=message):
        CountingSettings(**settings)


def test_an_engine_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'rung\[spark\]'"):
        CountingSettings(engine="spark")


def test_memory_alone_means_duckdb():
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    assert CountingSettings(memory="300MB").engine == "duckdb"
    assert choose_count_function(CountingSettings(engine="numpy"), Path()) is count_ngrams


@pytest.mark.parametrize("engine", ["duckdb"])
def test_it_uses_the_cores_that_the_process_may_use(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "count_cores", lambda: 3)
    with engines._connect(CountingSettings(engine=engine), tmp_path) as connection:
        assert connection.raw_sql("select current_setting('threads')").fetchone() == (3,)


def test_the_memory_is_that_of_the_process(monkeypatch):
    """Python and torch had 0.4 GB beside the 2 GB that DuckDB was given."""
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    monkeypatch.setattr(counting_settings, "process_memory", lambda: 400 * counting_settings.MB)
    assert CountingSettings(memory="2GB").engine_bytes == (2000 - 400 - 150) * counting_settings.MB
    with pytest.raises(
        RecipeError, match="memory is 512MB: .* take 400 MB of it, duckdb 278 MB .* 700MB suffices"
    ):
        CountingSettings(memory="512MB").check_memory()
    CountingSettings(memory="700MB").check_memory()
    CountingSettings(engine="numpy").check_memory()
    told = CountingSettings(memory="2GB").describe(1_000_000, 5)
    assert (
        "1,000,000 tokens in 2GB of memory, 1.45 GB of it for the engine" in told
        and "4,000,000 n-grams" in told
    )
    assert told.endswith("has at most 2.00 GB, and 0.12 GB of files mapped into memory")
    assert "has at most 2.96 GB" in CountingSettings(memory="2GB").describe(
        10_000_000, 5
    )  # as the model is built


def test_a_large_process_may_count_where_no_memory_is_named(monkeypatch):
    pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'rung[scale]'")
    monkeypatch.setattr(counting_settings, "process_memory", lambda: 9000 * counting_settings.MB)
    settings = CountingSettings(engine="duckdb")
    settings.check_memory()
    assert settings.engine_bytes == counting_settings.MIN_ENGINE_BYTES["duckdb"]
    with pytest.raises(RecipeError, match="memory is 2GB: .* take 9000 MB"):
        CountingSettings(memory="2GB").check_memory()


@pytest.mark.parametrize(("engine", "size"), [("numpy", 200_000), ("duckdb", 50_000)])
def test_a_fit_has_no_more_memory_than_was_said(engine, size, tmp_path, watch_memory):
    """Counting, building, and the files that are mapped; a process that has freed memory before
    grows by less.
    """
    generator = numpy.random.default_rng(0)
    tokens, starts = make_row(generator.integers(3, 5000, (size // 100, 100)).tolist())
    least = CountingSettings(engine="numpy").min_memory_bytes(engine) if engine != "numpy" else None
    counting = CountingSettings(
        engine=engine, memory=least and f"{least // counting_settings.MB + 50}MB"
    )
    config = NgramConfig(vocab_size=5000, order=4, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    next(
        counter("duckdb", tmp_path)(*make_row([[3]]), 3, 9)
    ) if least else None  # its library is there
    grown, ngrams = watch_memory(), 3 * len(tokens)
    said = (
        counting.estimate_peak_bytes(ngrams)
        - counting_settings.process_memory()
        + bool(least) * counting_settings.MAPPED_BYTES_PER_NGRAM * ngrams
    )
    NgramForCausalLM.fit(
        config, tokens, starts, choose_count_function(counting, tmp_path / "counting")
    )
    assert grown() < said


@pytest.mark.parametrize("engine", ["duckdb"])
def test_what_an_engine_writes_lies_where_temporary_files_do(engine, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    run, other = tmp_path / "run", tmp_path / "other"
    place = CountingSettings(engine=engine).scratch_folder(run)
    assert place.parent == tmp_path / "temporary"
    assert (
        place
        == CountingSettings(engine=engine).scratch_folder(run)
        != CountingSettings(engine=engine).scratch_folder(other)
    )
    named = CountingSettings(engine=engine, folder=str(tmp_path / "named"))
    assert named.scratch_folder(run).parent == tmp_path / "named"
    counter = choose_count_function(named, named.scratch_folder(run))
    levels = counter(*make_row([[3, 4]]), 3, 9)
    next(levels)
    assert named.scratch_folder(run).stat().st_mode & 0o77 == 0
    assert len(list(levels)) == 2
    assert not list((tmp_path / "named").iterdir())
    assert not run.exists()
