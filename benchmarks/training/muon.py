"""Train with AdamW and with Muon for the same seconds, at 1, 7, 30 and 67 million weights.

All sides begin with the same weights and read the same rows of the standard library's own source,
in byte pairs, in the precision that rung chooses, with the schedule of a run. Each stops after as
many seconds of CPU time, so that other work on the machine takes steps from none. AdamW is tried at
three rates, and the best one counts. "Muon" is what rung trains with, at the rung's rate: matrices
are cut into blocks where their products would take too much of a step, of which "rows" says how
many a block has. "Whole" leaves them whole. Bits per byte are those of text that no side reads.

    python benchmarks/training/muon.py > benchmarks/training/muon.txt
"""

import argparse
import itertools
import math
import random
import time
from typing import NamedTuple

import numpy
import torch

from rung.data.packing import BlockDataset, PackedTokens
from rung.data.sources import read_python_source
from rung.data.tokenizer import encode_documents
from rung.data.tokenizer_training import build_tokenizer
from rung.device import choose_device, describe_device, has_fast_bfloat16, retain_freed_memory
from rung.models import build_model, find_rung, make_config
from rung.training.optimizer import Muon, choose_most_rows, group_parameters

VOCABULARY, FILES, HELD_OUT = 4096, 600, 32_000


class Row(NamedTuple):
    rung: str
    width: int
    layers: int
    vocabulary: int
    rows: int
    length: int
    share: float  # of the seconds
    scale: float  # of the rate of embeddings and head beside Muon: a tied head has none


# A Llama's steps are those of a run of a few minutes, the GPT-2's those of train.py.
ROWS = [
    Row("llama3", 128, 2, VOCABULARY, 4, 512, share=0.2, scale=2.0),
    Row("llama3", 256, 6, VOCABULARY, 4, 512, share=0.3, scale=2.0),
    Row("llama3", 512, 8, VOCABULARY, 4, 512, share=0.6, scale=2.0),
    Row("gpt2", 768, 4, 50_257, 8, 128, share=1.0, scale=1.0),
]
SIDES = {"AdamW": (5e-4, 1e-3, 2e-3), "Muon": (), "whole": ()}  # and rates other than the rung's


def read_tokens():
    """The tokens to read, those held out, and the bytes of a token."""
    texts = [text for text, _ in itertools.islice(read_python_source(), FILES)]
    random.Random(0).shuffle(texts)
    tokenizer = build_tokenizer("bpe", texts, VOCABULARY)
    rows = [numpy.array(ids, dtype=numpy.uint16) for ids in encode_documents(texts, tokenizer)]
    tokens = numpy.concatenate(rows)
    size = sum(len(text.encode()) for text in texts) / len(tokens)
    return tokens[:-HELD_OUT], tokens[-HELD_OUT:], size


def build(row, seed):
    torch.manual_seed(seed)
    fields = {
        "hidden_size": row.width,
        "num_hidden_layers": row.layers,
        "vocab_size": row.vocabulary,
        "max_position_embeddings": row.length,
        "tie_word_embeddings": row.rung == "gpt2",
    }
    return build_model(row.rung, make_config(row.rung, None, fields)).train()


def make_optimizer(side, model, row, rate):
    """Muon as a run makes it; AdamW is what it does where no group holds matrices to it."""
    groups = group_parameters(
        model, weight_decay=0.1, embedding_lr_scale=1.0 if side == "AdamW" else row.scale
    )
    for group in groups:
        group["muon"] = group["muon"] and side != "AdamW"
    return Muon(
        groups,
        lr=rate,
        betas=(0.9, 0.95),
        eps=1e-8,
        dtype=torch.bfloat16 if is_half() else torch.float32,
        most_rows=choose_most_rows(model, row.rows * row.length) if side == "Muon" else None,
    )


def is_half():
    return has_fast_bfloat16(choose_device())


def find_loss(model, batch):
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half()):
        return model(**batch, skip_logits=True).loss


def train(model, optimizer, row, blocks, seconds):
    """Train for so many seconds of CPU time; return the steps."""
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0)).tolist()
    rates = [group["lr"] for group in optimizer.param_groups]
    began, steps, share = time.process_time(), 0, 0.0
    while share < 1:
        factor = min(1, (share + 0.002) / 0.05, (1 - share) / 0.5)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        places = range(row.rows * steps, row.rows * (steps + 1))
        batch = blocks.__getitems__([order[place % len(order)] for place in places])
        find_loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        share = (time.process_time() - began) / seconds
    return steps


@torch.no_grad()
def score(model, blocks):
    """Nats a token."""
    model.eval()
    places = [list(range(len(blocks) - 1))[i : i + 8] for i in range(0, len(blocks) - 1, 8)]
    losses = [len(each) * find_loss(model, blocks.__getitems__(each)).item() for each in places]
    return sum(losses) / (len(blocks) - 1)


def print_row(row, tokens, seconds, seed):
    reading, held_out, size = tokens
    read, kept = (
        BlockDataset(PackedTokens(tokens=part, starts=[0]), row.length, 0)
        for part in (reading, held_out)
    )
    for side, rates in SIDES.items():
        found = []
        for rate in rates or [find_rung(row.rung).find_learning_rate(row.width)]:
            model = build(row, seed)
            optimizer = make_optimizer(side, model, row, rate)
            if side == "whole" and choose_most_rows(model, row.rows * row.length) is None:
                continue  # as Muon is
            steps = train(model, optimizer, row, read, seconds)
            found.append((score(model, kept) / math.log(2) / size, rate, steps))
        if not found:
            continue
        bits, rate, steps = min(found)
        weights = sum(parameter.numel() for parameter in model.parameters())
        print(
            f"{row.rung:8}{weights / 1e6:7.1f}{row.rows * row.length:8,}{seed:6}{seconds:7.0f}  "
            f"{side:6}{optimizer.most_rows or '':>5}{rate:8.0e}{1000 * seconds / steps:9.0f}"
            f"{steps:7}{bits:9.3f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=130, help="of CPU time, of the largest")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", default="0,1,2,3", help="of the table, by number")
    chosen = parser.parse_args()
    retain_freed_memory()
    print(f"{describe_device(choose_device())}; {torch.get_num_threads()} threads")
    print(
        f"{'':8}{'M':>7}{'tokens':>8}{'seed':>6}{'CPU s':>7}  {'':6}{'rows':>5}{'rate':>8}"
        f"{'CPU ms':>9}{'steps':>7}{'bits':>9}"
    )
    tokens = read_tokens()
    for number, seed in itertools.product(map(int, chosen.rows.split(",")), range(chosen.seeds)):
        row = ROWS[number]
        print_row(row, tokens, chosen.seconds * row.share, seed)


if __name__ == "__main__":
    main()
