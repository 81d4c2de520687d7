"""Time greedy decoding with drafts beside decoding without, on two kinds of text.

One text repeats itself, the other does not. RUN is a model and NGRAM an n-gram run with the same
tokenizer. Left out, they are trained first, as the first two commands do it. The script also
checks that no draft changes the text.

    rung train ngram --out ngram
    rung train llama3-micro --tokenizer ngram --minutes 4 --out micro
    python benchmarks/generation/drafts.py [RUN NGRAM] > benchmarks/generation/drafts.txt
"""

import subprocess
import sys
import tempfile

import torch

from rung.device import describe_device
from rung.generation.decoder import Decoder
from rung.generation.generate import generate
from rung.generation.sampling import Sampling
from rung.generation.speculative import make_draft
from rung.models import count_parameters, load

REPEATS = 15
NEW = 150  # tokens
PROMPTS = {
    "repetitive": "Return the sine of x.\n\nReturn the cosine of x.\n\nReturn the tangent of x.\n\n"
    * 3,
    "ordinary": "The following methods are used to open a file and to read what is in it, one line "
    "after another.",
}


class Counting:
    """A draft, and how often it was asked."""

    def __init__(self, draft):
        self.draft, self.asked = draft, 0

    def propose(self, ids, count):
        self.asked += 1
        return self.draft.propose(ids, count)


def measure(decoder, tokenizer, prompt, drafts):
    """Of each draft: tokens a second of the fastest run, and tokens for each pass. The drafts take
    turns.
    """
    sampling = Sampling(temperature=0, max_new_tokens=NEW)
    seconds, passes, texts = {name: [] for name in drafts}, {}, set()
    for _ in range(REPEATS):
        for name, draft in drafts.items():
            counting = Counting(make_draft(draft, tokenizer)) if draft else None
            made = generate(decoder, tokenizer, prompt, sampling, draft=counting)
            seconds[name].append(made.seconds)
            passes[name] = made.tokens / (counting.asked + 1 if counting else made.tokens)
            texts.add(made.text)
    assert len(texts) == 1, "a draft changed the text"
    return {name: (made.tokens / min(seconds[name]), passes[name]) for name in drafts}


def train_both(folder):
    """Train what is measured where no runs are named: a small Llama and an n-gram of its
    tokenizer.
    """
    run, ngram = f"{folder}/micro", f"{folder}/ngram"
    commands = (
        ("ngram", "--out", ngram),
        ("llama3-micro", "--tokenizer", ngram, "--minutes", "4", "--out", run),
    )
    for words in commands:
        subprocess.run(
            [sys.executable, "-m", "rung", "train", *words], check=True, stdout=sys.stderr
        )
    return run, ngram


def main():
    with tempfile.TemporaryDirectory() as folder:
        compare(*(sys.argv[1:] or train_both(folder)))


def compare(run, ngram):
    model, tokenizer = load(run)
    decoder = Decoder(model)
    print(
        f"{describe_device(torch.device('cpu'))}"
        f", torch {torch.__version__}; greedy, {NEW} tokens, the "
        f"best of {REPEATS}"
    )
    print(f"{model.config.model_type}, {count_parameters(model):,} weights")
    print(f"{'text':<12}{'draft':<8}{'tokens/s':>10}{'ratio':>8}{'tokens a pass':>15}")
    for kind, prompt in PROMPTS.items():
        rates = measure(
            decoder, tokenizer, prompt, {"none": None, "prompt": "prompt", "ngram": ngram}
        )
        for name, (rate, a_pass) in rates.items():
            print(
                f"{kind:<12}{name:<8}{rate:>10,.0f}{rate / rates['none'][0]:>8.2f}{a_pass:>15.2f}"
            )


if __name__ == "__main__":
    main()
