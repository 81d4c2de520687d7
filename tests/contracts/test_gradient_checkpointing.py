"""The same step in less memory: activations computed again, and a batch taken in parts."""

import numpy
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rung import runs
from rung.data.packing import PackedTokens
from rung.data.tokenizer import encode_documents
from rung.training.callbacks import TrainingCallbacks
from rung.training.settings import TrainSettings
from rung.training.train import train
from tests.conftest import NEURAL, SENTENCES

LAYERED = ["gpt2", "llama3", "swaps"]
DROPOUT = {
    "gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
    "llama3": {"attention_dropout": 0.2},
    "swaps": {},  # it has none
}
CALLBACKS = TrainingCallbacks(
    evaluate=lambda model: 1.5, sample=lambda model: "", on_progress=lambda progress: None
)


@pytest.fixture(scope="module")
def packed(tokenizer):
    """13 blocks of 64 tokens, the last one padded: batches of 8 and 5."""
    documents = list(encode_documents(SENTENCES * 40, tokenizer))
    tokens = numpy.concatenate(documents).astype(numpy.uint16)[: 12 * 64 + 10]
    return PackedTokens(tokens=tokens, starts=numpy.array([0]))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", LAYERED)
def test_gradients_are_the_same_to_the_bit_with_activations_computed_again(
    name, dropout, make_tiny, tokenizer
):
    ids = torch.randint(3, len(tokenizer), (2, 20), generator=torch.Generator().manual_seed(1))
    found = []
    for again in (False, True):
        model = make_tiny(name, **(DROPOUT[name] if dropout else {})).train()
        if again:
            model.activation_checkpointing_enable()
        torch.manual_seed(5)
        loss = model(ids, labels=ids).loss
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", LAYERED)
def test_fewer_activations_are_kept_for_the_way_back(name, make_tiny, tokenizer):
    """Of eight layers, less than a third; the logits, which are kept either way, are left out."""
    ids = torch.randint(3, len(tokenizer), (4, 60), generator=torch.Generator().manual_seed(1))
    kept = []
    for again in (False, True):
        model = make_tiny(name, num_hidden_layers=8).train()
        if again:
            model.activation_checkpointing_enable()
        weights = {p.data_ptr() for p in model.parameters()}
        sizes = {}

        def keep(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = model(ids, labels=ids, skip_logits=True).loss
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
        del hidden
    assert 0 < kept[1] < kept[0] / 3


def test_activations_are_computed_again_in_a_run(make_tiny, tokenizer, packed, tmp_path, recwarn):
    losses = []
    for again in (False, True):
        (tmp_path / str(again)).mkdir()
        losses.append(
            losses_of(
                make_tiny("gpt2"),
                tokenizer,
                packed,
                tmp_path / str(again),
                gradient_checkpointing=again,
            )
        )
    assert losses[0] == losses[1]
    assert not [
        w for w in recwarn if "deprecated" in str(w.message) and "checkpointing" in str(w.message)
    ]


@pytest.mark.parametrize("optim", ["muon", "adamw_torch_fused"])
@pytest.mark.parametrize("name", NEURAL)
def test_four_parts_are_one_batch(name, optim, make_tiny, tokenizer, packed, tmp_path, gradients):
    """Gradients, loss and what is logged, though the last part is mostly padding and an epoch ends
    amid a batch.
    """
    found = []
    for rows, parts in ((8, 1), (2, 4)):
        folder = tmp_path / str(parts)
        folder.mkdir()
        arguments = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": parts,
            "optim": optim,
        }
        losses = losses_of(make_tiny(name), tokenizer, packed, folder, **arguments)
        found.append((losses, list(gradients), runs.read_metrics(folder)))
        gradients.clear()
    (losses, steps, lines), (parted_losses, parted_steps, parted_lines) = found
    assert len(steps) == len(parted_steps) == 5
    assert parted_losses[:2] == pytest.approx(losses[:2], rel=1e-6)
    assert parted_losses == pytest.approx(losses, rel=1e-3)  # orthogonal steps are of bfloat16
    for one, other in zip(parted_steps[0], steps[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert [line["tokens"] for line in parted_lines] == [line["tokens"] for line in lines]
    norms = [
        [line["grad_norm"] for line in found if "grad_norm" in line]
        for found in (parted_lines, lines)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@pytest.fixture
def gradients():
    """The gradients of every step that any optimizer takes."""
    taken = []

    def keep(optimizer, args, options):
        taken.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_pre_hook(keep)
    yield taken
    hook.remove()


def losses_of(model, tokenizer, packed, folder, **arguments):
    arguments = {
        "per_device_train_batch_size": 4,
        "bf16": False,
        "learning_rate": 1e-3,
        **arguments,
    }
    settings = TrainSettings(steps=5, arguments=arguments)
    train(model, tokenizer, packed, folder, settings, CALLBACKS)
    return [line["loss"] for line in runs.read_metrics(folder) if "loss" in line]
