"""The key, the pages and the hosts that may ask, as they are written on the command line."""

import pytest

reason = "needs the server's packages: pip install 'rung[serve]'"
pytest.importorskip("fastapi", reason=reason)
pytest.importorskip("uvicorn", reason=reason)
pytest.importorskip("prometheus_client", reason=reason)
httpx = pytest.importorskip("httpx", reason=reason)

from typer.testing import CliRunner  # noqa: E402

from rung.cli.main import app  # noqa: E402
from rung.errors import RecipeError  # noqa: E402
from rung.serve.access import (  # noqa: E402
    find_allowed_hosts,
    parse_api_key,
    parse_origin,
)
from rung.serve.limits import Limits  # noqa: E402
from tests.serve.conftest import Listening  # noqa: E402


def test_a_key_may_be_sent_in_any_case_and_never_be_empty(served):
    with Listening({"gpt2": served["gpt2"]}, api_key="secret") as server:
        for given, status in (
            ("bearer secret", 200),
            ("BEARER  secret", 200),
            ("Basic secret", 401),
            ("secret", 401),
        ):
            answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": given})
            assert answer.status_code == status
    assert parse_api_key(" secret\n") == "secret" and parse_api_key(None) is None
    for wrong in ("", " \n", "a\nb"):
        with pytest.raises(RecipeError, match="the API key"):
            parse_api_key(wrong)
        with pytest.raises(RecipeError, match="key"):
            Limits(api_key=wrong)
    for options, environment in ((["--api-key", ""], {}), ([], {"RUNG_API_KEY": ""})):
        made = CliRunner().invoke(app, ["serve", "nowhere", *options], env=environment)
        assert made.exit_code == 2 and "the API key is empty" in made.stderr


def test_pages_that_may_ask_are_named_as_browsers_name_them(served):
    assert parse_origin("https://Example.org:443/") == "https://example.org"
    assert parse_origin("http://[::1]:3000/") == "http://[::1]:3000" and parse_origin("*") == "*"
    for wrong in ("example.org", "https://", "https://a/b", "https://a:x", ""):
        with pytest.raises(RecipeError, match="is no origin"):
            parse_origin(wrong)
    with Listening({"gpt2": served["gpt2"]}, origins=("*",)) as server:
        answer = server.post(model="gpt2", prompt="a", headers={"Origin": "http://any.example"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"


def test_hosts_go_by_what_the_address_is():
    for host in (
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "LOCALHOST",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
    ):
        assert {"localhost", "127.0.0.1", "::1"} <= set(find_allowed_hosts(host)), host
    assert "127.0.0.2" in find_allowed_hosts("127.0.0.2")
    assert (
        find_allowed_hosts("0.0.0.0")
        == find_allowed_hosts("::")
        == find_allowed_hosts("nowhere.invalid")
        == find_allowed_hosts("")
        == ()
    )
    assert (
        "my.lan" in find_allowed_hosts("127.0.0.1", ["My.LAN:8000"])
        and find_allowed_hosts("127.0.0.1", ["*"]) == ()
    )
    assert set(find_allowed_hosts("0.0.0.0", ["my.lan"])) == {
        "localhost",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "my.lan",
    }
