"""Metrics and samples: a line that a crash cut short is left out, and a run is rewound."""

from rung import runs


def test_metrics_survive_a_cut_line_and_are_rewound(tmp_path):
    for step in (1, 2, 3):
        runs.append_metrics(tmp_path, {"step": step, "loss": 1.0})
        runs.append_metrics(tmp_path, {"step": step, "bits_per_byte": 2.0})
    with (tmp_path / runs.METRICS).open("a") as file:
        file.write('{"step": 4, "lo')
    samples = "".join(
        f"## Step {step}: 2.000 bits per byte\n\n> ## Step 9\n\n" for step in (1, 2, 3)
    )
    (tmp_path / runs.SAMPLES).write_text(samples + "## Step 4")
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 1, 2, 2, 3, 3]
    runs.rewind_logs(tmp_path, 2, evaluate=False)
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 1, 2, 2]
    assert (tmp_path / runs.SAMPLES).read_text() == samples[: len(samples) * 2 // 3]
    runs.rewind_logs(tmp_path, 2, evaluate=True)
    assert runs.read_metrics(tmp_path)[2:] == [{"step": 2, "loss": 1.0}]
    assert (tmp_path / runs.SAMPLES).read_text() == samples[: len(samples) // 3]
    assert runs.read_metrics(tmp_path / "nowhere") == []
