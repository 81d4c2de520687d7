"""The server from its command to its end: where it listens, and what it says."""

import signal
import subprocess
import sys

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from typer.testing import CliRunner  # noqa: E402

from rung import runs  # noqa: E402
from rung.cli.main import app  # noqa: E402
from rung.errors import RunError  # noqa: E402
from rung.serve.app import open_port  # noqa: E402
from rung.serve.registry import ServedModel  # noqa: E402


def test_an_address_of_version_six_stands_in_brackets(monkeypatch, capsys):
    from rung.cli import serve
    from rung.cli.main import app

    monkeypatch.setattr(
        "rung.serve.registry.load_served_models",
        lambda runs, options: {"gpt2": ServedModel("gpt2", None, None, {})},
    )
    monkeypatch.setattr(
        "rung.serve.app.run_server", lambda served, limits, listener: listener.close()
    )
    monkeypatch.setattr("rung.serve.worker.reserve_core", lambda: None)
    try:
        open_port("::1", 0).close()
    except RunError:
        pytest.skip("this machine has no address ::1")
    assert CliRunner().invoke(app, ["serve", "gpt2", "--host", "::1", "--port", "0"]).exit_code == 0
    serve.show_address(["a"], "http://[::1]:8000", False, "")
    assert "Open    http://[::1]:8000" in capsys.readouterr().err


def test_where_it_cannot_listen_it_says_so():
    with open_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "nowhere.invalid", "a" * 70):
            with pytest.raises(RunError, match=f"cannot listen at {host}, port {port} .*: choose"):
                open_port(host, port)


def test_the_command_serves_until_ctrl_c(make_tiny, tokenizer, tmp_path, start_fork):
    runs.save_model(runs.make_folder(tmp_path / "ngram"), make_tiny("ngram"), tokenizer)
    process = start_fork("rung", "serve", tmp_path / "ngram", "--port", 0, stderr=subprocess.PIPE)
    try:
        lines = [process.stderr.readline() for _ in range(4)]
        assert lines[0] == "Serving ngram\n" and "curl" in lines[2]
        address = lines[1].split()[1]
        answer = httpx.post(
            f"{address}/v1/completions",
            json={"model": "ngram", "prompt": "the", "temperature": 0},
            timeout=300,
        )
        assert answer.json()["usage"]["completion_tokens"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    finally:
        process.kill()
        process.wait()


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("rung.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    made = CliRunner().invoke(app, ["serve", "runs"])
    wanted = "rung: serving needs fastapi, which is not installed: pip install 'rung[serve]'\n"
    assert (made.exit_code, made.stderr) == (2, wanted)
