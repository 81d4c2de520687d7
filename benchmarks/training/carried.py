"""Train an RNN with the state carried from step to step, beside one without, on equal tokens.

`empty` is the ruler's figure: a document begins with an empty state. `strange` begins it with the
state that the end of the training text left, as carried training does.

    python benchmarks/training/carried.py [STEPS] [WIDTH] > benchmarks/training/carried.txt
"""

import math
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F

from rung import runs
from rung.data.corpus import load_corpus
from rung.data.tokenizer import encode_documents
from rung.device import describe_device
from rung.models import load
from rung.models.base import RecurrentState
from rung.recipe import make_recipe
from rung.workflows.train import execute

READ = 20_000  # characters of the training text's last documents, to leave a state


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    width = int(sys.argv[2]) if len(sys.argv) > 2 else 192
    device = torch.device("cpu")
    machine = f"{describe_device(device)}, {torch.get_num_threads()} used; one seed"
    print(f"$ python benchmarks/training/carried.py {steps} {width}          # {machine}")
    print(
        f"rnn on python-docs, LSTM {width} wide, {steps} steps of 2048 tokens; bits per byte of "
        f"the test text"
    )
    print(f"{'stretch':>9}  {'streams':>7}  {'state':>7}  {'empty':>19}  {'strange':>7}")
    for length, rows in ((256, 8), (64, 32)):
        for carried in (False, True):
            page = {"rung": "rnn", "steps": steps, "carry_state": carried}
            page |= {"model": {"hidden_size": width, "max_position_embeddings": length}}
            page |= {"train": {"per_device_train_batch_size": rows}}
            with tempfile.TemporaryDirectory() as folder:
                execute(make_recipe(page), Path(folder) / "run")
                record = runs.read_record(Path(folder) / "run")
                strange = score_from_a_strange_state(Path(folder) / "run")
            score = record["scores"]["test"]
            figures = f"{score['bits_per_byte']:.3f} ({score['low']:.3f}-{score['high']:.3f})"
            state = "carried" if carried else "empty"
            print(f"{length:>9}  {rows:>7}  {state:>7}  {figures:>19}  {strange:>7.3f}", flush=True)


@torch.no_grad()
def score_from_a_strange_state(folder):
    """Bits per byte of the test documents, each begun with the state that the training text's end
    left.
    """
    model, tokenizer = load(folder)
    corpus = load_corpus("python-docs")
    texts, size = [], 0
    for text in reversed(corpus.train["text"]):
        texts.insert(0, text)
        size += len(text)
        if size >= READ:
            break
    row = [token for ids in encode_documents(texts, tokenizer) for token in ids]
    state = model(torch.tensor([row])).past_key_values
    nats = 0.0
    for ids in encode_documents(corpus.test["text"], tokenizer):
        tokens = torch.tensor([ids])
        logits = model(
            tokens[:, :-1], past_key_values=RecurrentState(state.tensors, state.length)
        ).logits
        nats += F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(text.encode()) for text in corpus.test["text"])


if __name__ == "__main__":
    main()
