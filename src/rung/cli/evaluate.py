"""Verbs that ask a run: eval, score, generate."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rung.cli.app import (
    Column,
    Encoding,
    Json,
    Run,
    Seed,
    name_corpus,
    print_json,
    read_typed,
    verb,
)
from rung.cli.output import print_text, say
from rung.device import cache_folder, leave_busy_cores
from rung.errors import RecipeError
from rung.progress import for_run

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES|FILE|FOLDER",
        help="Instead: tasks of lm-evaluation-harness. May be given again.",
        show_default=False,
    ),
]


@verb("rung eval runs/python-docs/llama3 other.txt")
def eval_(
    run: Run,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            help="Other text to score, - for standard input; the run's own by default.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    documents: Annotated[
        str, typer.Option(help="What a document is: lines, paragraphs or file.")
    ] = "",
    column: Column = "",
    encoding: Encoding = "",
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG=RUN",
            help="Also: mixed with another run. May be given again.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Also: with a cache of the document's own words.")
    ] = False,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Also: learning from each text once it is scored.")
    ] = False,
    tasks: Tasks = None,
    limit: Annotated[
        int, typer.Option(min=0, help="With --tasks: so many documents of each; 0 for all.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Score a run on held-out text: bits per byte, word and token perplexity.

    What --mix, --cache and --dynamic give stands beside the plain score, fitted on the validation
    split. With --tasks the harness asks its own text of the run instead: tasks by name, a YAML file
    of one, or a folder of them.
    """
    if limit and not tasks:
        raise RecipeError(f"--limit is {limit}, but it is of --tasks: name a task, or leave it out")
    if tasks and (corpus or documents or column or encoding or mix or cache or dynamic):
        raise RecipeError(
            "--tasks bring their own text: leave out CORPUS, --documents, --mix, --cache, --dynamic"
        )
    if tasks:
        _eval_tasks(run, tasks, limit, as_json)
        return
    from rung.cli.fitted_table import show
    from rung.cli.progress import Display
    from rung.cli.results import make_quiet, score_table

    make_quiet()
    from rung.workflows.evaluate import evaluate_run
    from rung.workflows.variants import Switches

    how = {"documents": documents, "column": read_typed("--column", column), "encoding": encoding}
    source = name_corpus(corpus, cache_folder() / "stdin", spreads=False)
    switches = Switches(mix=tuple(mix or ()), cache=cache, dynamic=dynamic)
    with Display() as display:
        found = evaluate_run(run, source, split, how, for_run("eval", display.show), switches)
    print_json(found) if as_json else show(
        score_table(found["rung"], found["corpus"], found["split"], found)
    )


def _eval_tasks(run: str, tasks: list[str], limit: int, as_json: bool) -> None:
    from rung.cli.fitted_table import show
    from rung.cli.results import make_quiet, tasks_table

    make_quiet()
    from rung.workflows.evaluate import evaluate_tasks

    found = evaluate_tasks(run, tasks, limit or None)
    print_json(found) if as_json else show(tasks_table(found))


@verb('rung score runs/python-docs/llama3 "Return the number of items."')
def score(
    run: Run,
    text: Annotated[
        str, typer.Argument(help="A sentence, or - for standard input.", show_default=False)
    ] = "",
    file: Annotated[
        Path | None, typer.Option(help="Instead: all of this file, to its last line end.")
    ] = None,
    encoding: Encoding = "",
    as_json: Json = False,
) -> None:
    """The probability of a sentence, and the surprisal of each of its tokens."""
    from rung.cli.fitted_table import show
    from rung.cli.results import make_quiet, surprisal_table

    make_quiet()
    text = _read_text(text, file, encoding)
    from rung.evaluation.surprisal import score_text
    from rung.models import load

    model, tokenizer = load(run)
    pieces = score_text(model, tokenizer, text)
    bits = sum(piece.bits for piece in pieces)
    if as_json:
        tokens = [
            {
                "text": piece.text,
                "bits": piece.bits,
                "probability": 2**-piece.bits,
                "tokens": piece.tokens,
                "end": piece.end,
            }
            | {
                name: value
                for name, value in (
                    ("order", piece.order),
                    ("count", piece.count),
                    ("discount", piece.discount),
                )
                if value is not None
            }
            for piece in pieces
        ]
        facts = {"bits": bits, "probability": 2.0**-bits, "renormalized": pieces[0].renormalized}
        print_json({"run": run, "text": text, **facts, "tokens": tokens})
    else:
        show(surprisal_table(pieces))


def _read_text(text: str, file: Path | None, encoding: str) -> str:
    """The text that is to be scored: as it was typed, of a file, or of standard input.

    Raises `RecipeError` where none or two are named, `CorpusError` for one that cannot be read.
    """
    from rung.data.files import read_text_file, save_stdin

    if bool(text) == bool(file):
        raise RecipeError(
            'name one text: rung score RUN "A sentence.", rung score RUN --file PATH, or - for a '
            "pipe"
        )
    if text == "-":
        file = save_stdin(sys.stdin.buffer, cache_folder() / "stdin")
    if encoding and not file:
        raise RecipeError(f"--encoding is {encoding!r}, but it is of --file: leave it out")
    return read_text_file(file, encoding or None) if file else read_typed("TEXT", text)


@verb('rung generate runs/python-docs/llama3 "Return the" --temperature 0.7')
def generate(
    run: Run,
    prompt: Annotated[str, typer.Argument(help="What to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest tokens that make up this probability.")
    ] = 0.95,
    num_beams: Annotated[int, typer.Option(help="Beams to search with.")] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends it. Repeatable.")] = None,
    draft: Annotated[
        str, typer.Option(help="Guess ahead: an ngram run of the same tokenizer, or prompt.")
    ] = "",
    weights: Annotated[
        str, typer.Option(help="Round the weights to bfloat16 or int8, and say what it costs.")
    ] = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt."""
    from rung.cli.results import make_quiet

    make_quiet()
    leave_busy_cores()
    from rung.generation.decoder import Decoder
    from rung.generation.generate import generate as continue_text
    from rung.generation.quantize import parse_weight_dtype
    from rung.generation.sampling import Sampling
    from rung.generation.speculative import make_draft
    from rung.models import load

    prompt = read_typed("PROMPT", prompt)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        stop=tuple(read_typed("--stop", text) for text in stop or ()),
        seed=seed,
    )
    rounded, (model, tokenizer) = parse_weight_dtype(weights), load(run)
    decoder = Decoder(model, rounded)
    guesses = make_draft(draft, tokenizer) if draft else None
    if as_json:
        made = continue_text(decoder, tokenizer, prompt, sampling, draft=guesses)
        facts: dict[str, Any] = {
            key: getattr(made, key) for key in ("text", "tokens", "seconds", "tokens_per_second")
        }
        if rounded:
            facts["rounding_bits_per_byte"] = _rounding_cost(run, model, tokenizer, prompt, rounded)
        print_json({"run": run, "prompt": prompt, **facts})
        return
    print_text(prompt)
    made = continue_text(decoder, tokenizer, prompt, sampling, print_text, guesses)
    print_text(f"{made.text}\n" if num_beams > 1 else "\n")
    say(f"{made.tokens} tokens, {made.tokens_per_second:,.0f} a second")
    if rounded:
        say(
            f"{weights} weights cost {_rounding_cost(run, model, tokenizer, prompt, rounded):+.4f} "
            f"bits per byte"
        )


def _rounding_cost(run: str, model: Any, tokenizer: Any, prompt: str, weights: Any) -> float:
    """On the passage that the run was judged by, or on the prompt where there is none."""
    from rung import runs
    from rung.generation.quantize import measure_quantization_cost

    passage = runs.read_passage(runs.find_record(Path(run)))
    return measure_quantization_cost(model, tokenizer, passage or prompt, weights)
