"""The table of docs/performance.md, and the benchmarks that wait for a machine to record them."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.docs.test_benchmarks import NOT_RECORDED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def performance(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("performance")


@pytest.fixture
def load_benchmark(monkeypatch):
    """A function that imports a script of `benchmarks/`, which may import its neighbours."""

    def load(name):
        path = ROOT / "benchmarks" / name
        monkeypatch.syspath_prepend(str(path.parent))
        described = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
        module = importlib.util.module_from_spec(described)
        described.loader.exec_module(module)
        return module

    yield load
    sys.modules.pop("serve", None)


def test_every_figure_is_found_or_waits_for_its_record(performance):
    for row in performance.ROWS:
        output = ROOT / row.output
        script = row.script or row.output.replace(".txt", ".py")
        drawn = performance.draw_row(row)
        if output.exists():
            printed = output.read_text(encoding="utf-8")
            figure = row.read(printed)
            assert figure and figure in drawn, f"{row.output} has no figure for {row.what!r}"
            assert f"| {performance.MACHINE.search(printed)[0]} |" in drawn
        elif (ROOT / script).exists():
            assert performance.NOT_RECORDED in drawn
            assert script in NOT_RECORDED
            assert f"`python {script}" in drawn
        else:
            assert drawn is None


def test_the_table_reads_what_the_busy_benchmark_prints(performance, load_benchmark, capsys):
    busy = load_benchmark("device/busy.py")
    assert [busy.fair_share(2, load, 2) for load in (0, 1, 2, 4)] == [1, 2 / 3, 0.5, 1 / 3]
    assert busy.fair_share(1, 1, 2) == 1
    found = {(0, False): [[1000, 2]], (0, True): [[600, 1]]}
    found |= {(2, False): [[360, 1]], (2, True): [[300, 1]]}
    assert busy.show("decoding, 1 text", found, 2)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[3:] == ["0", "2", "1,000", "100%", "100%", "1.67x"]
    # 360 of 600 tokens, where two thirds of a core are fair.
    assert performance.read_busy(printed) == (
        "90% of the fair share at least, 1.20x one thread at least"
    )
    assert busy.show(busy.MIDWAY, found | {(2, False): [[340, 1]]}, 2)
    printed += capsys.readouterr().out
    assert performance.read_busy(printed) == (
        "90% of the fair share at least, 1.20x one thread at least; 85% after they came midway"
    )
    found[2, False] = [[300, 1]]
    assert not busy.show("decoding, 1 text", found, 2)


def test_the_table_reads_what_the_benchmark_of_seeds_prints(performance, load_benchmark, capsys):
    seeds = load_benchmark("recipe/seeds.py")
    scores = {"bigram": {0: 2.7, 1: 2.7}, "rnn-attention": {0: 1.9, 1: 2.0}}
    scores["llama3"] = {0: 1.7, 1: 1.8}
    for machine in ("AVX2", "bfloat16"):
        seeds.show(("python-docs", f"2 cores of AMD EPYC, {machine}"), scores)
    printed = capsys.readouterr().out
    assert performance.MACHINE.search(printed)[0] == "2 cores of AMD EPYC, AVX2"
    assert performance.read_seeds(printed) == (
        "python-docs, 2 cores of AMD EPYC, AVX2: rnn-attention 1.950, llama3 1.750; "
        "python-docs, 2 cores of AMD EPYC, bfloat16: rnn-attention 1.950, llama3 1.750"
    )


def test_the_table_reads_what_the_benchmark_beside_llama_cpp_prints(
    performance, load_benchmark, capsys
):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    llama_cpp = load_benchmark("generation/llama_cpp.py")
    row = "124 M int8     Q8_0  batch {} prompt 16   decode"
    llama_cpp.show(row.format(1), [300, 60], [100, 50])
    llama_cpp.show(row.format(16), [300, 60], [150, 50])
    llama_cpp.show("6.8 M int8     Q8_0  batch 1  prompt 2048 read", [1500, 60], [1000, 50])
    llama_cpp.show_share("int8", 0.125, [240, 120], [300, 160])
    printed = capsys.readouterr().out
    assert performance.read_decoding(printed) == (
        "Q8_0 2.00x to 3.00x; of a plain read of the weights of 124 M: int8 80%"
    )
    assert performance.read_prompts(printed) == "Q8_0 1.50x to 1.50x"


def test_the_table_reads_what_the_benchmark_of_streams_prints(performance, load_benchmark, capsys):
    pytest.importorskip("uvicorn")
    streams = load_benchmark("serve/streams.py")
    found = {"rung": (2000.0, [0.010] * 99 + [0.1]), "llama.cpp 1": (500.0, [0.02])}
    streams.show_streams(found | {"llama.cpp 2": (1000.0, [0.03] * 100)}, 16)
    streams.show_hold_up("GPT-2 small, 92 M, rung", [(0.02, 0.0804, 1.5)])
    printed = capsys.readouterr().out
    rates, waits = [row.read for row in performance.ROWS if row.output.endswith("streams.txt")]
    assert rates(printed) == "16 streams 2.00x, first token 3.00x"
    assert waits(printed) == "GPT-2 small, 92 M: 80.4 ms"
    assert printed.split()[1:4] == ["2,000", "10.0", "100.0"]


def test_the_table_reads_what_the_benchmark_of_a_gpu_prints(
    performance, load_benchmark, monkeypatch
):
    gpu = load_benchmark("device/gpu.py")
    # nanoGPT's estimate of the same model has 124.3 M weights without positions.
    assert gpu.count_operations(gpu.GPT2) == pytest.approx(6 * 123.6e6 + 12 * 12 * 768 * 1024, 1e-3)
    rates = {"plain": 400_000, "adamw_torch_fused": 600_000, "muon": 500_000}

    def answer(function, options, side=None):
        return rates[side] if side else "1 x NVIDIA H200, torch 2.13.0"

    monkeypatch.setattr(gpu, "in_a_process", answer)
    lines = [line for _, line in gpu.measure_speed(SimpleNamespace(tiny=False))]
    assert all("target" not in line for line in lines[:1])
    (read,) = (row.read for row in performance.ROWS if row.output.endswith("gpu.txt"))
    found = read("\n".join(f"ok     {line}" for line in lines))
    assert found == "rung, AdamW 51.8% MFU, 1.50x; rung, Muon 43.2% MFU, 1.25x"
    rates["adamw_torch_fused"] = 450_000
    lines = [line for _, line in gpu.measure_speed(SimpleNamespace(tiny=False))]
    assert "the target is 50% and 1.2x" in lines[1]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_all_its_parts_on_a_cpu(run_fork, prose, tmp_path):
    text = tmp_path / "my.txt"
    text.write_text(prose, encoding="utf-8")
    ran = run_fork(ROOT / "benchmarks" / "device" / "gpu.py", "--tiny", str(text))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for words in ("ddp on gloo", "fsdp2 on gloo", "resume:", "bfloat16", "compiled", "greedy"):
        assert f"ok     {words}" in ran.stdout or f", {words}" in ran.stdout
    assert "rung, AdamW: " in ran.stdout and "llama3" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["device/busy.py", "recipe/small_data.py", "serve/streams.py"])
def test_a_long_benchmark_runs_in_small(name, run_fork):
    if name.startswith("serve"):
        pytest.importorskip("uvicorn")
    ran = run_fork(ROOT / "benchmarks" / name, "--tiny")
    assert ran.returncode == 0, ran.stdout + ran.stderr
