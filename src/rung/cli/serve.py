"""The verb that serves runs over HTTP: serve."""

import json
import os
import shlex
import sys
from typing import Annotated

import typer

from rung.cli.app import verb
from rung.cli.options import (
    LoadArgument,
)
from rung.cli.output import silence_libraries

KEY = "RUNG_API_KEY"


@verb("serve", "rung serve runs/python-docs --port 8000")
def serve_command(
    run: Annotated[
        list[str],
        typer.Argument(help="Run folders, folders that hold runs, model folders or Hub ids."),
    ],
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0: for all that can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY, help="What clients must send as their key.", show_default=False),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Texts that a model continues together.")] = 16,
    max_queue: Annotated[
        int, typer.Option(help="Texts that may wait for that; more are refused.")
    ] = 64,
    max_prompt_tokens: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 8192,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 4096,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer, waiting included.")] = 300,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Another server whose pages may ask, as https://example.org; * for all. "
            "Repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that the server answers to beside its own, as of a proxy; * for all. With "
            "--host for others "
            "none need be named. Repeatable."
        ),
    ] = None,
    *,
    load_options: LoadArgument,
) -> None:
    """Serve runs to OpenAI's clients, and to a browser: /v1/completions, /v1/chat/completions,
    /v1/models.
    """
    silence_libraries()
    from rung.models.load_options import LoadOptions
    from rung.runs import read_prompt
    from rung.serve.access import find_allowed_hosts, parse_api_key, parse_origin
    from rung.serve.app import open_port, run_server
    from rung.serve.limits import Limits
    from rung.serve.registry import load_served_models
    from rung.serve.worker import reserve_core

    limits = Limits(
        max_batch=max_batch,
        max_queue=max_queue,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        seconds=timeout,
        # A variable that is set but empty is refused, like an empty option.
        api_key=parse_api_key(os.environ.get(KEY) if api_key is None else api_key),
        hosts=find_allowed_hosts(host, allow_host or ()),
        origins=tuple(map(parse_origin, allow_origin or ())),
    )
    listener = open_port(host, port)
    reserve_core()
    options = LoadOptions(**load_options)
    served = load_served_models(run, options)
    prompt = read_prompt(next(iter(served.values())).record)
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listener.getsockname()[1]}"
    show_address(list(served), address, limits.api_key is not None, prompt or "Return the")
    run_server(served, limits, listener)


def show_address(names: list[str], address: str, locked: bool, prompt: str) -> None:
    """Print the names of the served runs, the address, and a first request to paste."""
    body = json.dumps({"model": names[0], "prompt": prompt, "max_tokens": 40, "stream": True})
    key = ' -H "Authorization: Bearer $RUNG_API_KEY"' if locked else ""
    print(f"Serving {', '.join(names)}", file=sys.stderr)
    print(f"Open    {address}", file=sys.stderr)
    data = f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    print(f"Or      curl {address}/v1/completions{key} {data}", file=sys.stderr)
    print("Stop    Ctrl-C", file=sys.stderr, flush=True)
