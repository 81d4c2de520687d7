"""What every rung promises, whatever it is made of; and what each promises by itself."""

import itertools
import math
import warnings

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from rung import runs
from rung.errors import RecipeError, RunError
from rung.ladder import IDEAS
from rung.models import (
    build_model,
    count_parameters,
    find_hidden_size,
    load,
    make_config,
)
from rung.models.attention import _attend_grouped, _attend_unfused, attend, causal_mask
from rung.models.rnn import CELLS
from tests.conftest import NEURAL, SENTENCES, TINY, VARIANTS

RUNGS = [*TINY, *VARIANTS]
NEURAL = [*NEURAL, *VARIANTS]
TRANSFORMERS = ["gpt2", "llama3"]


def random_ids(tokenizer, batch, steps):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, len(tokenizer), (batch, steps), generator=generator)


def sentence_ids(tokenizer):
    return torch.tensor([tokenizer(SENTENCES[0]).input_ids])


@pytest.mark.parametrize("name", RUNGS)
def test_the_future_does_not_change_the_past(name, make_tiny, tokenizer):
    model = make_tiny(name)
    ids = random_ids(tokenizer, 2, 12)
    other = ids.clone()
    other[:, 7:] = random_ids(tokenizer, 2, 20)[:, :5]
    torch.testing.assert_close(model(ids).logits[:, :7], model(other).logits[:, :7])


@pytest.mark.parametrize("name", NEURAL)
def test_no_gradient_flows_back_from_the_future(name, make_tiny, tokenizer):
    model = make_tiny(name).train()
    seen = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: (output.retain_grad(), seen.append(output))[1]
    )
    model(random_ids(tokenizer, 1, 10)).logits[0, 4].sum().backward()
    gradient = seen[0].grad[0].abs().sum(-1)
    assert torch.all(gradient[:5] > 0)
    assert torch.all(gradient[5:] == 0)


@pytest.mark.conditions
@pytest.mark.parametrize("name", RUNGS)
@pytest.mark.parametrize("first", [1, 5, 11])
def test_cached_logits_equal_full_logits(name, first, make_tiny, tokenizer):
    model = make_tiny(name)
    ids = random_ids(tokenizer, 2, 12)
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        output = model(ids[:, :first], use_cache=True)
        pieces = [output.logits]
        for at in range(first, 12):
            output = model(
                ids[:, at : at + 1], past_key_values=output.past_key_values, use_cache=True
            )
            pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RUNGS)
def test_left_padding_changes_nothing_cached_or_not(name, make_tiny, tokenizer):
    model = make_tiny(name)
    ids = random_ids(tokenizer, 1, 8)
    padded = torch.cat([torch.full((1, 3), tokenizer.pad_token_id), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 8])
    with torch.no_grad():
        alone = model(ids).logits
        together = model(
            torch.cat([padded, random_ids(tokenizer, 1, 11)]),
            attention_mask=torch.cat([mask, mask | 1]),
        ).logits
        torch.testing.assert_close(together[:1, 3:], alone, rtol=1e-4, atol=1e-5)
        output = model(padded[:, :6], attention_mask=mask[:, :6], use_cache=True)
        last = model(
            padded[:, 6:],
            attention_mask=mask,
            past_key_values=output.past_key_values,
            use_cache=True,
        ).logits
    torch.testing.assert_close(last, alone[:, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RUNGS)
def test_save_and_reload(name, make_tiny, tokenizer, tmp_path):
    model = make_tiny(name)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again, its_tokenizer = load(tmp_path)
    ids = random_ids(tokenizer, 2, 9)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert its_tokenizer(SENTENCES[0]).input_ids == tokenizer(SENTENCES[0]).input_ids
    automatic = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(automatic(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NEURAL)
def test_starts_at_ln_v_and_overfits_one_batch(name, make_tiny, tokenizer):
    model = make_tiny(name).train()
    ids = random_ids(tokenizer, 2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(300):
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), abs=0.05)
    assert losses[-1] < 0.1


@pytest.mark.parametrize("name", RUNGS)
def test_loss_is_right_under_gradient_accumulation(name, make_tiny, tokenizer):
    model = make_tiny(name)
    ids = sentence_ids(tokenizer)
    whole = model(ids, labels=ids).loss
    halves = model(ids, labels=ids, num_items_in_batch=2 * (ids.shape[1] - 1)).loss
    torch.testing.assert_close(2 * halves, whole)
    moved = torch.cat([ids[:, 1:], torch.tensor([[-100]])], dim=1)
    torch.testing.assert_close(model(ids, labels=moved, shift_labels=moved).loss, whole)


@pytest.mark.parametrize("name", RUNGS)
@pytest.mark.parametrize("how", ["greedy", "sampled", "beams"])
def test_generates_without_a_warning(name, how, make_tiny, tokenizer, caplog):
    options = {"greedy": {}, "sampled": {"do_sample": True}, "beams": {"num_beams": 3}}[how]
    batch = tokenizer(["the cat", "a dog sat on the"], padding=True, return_tensors="pt")
    with warnings.catch_warnings(), caplog.at_level("WARNING"):
        warnings.simplefilter("error")
        output = make_tiny(name).generate(
            **batch, max_new_tokens=6, **{"do_sample": False, **options}
        )
    assert output.shape[0] == 2
    assert not warnings_in(caplog)


@pytest.mark.parametrize("name", RUNGS)
def test_a_pipeline_takes_it_as_it_takes_its_own(name, make_tiny, tokenizer, caplog):
    said = []
    for model in (transformers.GPT2LMHeadModel(make_tiny("gpt2").config), make_tiny(name)):
        caplog.clear()
        with warnings.catch_warnings(), caplog.at_level("WARNING"):
            warnings.simplefilter("error")
            pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
            text = pipe("the cat", max_new_tokens=5, do_sample=False)[0]["generated_text"]
        assert text.startswith("the cat")
        said.append(warnings_in(caplog))
    assert said[1] <= said[0]


def warnings_in(caplog):
    return {
        record.getMessage() for record in caplog.records if record.name.startswith("transformers")
    }


@pytest.mark.parametrize("name", RUNGS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_padded_batch_generates_what_its_rows_do_alone(name, beams, make_tiny, tokenizer):
    model = make_tiny(name)
    prompts = ["the cat", "a dog sat on the", "a"]
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    batch = model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), **options)
    for prompt, row in zip(prompts, batch, strict=True):
        alone = model.generate(**tokenizer([prompt], return_tensors="pt"), **options)[0]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, alone)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("name", RUNGS)
@pytest.mark.parametrize("beams", [1, 4])
def test_generating_with_a_cache_scores_what_it_does_without(name, beams, make_tiny, tokenizer):
    model = make_tiny(name)
    if name in NEURAL:  # new, it says nearly the same of any text
        for parameter in model.parameters():
            parameter.data.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.3
            )
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    options |= {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    batch = tokenizer(["the cat", "a dog sat on the"], padding=True, return_tensors="pt")
    cached, whole = (model.generate(**batch, use_cache=kept, **options) for kept in (True, False))
    assert cached.sequences.tolist() == whole.sequences.tolist()
    for found, wanted in zip(cached.logits, whole.logits, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_transformers_begin_as_they_should(make_tiny):
    """GPT-2: neighbouring positions are alike, residual writers small. Llama: the tokens have a
    vector in common.
    """
    positions = make_tiny("gpt2").transformer.wpe.weight
    assert positions.square().mean().sqrt().item() == pytest.approx(0.12, rel=0.1)
    assert torch.cosine_similarity(positions[:-1], positions[1:]).min() > 0.5
    blocks = make_tiny("gpt2", hidden_size=64).transformer.h
    for block, layer in itertools.product(
        blocks, ("attn", "mlp")
    ):  # what they write is halved for two layers
        assert getattr(block, layer).c_proj.weight.std().item() == pytest.approx(0.01, rel=0.1)
    tokens = make_tiny("llama3").get_input_embeddings().weight
    assert tokens.mean(0).std().item() == pytest.approx(0.1, rel=0.5)
    assert (tokens - tokens.mean(0)).std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", ["bigram", "ngram"])
def test_counted_probabilities_sum_to_one(name, make_tiny, tokenizer):
    for order in (1, 2, 3, 5) if name == "ngram" else (2,):
        model = make_tiny(name, **({"order": order} if name == "ngram" else {}))
        ids = torch.cat([sentence_ids(tokenizer), random_ids(tokenizer, 1, 30)], dim=1)
        sums = model(ids).logits.double().exp().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)


def test_bigram_is_the_formula(tokenizer, make_tiny):
    model = make_tiny("bigram")
    ids = [[*tokenizer(s).input_ids, tokenizer.eos_token_id] for s in SENTENCES]
    pairs = [pair for row in ids for pair in itertools.pairwise(row)]
    history, word = pairs[3]
    count = pairs.count((history, word))
    total = sum(1 for h, _ in pairs if h == history)
    found = model(torch.tensor([[history]])).logits[0, 0, word].exp().item()
    assert found == pytest.approx((count + 1) / (total + len(tokenizer)), rel=1e-6)


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("layers", [1, 2])
def test_every_cell_carries_its_state(cell, layers, make_tiny, tokenizer):
    model = make_tiny("rnn", cell=cell, num_hidden_layers=layers)
    ids = random_ids(tokenizer, 3, 9)
    with torch.no_grad():
        output = model(ids[:, :4])
        rest = model(ids[:, 4:], past_key_values=output.past_key_values).logits
        torch.testing.assert_close(rest, model(ids).logits[:, 4:], rtol=1e-4, atol=1e-5)


SLOWED = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES = {
    "gpt2 tied": ("gpt2", {"tie_word_embeddings": True}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2 by depth": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 48}),
    "llama3 tied": ("llama3", {"tie_word_embeddings": True}),
    "llama3 untied": ("llama3", {"tie_word_embeddings": False}),
    "llama3 slowed": ("llama3", {"rope_parameters": SLOWED, "head_dim": 16}),
    "llama3 one key head": ("llama3", {"num_key_value_heads": 1}),
    "llama3 no groups": ("llama3", {"num_key_value_heads": 4}),
    "llama3 with biases": ("llama3", {"attention_bias": True, "mlp_bias": True}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_transformers_on_logits_and_gradients(shape, make_tiny, tokenizer):
    name, settings = SHAPES[shape]
    ours = make_tiny(name, **settings)
    reference = getattr(transformers, type(ours).__name__)(ours.config).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    ids = random_ids(tokenizer, 2, 13)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for options in ({}, {"attention_mask": mask, "position_ids": positions}):
        labels = ids.masked_fill(
            positions == 0, -100
        )  # a row's first token is predicted from padding
        outputs = [model(ids, labels=labels, **options) for model in (ours, reference)]
        real = mask.bool() if options else torch.ones_like(ids, dtype=torch.bool)
        torch.testing.assert_close(
            outputs[0].logits[real], outputs[1].logits[real], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=1e-5)
        for output in outputs:
            output.loss.backward()
        wanted = dict(reference.named_parameters())
        for key, parameter in ours.named_parameters():
            torch.testing.assert_close(
                parameter.grad, wanted[key].grad, rtol=1e-4, atol=1e-6, msg=key
            )
        ours.zero_grad()
        reference.zero_grad()


@pytest.mark.parametrize("shape", SHAPES)
def test_generates_what_transformers_does(shape, make_tiny, tokenizer):
    name, settings = SHAPES[shape]
    ours = make_tiny(name, **settings)
    reference = getattr(transformers, type(ours).__name__)(ours.config).eval()
    ours.load_state_dict(reference.state_dict())
    batch = tokenizer(["the cat", "a dog sat on the"], padding=True, return_tensors="pt")
    options = {
        "max_new_tokens": 10,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    mine, theirs = (model.generate(**batch, **options) for model in (ours, reference))
    torch.testing.assert_close(
        torch.stack(mine.logits), torch.stack(theirs.logits), rtol=1e-4, atol=1e-5
    )


def test_llama_rope_scaling_agrees_with_transformers(make_tiny, tokenizer):
    """On a text longer than three times what it was trained on before its rotation was slowed."""
    ours = make_tiny("llama3", rope_parameters=SLOWED, head_dim=16)
    reference = transformers.LlamaForCausalLM(ours.config).eval()
    ours.load_state_dict(reference.state_dict())
    ids = random_ids(tokenizer, 1, 50)
    torch.testing.assert_close(ours(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)


def test_an_unknown_rope_is_refused(make_tiny):
    with pytest.raises(RecipeError, match="yarn"):
        make_tiny("llama3", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_opens_in_a_process_that_has_no_rung(name, make_tiny, tokenizer, tmp_path, run_fork):
    model = make_tiny(name)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = random_ids(tokenizer, 1, 7)
    program = (
        "import sys; sys.modules['rung'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()\n"
        f"AutoTokenizer.from_pretrained({str(tmp_path)!r})\n"
        f"torch.save(model(torch.tensor({ids.tolist()})).logits, {str(tmp_path / 'logits.pt')!r})\n"
    )
    made = run_fork("-c", program)
    assert made.returncode == 0, made.stderr
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(theirs, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_gpt2_says_when_the_text_is_longer_than_its_positions(make_tiny, tokenizer):
    with pytest.raises(ValueError, match="65 tokens, but this model reads 64"):
        make_tiny("gpt2")(random_ids(tokenizer, 1, 65))


def test_llama_says_when_the_text_is_longer_than_it_was_trained_on(make_tiny, tokenizer):
    ids = random_ids(tokenizer, 1, 65)
    model = make_tiny("llama3")
    with pytest.raises(ValueError, match="65 tokens, but this model reads 64: shorten the text"):
        model(ids)
    state = model(ids[:, :64], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="65 tokens, but this model reads 64"):
        model(ids[:, 64:], past_key_values=state, use_cache=True)
    padded = torch.cat(
        [torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 60, dtype=torch.long)], dim=1
    )
    model(ids, attention_mask=padded)  # padding is no text
    slowed = make_tiny("llama3", rope_parameters=SLOWED)
    slowed(random_ids(tokenizer, 1, 128))  # 8 times the 16 of its first training
    with pytest.raises(ValueError, match="this model reads 128"):
        slowed(random_ids(tokenizer, 1, 129))


def test_a_step_looks_at_no_position_on_the_device(make_tiny, tokenizer, monkeypatch):
    """Whether the text is too long is told by its shape; to look would wait for the device at every
    step.
    """
    model, ids = make_tiny("llama3"), random_ids(tokenizer, 2, 9)
    looked = []
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: looked.append(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: looked.append(tensor))
    model(ids, use_cache=True)
    assert not looked


class Sizes(TorchDispatchMode):
    """How large the results of all operations are."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(
                    self.largest, tensor.untyped_storage().nbytes() // tensor.itemsize
                )
        return result


@pytest.mark.parametrize(
    ("queries", "masked", "dropout"),
    [(1, False, 0.0), (1, True, 0.0), (3, True, 0.0), (3, False, 0.5)],
)
def test_no_key_is_repeated(queries, masked, dropout):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 8, queries, 16), torch.randn(1, 2, 64, 16), torch.randn(1, 2, 64, 16)
    mask = (
        torch.ones(queries, 64, dtype=torch.bool).tril(64 - queries)[None, None] if masked else None
    )
    with Sizes() as sizes:
        grouped = attend(q, k, v, mask, dropout)
    assert sizes.largest <= k.numel()
    if not dropout:
        repeated = (t.repeat_interleave(4, dim=1) for t in (k, v))
        torch.testing.assert_close(grouped, attend(q, *repeated, mask))


@pytest.mark.parametrize("masked", [True, False])
def test_grouped_queries_with_dropout_are_attention(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8, requires_grad=True) for heads in (4, 2, 2))
    mask = causal_mask(torch.tensor([[0, 1, 1, 1, 1], [1] * 5]), 5, 5) if masked else None
    grouped = _attend_grouped(q, k, v, mask, 0.0)
    torch.testing.assert_close(grouped, attend(q, k, v, mask))


@pytest.mark.parametrize("masks", ["none", "one for all", "one each"])
@pytest.mark.parametrize("groups", [1, 2])
def test_plain_attention_is_attention(groups, masks):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, 9, 8),
        torch.randn(2, 4 // groups, 9, 8),
        torch.randn(2, 4 // groups, 9, 8),
    )
    numbers = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 3, 3, 0]])
    own = (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()
    mask = {"none": None, "one for all": own[:1], "one each": own}[masks]
    exact = attend(q, k, v, mask)
    plain = _attend_unfused(*(t.bfloat16() for t in (q, k, v)), mask)
    torch.testing.assert_close(plain.float(), exact, rtol=0.05, atol=0.05)


def test_causal_mask_lets_padding_see_itself():
    mask = causal_mask(torch.tensor([[0, 1, 1]]), 3, 3)
    assert mask[0, 0].tolist() == [[True, False, False], [False, True, False], [False, True, True]]


@pytest.mark.parametrize("name", NEURAL)
def test_match_parameters_comes_near(name, tokenizer):
    name, settings = name.split()[0], VARIANTS.get(name, {})
    width = find_hidden_size(name, tokenizer, 1_000_000, settings)
    size = count_parameters(
        build_model(name, make_config(name, tokenizer, {**settings, "hidden_size": width}))
    )
    assert abs(size - 1_000_000) < 250_000


def test_config_refuses_what_it_does_not_know(tokenizer):
    with pytest.raises(RecipeError, match="did you mean 'hidden_size'"):
        make_config("llama3", tokenizer, {"hiden_size": 8})
    with pytest.raises(RecipeError, match="unknown rung 'lama3': did you mean 'llama3'"):
        make_config("lama3", tokenizer, {})
    with pytest.raises(
        RecipeError, match="model.vocab_size is 10, but .*: set tokenizer.vocab_size"
    ):
        make_config("llama3", tokenizer, {"vocab_size": 10})
    with pytest.raises(RecipeError, match="model.eos_token_id is 77, but the tokenizer's is"):
        make_config("llama3", tokenizer, {"eos_token_id": 77})
    assert (
        make_config("rnn", tokenizer, {"vocab_size": 4096}).vocab_size == 4096
    )  # more rows than tokens
    with pytest.raises(RecipeError, match="unknown cell 'gur': did you mean 'gru'"):
        build_model("rnn", make_config("rnn", tokenizer, {"cell": "gur"}))


def test_load_refuses_what_is_no_run(make_tiny, tokenizer, tmp_path):
    with pytest.raises(RunError, match="no run at"):
        load(tmp_path / "nowhere")
    with pytest.raises(RunError, match="has no config.json"):
        load(tmp_path)
    make_tiny("gpt2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="model.safetensors is damaged"):
        load(tmp_path)


def test_every_rung_has_its_idea():
    assert sorted(IDEAS) == sorted(TINY)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_opens_in_a_pipeline_and_ends_where_its_window_does(
    name, make_tiny, tokenizer, tmp_path
):
    from transformers import pipeline

    runs.save_model(tmp_path, make_tiny(name), tokenizer)
    pipe = pipeline(
        "text-generation", str(tmp_path), do_sample=False
    )  # of stock transformers where it ships the model
    model = pipe.model
    assert model.generation_config.max_length == make_tiny(name).context_length
    model.generation_config.eos_token_id = None  # so that nothing ends before the window does
    assert pipe("the cat sat")[0]["generated_text"].startswith("the cat sat")
    if window := model.generation_config.max_length:
        assert len(pipe("the cat sat", return_tensors=True)[0]["generated_token_ids"]) == window
        with pytest.raises(ValueError, match=f"`max_length` is set to {window}"):
            pipe("the cat sat on the mat " * 20)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "swaps"])
def test_writing_beyond_the_window_is_one_clear_error(name, make_tiny):
    model = make_tiny(name)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="65 tokens, but this model reads 64: shorten the text"):
        model.generate(torch.tensor([[0, 5, 6]]), max_new_tokens=100, do_sample=False)
