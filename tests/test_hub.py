"""The Hub is asked for what can be on it, once, and nothing waits for it."""

import pytest

from rung import hub
from rung.data.corpus import load_corpus
from rung.data.tokenizer_loading import load_tokenizer
from rung.errors import CorpusError, RunError, TokenizerError
from rung.models import load

PLACES = (
    "runs/missing",
    "./missing",
    "../missing",
    "~/missing",
    "/missing",
    "a/b/missing",
    "my run/missing",
)


@pytest.mark.parametrize("name", PLACES)
def test_the_hub_is_never_asked_for_a_place(name, monkeypatch):
    monkeypatch.setattr(hub, "is_reachable", lambda *_: pytest.fail("the Hub was asked"))
    assert hub.is_local_path(name)
    with pytest.raises(RunError, match="no run at .*missing"):
        load(name)
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer(name)
    for kind in ("hf:", "stream:"):
        with pytest.raises(CorpusError, match="no such folder"):
            load_corpus(f"{kind}{name}")


def test_a_name_that_may_be_on_the_hub_is_no_place(tmp_path, monkeypatch):
    assert not any(map(hub.is_local_path, ("gpt2", "openai-community/gpt2", "Salesforce/wikitext")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.is_local_path("org/name") and not hub.is_hub_id("org/name")
    assert hub.is_hub_id("org/other") and not hub.is_hub_id("gpt2")
    assert not hub.is_hub_id("runs/gpt2")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "is_reachable", lambda *names: asked.append(names))
    monkeypatch.setattr(
        "datasets.config.HF_HUB_OFFLINE", False
    )  # as for who does not ask to be left offline
    with pytest.raises(
        RunError,
        match="nobody/missing could not be read: it is no folder here, and the Hub cannot be",
    ):
        load("nobody/missing")
    with pytest.raises(TokenizerError, match="could not be loaded"):
        load_tokenizer("nobody/missing")
    with pytest.raises(CorpusError, match="could not be loaded"):
        load_corpus("hf:nobody/missing")
    assert asked == [("nobody/missing",), ("nobody/missing",), ("nobody/missing", "dataset")]


def test_without_a_network_it_does_not_answer(monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    given = {}

    def fail(error):
        def ask(self, repository, **options):
            given.update(options)
            raise error

        return ask

    monkeypatch.setattr(HfApi, "repo_info", fail(OSError("no route to host")))
    assert not hub.is_reachable("nobody/missing")
    assert given == {"repo_type": "model", "timeout": hub.TIMEOUT_SECONDS}
    missing = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    monkeypatch.setattr(HfApi, "repo_info", fail(missing))
    assert hub.is_reachable("nobody/missing", "dataset")
