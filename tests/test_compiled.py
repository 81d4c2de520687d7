"""C sources are compiled once, kept, and done without where they cannot be."""

import shutil

import pytest

from rung import compiled

pytestmark = pytest.mark.conditions


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "half.c"
    path.write_text("int half(int x) { return x / 2; }")
    compiled.compile_source.cache_clear()
    yield path
    compiled.compile_source.cache_clear()


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiled.COMPILERS)), reason="there is no C compiler on this machine"
)


@needs_compiler
def test_a_source_is_compiled_once(source, tmp_path, monkeypatch):
    assert compiled.compile_source(source).half(8) == 4
    kept = list((tmp_path / "cache" / "native").iterdir())
    assert len(kept) == 1
    compiled.compile_source.cache_clear()
    monkeypatch.setattr(compiled, "COMPILERS", ())
    assert compiled.compile_source(source).half(8) == 4


@needs_compiler
def test_another_source_is_another_library(source):
    assert compiled.compile_source(source).half(8) == 4
    source.write_text("int half(int x) { return x / 2 + 1; }")
    compiled.compile_source.cache_clear()
    assert compiled.compile_source(source).half(8) == 5


def test_what_cannot_be_compiled_is_done_without(source, tmp_path):
    source.write_text("this is no C")
    assert compiled.compile_source(source) is None
    assert not [path for path in (tmp_path / "cache" / "native").iterdir() if path.suffix == ".so"]


@needs_compiler
def test_the_library_of_another_processor_is_not_loaded(source, tmp_path, monkeypatch):
    """A cache that machines share: what one compiled for its instructions is nothing that the other has to know."""
    for flags in ("flags : avx2 avx512f", "flags : avx2"):
        monkeypatch.setattr(compiled, "_processor", lambda flags=flags: flags)
        compiled.compile_source.cache_clear()
        assert compiled.compile_source(source).half(8) == 4
    assert len(list((tmp_path / "cache" / "native").iterdir())) == 2
