"""Recipes: every key checked, defaults filled, the whole page kept in the run."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml

from rung import runs
from rung.data.corpus import load_corpus
from rung.data.packing import BlockDataset
from rung.data.tokenizer import fingerprint_tokenizer
from rung.errors import CorpusError, RecipeError, RunError, RungError
from rung.evaluation.metrics import LZMA_AFTER_TRAIN
from rung.progress import Progress
from rung.recipe import Recipe, make_recipe, read_recipe
from rung.training.sampler import ResumableSampler
from rung.workflows.budget import suggest_parameters
from rung.workflows.estimate import estimate_costs
from rung.workflows.evaluate import ScoredText, evaluate_run
from rung.workflows.prepare import prepare_tokenizer
from rung.workflows.record import find_marks
from rung.workflows.run_folder import check_unused, read_begun
from rung.workflows.train import execute
from rung.workflows.variants import choose_fitting_text

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
QUICK = {"steps": 3, "model": {"hidden_size": 32}, "train": {"per_device_train_batch_size": 2}}


@pytest.fixture
def text(tmp_path, prose):
    path = tmp_path / "text.txt"
    path.write_text(prose)
    return str(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_that_ships_is_one(path):
    recipe = make_recipe(read_recipe(path))
    assert recipe.rung.replace("-", "_") in path.stem.replace("-", "_")


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.parent.name == "book"], ids=lambda p: p.stem
)
def test_the_books_recipes_run_from_a_local_mirror_of_the_hub(
    path, prose, tokenizer, tmp_path, monkeypatch
):
    """WikiText-2 and GPT-2's tokenizer in folders laid out as on the Hub, no network."""
    monkeypatch.setenv("RUNG_HUB_MIRROR", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    tokenizer.save_pretrained(tmp_path / "hub/openai-community/gpt2")
    lines = [
        f"{line}\n" if line else "" for line in ("", " = A title = ", "", *prose[:2000].split("\n"))
    ] * 3
    for split in ("train", "validation", "test"):
        place = (
            tmp_path / f"hub/Salesforce/wikitext/wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"text": lines}).to_parquet(place)
    page = read_recipe(path)
    changes = (
        []
        if page["rung"] == "bigram"
        else ["steps=2", "hidden_size=16", "train.per_device_train_batch_size=2"]
    )
    recipe = make_recipe(page, changes)
    assert execute(recipe, tmp_path / "run")
    record = runs.read_record(tmp_path / "run")
    assert record["corpus"]["documents"]["train"] == 3
    assert record["scores"]["test"]["bits_per_byte"] > 0
    if page["rung"] != "bigram":
        assert record["tokenizer"]["vocab_size"] == len(tokenizer)
        assert recipe.model.get("max_position_embeddings", recipe.model.get("n_positions")) == 128


def test_there_is_a_recipe_for_every_rung():
    from rung.ladder import LADDER

    assert {path.stem for path in RECIPES if path.parent.name == "recipes"} == set(LADDER)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("order=3", "model", "order", 3),
        ("train.learning_rate=3e-3", "train", "learning_rate", 0.003),
        ("learning_rate=1e-4", "train", "learning_rate", 0.0001),
        ("tokenizer.vocab_size=500", "tokenizer", "vocab_size", 500),
        ("vocab_size=500", "tokenizer", "vocab_size", 500),
        ("bf16=false", "train", "bf16", False),
    ],
)
def test_an_override_reaches_its_section(override, section, key, value):
    recipe = make_recipe({"rung": "ngram" if section == "model" else "llama3"}, [override])
    assert getattr(recipe, section)[key] == value


@pytest.mark.parametrize(
    "override", ["steps=5", "minutes=2", "train.num_train_epochs=3", "num_train_epochs=3"]
)
@pytest.mark.parametrize("page", [{"steps": 9}, {"minutes": 9}, {"train": {"num_train_epochs": 9}}])
def test_an_override_of_how_long_replaces_whatever_the_page_says_of_it(override, page):
    recipe = make_recipe({"rung": "rnn", **page}, [override])
    said = {"steps": recipe.steps, "minutes": recipe.minutes, **recipe.train}
    key, _, value = override.removeprefix("train.").partition("=")
    assert {key: value for key, value in said.items() if value} == {key: int(value)}


def test_an_override_reaches_the_recipe_itself():
    assert make_recipe({"rung": "ngram"}, ["seed=7", "corpus=python-source"]).seed == 7


@pytest.mark.parametrize(
    ("page", "overrides", "message"),
    [
        ({}, [], "names no rung"),
        ({"rung": "lama3"}, [], "unknown rung 'lama3': did you mean 'llama3'"),
        (
            {"rung": "gpt2", "modle": {}},
            [],
            "unknown key 'modle' in the recipe: did you mean 'model'",
        ),
        (
            {"rung": "gpt2", "model": {"n_layers": 2}},
            [],
            "model.n_layers: gpt2 has no such field; did you mean 'n_layer'",
        ),
        ({"rung": "gpt2", "train": {"lr": 2}}, [], "train.lr: TrainingArguments has no such field"),
        ({"rung": "gpt2", "tokenizer": {"size": 2}}, [], "tokenizer.size"),
        ({"rung": "gpt2", "model": 5}, [], "model is 5: it must be a mapping"),
        ({"rung": "gpt2", "minutes": -1}, [], "minutes is -1: it must be a positive number"),
        ({"rung": "gpt2", "minutes": "soon"}, [], "minutes is 'soon'"),
        ({"rung": "gpt2", "steps": 1.5}, [], "steps is 1.5: it must be a positive whole number"),
        ({"rung": "gpt2", "steps": 5, "minutes": 1}, [], "both given"),
        ({"rung": "gpt2", "seed": -1}, [], "seed is -1: it must be a whole number from 0"),
        ({"rung": "gpt2"}, ["seed=0.5"], "seed is 0.5"),
        ({"rung": "gpt2"}, ["learning_rate"], "write key=value"),
        (
            {"rung": "gpt2"},
            ["learning_rat=1"],
            "gpt2 has no such setting; did you mean 'learning_rate'",
        ),
        ({"rung": "gpt2"}, ["corpus.x=1"], "'corpus' has no keys"),
        ({"rung": "gpt2"}, ["seed=[1"], "not YAML"),
        (
            {"rung": "gpt2"},
            ["vocab_size=0"],
            "tokenizer.vocab_size is 0: it must be a positive whole number",
        ),
        ({"rung": "gpt2"}, ["vocab_size=many"], "tokenizer.vocab_size is 'many'"),
        ({"rung": "gpt2"}, ["vocab_size=99999999999"], "it must be 2,147,483,647 or less"),
        (
            {"rung": "gpt2", "tokenizer": {"kind": "gpt2"}},
            ["vocab_size=500"],
            "gpt2 has its vocabulary already",
        ),
        ({"rung": "gpt2"}, ["steps=5", "minutes=1"], "both given"),
    ],
)
def test_what_is_wrong_is_said(page, overrides, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(page, overrides)


def test_a_page_that_is_none_is_said(tmp_path):
    for content, message in (("[1, 2]", "must be a mapping"), ("a: [", "is not YAML")):
        (tmp_path / "page.yaml").write_text(content)
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path / "page.yaml")
    with pytest.raises(RecipeError, match="no recipe at"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_yaml_reads_the_numbers_people_write(tmp_path):
    (tmp_path / "page.yaml").write_text(
        "a: 3e-3\nb: 1e4\nc: .5\nd: 5\ne: 1.0e-3\nf: '3e-3'\ng: 1e\n"
    )
    page = read_recipe(tmp_path / "page.yaml")
    assert page == {"a": 0.003, "b": 10000.0, "c": 0.5, "d": 5, "e": 0.001, "f": "3e-3", "g": "1e"}
    assert isinstance(page["d"], int)


def test_a_sizes_name_stands_for_a_rung():
    recipe = make_recipe({"rung": "llama3.2-1b", "model": {"num_hidden_layers": 3}})
    assert recipe.rung == "llama3"
    assert recipe.model["num_hidden_layers"] == 3
    assert recipe.model["hidden_size"] == 2048
    assert recipe.model["rope_parameters"]["factor"] == 32.0
    assert Recipe(rung=recipe.rung, model=recipe.model) == recipe
    recipe = make_recipe(
        {"rung": "gpt2-medium"}, ["hidden_size=64"]
    )  # one name of two that GPT-2 has for it
    assert recipe.rung == "gpt2"
    assert {"hidden_size": 64, "n_head": 16}.items() <= recipe.model.items()
    assert "n_embd" not in recipe.model
    with pytest.raises(RecipeError, match="did you mean 'llama3.2-1b'"):
        make_recipe({"rung": "llama3.2-1B"})


@pytest.mark.parametrize("rung", ["bigram", "rnn-attention", "llama3"])
def test_a_run_holds_all_that_the_design_says(rung, text, tmp_path):
    folder = tmp_path / "run"
    stages = []
    settings = {} if rung == "bigram" else QUICK
    recipe = make_recipe({"rung": rung, "corpus": text, "seed": 3, **settings})
    assert execute(recipe, folder, lambda stage: stages.append(stage.stage))
    record = runs.read_record(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert record["corpus"]["name"] == "text.txt"
    assert record["recipe"]["tokenizer"]["vocab_size"] >= 259  # the default, filled in
    assert record["seed"] == 3
    assert record["scores"]["test"]["bytes"] == record["corpus"]["bytes"]["test"]
    assert record["marks"].keys() == {"zlib", "bz2", "lzma", "lzma after train"}
    assert "".join(piece for piece, _ in record["passage"]).startswith(record["prompt"])
    assert record["parameters"] > 0
    assert {"rung", "torch", "transformers"} <= record["versions"].keys()
    assert stages[0] == "reading"
    assert stages[-1] == "comparing"
    assert Recipe(**record["recipe"]).rung == rung
    found = evaluate_run(str(folder))
    assert found["bits_per_byte"] == pytest.approx(
        record["scores"]["test"]["bits_per_byte"], rel=1e-6
    )


def test_the_same_recipe_gives_the_same_run(text, tmp_path):
    recipe = make_recipe({"rung": "gpt2", "corpus": text, **QUICK})
    scores = []
    for name in ("a", "b"):
        execute(recipe, tmp_path / name)
        scores.append(runs.read_record(tmp_path / name)["scores"]["test"]["nats"])
    assert scores[0] == scores[1]


def test_a_run_is_not_resumed_on_other_text(text, tmp_path, monkeypatch):
    recipe = make_recipe({"rung": "gpt2", "corpus": text, **QUICK})
    with monkeypatch.context() as patched:
        patched.setattr(
            "rung.workflows.train.score_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            execute(recipe, tmp_path / "run")
    Path(text).write_text(Path(text).read_text() + "\n\nOne more paragraph.\n")
    with pytest.raises(RunError, match="the text has changed"):
        execute(recipe, tmp_path / "run")


def test_other_text_is_scored_whole(text, tmp_path):
    folder = tmp_path / "run"
    execute(make_recipe({"rung": "bigram", "corpus": text}), folder)
    (tmp_path / "other.txt").write_text("one line\nand another\n\n")
    found = evaluate_run(
        str(folder), ScoredText(str(tmp_path / "other.txt"), reading={"documents": "lines"})
    )
    assert (found["documents"], found["bytes"]) == (2, len("one lineand another"))


def test_a_run_on_a_stream_says_what_it_read(text, tmp_path, monkeypatch):
    import pandas

    from rung.data import stream

    (tmp_path / "set").mkdir()
    rows = [paragraph for paragraph in Path(text).read_text().split("\n\n") if paragraph.strip()]
    pandas.DataFrame({"text": rows}).to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    monkeypatch.setattr(stream, "BEGINNING_BYTES", 5_000)
    execute(make_recipe({"rung": "bigram", "corpus": f"stream:{tmp_path}/set"}), tmp_path / "run")
    corpus = runs.read_record(tmp_path / "run")["corpus"]
    assert (
        corpus["bytes"]["train stored"]
        < 6_000
        < 15_000
        < corpus["bytes"]["train"]
        < len(Path(text).read_bytes())
    )
    assert corpus["documents"]["train"] < len(rows)
    assert evaluate_run(str(tmp_path / "run"))["documents"] == corpus["documents"]["test"]


def test_a_tokenizer_of_byte_pairs_is_trained_on_a_sample(text, tmp_path, monkeypatch):
    monkeypatch.setattr("rung.workflows.prepare.SAMPLE_BYTES", 4_000)
    for kind, stride in (("bpe", -(-load_corpus(text).bytes["train"] // 4_000)), ("word", 1)):
        recipe = make_recipe({"rung": "bigram", "corpus": text, "tokenizer": {"kind": kind}})
        execute(recipe, tmp_path / kind)
        assert runs.read_record(tmp_path / kind)["tokenizer"]["one_document_in"] == stride


@pytest.mark.parametrize("lost", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_was_kept_in_part_is_made_again(lost, text, tmp_path, monkeypatch):
    """As once after a kill between the files: it was without its special tokens, for every run on
    that text.
    """
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    recipe, corpus = make_recipe({"rung": "bigram", "corpus": text}), load_corpus(text)
    first = fingerprint_tokenizer(prepare_tokenizer(recipe, corpus))
    (path,) = (tmp_path / "cache" / "tokenizers").rglob(lost)
    path.unlink()
    assert fingerprint_tokenizer(prepare_tokenizer(recipe, corpus)) == first
    assert path.exists()


def test_what_is_fitted_is_never_fitted_on_the_text_it_scores(text, tmp_path):
    own = load_corpus(text)
    (tmp_path / "other.txt").write_text("one line\nand another\n\n")
    other = load_corpus(str(tmp_path / "other.txt"), "lines", whole=True)
    assert choose_fitting_text(own, "test", None) is own
    assert choose_fitting_text(other, "test", lambda: own) is own
    for corpus, split, read_own in ((other, "test", None), (own, "validation", lambda: own)):
        with pytest.raises(CorpusError, match="would flatter the score"):
            choose_fitting_text(corpus, split, read_own)


def test_a_folder_in_use_is_not_overwritten(text, tmp_path):
    (tmp_path / "run").mkdir()
    check_unused(tmp_path / "run")
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty"):
        check_unused(tmp_path / "run")
    with pytest.raises(RunError, match="is not a run"):
        read_begun(tmp_path / "run")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"corpus": "nowhere.txt"}, "no such file"),
        ({"train": {"optim": "foo"}}, "train.optim is 'foo': the nearest of "),
        ({"model": {"hidden_size": 32, "num_attention_heads": 3}}, "cannot be divided by 3"),
        ({"rung": "ngram", "steps": None, "model": {"smoothing": "laplace"}}, "unknown smoothing"),
    ],
)
def test_a_start_that_fails_leaves_nothing(page, message, text, tmp_path):
    out = tmp_path / "runs" / "first"
    with pytest.raises(RungError, match=message):
        execute(make_recipe({"rung": "gpt2", "corpus": text, "steps": 3} | page), out)
    assert not out.parent.exists()
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RungError, match=message):
        execute(make_recipe({"rung": "gpt2", "corpus": text, "steps": 3} | page), out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"model": {"hidden_size": 33}}, "an attention head is 33 wide"),
        ({"model": {"rope_parameters": 5}}, "model.rope_parameters is 5: it must be a mapping"),
        ({"model": {"hidden_act": "nope"}}, "model.hidden_act is 'nope', which is no activation"),
        (
            {"rung": "llama3-nano", "model": {"num_key_value_heads": 3}},
            "2 cannot be divided by 3 key-value heads",
        ),
        (
            {"rung": "gpt2", "model": {"hidden_size": 32, "num_attention_heads": 3}},
            "cannot be divided by 3",
        ),
        ({"rung": "rnn", "model": {"cell": "gur"}}, "unknown cell 'gur': did you mean 'gru'"),
        ({"rung": "rnn-attention", "model": {"num_attention_heads": 3}}, "cannot be divided by 3"),
        (
            {"rung": "ngram", "steps": None, "model": {"order": 10**6}},
            "model.order is 1000000: it must be 1000 or",
        ),
        (
            {"rung": "bigram", "steps": None, "model": {"num_bigrams": -1}},
            "model.num_bigrams is -1",
        ),
    ],
)
def test_what_the_model_cannot_be_is_told_before_a_text_is_looked_for(page, message, tmp_path):
    recipe = make_recipe(
        {"rung": "llama3", "corpus": str(tmp_path / "nowhere.txt"), "steps": 3} | page
    )
    for start in (
        lambda: execute(recipe, tmp_path / "run"),
        lambda: estimate_costs(recipe, tmp_path / "run"),
    ):
        with pytest.raises(RecipeError, match=message):
            start()
    assert not (tmp_path / "run").exists()


COUNTED = {"rung": "ngram", "steps": None}
BAD = {
    "seed": {"seed": -1},
    "vocabulary": {"tokenizer": {"vocab_size": 5}},
    "vocabulary of a text": {"tokenizer": {"vocab_size": "many"}},
    "vocabulary of the model": {"model": {"vocab_size": 7}},
    "rate": {"train": {"learning_rate": -1}},
    "schedule": {"train": {"lr_scheduler_type": "nope"}},
    "schedule's options": {
        "train": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nope": 1}}
    },
    "optimizer": {"train": {"optim": "nope"}},
    "optimizer's options": {"train": {"optim": "sgd", "optim_args": "nope"}},
    "tracker": {"train": {"report_to": "nope"}},
    "batch": {"global_batch_size": 0},
    "batch of a device": {"train": {"per_device_train_batch_size": 0}},
    "heads": {"model": {"hidden_size": 30, "num_attention_heads": 4}},
    "encoding": {"encoding": "utf-99"},
    "documents": {"documents": "pages"},
    "corpus": {"corpus": "nowhere.txt"},
    "base": {"base": "nowhere"},
    "rank": {"lora": 4},
    "tokenizer": {"tokenizer": {"path": "nowhere"}},
    "engine": COUNTED | {"counting": {"engine": "nope"}},
    "memory": COUNTED | {"counting": {"engine": "duckdb", "memory": "1MB"}},
    "order": COUNTED | {"model": {"order": 0}},
}


def test_after_any_bad_recipe_a_right_one_works_in_the_folder(text, tmp_path):
    run = tmp_path / "runs" / "mine"
    good = {"rung": "llama3", "corpus": text, "steps": 1, "model": QUICK["model"]}
    for what, bad in BAD.items():
        with pytest.raises(
            (RungError, ValueError, TypeError)
        ):  # the last two are raised by transformers' own parts
            execute(make_recipe(good | {"model": {}} | bad if "rung" in bad else good | bad), run)
        assert not run.parent.exists(), what
    assert execute(make_recipe(good), run)
    assert runs.is_finished(run)


def test_a_failure_after_work_says_how_to_go_on(text, tmp_path, monkeypatch):
    recipe = make_recipe({"rung": "gpt2", "corpus": text, **QUICK})
    with monkeypatch.context() as patched, pytest.raises(RunError, match="no ruler") as caught:
        patched.setattr("rung.workflows.train.score_run", raise_run_error)
        execute(recipe, tmp_path / "run")
    assert caught.value.__notes__ == [
        f"what was made so far is kept: go on with `rung train --out {tmp_path / 'run'} --resume`, "
        f"or delete {tmp_path / 'run'} to begin again"
    ]
    assert execute(read_begun(tmp_path / "run"), tmp_path / "run")
    assert runs.is_finished(tmp_path / "run")


def test_a_run_goes_on_with_another_batch_where_the_processes_need_one(text, tmp_path, monkeypatch):
    """Killed before and behind the next checkpoint: each row is read once, and the record says from
    where on.
    """
    read, datasets, fetch = [], [], BlockDataset.__getitems__
    monkeypatch.setattr(
        BlockDataset,
        "__getitems__",
        lambda blocks, rows: (
            read[-1].extend(rows) or datasets.append(blocks) or fetch(blocks, rows)
        ),
    )
    page = {
        "rung": "gpt2",
        "corpus": text,
        "steps": 9,
        "global_batch_size": 8,
        "model": QUICK["model"],
    }
    train = {"save_steps": 2, "logging_steps": 1, "eval_steps": 9}
    run = tmp_path / "run"
    read.append([])
    stop_at(5, make_recipe(page | {"train": train}), run)
    with (
        monkeypatch.context() as three,
        pytest.raises(RunError, match="8 rows a step, which 3 processes cannot") as no,
    ):
        three.setattr("rung.distributed.world_size", lambda: 3)
        three.setattr("rung.distributed.launch_command", lambda: "torchrun -m rung")
        read_begun(run)
    assert f"`torchrun -m rung train --out {run} --resume --set global_batch_size=9`" in str(
        no.value
    )
    for batch, step in ((12, 5), (9, 8)):
        read.append([])
        stop_at(step, read_begun(run, batch), run)
    read.append([])
    assert execute(read_begun(run), run)
    record = runs.read_record(run)
    assert record["recipe"]["global_batch_size"] == 9
    assert record["batches"] == [
        {"from_step": 0, "global_batch_size": 8},
        {"from_step": 4, "global_batch_size": 9},
    ]
    in_order = (
        read[0][:32] + read[2][:18] + read[3][:27]
    )  # to the checkpoints of the steps 4 and 6, and to the end
    blocks = len(datasets[0])
    order = ResumableSampler(blocks, seed=0, first=0, last=77, numbers_epochs=True)
    assert in_order == list(order)
    lines = [line for line in runs.read_metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 10))
    per_row = lines[0]["tokens"] / 8
    assert [line["tokens"] / per_row for line in lines] == pytest.approx(
        [*range(8, 33, 8), *range(41, 78, 9)], abs=0.1
    )
    assert record["training"]["tokens"] == lines[-1]["tokens"]


def stop_at(step, recipe, folder):
    """Train until the machine goes away behind that step."""

    def on_progress(stage):
        if stage.stage == "training" and stage.done == step:
            raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        execute(recipe, folder, on_progress)


def raise_run_error(*_):
    raise RunError("there is no ruler")


def test_what_failed_before_it_began_is_begun_again(tmp_path):
    runs.write_record(tmp_path, {"rung": "gpt2", "failed": "no such file"})
    check_unused(tmp_path)
    with pytest.raises(
        RunError,
        match="failed before there was anything to resume .no such file.: leave out --resume",
    ):
        read_begun(tmp_path)


def test_a_setting_that_must_be_a_number_is_one():
    with pytest.raises(RecipeError, match="train.learning_rate is 'soon': it must be a number"):
        make_recipe({"rung": "gpt2"}, ["train.learning_rate=soon"])
    assert make_recipe({"rung": "gpt2"}, ["train.save_total_limit=null"]).train == {
        "save_total_limit": None
    }


def test_what_is_finished_is_not_resumed(text, tmp_path):
    execute(make_recipe({"rung": "bigram", "corpus": text}), tmp_path / "run")
    with pytest.raises(RunError, match="is finished"):
        read_begun(tmp_path / "run")


def test_all_recipes_are_tidy_yaml():
    for path in RECIPES:
        assert yaml.safe_load(path.read_text())["rung"]


def test_more_time_means_a_larger_model():
    sizes = [suggest_parameters(minutes) for minutes in (0.1, 1, 5, 60)]
    assert sizes == sorted(sizes)


def test_a_vocabulary_alone_is_of_the_default_kind():
    recipe = make_recipe({"rung": "llama3"}, ["tokenizer.vocab_size=512"])
    assert recipe.tokenizer == {"kind": "bpe", "vocab_size": 512}


def test_a_counting_rung_may_take_all_of_a_text(tmp_path, prose, capsys):
    """As KenLM does of a file: a tenth was left out without a word."""
    from rung import runs
    from rung.report.summaries import read_summaries
    from rung.workflows.train import execute

    (tmp_path / "my.txt").write_text(prose)
    told = []
    recipe = make_recipe({"rung": "ngram", "corpus": str(tmp_path / "my.txt")}, ["held_out=0"])
    assert execute(recipe, tmp_path / "all", lambda stage: told.append(stage.note))
    record = runs.read_record(tmp_path / "all")
    assert (record["scores"], record["recipe"]["held_out"]) == ({}, 0)
    assert record["corpus"]["bytes"] == {"train": len(prose.encode()), "validation": 0, "test": 0}
    assert record["sample"]
    assert any(note.endswith("; nothing is held out") for note in told)
    assert read_summaries([tmp_path / "all"])[0].failed == "no score: nothing was held out"
    told.clear()
    execute(
        make_recipe({"rung": "ngram", "corpus": str(tmp_path / "my.txt")}),
        tmp_path / "part",
        lambda s: told.append(s.note),
    )
    assert any(
        "cut from the text (rung train ngram --set held_out=0 counts all of it)" in note
        for note in told
    )


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"rung": "ngram", "held_out": 0.5}, "held_out is 0.5: it must be the share"),
        ({"rung": "ngram", "held_out": "none"}, "held_out is 'none': it must be the share"),
        (
            {"rung": "llama3", "held_out": 0},
            "held_out is 0, but llama3 is trained until validation text",
        ),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused(page, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(page)


def test_a_mark_that_takes_longer_than_the_run_is_left_out(text, tmp_path, monkeypatch):
    """What it would take is kept, so that the next run asks nothing; one that has the time for it
    makes it, and a later one tries again, for a machine may have been busy.
    """
    monkeypatch.setenv("RUNG_CACHE", str(tmp_path / "cache"))
    corpus, stages, asked = load_corpus(f"{text}"), [], []

    def mark(test, train, seconds, on_progress):
        asked.append(seconds)
        on_progress(Progress("comparing", 5, 10))
        return (None, 199.0) if seconds < 199 else (1.5, 180.0)

    monkeypatch.setattr("rung.workflows.record.lzma_after_train", mark)
    clock = [1e9]
    monkeypatch.setattr("rung.workflows.record.time", SimpleNamespace(time=lambda: clock[0]))
    asks = ((0.1, 0, 3), (30.0, 9, 3), (30.0, 700, 3), (300.0, 9, 4), (0.1, 9, 4))
    for seconds, later, keys in asks:
        clock[0] += later
        found = find_marks(corpus, stages.append, seconds)
        assert len(found["marks"]) == keys
        assert ("199 s" in found.get("marks_left_out", "")) == (keys == 3)
    assert asked == [10.0, 30.0, 300.0]
    assert [(stage.done, stage.total, stage.note) for stage in stages if stage.done] == [
        (5, 10, LZMA_AFTER_TRAIN)
    ] * 3
    assert [stage.stage for stage in stages].count("noted") == 3
