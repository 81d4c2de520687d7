"""The format of a compressed text: a header that names what a decoder needs, and the code.

A file is `MAGIC`, the length and the CRC-32 of the header (4 bytes each, little endian), the header
in JSON, what the tokens do not say of the text, and the code. Every byte is under a checksum, so
that damage is found before anything is decoded.
"""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from rung.errors import RunError

MAGIC = b"rung compressed text 1\n"
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
    return hashlib.blake2b(data, digest_size=8).hexdigest()
