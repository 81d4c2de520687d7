"""From GPT-2 to Llama 3, one swap at a time: the two ends are the two rungs, and every step between
is a model.
"""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
import transformers

from rung import runs
from rung.errors import RecipeError, RunError
from rung.models import build_model, count_parameters, make_config
from rung.models.swaps import SWAPS
from rung.report.swaps import SeedMean, read_swaps, sum_of_parts, write_swaps
from rung.workflows.climb import REPORT
from rung.workflows.climb_swaps import SwapClimb, climb_swaps
from tests.conftest import TINY

SETS = [names for size in range(len(SWAPS) + 1) for names in itertools.combinations(SWAPS, size)]


@pytest.fixture
def ids(tokenizer):
    return torch.randint(3, len(tokenizer), (2, 13), generator=torch.Generator().manual_seed(1))


def shake(model):
    """Biases and norms begin as nothing; give every weight a part in the result."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def from_gpt2(tensors):
    """GPT-2's weights under Llama's names: (out, in), queries, keys and values apart."""
    places = {
        "transformer.wte": "model.embed_tokens",
        "transformer.wpe": "model.embed_positions",
        "transformer.ln_f": "model.norm",
        "transformer.h": "model.layers",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
    }
    mapped = {}
    for name, tensor in tensors.items():
        for old, new in places.items():
            name = name.replace(old, new)
        if tensor.ndim == 2 and ("mlp" in name or "attn" in name):
            tensor = tensor.T
        if "c_attn" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                mapped[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = piece
        else:
            mapped[name] = tensor
    return mapped


@pytest.mark.parametrize("end", ["gpt2", "llama3"])
def test_the_ends_are_the_two_rungs(end, make_tiny, ids):
    """On logits and on gradients, in float64; Llama's weights keep their names."""
    ours = make_tiny("swaps", swaps=list(SWAPS) if end == "llama3" else []).double()
    reference = {"gpt2": transformers.GPT2LMHeadModel, "llama3": transformers.LlamaForCausalLM}[end]
    theirs = shake(reference(getattr(ours.config, end)).eval()).double()
    rename = from_gpt2 if end == "gpt2" else dict
    ours.load_state_dict(rename(theirs.state_dict()), strict=True)
    outputs = [model(ids, labels=ids) for model in (ours, theirs)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-10, atol=1e-12)
    for output in outputs:
        output.loss.backward()
    wanted = rename({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("end", ["gpt2", "llama3"])
def test_the_ends_begin_as_the_two_rungs_do(end, tokenizer, monkeypatch):
    """The same spread of every weight; Llama's that write to the residual stream are smaller here,
    and none copies.
    """
    monkeypatch.setattr("rung.models.llama3.add_induction_circuit", lambda *_: None)
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    names = list(SWAPS) if end == "llama3" else []
    torch.manual_seed(0)
    ours = build_model("swaps", make_config("swaps", tokenizer, {**shape, "swaps": names}))
    theirs = build_model(end, getattr(ours.config, end))
    wanted = from_gpt2(theirs.state_dict()) if end == "gpt2" else theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        scale = (
            0.5 if end == "llama3" and name.endswith(("o_proj.weight", "down_proj.weight")) else 1
        )
        spread = wanted[name].std() * scale
        torch.testing.assert_close(tensor.std(), spread, rtol=0.2, atol=1e-8, msg=name)


def test_every_set_of_swaps_reads_on_from_its_cache(make_tiny, tokenizer, ids):
    padded = torch.cat([torch.full((2, 3), tokenizer.pad_token_id), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 13] * 2)
    for names in SETS:
        model = shake(make_tiny("swaps", swaps=list(names), num_hidden_layers=1))
        with torch.no_grad():
            full = model(ids).logits
            output = model(padded[:, :9], attention_mask=mask[:, :9], use_cache=True)
            rest = model(
                padded[:, 9:], attention_mask=mask, past_key_values=output.past_key_values
            ).logits
        torch.testing.assert_close(
            output.logits[:, 3:], full[:, :6], rtol=1e-4, atol=1e-4, msg=str(names)
        )
        torch.testing.assert_close(rest, full[:, 6:], rtol=1e-4, atol=1e-4, msg=str(names))


def test_each_swap_changes_its_own_part(make_tiny):
    base = make_tiny("swaps", swaps=[])
    width, layers, heads = 32, 2, 2
    sizes = {
        name: count_parameters(make_tiny("swaps", swaps=[name])) - count_parameters(base)
        for name in SWAPS
    }
    assert sizes["rmsnorm"] == -width * (2 * layers + 1)
    assert sizes["rotary"] == -64 * width
    assert sizes["grouped"] == -layers * 2 * (heads * 8) * (width + 1)
    assert sizes["tied"] == -width * base.config.vocab_size
    biases = [name for name, _ in base.named_parameters() if name.endswith("bias")]
    assert biases
    bare = make_tiny("swaps", swaps=["unbiased"])
    assert [n for n, _ in base.named_parameters() if n not in biases] == [
        n for n, _ in bare.named_parameters()
    ]
    assert abs(sizes["swiglu"]) < 0.05 * count_parameters(base)


@pytest.mark.parametrize("swaps", [[], ["rotary"]])
def test_what_was_not_learned_is_said(swaps, make_tiny, tokenizer):
    long = torch.randint(3, len(tokenizer), (1, TINY["swaps"]["max_position_embeddings"] + 1))
    with pytest.raises(ValueError, match="this model reads 64"):
        make_tiny("swaps", swaps=swaps)(long)


def test_unknown_swaps_are_refused(tokenizer):
    with pytest.raises(RecipeError, match="unknown swap 'rotery': did you mean 'rotary'"):
        make_config("swaps", tokenizer, {"swaps": ["rotery"]})
    with pytest.raises(
        RecipeError, match=r"swaps is 'rotary': it must be a list, as in swaps=\[rotary\]"
    ):
        make_config("swaps", tokenizer, {"swaps": "rotary"})
    with pytest.raises(RecipeError, match="hidden_size 32 cannot be divided by 3 attention heads"):
        make_config("swaps", tokenizer, {"hidden_size": 32, "num_attention_heads": 3})
    with pytest.raises(
        RecipeError, match="num_attention_heads 4 cannot be divided by 3 key-value heads"
    ):
        make_config("swaps", tokenizer, {"num_attention_heads": 4, "num_key_value_heads": 3})


def bits(name, seed):
    """What the runs below cost: seeds differ much, swaps little, so that only pairs on_progress."""
    order = ["gpt2", *SWAPS, "llama3"].index(name)
    return 2 + seed - 0.01 * order + 0.001 * (order * seed % 3)


@pytest.fixture
def finish(monkeypatch):
    """In place of training, a record with the figures above; returns the runs made, in order."""
    made = []

    def write(recipe, folder, on_progress, *_):
        runs.make_folder(folder)
        name = folder.name.rpartition("-seed")[0]
        score = {"bits_per_byte": bits(name, recipe.seed), "documents": 3, "bytes": 900}
        record = {
            "rung": recipe.rung,
            "recipe": {"model": recipe.model, "tokenizer": recipe.tokenizer}
            | {
                key: getattr(recipe, key)
                for key in ("corpus", "documents", "minutes", "steps", "seed")
            },
            "corpus": {"name": "a text", "fingerprint": "f"},
            "tokenizer": {"kind": "bpe", "fingerprint": "t", "vocab_size": 300},
            "parameters": 1000,
            "training": {"seconds": 2.0, "steps": recipe.steps, "tokens": recipe.steps * 64},
            "scores": {"test": score},
            "seed": recipe.seed,
        }
        runs.write_record(folder, record)
        made.append(folder.name)
        return True

    text = SimpleNamespace(
        name="a text", fingerprint="f", describe=lambda: "", bytes={"test": 0}, is_unsplit=False
    )
    monkeypatch.setattr("rung.workflows.climb.read_corpus", lambda _: text)
    monkeypatch.setattr("rung.workflows.climb.execute", write)
    return made


def test_a_climb_between_two_rungs(finish, tmp_path):
    plan = SwapClimb(folder=tmp_path / "out", steps=7)
    folders = climb_swaps(plan)
    assert len(folders) == len(finish) == 8 * 3
    assert finish[:8] == [f"{name}-seed0" for name in ("gpt2", *SWAPS, "llama3")]
    recipes = list(plan.recipes().values())
    assert {recipe.steps for recipe in recipes} == {7}
    assert [len(recipe.model["swaps"]) for recipe in recipes[:8]] == [0, 1, 1, 1, 1, 1, 1, 6]
    rows = read_swaps(folders)
    assert [row.name for row in rows] == ["gpt2", *SWAPS, "llama3"]
    assert rows[0].difference is None
    for order, row in enumerate(rows[1:], 1):
        pairs = [bits(row.name, seed) - bits("gpt2", seed) for seed in range(3)]
        assert row.difference.values == pytest.approx(pairs)
        assert row.difference.mean == pytest.approx(
            -0.01 * order + sum(order * s % 3 for s in range(3)) / 3000
        )
    page = (plan.folder / REPORT).read_text()
    assert all(f"{row.difference.mean:+.3f}".replace("-", "−") in page for row in rows[1:])
    climb_swaps(plan)
    assert len(finish) == 24  # nothing is made twice


def test_another_climb_between_is_refused(finish, tmp_path):
    climb_swaps(SwapClimb(folder=tmp_path, seeds=(0,), steps=7))
    with pytest.raises(RunError, match="was made with steps 7, not 8: choose another folder"):
        climb_swaps(SwapClimb(folder=tmp_path, seeds=(0,), steps=8))


def test_one_seed_has_no_interval_and_a_lost_run_leaves_a_pair_out(finish, tmp_path):
    folders = climb_swaps(SwapClimb(folder=tmp_path, seeds=(0, 1)))
    runs.write_record(tmp_path / "rotary-seed1", {"rung": "swaps", "failed": "the loss is nan"})
    rows = {row.name: row for row in read_swaps(folders)}
    assert rows["rotary"].difference.interval is None
    assert rows["tied"].difference.interval is not None
    write_swaps(folders, tmp_path / "page.html")
    assert "rotary-seed1: the loss is nan" in (tmp_path / "page.html").read_text()


def test_swaps_add_up_or_do_not(finish, tmp_path):
    rows = read_swaps(climb_swaps(SwapClimb(folder=tmp_path, seeds=(0,))))
    assert (
        sum_of_parts(rows)
        == "The six alone add up to -0.210 bits per byte; together they make -0.070."
    )
    assert sum_of_parts(rows[:3]) == ""


def test_an_interval_is_the_textbooks():
    low, high = SeedMean([1.0, 2.0, 4.0]).interval
    half = 4.3027 * math.sqrt(7 / 3) / math.sqrt(3)
    assert (low, high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-4)


def test_only_these_two_have_swaps_between_them():
    with pytest.raises(
        RecipeError, match="no swaps between llama3 gpt2: write --between gpt2 llama3"
    ):
        SwapClimb(between=("llama3", "gpt2"))
    with pytest.raises(RecipeError, match="--seeds must be 1 or more"):
        SwapClimb(seeds=())


def test_the_command_makes_real_runs(tmp_path, prose, monkeypatch):
    """End to end, small: trained, scored, one row each, and another answer for another use of the
    options.
    """
    from typer.testing import CliRunner

    from rung.cli.main import app

    (tmp_path / "my.txt").write_text(prose)
    monkeypatch.chdir(tmp_path)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    monkeypatch.setattr("rung.workflows.climb_swaps.SHAPE", small)
    monkeypatch.setattr("rung.workflows.fit.SAMPLE_TOKENS", 1)
    options = ["climb", "my.txt", "--between", "gpt2", "llama3", "--steps", "2", "--seeds", "1"]
    made = CliRunner().invoke(app, options)
    assert made.exit_code == 0, made.output
    assert all(f"\n {name} " in made.stdout for name in ("gpt2", *SWAPS, "llama3"))
    assert not list(tmp_path.rglob("checkpoints"))
    record = json.loads(
        (tmp_path / "runs" / "my-gpt2-llama3" / "tied-seed0" / "rung.json").read_text()
    )
    assert record["recipe"]["model"]["swaps"] == ["tied"]
    tokens = record["training"]["tokens"] / 2
    assert 2_000 < tokens <= 2_048  # padding is no token
    assert f"2 steps of {tokens:,.0f} tokens" in made.stdout
    assert (
        "--between has no --minutes" in CliRunner().invoke(app, [*options, "--minutes", "3"]).stderr
    )
    assert (
        "only --between has --steps"
        in CliRunner().invoke(app, ["climb", "my.txt", "--steps", "3"]).stderr
    )
