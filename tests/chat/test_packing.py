"""Conversations as rows to train on: packed, cut and counted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rung.chat.packing import ConversationDataset, pack_best_fit
from rung.chat.template import encode_conversations
from tests.chat.conftest import ask
from tests.conftest import NEURAL, SENTENCES, examples


class TestConversationDataset:
    @given(st.lists(st.integers(1, 32), max_size=60))
    @settings(max_examples=examples(100), deadline=None)
    def test_rows_hold_every_piece_once_and_no_more_than_fits(self, sizes):
        rows = pack_best_fit(sizes, 32)
        assert sorted(piece for row in rows for piece in row) == list(range(len(sizes)))
        assert all(sum(sizes[piece] for piece in row) <= 32 for row in rows)
        fewest = math.ceil(sum(sizes) / 32)
        assert len(rows) <= max(1, 2 * fewest) or not sizes  # no two rows are half empty

    @pytest.mark.parametrize("name", NEURAL)
    def test_nothing_leaks_between_conversations_that_share_a_row(self, make_chat, name):
        model, tokenizer = make_chat(name)
        talks = [ask(SENTENCES[i], SENTENCES[-i]) for i in range(len(SENTENCES))]
        encoded = encode_conversations(tokenizer, talks)
        examples = ConversationDataset(
            encoded, 64, tokenizer.pad_token_id, packed=name in ("gpt2", "llama3", "swaps")
        )
        batch = examples.__getitems__(list(range(len(examples))))
        logits = model(
            **{k: v for k, v in batch.items() if k not in ("labels", "shift_labels")}
        ).logits
        targets = batch["shift_labels"]
        nats = F.cross_entropy(logits[targets >= 0], targets[targets >= 0], reduction="sum")
        alone = 0.0
        for each in encoded:
            row = torch.tensor([each.ids])
            said = torch.tensor(each.assistant_mask[1:])
            alone += F.cross_entropy(
                model(row[:, :-1]).logits[0][said], row[0, 1:][said], reduction="sum"
            ).item()
        assert int((targets >= 0).sum()) == sum(sum(e.assistant_mask[1:]) for e in encoded)
        assert nats.item() == pytest.approx(alone, rel=1e-5)

    def test_what_is_longer_than_a_row_is_cut_off_and_counted(self, make_chat):
        _, tokenizer = make_chat("llama3")
        encoded = encode_conversations(
            tokenizer, [ask("a", "the cat " * 40), ask("b", "no"), ask("c " * 99, "no")]
        )
        examples = ConversationDataset(encoded, 32, tokenizer.pad_token_id, packed=True)
        assert (examples.cut, examples.left_out) == (1, 1)
        assert len(examples.pieces) == 2  # of the third nothing would be learned
        assert all(
            batch["input_ids"].shape == (32,)
            for batch in (examples[i] for i in range(len(examples)))
        )
