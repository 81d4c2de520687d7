"""C sources are compiled once, kept, and done without where they cannot be; no other user's library
is run.
"""

import ctypes
import os
import shutil
import stat
import threading
import weakref

import pytest
import torch

from rung import compiler

pytestmark = pytest.mark.conditions


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "half.c"
    path.write_text("int half(int x) { return x / 2; }")
    compiler.compile_source.cache_clear()
    yield path
    compiler.compile_source.cache_clear()


@pytest.fixture
def compiling(monkeypatch):
    """How often a compiler was called, and for which file."""
    calls, run = [], compiler._run
    monkeypatch.setattr(compiler, "_run", lambda *args: calls.append(args[-1]) or run(*args))
    return calls


def load_again(source):
    compiler.compile_source.cache_clear()
    return compiler.compile_source(source).half(8)


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "native").glob("half-*/half.so"))


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, compiler.COMPILERS)), reason="there is no C compiler on this machine"
)


@needs_compiler
def test_a_source_is_compiled_once(source, tmp_path, monkeypatch):
    assert compiler.compile_source(source).half(8) == 4
    assert len(kept(tmp_path)) == 1
    monkeypatch.setattr(compiler, "COMPILERS", ())
    assert load_again(source) == 4


@needs_compiler
def test_another_source_is_another_library(source):
    assert compiler.compile_source(source).half(8) == 4
    source.write_text("int half(int x) { return x / 2 + 1; }")
    assert load_again(source) == 5


def test_what_cannot_be_compiled_is_done_without(source, tmp_path):
    source.write_text("this is no C")
    assert compiler.compile_source(source) is None
    assert not list((tmp_path / "cache" / "native").rglob("*.so"))


@needs_compiler
def test_the_library_of_another_processor_is_not_loaded(source, tmp_path, monkeypatch):
    """A cache that machines share: what one compiled for its instructions is nothing that the other
    has to know.
    """
    for flags in ("flags : avx2 avx512f", "flags : avx2"):
        monkeypatch.setattr(compiler, "_processor", lambda flags=flags: flags)
        assert load_again(source) == 4
    assert len(kept(tmp_path)) == 2


@needs_compiler
def test_threads_at_first_use_all_get_the_library(source, compiling):
    """Once, two of them wrote one file, and both did without for as long as the process lived."""
    found, together = [], threading.Barrier(4)

    def load():
        together.wait()
        found.append(compiler.compile_source(source))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [library and library.half(8) for library in found] == [4] * 4
    assert len(compiling) == 1


@needs_compiler
@pytest.mark.parametrize(
    "damage", [lambda code: code[:2000], lambda code: code[:-64] + bytes(64), lambda code: b""]
)
def test_a_damaged_library_is_made_again(damage, source, tmp_path, compiling):
    """A library that is cut short is mapped into memory, and its first use ends the process with
    SIGBUS.
    """
    assert compiler.compile_source(source).half(8) == 4
    (library,) = kept(tmp_path)
    whole = library.read_bytes()
    away = library.with_name("loaded.so")
    library.rename(away)  # what this process has mapped stays whole
    library.write_bytes(damage(whole))
    assert load_again(source) == 4
    assert library.stat().st_size == len(whole) and len(compiling) == 2


@needs_compiler
@pytest.mark.parametrize("place", ["cache", "native", "entry", "api"])
@pytest.mark.parametrize("doubt", ["everyone's", "another's"])
def test_what_others_can_write_is_not_run(
    place, doubt, source, tmp_path, compiling, monkeypatch, caplog
):
    assert compiler.compile_source(source).half(8) == 4
    (library,) = kept(tmp_path)
    path = {
        "api": library,
        "entry": library.parent,
        "native": library.parents[1],
        "cache": library.parents[2],
    }[place]
    if doubt == "everyone's":
        path.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    before = library.stat().st_mtime_ns
    assert load_again(source) == 4
    assert library.stat().st_mtime_ns == before
    assert len(compiling) == 2 and not compiling[-1].is_relative_to(
        tmp_path
    )  # for this process alone
    assert not compiling[-1].exists()
    assert "compiled for this process alone" in caplog.text


@needs_compiler
def test_what_is_kept_is_not_for_others_to_write(source, tmp_path):
    before = os.umask(0o022)
    try:
        compiler.compile_source(source)
    finally:
        os.umask(before)
    found = [*(tmp_path / "cache").rglob("*"), tmp_path / "cache"]
    assert not [path for path in found if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)]


@needs_compiler
def test_a_cache_that_cannot_be_written_to_costs_no_library(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "file" / "cache"))
    assert compiler.compile_source(source).half(8) == 4


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (torch.zeros(4, 6), (4, 5)),
        (torch.zeros(4, 6), (24,)),
        (torch.zeros(4, 6, dtype=torch.float64), (4, 6)),
        (torch.zeros(6, 4).T, (4, 6)),
        (torch.zeros(4, 1).expand(4, 6), (4, 6)),
        (torch.zeros(4, 6, device="meta"), (4, 6)),
    ],
)
def test_a_tensor_that_c_would_read_wrong_is_refused(tensor, shape):
    with pytest.raises(
        ValueError, match="a tensor for C is .* of torch.float.* on .*: it must be .* on the CPU"
    ):
        compiler.Address(tensor, shape, torch.float32)


@needs_compiler
def test_a_tensor_lives_as_long_as_its_address(source):
    source.write_text(
        "int total(const long *of, int count) { int t = 0; while (count--) t += of[count]; return "
        "t; }"
    )
    total = compiler.compile_source(source).total
    total.argtypes = [ctypes.c_void_p, ctypes.c_int]
    tensor = torch.arange(1000)[::2]
    alive = weakref.ref(copy := tensor.contiguous())
    address = compiler.Address(copy, (500,), torch.int64)
    del copy
    assert alive() is not None
    assert total(address, 500) == tensor.sum()
    del address
    assert alive() is None
