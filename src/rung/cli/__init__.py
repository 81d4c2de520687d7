"""The command `rung`: each verb parses, calls one library function, and prints.

Nothing heavy is imported before a verb runs: `rung --help` must answer at once.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rung import __version__
from rung.errors import RungError

app = typer.Typer(
    name="rung",
    help="Climb from a bigram to Llama 3 on your own text.",
    epilog="Start here: rung climb",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CorpusArgument = Annotated[str, typer.Argument(help="A name (see `rung corpora`), a path, a glob, or hf:ORG/NAME.")]
Documents = Annotated[str, typer.Option(help="What a document is in plain text: lines, paragraphs or file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else.")]
Run = Annotated[str, typer.Argument(help="A run folder, a Hugging Face model folder, or a Hub id.")]
Seed = Annotated[int, typer.Option(help="Where randomness starts.")]
TokenizerOption = Annotated[str, typer.Option("--tokenizer", help="A kind (see `rung tokenizers`) or a folder.")]


def main() -> None:
    """The entry point."""
    app()


def verb(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command; a user's mistake becomes one clear line and exit code 2, Ctrl-C exit code 130."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except RungError as error:
                _fail(str(error), 2)
            except OSError as error:
                where = f": {error.filename}" if error.filename else ""
                _fail(f"{error.strerror or error}{where}", 1)
            except KeyboardInterrupt:
                _fail("stopped", 130)

        name = function.__name__.rstrip("_").replace("_", "-")
        return app.command(name, epilog=f"Example: {example}")(guarded)

    return register


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if version:
        print(f"rung {__version__}")
        raise typer.Exit


@verb("rung climb my.txt --minutes 10")
def climb(
    corpus: CorpusArgument = "python-docs",
    minutes: Annotated[float, typer.Option(help="Training time for all rungs together.")] = 5.0,
    rungs: Annotated[str, typer.Option(help="Which rungs, comma-separated; all by default.")] = "",
    tokenizer: TokenizerOption = "bpe",
    documents: Documents = "paragraphs",
    out: Annotated[Path | None, typer.Option(help="Where the runs go; runs/CORPUS by default.")] = None,
    seed: Seed = 0,
) -> None:
    """Every rung on one text: one table, one report."""
    from rung.cli.display import Display, climb_table, make_quiet, show

    make_quiet()
    from rung.climb import REPORT, Climb
    from rung.climb import climb as climb_ladder
    from rung.models import LADDER
    from rung.report import read_rows

    folder = out or Path("runs") / _slug(corpus)
    plan = Climb(
        corpus=corpus,
        documents=documents,  # type: ignore[arg-type]  # checked where it is read
        tokenizer=_tokenizer_spec(tokenizer),
        rungs=tuple(name.strip() for name in rungs.split(",")) if rungs else tuple(LADDER),
        minutes=minutes,
        seed=seed,
        folder=folder,
    )
    try:
        with Display() as display:
            folders = climb_ladder(plan, display.tell)
    except KeyboardInterrupt:
        _fail(f"stopped; the work so far is saved. Go on with: {_command_line()}", 130)
    show(climb_table(read_rows(folders), folders))
    best = min((r for r in read_rows(folders) if r.bits_per_byte), key=lambda r: r.bits_per_byte or 0.0)
    print(f"\nReport: {folder / REPORT}", file=sys.stderr)
    print(f'Next:   rung generate {folder / best.name} "Once upon a time"', file=sys.stderr)


@verb("rung train llama3 my.txt --minutes 10 --set hidden_size=256")
def train(
    rung: Annotated[
        str, typer.Argument(help="bigram, ngram, rnn, rnn-attention, gpt2 or llama3; or use --recipe.")
    ] = "",
    corpus: Annotated[str, typer.Argument(help="As for `rung climb`; python-docs by default.")] = "",
    recipe: Annotated[Path | None, typer.Option(help="A recipe to start from (recipes/*.yaml).")] = None,
    tokenizer: Annotated[str, typer.Option(help="A kind (see `rung tokenizers`) or a folder.")] = "",
    documents: Annotated[str, typer.Option(help="What a document is in plain text: lines, paragraphs or file.")] = "",
    steps: Annotated[int | None, typer.Option(help="Train so many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train so long; 5 by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/CORPUS-RUNG by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value. Repeatable.")] = None,
    engine: Annotated[str, typer.Option(help="For ngram: count with numpy, duckdb or spark.")] = "",
    memory: Annotated[str, typer.Option(help="For ngram: count in so much memory (2GB), on disk beyond it.")] = "",
    from_: Annotated[Path | None, typer.Option("--from", help="For ngram: take the model of this ARPA file.")] = None,
) -> None:
    """Train (or, for counts, fit) one rung, and score it."""
    from rung.cli.display import make_quiet

    make_quiet()
    from rung.recipe import make_recipe
    from rung.recipe.making import check_unused, read_begun

    given: dict[str, Any] = {
        "rung": rung,
        "corpus": corpus,
        "documents": documents,
        "steps": steps,
        "minutes": minutes,
        "tokenizer": tokenizer and _tokenizer_spec(tokenizer),
        "counting": {key: value for key, value in (("engine", engine), ("memory", memory)) if value},
    }
    given = {key: value for key, value in given.items() if value not in ("", None, {})}
    if from_:
        _import_arpa(from_, given | ({"--recipe": recipe} if recipe else {}) | ({"--set": set_} if set_ else {}), out)
        return
    if resume:
        folder = out or Path("runs") / f"{_slug(corpus or 'python-docs')}-{rung}"
        made = read_begun(folder)
    else:
        made = make_recipe(_fill_page(recipe, given), set_ or ())
        folder = out or Path("runs") / f"{_slug(made.corpus)}-{made.rung}"
        check_unused(folder)
    _make_run(made, folder)


@verb("rung eval runs/python-docs/llama3 other.txt")
def eval_(
    run: Run,
    corpus: Annotated[str, typer.Argument(help="Other text to score; the run's own corpus by default.")] = "",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    documents: Annotated[str, typer.Option(help="What a document is: lines, paragraphs or file.")] = "",
    as_json: Json = False,
) -> None:
    """Score a run on held-out text: bits per byte, word and token perplexity."""
    from rung.cli.display import Display, make_quiet, score_table, show

    make_quiet()
    from rung.recipe.making import evaluate_run

    with Display() as display:
        found = evaluate_run(run, corpus, split, documents, lambda stage: display.tell("eval", stage))
    if as_json:
        _print_json(found)
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
        _print_json({"run": run, "text": text, "bits": bits, "probability": 2.0**-bits, "tokens": tokens})
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
        _print_json({"run": run, "prompt": prompt, "text": made.text, **facts})
        return
    print(prompt, end="", flush=True)
    made = continue_text(model, tokenizer, prompt, sampling, lambda piece: print(piece, end="", flush=True))
    print(made.text if num_beams > 1 else "")
    print(f"{made.tokens} tokens, {made.tokens_per_second:,.0f} a second", file=sys.stderr)


@verb("rung export runs/python-docs/ngram model.arpa.gz --to arpa")
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    to: Annotated[str, typer.Option(help="The format: arpa.")] = "arpa",
) -> None:
    """Write a run in another tool's format."""
    from rung.cli.display import make_quiet

    make_quiet()
    from rung.export import export as write

    write(run, to, out)
    print(f"Wrote {out}", file=sys.stderr)


@verb("rung report runs/python-docs --out report.html")
def report(
    run: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """One page that compares runs; it opens offline."""
    from rung import runs
    from rung.report import write_report

    folders = [folder for root in run for folder in runs.find_runs(root)]
    for root in run:
        if not any(folder.is_relative_to(root) for folder in folders):
            runs.read_record(root)  # says what is wrong with it
    write_report(folders, out)
    print(f"Report: {out}", file=sys.stderr)


@verb("rung runs")
def runs(root: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"), as_json: Json = False) -> None:
    """The runs there are, and their scores."""
    from rung import runs
    from rung.cli.display import runs_table, show

    found = [(folder, runs.read_record(folder)) for folder in runs.find_runs(root)]
    if as_json:
        _print_json({"runs": [{"folder": str(folder), **record} for folder, record in found]})
    elif found:
        show(runs_table(found))
    else:
        print(f"no runs below {root}. Make some: rung climb", file=sys.stderr)


@verb("rung corpora")
def corpora(as_json: Json = False) -> None:
    """The corpora that can be named."""
    from rung.cli.display import names_table, show
    from rung.corpus import CORPORA

    _print_json(CORPORA) if as_json else show(names_table("corpus", CORPORA))


@verb("rung tokenizers")
def tokenizers(as_json: Json = False) -> None:
    """The tokenizers that can be named."""
    from rung.cli.display import names_table, show
    from rung.tokenizer import TOKENIZERS

    _print_json(TOKENIZERS) if as_json else show(names_table("tokenizer", TOKENIZERS))


def _fill_page(recipe: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe's page with what was given on the command line in its place."""
    from rung.recipe import read_recipe

    page = read_recipe(recipe) if recipe else {}
    for one, other in (("steps", "minutes"), ("minutes", "steps")):
        if one in given and other not in given:  # the one that was asked for replaces the recipe's other
            page.pop(other, None)
    return page | given


def _make_run(recipe: Any, folder: Path) -> None:
    """Make it with bars, and show what it scored."""
    from rung import runs
    from rung.cli.display import Display, score_table, show
    from rung.recipe.making import execute

    with Display() as display:
        finished = execute(recipe, folder, lambda stage: display.tell(recipe.rung, stage))
    if not finished:
        _fail(f"stopped; the work so far is saved. Go on with: rung train --out {folder} --resume", 130)
    record = runs.read_record(folder)
    show(score_table(record["rung"], record["corpus"]["name"], "test", record["scores"]["test"]))
    print(f'\nNext:   rung generate {folder} "Once upon a time"', file=sys.stderr)


def _import_arpa(path: Path, given: dict[str, Any], out: Path | None) -> None:
    """Make a run of an ARPA file."""
    from rung.errors import RecipeError
    from rung.export import import_arpa
    from rung.recipe.making import check_unused

    if given.pop("rung", "") != "ngram":
        raise RecipeError(
            "--from reads n-grams from an ARPA file: the rung must be ngram, as in `rung train ngram --from`"
        )
    if given:
        raise RecipeError(f"--from takes a model that is made already: leave out {', '.join(given)}")
    folder = out or Path("runs") / f"{_slug(str(path))}-ngram"
    check_unused(folder)
    config = import_arpa(path, folder)
    print(f"{sum(config.num_ngrams or []):,} n-grams of order 1 to {config.order}", file=sys.stderr)
    print(f"Next:   rung eval {folder} my.txt --documents lines", file=sys.stderr)


def _fail(message: str, code: int) -> None:
    print(f"rung: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _print_json(facts: dict[str, Any]) -> None:
    from rung.runs import to_json

    print(to_json(facts, indent=2))


def _command_line() -> str:
    import shlex

    return shlex.join(["rung", *sys.argv[1:]])


def _tokenizer_spec(name: str) -> dict[str, Any]:
    from rung.tokenizer import TOKENIZERS

    return {"kind": name} if name in TOKENIZERS or not Path(name).exists() else {"path": name}


def _slug(corpus: str) -> str:
    path = Path(corpus).expanduser()
    if path.exists():
        path = path.resolve()
        name = path.parent.name if path.name == "train" else path.name
        return name.split(".")[0] or "text"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in corpus.removeprefix("hf:")).strip("-") or "text"
