"""The contract of Hugging Face, over every rung: what transformers asks of its own causal models,
and how it refuses.

The cases are those of transformers' `ModelTesterMixin` and `GenerationTesterMixin`; its source
distribution lacks half of the files that these need, so they are written anew here.
"""

import copy
import inspect
import warnings

import peft
import pytest
import torch
import transformers
from torch.nn.utils import parametrize
from transformers import DynamicCache, StaticCache
from transformers.modeling_layers import GradientCheckpointingLayer

from rung.data.tokenizer_training import build_tokenizer
from rung.errors import RunError
from rung.generation import native
from rung.generation.decoder import Decoder
from rung.models import build_model, load, make_config
from rung.models.base import RecurrentState, find_padding_idx
from rung.models.fused import is_unmodified
from rung.training.arguments import make_training_arguments
from rung.training.settings import TrainSettings
from tests.conftest import NEURAL, SENTENCES, TINY, shake

RUNGS = list(TINY)
COUNTING = [name for name in RUNGS if name not in NEURAL]
TRANSFORMERS = ["gpt2", "llama3", "swaps"]
STATEFUL = [name for name in RUNGS if name not in TRANSFORMERS]
ATTENTIVE = ["rnn-attention", *TRANSFORMERS]
LAYERED = {
    "rnn": {"num_hidden_layers": 3},
    "rnn-attention": {"num_hidden_layers": 2, "num_attention_heads": 2},
}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


@pytest.fixture(scope="module")
def shaken(make_tiny):
    """Models that no test may change, each made once."""
    made = {}
    return lambda name: made.setdefault(name, shake(make_tiny(name, **LAYERED.get(name, {}))))


@pytest.fixture
def own(shaken):
    """A copy that the test may change."""
    return lambda name: copy.deepcopy(shaken(name))


@pytest.fixture(scope="module")
def ids(tokenizer):
    return torch.randint(3, len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def without_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def same(found, wanted, tolerance=1e-4):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def pad_left(ids, count):
    """Ids and their mask, with so much padding before the first row."""
    mask = torch.ones_like(ids)
    mask[0, :count] = 0
    return ids.masked_fill(mask == 0, 0), mask


# The past


@pytest.mark.parametrize("name", RUNGS)
def test_the_past_is_handed_out_as_the_configuration_says(name, own, ids):
    model = own(name)
    whole = model(ids).logits
    output = model(ids[:, :5])
    same(model(ids[:, 5:], past_key_values=output.past_key_values).logits, whole[:, 5:])
    assert model(ids, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is not None


@pytest.mark.parametrize("name", NEURAL)
def test_training_keeps_no_past_unless_asked(name, own, ids):
    model = own(name).train()
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is not None


def test_the_trainer_does_not_switch_the_past_off_in_what_is_saved(own, tmp_path):
    model = own("gpt2")
    arguments = make_training_arguments(TrainSettings(steps=1), tmp_path, 1)
    transformers.Trainer(model, arguments, eval_dataset=[])
    assert model.config.use_cache


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_static_cache_holds_the_past(name, padding, shaken, ids):
    model, (ids, mask) = shaken(name), pad_left(ids, padding)
    whole = model(ids, attention_mask=mask).logits
    cache = StaticCache(config=model.config, max_cache_len=20)
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        output = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache)
        real = mask[:, begin:end].bool()
        same(output.logits[real], whole[:, begin:end][real])
    assert output.past_key_values is cache


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_generates_with_a_static_cache(name, padding, shaken, ids):
    model, (ids, mask) = shaken(name), pad_left(ids, padding)
    options = GREEDY | {
        "attention_mask": mask,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    static = model.generate(ids, cache_implementation="static", **options)
    dynamic = model.generate(ids, **options)
    assert static.sequences.tolist() == dynamic.sequences.tolist()
    same(torch.stack(static.logits), torch.stack(dynamic.logits))
    by_hand = model.generate(
        ids, past_key_values=StaticCache(config=model.config, max_cache_len=30), **options
    )
    assert by_hand.sequences.tolist() == dynamic.sequences.tolist()


@pytest.mark.parametrize("name", RUNGS)
def test_a_past_of_another_kind_is_refused(name, shaken, ids):
    model = shaken(name)
    wrong = RecurrentState((), 3) if name in TRANSFORMERS else DynamicCache()
    with pytest.raises(
        ValueError,
        match=f"past_key_values is a {type(wrong).__name__}: {type(model).__name__} takes",
    ):
        model(ids, past_key_values=wrong)


@pytest.mark.parametrize("name", RUNGS)
def test_generation_goes_on_from_a_past(name, shaken, ids):
    model = shaken(name)
    whole = model.generate(ids, **GREEDY)
    past = model(ids[:, :5], use_cache=True).past_key_values
    assert model.generate(ids, past_key_values=past, **GREEDY).tolist() == whole.tolist()
    first = model.generate(ids, return_dict_in_generate=True, **GREEDY)
    again = model.generate(first.sequences, past_key_values=first.past_key_values, **GREEDY)
    twice = model.generate(ids, **GREEDY | {"max_new_tokens": 12, "min_new_tokens": 12})
    assert again.tolist() == twice.tolist()


# Options and the form of the answer


@pytest.mark.parametrize("name", RUNGS)
def test_an_unknown_keyword_is_an_error(name, shaken, ids):
    with pytest.raises(
        TypeError,
        match="unexpected keyword argument 'atention_mask': did you mean 'attention_mask'",
    ):
        shaken(name)(ids, atention_mask=torch.ones_like(ids))
    with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
        shaken(name)(ids, input_ids=ids)
    with pytest.raises(ValueError, match="not used by the model: \\['temprature'\\]"):
        shaken(name).generate(ids, temprature=1.0)


@pytest.mark.parametrize("name", RUNGS)
def test_without_a_dict_the_answer_is_a_tuple(name, own, ids):
    model = own(name)
    full = model(ids, labels=ids)
    for found in (
        model(ids, labels=ids, return_dict=False),
        _by_config(model, "return_dict", False, ids),
    ):
        assert type(found) is tuple
        same(found[0], full.loss, 0.0)
        same(found[1], full.logits, 0.0)
        assert found[2].get_seq_length() == 9
    (logits,) = model(ids, return_dict=False, use_cache=False)
    same(logits, full.logits, 0.0)
    assert model.generate(ids, **GREEDY).shape == (2, 15)


def _by_config(model, key, value, ids):
    setattr(model.config, key, value)
    return model(ids, labels=ids)


@pytest.mark.parametrize("name", RUNGS)
def test_hidden_states(name, own, ids):
    model = own(name)
    output = model(ids, output_hidden_states=True)
    assert model(ids).hidden_states is None
    if name in COUNTING:
        assert output.hidden_states == ()
        return
    assert [tuple(t.shape) for t in output.hidden_states] == [(2, 9, 32)] * (
        model.config.num_hidden_layers + 1
    )
    same(model.get_output_embeddings()(output.hidden_states[-1]), output.logits)
    by_config = _by_config(model, "output_hidden_states", True, ids).hidden_states
    for found, wanted in zip(by_config, output.hidden_states, strict=True):
        same(found, wanted, 0.0)
    tail = model(
        ids[:, 5:], past_key_values=model(ids[:, :5]).past_key_values, output_hidden_states=True
    )
    for found, wanted in zip(tail.hidden_states, output.hidden_states, strict=True):
        same(found, wanted[:, 5:])


def test_hidden_states_of_recurrent_layers_are_those_of_the_cell(own, ids):
    """The states after two of three layers are the last of a model of two."""
    model = own("rnn")
    fewer = type(model)(
        model.config.from_dict(model.config.to_dict() | {"num_hidden_layers": 2})
    ).eval()
    fewer.load_state_dict({k: v for k, v in model.state_dict().items() if "_l2" not in k})
    _, mask = pad_left(ids, 2)
    found = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[2]
    same(
        found[mask.bool()],
        fewer(ids, attention_mask=mask, output_hidden_states=True).hidden_states[2][mask.bool()],
    )


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("name", RUNGS)
def test_attentions(name, padding, own, ids):
    model, (ids, mask) = own(name), pad_left(ids, padding)
    model.set_attn_implementation("eager")
    output = model(ids, attention_mask=mask, output_attentions=True)
    real = mask.bool()
    same(output.logits[real], model(ids, attention_mask=mask).logits[real])
    assert model(ids).attentions is None
    if name not in ATTENTIVE:
        assert output.attentions == ()
        return
    heads = model.config.num_attention_heads
    layers = 1 if name == "rnn-attention" else model.config.num_hidden_layers
    assert [tuple(t.shape) for t in output.attentions] == [(2, heads, 9, 9)] * layers
    for weights in output.attentions:
        same(weights.sum(-1), torch.ones(2, heads, 9))
        assert not weights.triu(1).any()
        assert not weights[0, :, padding:, :padding].any()
    model.config.output_attentions = True
    same(
        torch.stack(model(ids, attention_mask=mask).attentions), torch.stack(output.attentions), 0.0
    )
    past = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True).past_key_values
    tail = model(ids[:, 5:], attention_mask=mask, past_key_values=past)
    same(torch.stack(tail.attentions), torch.stack(output.attentions)[:, :, :, 5:])


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_hidden_states_and_attentions_are_those_of_transformers(name, shaken, ids):
    ours = shaken(name)
    theirs = (
        getattr(transformers, type(ours).__name__)
        ._from_config(ours.config, attn_implementation="eager")
        .eval()
    )
    theirs.load_state_dict(ours.state_dict())
    options = {"output_hidden_states": True, "output_attentions": True}
    found, wanted = (model(ids, **options) for model in (ours, theirs))
    for key in ("hidden_states", "attentions"):
        same(torch.stack(found[key]), torch.stack(wanted[key]))
    assert list(found) == [key for key in wanted if key != "cross_attentions"]


def test_attentions_are_refused_where_transformers_refuses(own):
    model = own("llama3")
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="output_attentions"):
        model.config.output_attentions = True


@pytest.mark.parametrize("name", NEURAL)
def test_hidden_states_pass_gradients(name, own, ids):
    model = own(name)
    output = model(ids, labels=ids, output_hidden_states=True, output_attentions=True)
    kept = [output.hidden_states[0], output.hidden_states[-1], *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    output.loss.backward()
    assert all(tensor.grad is not None for tensor in (kept[0], *output.attentions))


# What is read


@pytest.mark.parametrize("name", RUNGS)
def test_left_padding_positions_and_kept_logits(name, shaken, ids):
    model, (padded, mask) = shaken(name), pad_left(ids, 3)
    whole = model(ids).logits
    same(model(ids, position_ids=torch.arange(9)[None]).logits, whole, 0.0)
    alone = model(ids[:1, 3:]).logits
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for options in ({}, {"position_ids": positions}):
        same(model(padded, attention_mask=mask, **options).logits[:1, 3:], alone)
    same(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    same(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, whole[:, [0, 4]])


@pytest.mark.parametrize("name", STATEFUL)
def test_positions_that_jump_are_refused_where_there_are_none(name, shaken, ids):
    with pytest.raises(ValueError, match="position_ids jump"):
        shaken(name)(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]))


@pytest.mark.parametrize("name", RUNGS)
def test_vectors_in_the_place_of_ids(name, shaken, ids):
    model = shaken(name)
    if name in COUNTING:
        with pytest.raises(TypeError, match="unexpected keyword argument 'inputs_embeds'"):
            model(inputs_embeds=torch.zeros(1, 2, 3))
        with pytest.raises(TypeError, match="inputs_embeds"):
            model.generate(inputs_embeds=torch.zeros(1, 2, 3), **GREEDY)
        return
    vectors = model.get_input_embeddings()(ids)
    same(model(inputs_embeds=vectors).logits, model(ids).logits, 0.0)
    _, mask = pad_left(ids, 2)
    for options in ({}, {"attention_mask": mask}):
        written = model.generate(inputs_embeds=vectors, **options, **GREEDY)
        assert written.tolist() == model.generate(ids, **options, **GREEDY)[:, 9:].tolist()
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": vectors}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize("name", RUNGS)
def test_losses_are_those_of_transformers(name, shaken, ids):
    model = shaken(name)
    logits = model(ids).logits
    labels = ids.clone()
    labels[0, :4] = -100
    counted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    number = int((labels[:, 1:] >= 0).sum())
    same(model(ids, labels=labels).loss, counted / number)
    same(model(ids, labels=labels, num_items_in_batch=torch.tensor(7)).loss, counted / 7)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    same(model(ids, labels=labels, shift_labels=shifted).loss, counted / number)


# Generation


@pytest.mark.parametrize("how", ["greedy", "sample", "beams", "beam sample"])
@pytest.mark.parametrize("name", RUNGS)
def test_generates_alike_with_a_cache_and_without(name, how, shaken, ids):
    model = shaken(name)
    options = {"num_beams": 3, "num_return_sequences": 2} if "beam" in how else {}
    if how == "sample":
        options = {"num_return_sequences": 2, "temperature": 0.8, "top_k": 20}
    options |= {
        "do_sample": "sample" in how,
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "pad_token_id": 0,
    }
    written = []
    for cached in (True, False):
        torch.manual_seed(0)
        written.append(model.generate(ids, use_cache=cached, **options))
    assert written[0].tolist() == written[1].tolist()
    assert written[0].shape == ((2 if how == "greedy" else 4), 14)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", RUNGS)
def test_generate_hands_out_what_is_asked_for(name, beams, shaken, ids):
    model = shaken(name)
    wanted = ("scores", "logits", "hidden_states", "attentions")
    output = model.generate(
        ids,
        num_beams=beams,
        return_dict_in_generate=True,
        **{f"output_{key}": True for key in wanted},
        **GREEDY | {"max_new_tokens": 3, "min_new_tokens": 3},
    )
    for key in wanted:
        assert len(output[key]) == 3
    assert output.logits[0].shape == (2 * beams, model.config.vocab_size)
    if name in NEURAL:
        lengths = [step[-1].shape[1] for step in output.hidden_states]
        assert lengths == [9, 1, 1]
    if name in ATTENTIVE:
        assert [step[0].shape[-1] for step in output.attentions] == [9, 10, 11]
    assert output.past_key_values.get_seq_length() == 11


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", RUNGS)
def test_a_left_padded_row_is_written_as_it_is_alone(name, beams, shaken, ids):
    model, (padded, mask) = shaken(name), pad_left(ids, 4)
    together = model.generate(padded, attention_mask=mask, num_beams=beams, **GREEDY)
    alone = model.generate(ids[:1, 4:], num_beams=beams, **GREEDY)
    assert together[0, 9:].tolist() == alone[0, 5:].tolist()


@pytest.mark.parametrize("how", ["assistant", "lookup"])
@pytest.mark.parametrize("name", RUNGS)
def test_drafts_are_taken_or_refused_as_transformers_does(name, how, shaken, make_tiny, ids):
    model = shaken(name)
    options = (
        {"assistant_model": make_tiny("gpt2")}
        if how == "assistant"
        else {"prompt_lookup_num_tokens": 3}
    )
    if name in STATEFUL:
        with pytest.raises(ValueError, match="not supported with stateful models"):
            model.generate(ids[:1], **options, **GREEDY)
        return
    assert (
        model.generate(ids[:1], **options, **GREEDY).tolist()
        == model.generate(ids[:1], **GREEDY).tolist()
    )


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_drafts_of_its_first_layers_leave_the_others_out(name, own, ids):
    model, read = own(name), []
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, place=place: read.append(place))
    wanted = model.generate(ids[:1], **GREEDY).tolist()
    assert read.count(0) == read.count(1) > 0
    assert model.generate(ids[:1], assistant_early_exit=1, **GREEDY).tolist() == wanted
    assert read.count(0) > read.count(1)
    assert (
        len(model(ids, output_hidden_states=True).hidden_states) == 3
    )  # and afterwards it is whole


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_drafts_of_a_model_with_another_tokenizer(name, shaken, tokenizer, ids):
    other = build_tokenizer("bpe", SENTENCES * 20, 280)
    assistant = build_model("llama3", make_config("llama3", other, TINY["llama3"])).eval()
    options = {
        "assistant_model": assistant,
        "tokenizer": tokenizer,
        "assistant_tokenizer": other,
        **GREEDY,
    }
    found = shaken(name).generate(ids[:1], **options)
    assert found.tolist() == shaken(name).generate(ids[:1], **GREEDY).tolist()


@pytest.mark.parametrize("name", STATEFUL)
def test_a_rung_that_carries_a_state_is_no_assistant(name, shaken, ids):
    with pytest.raises(
        ValueError, match="cannot be an assistant_model: its state takes no token back"
    ):
        shaken("llama3").generate(
            ids[:1], assistant_model=shaken(name), **GREEDY | {"max_new_tokens": 20}
        )


@pytest.mark.parametrize("name", RUNGS)
def test_continuous_batching_is_refused(name, shaken, ids):
    with pytest.raises(NotImplementedError, match="rungs do not support continuous batching"):
        shaken(name).generate_batch(ids.tolist(), max_new_tokens=2)
    with pytest.raises(NotImplementedError, match="rungs do not support continuous batching"):
        shaken(name).generate(ids, cache_implementation="paged", max_new_tokens=2)


# Training


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_gradient_checkpointing_changes_no_gradient(name, reentrant, own, ids, caplog):
    wanted, found = own(name).train(), own(name).train()
    found.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for model in (wanted, found):
        if reentrant:
            model.enable_input_require_grads()
        model(ids, labels=ids, use_cache=model is found).loss.backward()
    for (key, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=key)
    output = found(ids, use_cache=True)
    assert output.past_key_values is None


@pytest.mark.parametrize("name", STATEFUL)
def test_gradient_checkpointing_is_refused_as_transformers_does(name, own):
    with pytest.raises(ValueError, match="does not support"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own(name).gradient_checkpointing_enable()


def test_the_begin_token_is_learned_where_it_pads_too(make_tiny, tokenizer, ids):
    """Also one that ends texts; a token that only pads is not learned."""
    for name in ("llama3", "swaps"):
        config = make_tiny(name).config
        both = type(config).from_dict(
            config.to_dict() | {"bos_token_id": 2, "eos_token_id": [5, 2], "pad_token_id": 2}
        )
        alone = type(config).from_dict(
            config.to_dict() | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        )
        assert (find_padding_idx(both), find_padding_idx(alone)) == (None, 2)
        with torch.enable_grad():
            for made, learns in ((both, True), (alone, False)):
                made.tie_word_embeddings = False
                made.swaps = ["rmsnorm"]
                model = type(make_tiny(name))(made)
                row = ids.clone()
                row[:, 0] = 2
                model(row, labels=row).loss.backward()
                assert bool(model.get_input_embeddings().weight.grad[2].any()) is learns


# Files


@pytest.mark.parametrize("name", RUNGS)
def test_saves_and_loads_again(name, shaken, ids, tmp_path):
    model = shaken(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    same(again(ids).logits, model(ids).logits, 0.0)
    tied = model.config.tie_word_embeddings and name in NEURAL
    assert (again.get_output_embeddings() is not None) == (name in NEURAL)
    if tied:
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half(ids).logits.shape == (2, 9, model.config.vocab_size)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NEURAL)
def test_more_tokens_and_fewer(name, tied, make_tiny, ids, tmp_path):
    settings = (
        {"swaps": ["tied"] if tied else []} if name == "swaps" else {"tie_word_embeddings": tied}
    )
    model = shake(make_tiny(name, **settings))
    wanted = model(ids).logits
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 10)
    assert model.config.vocab_size == size + 10
    same(model(ids).logits[..., :size], wanted, 0.0)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    same(again(ids).logits, model(ids).logits, 0.0)
    model.resize_token_embeddings(size)
    same(model(ids).logits, wanted, 0.0)


@pytest.mark.parametrize("name", COUNTING)
def test_a_table_of_counts_has_no_embeddings_to_resize(name, own):
    with pytest.raises(NotImplementedError):
        own(name).resize_token_embeddings(310)


@pytest.mark.parametrize("name", NEURAL)
def test_only_what_was_not_loaded_is_initialised(name, make_tiny, tmp_path):
    model = shake(make_tiny(name))
    model.save_pretrained(tmp_path)
    size = model.config.vocab_size + 7
    again = type(model).from_pretrained(tmp_path, vocab_size=size, ignore_mismatched_sizes=True)
    kept = dict(model.state_dict())
    for key, value in again.state_dict().items():
        if value.shape == kept[key].shape:
            same(value, kept[key], 0.0)
        else:
            assert value.shape[0] == size
            assert value.isfinite().all()


# Kernels that read the weights themselves


def _change(model, how):
    """Something that the C step does not compute, in the first layer."""
    block = model.transformer.h[0] if hasattr(model, "transformer") else model.model.layers[0]
    name = "c_fc" if hasattr(model, "transformer") else "up_proj"
    layer = getattr(block.mlp, name)
    if how == "hook":
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    elif how == "hook on all":
        return torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, output: 2 * output if module is layer else None
        )
    elif how == "parametrization":
        parametrize.register_parametrization(layer, "weight", _Doubled())
    elif how == "another module":
        setattr(block.mlp, name, torch.nn.Sequential(layer, torch.nn.Tanh()))
    elif how == "another activation":
        block.mlp.act = torch.nn.Tanh()
    elif how == "another forward":
        layer.forward = lambda x: 2 * type(layer).forward(layer, x)
    elif how == "adapter":
        settings = {
            "target_modules": [name],
            "init_lora_weights": False,
            "fan_in_fan_out": name == "c_fc",
        }
        peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    elif how == "head with a bias":
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, model.config.vocab_size))
    return None


class _Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


CHANGES = [
    "hook",
    "hook on all",
    "parametrization",
    "another module",
    "another activation",
    "another forward",
]


@pytest.mark.parametrize("how", [*CHANGES, "adapter", "head with a bias"])
@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_the_step_in_c_is_for_what_it_computes(name, how, own, ids):
    model = own(name)
    before = model(ids[:1]).logits
    assert native.is_supported(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = _change(model, how)
    try:
        assert not native.is_supported(model)
        decoder = Decoder(model)
        assert decoder.native is None
        wanted = model(ids[:1]).logits
        assert (wanted - before).abs().max() > 0.01
        decoder.prefill([ids[0, :4].tolist()], 8)
        same(decoder.decode(ids[:1, 4:]), wanted[:, 4:])
    finally:
        if handle:
            handle.remove()


def test_the_step_in_c_is_not_for_dropout_at_work(make_tiny):
    model = make_tiny("gpt2", resid_pdrop=0.1)
    assert native.is_supported(model.eval())
    assert not native.is_supported(model.train())


@pytest.mark.parametrize(
    "how", ["hook", "parametrization", "another forward", "weights of another kind"]
)
def test_the_kernel_of_the_loss_keeps_what_stands_on_the_head(how, own, ids):
    model = own("llama3")
    head = model.lm_head
    assert is_unmodified(head, torch.nn.Linear)
    if how == "hook":
        head.register_forward_hook(lambda module, args, output: 2 * output)
    elif how == "parametrization":
        parametrize.register_parametrization(head, "weight", _Doubled())
    elif how == "another forward":
        head.forward = lambda x: 2 * torch.nn.Linear.forward(head, x)
    else:
        model.tie_weights = lambda *args, **options: None
        head.weight = torch.nn.Parameter(2 * head.weight.data.clone())
        head.register_buffer("other", head.weight.data.as_subclass(_Kind))
    assert not is_unmodified(head, torch.nn.Linear)
    same(model(ids, labels=ids, skip_logits=True).loss, model(ids, labels=ids).loss)


class _Kind(torch.Tensor):
    """A tensor that is no plain one, as quantised weights are."""


def test_signatures_name_what_transformers_looks_for(shaken):
    for name in RUNGS:
        taken = inspect.signature(shaken(name).forward).parameters
        assert {
            "input_ids",
            "attention_mask",
            "past_key_values",
            "labels",
            "logits_to_keep",
        } <= set(taken)
        assert ("inputs_embeds" in taken) == (name in NEURAL)


def test_a_weights_file_of_another_shape_is_named(make_tiny, tokenizer, tmp_path):
    model = make_tiny("llama3")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = model.config.to_dict() | {"intermediate_size": 48}
    type(model.config).from_dict(config).save_pretrained(tmp_path)
    with pytest.raises(
        RunError, match=r"mlp\.down_proj\.weight is \[32, \d+\] in its weights, \[32, 48\]"
    ):
        load(tmp_path)
