"""The machine: never guessed."""

import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

from rung import device
from rung.device import choose_device, count_cores, describe_device, has_fast_bfloat16

pytestmark = pytest.mark.conditions

THREAD_SETTINGS = (*device.WAIT_SETTINGS, "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


def test_the_device_is_there():
    torch.zeros(1, device=choose_device())


@pytest.mark.parametrize(
    ("capabilities", "gain", "wanted"),
    [
        ({"avx512_bf16": True}, 4.7, True),
        ({"amx_bf16": True}, 6.0, True),
        ({"avx512_bf16": True}, 0.6, False),  # there, and slower
        ({"avx2": True}, None, False),  # not there: not asked
    ],
)
def test_bfloat16_is_used_where_it_is_there_and_faster(capabilities, gain, wanted, monkeypatch):
    def measure():
        assert gain is not None
        return gain

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(device, "_bfloat16_gain", measure)
    assert has_fast_bfloat16(torch.device("cpu")) is wanted


def test_the_gain_is_measured_once_and_draws_nothing():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert device._bfloat16_gain() == device._bfloat16_gain() > 0
    assert isinstance(device.has_bfloat16_lstm(), bool)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_what_else_the_machine_does_changes_no_gain(monkeypatch):
    """While bfloat16's products wait for a core, nothing is counted."""
    plain, half = torch.float32, torch.bfloat16
    clock, cost, waited = [0.0], {plain: 3.0, half: 1.0}, {plain: 0.0, half: 0.02}

    def multiply(matrix, _):
        clock[0] += cost[matrix.dtype]
        time.sleep(waited[matrix.dtype])

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "thread_time", lambda: clock[0])
    assert device._bfloat16_gain.__wrapped__() == 3.0


@pytest.mark.parametrize(("cost", "times"), [(1e-4, device.MEASURED_TIMES), (1.0, 2)])
def test_slow_products_are_timed_twice(cost, times, monkeypatch):
    """Where bfloat16 is emulated, ten products took a second."""
    clock, multiplied = [0.0], []

    def multiply(matrix, _):
        clock[0] += cost
        multiplied.append(matrix.dtype)

    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(time, "thread_time", lambda: clock[0])
    assert device._bfloat16_gain.__wrapped__() == pytest.approx(1)
    assert multiplied == [torch.float32, torch.bfloat16] * times


@pytest.mark.parametrize(
    ("is_fast", "capability", "end"),
    [(True, "AVX512", ", bfloat16"), (False, "AVX2", ", AVX2"), (False, "AVX512", "")],
)
def test_describe_is_in_words(is_fast, capability, end, monkeypatch):
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda _: is_fast)
    monkeypatch.setattr(device, "_processor_name", lambda: "a processor")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    described = describe_device(torch.device("cpu"))
    assert described == f"{count_cores()} cores of a processor{end}"


def make_groups(folder, cgroup, mounts, files):
    """A `/proc/self` whose mounts lie below `folder`, and control groups that hold these files."""
    process = folder / "process"
    process.mkdir()
    (process / "cgroup").write_text("".join(f"{line}\n" for line in cgroup))
    at = str(folder).replace(" ", "\\040")
    (process / "mountinfo").write_text(
        "22 1 0:5 / /proc rw - proc proc rw\n"
        + "".join(
            f"{31 + i} 23 0:28 {line.replace('FOLDER', at)}\n" for i, line in enumerate(mounts)
        )
    )
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return process


V1 = (
    ["9:name=systemd:/s", "2:cpu,cpuacct:/a/b", "1:memory:/m"],
    [
        "/ FOLDER/memory rw shared:9 - cgroup cgroup rw,memory",
        "/ FOLDER/cpu rw,relatime shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct",
    ],
)
V2 = ["0::/a/b"], ["/ FOLDER/two rw - cgroup2 cgroup2 rw,nsdelegate"]
QUOTAS = {
    "v1, of its own": (
        *V1,
        {"cpu/a/b/cpu.cfs_quota_us": "300000", "cpu/a/b/cpu.cfs_period_us": "100000"},
        3,
    ),
    "v1, of the group above": (
        *V1,
        {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000"},
        2,
    ),
    "v1, none": (
        *V1,
        {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "v1, another controller's": (
        *V1,
        {"memory/cpu.cfs_quota_us": "100000", "memory/cpu.cfs_period_us": "100000"},
        8,
    ),
    "v1, mounted from within": (
        ["2:cpu:/docker/x"],
        ["/docker/x FOLDER/cpu rw - cgroup cgroup rw,cpu"],
        {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
        2,
    ),
    "v2, a part of a core": (*V2, {"two/a/b/cpu.max": "150000 100000\n"}, 2),
    "v2, less than a core": (*V2, {"two/a/b/cpu.max": "20000 100000\n"}, 1),
    "v2, the least of all": (
        *V2,
        {"two/a/b/cpu.max": "400000 100000", "two/a/cpu.max": "300000 100000"},
        3,
    ),
    "v2, none": (*V2, {"two/a/b/cpu.max": "max 100000\n", "two/a/cpu.max": "max 100000\n"}, 8),
    "v2, more than there are": (*V2, {"two/a/b/cpu.max": "6400000 100000\n"}, 8),
    "v2, that is no number": (*V2, {"two/a/b/cpu.max": "", "two/a/cpu.max": "x y z"}, 8),
    "v2, of a namespace": (["0::/../../x"], V2[1], {"two/cpu.max": "100000 100000"}, 1),
    "both": (
        ["1:cpu:/", "0::/"],
        ["/ FOLDER/cpu rw - cgroup cgroup rw,cpu", "/ FOLDER/cpu/unified rw - cgroup2 cgroup2 rw"],
        {
            "cpu/cpu.cfs_quota_us": "100000",
            "cpu/cpu.cfs_period_us": "100000",
            "cpu/unified/cgroup.procs": "1",
        },
        1,
    ),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_cores_are_what_affinity_and_the_containers_quota_allow(case, tmp_path, monkeypatch):
    *groups, wanted = QUOTAS[case]
    (tmp_path / "with space").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert count_cores(make_groups(tmp_path / "with space", *groups)) == wanted


def test_cores_are_counted_where_there_are_no_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert count_cores(tmp_path / "absent") == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores(tmp_path / "absent") == 1


SHOWN = (
    "from rung.device import configure_threads; configure_threads(); import os, torch; "
    "print(torch.get_num_threads(), *(os.environ.get(name) for name in "
    "('OMP_NUM_THREADS', 'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'RAYON_NUM_THREADS')))"
)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ["1", "1", device.SPINS, "None", "1"]),
        ({"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"}, ["2", "2", "None", "active", "1"]),
        ({"GOMP_SPINCOUNT": "7", "RAYON_NUM_THREADS": "3"}, ["1", "1", "7", "None", "3"]),
    ],
)
def test_threads_are_as_many_as_cores_and_wait_briefly_unless_the_user_says_otherwise(
    given, wanted
):
    """In a process that is allowed one core, before torch is there."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("there is no affinity on this system")
    code = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {SHOWN}"
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    run = [sys.executable, "-c", code]
    found = subprocess.run(
        run, env=environment | given, capture_output=True, text=True, check=True
    ).stdout
    assert found.split() == wanted


@pytest.mark.parametrize(
    ("ours", "idle", "wanted"),
    [
        (True, (100, 100, 100, 100), 4),
        (True, (100, 90, 0, 0), 2),
        (True, (3, 0, 0, 1), 1),
        (False, (0, 0, 0, 0), 4),
    ],
)
def test_threads_leave_the_cores_that_others_use(ours, idle, wanted, tmp_path, monkeypatch):
    """Of a hundred ticks that pass, so many are idle on each of the allowed cores; a number of the
    user's stands.
    """

    def write(ticks):
        lines = [
            f"cpu{n} {(100 - free) * ticks} 0 0 {1000 + free * ticks} 0 0 0 0 0 0"
            for n, free in enumerate([*idle, 0])  # the last one is not allowed
        ]
        (tmp_path / "stat").write_text("\n".join(["cpu  1 2 3 4", *lines, "intr 5", ""]))

    write(0)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(device.time, "sleep", lambda _: write(1))
    monkeypatch.setattr(device, "may_choose_threads", lambda: ours)
    monkeypatch.setattr(device, "count_cores", lambda: 4)
    monkeypatch.setattr(device._watch_free_cores, "__defaults__", (tmp_path / "stat",))
    counted = []
    monkeypatch.setattr(torch, "set_num_threads", counted.append)
    device.avoid_busy_cores()
    assert (counted or [4]) == [wanted]


def test_a_process_looks_at_the_cores_while_it_works(tmp_path, monkeypatch):
    """So soon after a look there is no other one, and its result holds."""
    clock, ticks = [0.0], [0, 0]

    def work(seconds, idle):
        clock[0] += seconds
        ticks[0] += round(100 * seconds * (1 - idle))
        ticks[1] += round(100 * seconds * idle)
        lines = [f"cpu{core} {ticks[0]} 0 0 {ticks[1]} 0 0 0 0 0 0" for core in range(2)]
        (tmp_path / "stat").write_text("\n".join(lines))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(device.time, "monotonic", lambda: clock[0])
    work(1, 0.5)
    watch = device.CoreWatch(tmp_path / "stat")
    seen = []
    for seconds, idle in ((0.1, 1), (0.3, 1), (0.1, 0), (0.1, 0), (1, 0.25), (5, 1)):
        work(seconds, idle)
        seen.append(watch.count_free())
    assert seen == pytest.approx([0, 2, 2, 0, 0.5, 2])
    assert device.CoreWatch(tmp_path / "none").count_free() == math.inf


def test_a_module_asked_of_the_library_sets_the_threads_up_first():
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    code = "import os, rung; rung.errors; print(os.environ['GOMP_SPINCOUNT'])"
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.strip() == device.SPINS


def test_after_torch_only_the_number_of_threads_is_changed(monkeypatch):
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(device, "may_choose_threads", device.may_choose_threads.__wrapped__)
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "count_cores", lambda: 1)
    try:
        device.configure_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_the_threads_are_is_chosen_before_torch():
    """The command's modules, and this one's, import no torch: OpenMP reads the variables when torch
    is loaded.
    """
    code = "import sys, rung.cli.main, rung.device; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


BESIDE = 2  # processes that never rest
WRITE = """
import sys, time
from rung.device import configure_threads
configure_threads()
import torch
from transformers import LlamaConfig
from rung.generation.generate import Decoder, Sampling
from rung.generation.decoder import generate_tokens
from rung.models.llama3 import LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=1024, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
    intermediate_size=172, max_position_embeddings=128, tie_word_embeddings=True,
)).eval()
decoders = {"C": Decoder(model), "torch": Decoder(model)}
decoders["torch"].native = None

def count_tokens(decoder, seconds):
    count, began = 0, time.perf_counter()
    with torch.inference_mode():
        while (took := time.perf_counter() - began) < seconds:
            sampling = Sampling(temperature=0, max_new_tokens=20)
            count += sum(1 for _ in generate_tokens(decoder, [[3, 4]], sampling, ()))
    return count / took

print(torch.get_num_threads(), flush=True)
for line in sys.stdin:
    name, seconds = line.split()
    print(count_tokens(decoders[name], float(seconds)), flush=True)
"""


@contextmanager
def processes(count, *command, **options):
    """So many processes that run this; killed in the end."""
    running = [
        subprocess.Popen([sys.executable, "-c", *command], text=True, **options)
        for _ in range(count)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.communicate()


@pytest.mark.slow
def test_beside_busy_processes_decoding_keeps_half_its_fair_share():
    """Tokens a second beside them and without, in turn; what else the machine does weighs on
    both.
    """
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    with processes(1, WRITE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as [
        writer
    ]:

        def ask(name, seconds=0.7):
            print(name, seconds, file=writer.stdin, flush=True)
            return float(writer.stdout.readline())

        threads = int(writer.stdout.readline())
        fair = count_cores() / (threads + BESIDE)
        for name in ("C", "torch"):
            ask(name, 0.01)
            shares = []
            while not shares or (max(shares) < fair / 2 and len(shares) < 6):
                alone = ask(name)
                with processes(BESIDE, "while True: pass"):
                    shares.append(ask(name) / alone)
            assert max(shares) >= fair / 2, f"in {name}: {shares} of its own speed"
