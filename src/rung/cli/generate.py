"""The verb that continues a prompt: generate."""

from typing import Annotated

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import (
    JsonOption,
    LoadArgument,
    RunArgument,
    SeedOption,
    read_typed,
)
from rung.cli.output import print_note, print_text, silence_libraries


@verb("generate", 'rung generate runs/python-docs/llama3 "Return the" --temperature 0.7')
def generate_command(
    run: RunArgument,
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
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """Continue a prompt."""
    silence_libraries()
    from rung.api.run import load

    prompt = read_typed("PROMPT", prompt)
    opened = load(run, **load_options)
    pieces = list[str]()

    def write(text: str) -> None:
        print_text(text if pieces else prompt + text)
        pieces.append(text)

    made = opened.generate(
        prompt,
        draft=draft,
        weights=weights,
        on_text=None if as_json else write,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        stop=[read_typed("--stop", text) for text in stop or ()],
        seed=seed,
    )
    cost = opened.measure_rounding(weights, prompt) if weights else None
    if as_json:
        facts = {"text": made.text, "tokens": made.tokens, "seconds": made.seconds}
        facts |= {"tokens_per_second": made.tokens_per_second}
        facts |= {} if cost is None else {"rounding_bits_per_byte": cost}
        print_json({"run": run, "prompt": prompt, **facts})
        return
    print_text("\n" if pieces else f"{prompt}{made.text}\n")  # beams give no pieces
    print_note(f"{made.tokens} tokens, {made.tokens_per_second:,.0f} a second")
    if cost is not None:
        print_note(f"{weights} weights cost {cost:+.4f} bits per byte")
