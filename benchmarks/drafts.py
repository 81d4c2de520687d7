"""Guessing ahead: what a draft buys on text that repeats itself and on text that does not.

Greedy, from a run and an n-gram run of the same tokenizer, as `rung climb` leaves them; the same tokens with each
draft is checked here too.

python benchmarks/drafts.py runs/python-docs/llama3 runs/python-docs/ngram > benchmarks/drafts.txt
"""

import sys

import torch

from rung.device import describe
from rung.generate import Decoder, Sampling, generate, make_draft
from rung.models import count_parameters, load

REPEATS = 5
NEW = 100  # tokens
PROMPTS = {
    "repetitive": "Return the sine of x.\n\nReturn the cosine of x.\n\nReturn the tangent of x.\n\n" * 3,
    "ordinary": "The following methods are used to open a file and to read what is in it, one line after another.",
}


class Counting:
    """A draft, and how often it was asked."""

    def __init__(self, draft):
        self.draft, self.asked = draft, 0

    def guess(self, ids, count):
        self.asked += 1
        return self.draft.guess(ids, count)


def measure(decoder, tokenizer, prompt, draft):
    """Tokens a second of the fastest run, tokens for each pass, and the text."""
    seconds = []
    for _ in range(REPEATS):
        counting = Counting(make_draft(draft, tokenizer)) if draft else None
        made = generate(decoder, tokenizer, prompt, Sampling(temperature=0, max_new_tokens=NEW), draft=counting)
        seconds.append(made.seconds)
    passes = counting.asked + 1 if counting else made.tokens
    return made.tokens / min(seconds), made.tokens / passes, made.text


def main():
    run, ngram = sys.argv[1:]
    model, tokenizer = load(run)
    decoder = Decoder(model)
    print(f"{describe(torch.device('cpu'))}, torch {torch.__version__}; greedy, {NEW} tokens, the best of {REPEATS}")
    print(f"{model.config.model_type}, {count_parameters(model):,} weights")
    print(f"{'text':<12}{'draft':<8}{'tokens/s':>10}{'ratio':>8}{'tokens a pass':>15}")
    for name, prompt in PROMPTS.items():
        plain, _, text = measure(decoder, tokenizer, prompt, None)
        print(f"{name:<12}{'none':<8}{plain:>10,.0f}{1:>8.2f}{1:>15.2f}")
        for label, draft in (("prompt", "prompt"), ("ngram", ngram)):
            rate, a_pass, same = measure(decoder, tokenizer, prompt, draft)
            assert same == text
            print(f"{name:<12}{label:<8}{rate:>10,.0f}{rate / plain:>8.2f}{a_pass:>15.2f}")


if __name__ == "__main__":
    main()
