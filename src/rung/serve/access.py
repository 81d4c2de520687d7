"""Who may ask a server: host names, origins of pages, and API keys, as settings and headers give
them.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from rung.errors import RecipeError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


def parse_host(address: str) -> str | None:
    """Read the host name of an address, without its port; None where there is none.

    An IP address is written in its shortest form.
    """
    try:
        name = urlsplit(address).hostname
    except ValueError:
        return None
    try:
        found = ip_address(name or "")
    except ValueError:
        return name
    return str(getattr(found, "ipv4_mapped", None) or found)


def find_allowed_hosts(host: str, allowed: Sequence[str] = ()) -> tuple[str, ...]:
    """List the host names that a server at `host` answers to; an empty list means any.

    On a loopback address these are its own names and `allowed` ones, so that no page elsewhere can
    have its own name point here (DNS rebinding). Elsewhere any name, unless some are allowed.
    """
    own = parse_host(f"//[{host}]" if ":" in host else f"//{host}") or host
    more = [parse_host(f"//{name}") or name.lower() for name in allowed]
    if "*" in allowed or not (more or is_loopback(host)):
        return ()
    return tuple(dict.fromkeys([*LOOPBACK_HOSTS, own, *more]))


def is_loopback(host: str) -> bool:
    """Whether a name or address, however it is written, is only reached from this machine."""
    try:
        infos = socket.getaddrinfo(host, None) if host else []
        found = {ip_address(info[4][0]) for info in infos}
    except (OSError, ValueError):
        return False
    return bool(found) and all((getattr(ip, "ipv4_mapped", None) or ip).is_loopback for ip in found)


def parse_api_key(given: str | None) -> str | None:
    """Strip an API key; None means that none is asked for.

    Raises `RecipeError` for an empty key, as of a variable that is set to nothing, and for one that
    no header can hold.
    """
    if given is None:
        return None
    if not given.strip():
        raise RecipeError(
            "the API key is empty: give one, or leave --api-key and RUNG_API_KEY out to serve "
            "without"
        )
    if not given.strip().isprintable():
        raise RecipeError(
            "the API key holds a line break or another control character: no client can send it"
        )
    return given.strip()


def parse_origin(given: str) -> str:
    """Write a page's origin as browsers send it: https://Example.org:443/ is https://example.org.

    `*` allows every origin. Raises `RecipeError` for what is no origin.
    """
    if given in ("*", "null"):
        return given
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    has_more = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username
    if not parts.hostname or has_more:
        raise RecipeError(
            f"{given!r} is no origin: give scheme and host, as https://example.org, or * for all"
        )
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_default = port is None or (parts.scheme, port) in (("http", 80), ("https", 443))
    return f"{parts.scheme}://{name}" + ("" if is_default else f":{port}")
