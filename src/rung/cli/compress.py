"""Verbs that code a text under a run: compress, decompress."""

from pathlib import Path
from typing import Annotated

import typer

from rung.cli.app import print_json, verb
from rung.cli.options import (
    JsonOption,
    LoadArgument,
    RunArgument,
    TrustOption,
)
from rung.cli.output import print_next_command, print_note, silence_libraries


@verb("compress", "rung compress runs/python-docs/ngram my.txt my.rung")
def compress_command(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(help="The file to compress; of any bytes.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG=RUN",
            help="Mixed with another run. May be given again.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="With a cache of each document's own words.")
    ] = False,
    as_json: JsonOption = False,
    *,
    load_options: LoadArgument,
) -> None:
    """Write a file in as many bits as its score under a run; the run is needed to read it."""
    silence_libraries()
    from rung.api.compress import compress
    from rung.api.run import load
    from rung.cli.progress import Display

    with Display() as display:
        opened = load(run, **load_options)
        found = compress(opened, file, out, mix=mix or (), cache=cache, on_progress=display.show)
    if as_json:
        print_json(found)
        return
    bits = found["bits_per_byte"]
    rate = f", {bits:.3f} bits per byte" if bits is not None else ""
    sizes = f"{found['bytes']:,} bytes in {found['compressed_bytes']:,}"
    print_note(f"Wrote {out}: {sizes}{rate}")
    if found["is_stored"]:
        print_note("Stored as it is or by zlib, the model makes it no smaller: needs no run")
    else:
        print_note("A byte as it is takes 8 bits. To read the file, this run is needed again.")
    print_note("")
    print_next_command("decompress", out, out.with_name(f"copy-of-{file.name}"))


@verb("decompress", "rung decompress my.rung copy.txt")
def decompress_command(
    file: Annotated[Path, typer.Argument(help="A file that `rung compress` wrote.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    run: Annotated[
        list[str] | None,
        typer.Option(
            help="The run it was written with, if that lies elsewhere now; with --mix each, in "
            "the same order.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Get a compressed file back, to the byte, with the run that it was written with.

    The file says how that was loaded: its window, and the type of its weights.
    """
    silence_libraries()
    from rung.api.compress import decompress
    from rung.cli.progress import Display

    with Display() as display:
        found = decompress(
            file,
            out,
            run=run or (),
            trust_remote_code=trust_remote_code,
            on_progress=display.show,
        )
    if as_json:
        print_json(found)
    else:
        print_note(f"Wrote {out}: {found['bytes']:,} bytes, those that were compressed")
