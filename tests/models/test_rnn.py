"""The rungs that step through time, over cells, layers, heads and dropout: plain torch's numbers,
padding or not.
"""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rung.device import has_bfloat16_lstm
from rung.models import load
from rung.models.rnn import CELLS, Recurrence, RNNConfig

RECURRENT = ["rnn", "rnn-attention"]
V, B, T = 40, 2, 9
SHAPES = [(name, cell, layers) for name in RECURRENT for cell in CELLS for layers in (1, 2)]
over_shapes = pytest.mark.parametrize(("name", "cell", "layers"), SHAPES)
MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * T],
    "right": [[1, 1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 1]],
    "both sides and between": [[0, 1, 1, 0, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1, 0, 0, 1]],
    "a whole row": [[0] * T, [0, 0, 1, 1, 1, 1, 1, 1, 1]],
}


@pytest.fixture
def make(make_tiny):
    def make(name, cell, layers, **settings):
        model = make_tiny(name, hidden_size=16, cell=cell, num_hidden_layers=layers, **settings)
        for table in {
            model.embedding.weight,
            model.head.weight,
        }:  # new, a model says nearly the same of any text
            table.data.mul_(25)
        return model

    return make


@pytest.fixture
def ids():
    return torch.randint(3, V, (B, T), generator=torch.Generator().manual_seed(2))


class Reference(nn.Module):
    """The same model in plain torch, dropout where Zaremba et al. 2014 put it."""

    def __init__(self, model):
        super().__init__()
        config = model.config
        kind = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
        dropout = config.dropout if config.num_hidden_layers > 1 else 0.0
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.cell = kind(width, width, config.num_hidden_layers, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, config.vocab_size, bias=config.head_bias)
        if config.tie_word_embeddings:
            self.head.weight = self.embedding.weight
        self.heads = getattr(config, "num_attention_heads", 0)
        if self.heads:
            self.query_key_value = nn.Linear(width, 3 * width, bias=False)
            self.mix = nn.Linear(width, width, bias=False)
        self.load_state_dict(
            {k.replace("recurrence.", ""): v for k, v in model.state_dict().items()}, strict=True
        )

    def forward(self, ids):
        hidden, _ = self.cell(self.dropout(self.embedding(ids)))
        if self.heads:
            hidden = hidden + self.mix(self.look_back(hidden))
        return self.head(self.dropout(hidden))

    def look_back(self, hidden):
        """Attention written out: one head after another, one position after another."""
        heads = []
        for q, k, v in zip(
            *(t.chunk(self.heads, -1) for t in self.query_key_value(hidden).chunk(3, -1)),
            strict=True,
        ):
            seen = []
            for t in range(hidden.shape[1]):
                weights = (
                    torch.einsum("bk,bsk->bs", q[:, t], k[:, : t + 1])
                    .div(q.shape[-1] ** 0.5)
                    .softmax(-1)
                )
                seen.append(torch.einsum("bs,bsk->bk", weights, v[:, : t + 1]))
            heads.append(torch.stack(seen, 1))
        return torch.cat(heads, -1)


@over_shapes
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_agrees_with_plain_torch_on_logits_and_gradients(
    name, cell, layers, tied, dropout, make, ids
):
    heads = {"num_attention_heads": 2} if name == "rnn-attention" else {}
    model = make(name, cell, layers, tie_word_embeddings=tied, dropout=dropout, **heads).train()
    reference = Reference(model).train()
    logits = []
    for each in (model, reference):
        torch.manual_seed(5)
        output = each(ids)
        logits.append(output.logits if each is model else output)
        F.cross_entropy(logits[-1][:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    wanted = dict(reference.named_parameters())
    for key, parameter in model.named_parameters():
        theirs = wanted.pop(key.replace("recurrence.", "")).grad
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-5, atol=1e-5, msg=key)
    assert not wanted


class BookReference(nn.Module):
    """The book's class from its description: states compared as they are, one after another, a head
    with bias.
    """

    def __init__(self, vocabulary, width):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cell = nn.RNN(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        states, _ = self.cell(self.embedding(ids))
        found = []
        for t in range(states.shape[1]):
            past = states[:, : t + 1]
            scores = torch.bmm(states[:, t : t + 1], past.mT) / states.shape[-1] ** 0.5
            found.append(torch.bmm(scores.softmax(-1), past))
        return self.head(torch.cat(found, 1))


@pytest.mark.parametrize("skip_logits", [True, False])
def test_agrees_with_the_books_class_on_loss_and_gradients(skip_logits, make, ids):
    settings = {"plain_attention": True, "head_bias": True, "tie_word_embeddings": False}
    model = make("rnn-attention", "elman", 1, **settings).train()
    model.head.bias.data.normal_()
    reference = BookReference(*model.embedding.weight.shape)
    reference.load_state_dict(
        {k.replace("recurrence.", ""): v for k, v in model.state_dict().items()}, strict=True
    )
    loss = model(ids, labels=ids, skip_logits=skip_logits).loss
    expected = F.cross_entropy(reference(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    wanted = dict(reference.named_parameters())
    for key, parameter in model.named_parameters():
        theirs = wanted.pop(key.replace("recurrence.", "")).grad
        torch.testing.assert_close(parameter.grad, theirs, rtol=1e-5, atol=1e-6, msg=key)
    assert not wanted


def step(cell, x, h, c, weights):
    """One token by the published equations, biases of input and state summed."""
    w, u, b, d = (
        weights[key] for key in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    )
    if cell == "elman":  # Elman 1990, with tanh
        return torch.tanh(x @ w.T + b + h @ u.T + d), c
    if cell == "lstm":  # Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000
        i, f, g, o = (x @ w.T + b + h @ u.T + d).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    (xr, xz, xn), (hr, hz, hn) = (x @ w.T + b).chunk(3, -1), (h @ u.T + d).chunk(3, -1)
    z = (xz + hz).sigmoid()  # Cho et al. 2014, reset after the product
    return (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h, c


@pytest.mark.parametrize("cell", list(CELLS))
def test_a_cell_is_its_equations(cell):
    torch.manual_seed(0)
    recurrence = Recurrence(RNNConfig(hidden_size=8, cell=cell))
    embedded, h, c = torch.randn(B, T, 8), torch.zeros(B, 8), torch.zeros(B, 8)
    hidden, memory = recurrence(embedded, None, None)
    for t in range(T):
        h, c = step(cell, embedded[:, t], h, c, recurrence.cell.state_dict())
        torch.testing.assert_close(hidden[:, t], h, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(memory, (h, c), strict=False):
        torch.testing.assert_close(found[:, 0], wanted, rtol=1e-5, atol=1e-6)


@over_shapes
@pytest.mark.parametrize("where", list(MASKS))
def test_padding_changes_nothing_wherever_it_stands(name, cell, layers, where, make, ids):
    """Whole, and cut anywhere into pieces that are read with a cache."""
    model, mask = make(name, cell, layers, tie_word_embeddings=False), torch.tensor(MASKS[where])
    with torch.no_grad():
        alone = [
            model(row[real.bool()][None]).logits[0] if real.any() else None
            for row, real in zip(ids, mask, strict=True)
        ]
        for cuts in ([T], [4, 5], [1, 2, 2, 1, 3], [1] * T):
            pieces, state = [], None
            for end, size in zip(torch.tensor(cuts).cumsum(0).tolist(), cuts, strict=True):
                output = model(
                    ids[:, end - size : end], attention_mask=mask[:, :end], past_key_values=state
                )
                state = output.past_key_values
                pieces.append(output.logits)
            for found, wanted, real in zip(torch.cat(pieces, 1), alone, mask.bool(), strict=True):
                assert found.isfinite().all()
                if wanted is not None:
                    torch.testing.assert_close(found[real], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RECURRENT)
def test_no_gradient_reaches_padding(name, make, ids):
    model, mask = make(name, "lstm", 2), torch.tensor(MASKS["both sides and between"]).bool()
    seen = []
    model.embedding.register_forward_hook(lambda *a: (a[-1].retain_grad(), seen.append(a[-1]))[1])
    model(ids, attention_mask=mask).logits[mask].square().sum().backward()
    assert (seen[0].grad[~mask] == 0).all()
    assert (seen[0].grad[mask].abs().sum(-1) > 0).all()


@over_shapes
@pytest.mark.parametrize("beams", [1, 3])
def test_rows_padded_on_the_left_score_what_they_do_alone(name, cell, layers, beams, make, ids):
    model, mask = make(name, cell, layers), torch.tensor(MASKS["left"])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    options |= {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    padded = ids.masked_fill(mask == 0, model.config.pad_token_id)
    together = model.generate(padded, attention_mask=mask, **options)
    for row in range(B):
        real = padded[row][mask[row].bool()][None]
        alone = model.generate(real, attention_mask=torch.ones_like(real), **options)
        assert together.sequences[row, T:].tolist() == alone.sequences[0, real.shape[1] :].tolist()
        if beams > 1:
            torch.testing.assert_close(
                together.sequences_scores[row], alone.sequences_scores[0], rtol=1e-5, atol=1e-5
            )
        else:
            for found, wanted in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(found[row], wanted[0], rtol=1e-5, atol=1e-5)


@pytest.mark.conditions
@over_shapes
@pytest.mark.parametrize("padded", [True, False])
def test_what_one_precision_remembered_another_goes_on_with(name, cell, layers, padded, make, ids):
    model, mask = make(name, cell, layers), torch.ones(B, T, dtype=torch.long)
    mask[0, :2] = 1 - padded
    with torch.no_grad():
        full = model(ids, attention_mask=mask).logits
        for first, second in ((True, False), (False, True)):
            with torch.autocast("cpu", torch.bfloat16, enabled=first):
                state = model(ids[:, :5], attention_mask=mask[:, :5]).past_key_values
            assert all(
                t.dtype == torch.float32 for t in state.tensors[-2 if cell == "lstm" else -1 :]
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=second):
                rest = model(ids[:, 5:], attention_mask=mask, past_key_values=state).logits
            torch.testing.assert_close(rest.float(), full[:, 5:], rtol=0.1, atol=0.1)


ONLY_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
TRAIN_AND_SCORE = """
from rung.cli.main import app
from rung.device import has_bfloat16_lstm
from rung.models import load

small = ["--steps", "2", "--documents", "paragraphs", "--tokenizer", "char"]
small += ["--set", "hidden_size=16", "--set", "train.bf16=true"]
app(["train", "rnn", "prose.txt", "--out", "run", *small], standalone_mode=False)
model, tokenizer = load("run")
model.bfloat16().save_pretrained("half")
tokenizer.save_pretrained("half")
app(["eval", "half", "prose.txt", "--json"], standalone_mode=False)
"""


def test_an_lstm_is_computed_in_float32_where_bfloat16_has_none(make, ids, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(torch, "lstm", refuse)
    assert not has_bfloat16_lstm.__wrapped__()
    assert caplog.text.count("has no LSTM in bfloat16") == 1
    monkeypatch.undo()
    monkeypatch.setattr("rung.models.rnn.has_bfloat16_lstm", lambda: False)
    model, seen = make("rnn", "lstm", 2), []
    model.recurrence.cell.register_forward_hook(lambda *parts: seen.append(parts[2][0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits
    assert seen == [torch.float32]
    torch.testing.assert_close(logits.float(), model(ids).logits, rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.conditions
def test_bfloat16_works_on_a_processor_without_it(prose, tmp_path):
    """Trained in it, and stored in it; that the LSTM is not computed in it is said once."""
    (tmp_path / "prose.txt").write_text(prose)
    run = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_SCORE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | ONLY_AVX2,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count('"bits_per_byte"') == 1
    if platform.machine() in ("x86_64", "AMD64"):
        assert run.stderr.count("has no LSTM in bfloat16") == 1


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_tied_or_not_also_when_read_again(name, tied, make_tiny, tokenizer, tmp_path):
    model = make_tiny(name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for each in (model, load(tmp_path)[0]):
        assert (each.head.weight is each.embedding.weight) == tied
        assert each.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
        started = 0.02 if tied else each.config.embedding_range
        assert each.embedding.weight.std().item() == pytest.approx(started, rel=0.1)


def test_a_cell_starts_orthogonal_and_an_lstm_remembers(make_tiny):
    for cell in CELLS:
        recurrence = make_tiny("rnn", cell=cell, num_hidden_layers=2).recurrence.cell
        for layer in range(2):
            for gate in getattr(recurrence, f"weight_hh_l{layer}").split(32):
                torch.testing.assert_close(gate @ gate.T, torch.eye(32), rtol=0, atol=1e-5)
            bias = getattr(recurrence, f"bias_ih_l{layer}") + getattr(
                recurrence, f"bias_hh_l{layer}"
            )
            gates = [part.unique().tolist() for part in bias.split(32)]
            assert gates == [
                [1.0] if cell == "lstm" and n == 1 else [0.0] for n in range(len(gates))
            ]


def test_what_cannot_be_right_is_refused(make, ids):
    for name in RECURRENT:
        with pytest.raises(ValueError, match="covers 3 of 9 tokens"):
            make(name, "gru", 1)(ids, attention_mask=torch.ones(B, 3))
        with pytest.raises(ValueError, match="assisted generation is not supported"):
            make(name, "gru", 1).generate(
                ids, attention_mask=torch.ones_like(ids), prompt_lookup_num_tokens=2
            )
    model, short = make("rnn-attention", "gru", 1), torch.tensor(MASKS["left"])[:, :5]
    state = model(ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match="covers 5 of 9 tokens: it must cover the past"):
        model(ids[:, 4:], attention_mask=short, past_key_values=state)
