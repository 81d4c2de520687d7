"""Verbs that ask a run: eval, score, generate."""

import sys
from typing import Annotated

import typer

from rung.cli.command import Json, Run, Seed, print_json, verb


@verb("rung eval runs/python-docs/llama3 other.txt")
def eval_(
    run: Run,
    corpus: Annotated[str, typer.Argument(help="Other text to score; the run's own corpus by default.")] = "",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    documents: Annotated[str, typer.Option(help="What a document is: lines, paragraphs or file.")] = "",
    mix: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNG=RUN", help="Also: mixed with another run. May be given again.", show_default=False),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Also: with a cache of the document's own words.")] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Also: learning from each text once it is scored.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score a run on held-out text: bits per byte, word and token perplexity.

    What --mix, --cache and --dynamic give stands beside the plain score, fitted on the validation split.
    """
    from rung.cli.display import Display, make_quiet, score_table, show

    make_quiet()
    from rung.recipe.making import evaluate_run
    from rung.recipe.switches import Switches

    switches = Switches(mix=tuple(mix or ()), cache=cache, dynamic=dynamic)
    with Display() as display:
        found = evaluate_run(run, corpus, split, documents, lambda stage: display.tell("eval", stage), switches)
    if as_json:
        print_json(found)
    else:
        show(score_table(found["rung"], found["corpus"], found["split"], found))


@verb('rung score runs/python-docs/llama3 "Return the number of items."')
def score(run: Run, text: Annotated[str, typer.Argument(help="A sentence.")], as_json: Json = False) -> None:
    """The probability of a sentence, and the surprisal of each of its tokens."""
    from rung.cli.display import make_quiet, show, surprisal_table

    make_quiet()
    from rung.evaluate import score_text
    from rung.models import load

    model, tokenizer = load(run)
    pieces = score_text(model, tokenizer, text)
    bits = sum(piece.bits for piece in pieces)
    if as_json:
        tokens = [
            {"text": piece.text, "bits": piece.bits, "probability": 2**-piece.bits}
            | {
                name: value
                for name, value in (("order", piece.order), ("count", piece.count), ("discount", piece.discount))
                if value is not None
            }
            for piece in pieces
        ]
        print_json({"run": run, "text": text, "bits": bits, "probability": 2.0**-bits, "tokens": tokens})
    else:
        show(surprisal_table(pieces))


@verb('rung generate runs/python-docs/llama3 "Return the" --temperature 0.7')
def generate(
    run: Run,
    prompt: Annotated[str, typer.Argument(help="What to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that make up this probability.")] = 0.95,
    num_beams: Annotated[int, typer.Option(help="Beams to search with.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt."""
    from rung.cli.display import make_quiet

    make_quiet()
    from rung.generate import Sampling
    from rung.generate import generate as continue_text
    from rung.models import load

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        seed=seed,
    )
    model, tokenizer = load(run)
    if as_json:
        made = continue_text(model, tokenizer, prompt, sampling)
        facts = {"tokens": made.tokens, "seconds": made.seconds, "tokens_per_second": made.tokens_per_second}
        print_json({"run": run, "prompt": prompt, "text": made.text, **facts})
        return
    print(prompt, end="", flush=True)
    made = continue_text(model, tokenizer, prompt, sampling, lambda piece: print(piece, end="", flush=True))
    print(made.text if num_beams > 1 else "")
    print(f"{made.tokens} tokens, {made.tokens_per_second:,.0f} a second", file=sys.stderr)
