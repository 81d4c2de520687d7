"""The format of a compressed text: a header that names what a decoder needs, and the code.

A file is `MAGIC`, the length and the CRC-32 of the header (4 bytes each, little endian), the header
in JSON, what the tokens do not say of the text, and the code. Every byte is under a checksum, so
that damage is found before anything is decoded. What no model makes smaller is stored instead:
`STORED_MAGIC`, how (1 byte), a digest (8 bytes) of what follows and of how, and the bytes.
"""

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from rung.errors import RunError

MAGIC = b"rung compressed text 2\n"
STORED_MAGIC = b"rung stored text 2\n"
OTHER_VERSION = re.compile(rb"rung (compressed|stored) text \d+")
AS_IT_IS, DEFLATED = b"\0", b"\1"  # how bytes are stored
DIGEST_BYTES = 8
HEADER_SIZES = struct.Struct("<II")  # length and CRC-32 of the header
# The keys of a header that every file has, and their types.
KEYS = {
    "models": list,
    "tokenizer": str,
    "documents": str,
    "bytes": int,
    "digest": str,
    "texts": int,
    "tokens": int,
    "streams": int,
    "variant": dict,
    "build": dict,
    "rest": int,
    "code": int,
    "check": str,
}
# The smallest values of numbers.
LEAST = {"bytes": 0, "texts": 0, "tokens": 0, "streams": 1, "rest": 0, "code": 0}


def pack_file(header: dict[str, Any], rest: bytes, code: bytes) -> bytes:
    """Return a file of a header, the rest of the text that its tokens do not say, and the code."""
    sizes = {"rest": len(rest), "code": len(code), "check": digest_bytes(rest + code)}
    written = json.dumps(header | sizes, separators=(",", ":")).encode()
    return MAGIC + HEADER_SIZES.pack(len(written), zlib.crc32(written)) + written + rest + code


def unpack_file(path: Path, data: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    """Return the header, the rest and the code of a file.

    Raises `RunError` for a file of another kind, cut short, or damaged.
    """
    if not data.startswith(MAGIC):
        line = data[:40].partition(b"\n")[0]
        if OTHER_VERSION.fullmatch(line) and line not in (MAGIC[:-1], STORED_MAGIC[:-1]):
            raise RunError(
                f"{path} was written by another version of rung ({line.decode()!r}), or its first "
                "bytes are damaged: decompress it with that version, or write it anew"
            )
        raise RunError(f"{path} was not written by `rung compress`, or its first bytes are damaged")
    at = len(MAGIC) + HEADER_SIZES.size
    size, check = HEADER_SIZES.unpack(data[len(MAGIC) : at].ljust(HEADER_SIZES.size, b"\0"))
    written = data[at : at + size]
    if not 0 < size == len(written) or zlib.crc32(written) != check:
        raise RunError(f"{path} is damaged: its header has another checksum; write it anew")
    header = _read_header(path, written)
    at += size
    if len(data) != at + header["rest"] + header["code"]:
        whole = at + header["rest"] + header["code"]
        raise RunError(f"{path} is damaged: it has {len(data):,} bytes of {whole:,}")
    if digest_bytes(data[at:]) != header["check"]:
        raise RunError(f"{path} is damaged: its code has another checksum; write it anew")
    return header, data[at : at + header["rest"]], data[at + header["rest"] :]


def pack_stored(data: bytes) -> bytes:
    """Return a file that holds the data without a model, as it is or by zlib."""
    deflated = zlib.compress(data, 9)
    how, body = (DEFLATED, deflated) if len(deflated) < len(data) else (AS_IT_IS, data)
    return STORED_MAGIC + how + bytes.fromhex(digest_bytes(how + body)) + body


def unpack_stored(path: Path, packed: bytes) -> bytes | None:
    """Return what `pack_stored` was given; None for a file of another kind.

    Raises `RunError` for a file that is cut short or damaged.
    """
    if not packed.startswith(STORED_MAGIC):
        return None
    at = len(STORED_MAGIC)
    how, digest = packed[at : at + 1], packed[at + 1 : at + 1 + DIGEST_BYTES]
    body = packed[at + 1 + DIGEST_BYTES :]
    if how not in (AS_IT_IS, DEFLATED) or bytes.fromhex(digest_bytes(how + body)) != digest:
        raise RunError(f"{path} is damaged: it has another checksum; write it anew")
    return zlib.decompress(body) if how == DEFLATED else body


def _read_header(path: Path, written: bytes) -> dict[str, Any]:
    """Return a header whose values can be used as they are."""
    try:
        header = json.loads(written)
        wrong = [key for key, kind in KEYS.items() if type(header[key]) is not kind]
        wrong += [key for key, least in LEAST.items() if key not in wrong and header[key] < least]
        wrong += [] if wrong else _find_strange_parts(header)
    except (ValueError, TypeError, KeyError) as error:  # no JSON, no object, a key is not there
        why = f"its header has no {error}" if isinstance(error, KeyError) else "it has no header"
        raise RunError(f"{path} was written by another version of rung: {why}") from error
    if wrong:
        found = f"{wrong[0]} of {header[wrong[0]]!r}"
        raise RunError(f"{path} was written by another version of rung: its header has {found}")
    return header


def _find_strange_parts(header: dict[str, Any]) -> list[str]:
    """Return the keys of what names no models, or says nothing of how they were used."""
    models, variant, threads = (
        header["models"],
        header["variant"],
        header["build"].get("threads", 1),
    )
    facts = [each[key] for each in models for key in ("run", "type", "weights")]
    facts += [each.get("dtype", "") for each in models]
    windows = [each.get("window", 1) for each in models]
    if "weights" in variant:
        numbers = variant["weights"] if len(variant["weights"]) == len(models) else [None]
    else:
        numbers = [variant[key] for key in ("weight", "sharpness")] if variant else []
    sound = {
        "models": bool(models)
        and all(isinstance(fact, str) for fact in facts)
        and all(isinstance(window, int) for window in windows),
        "variant": all(isinstance(number, int | float) for number in numbers),
        "build": isinstance(threads, int) and threads > 0,
    }
    return [key for key, is_sound in sound.items() if not is_sound]


def digest_bytes(data: bytes) -> str:
    """Return a digest of 16 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
