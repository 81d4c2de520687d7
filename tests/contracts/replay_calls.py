"""Make calls of a C library again, each array in memory of its own size: replay_calls.py LIBRARY
CALLS.

Run beside AddressSanitizer, which ends the process at the first number that is read or written
beyond an array.
"""

import ctypes
import pickle
import sys
from pathlib import Path


def replay(library, name, arguments, blocks, links):
    """`arguments` are pairs of a type and a number, or of None and a block; `links` say which block
    points where.
    """
    places = [c.malloc(len(block)) for block in blocks]
    for place, block in zip(places, blocks, strict=True):
        ctypes.memmove(place, block, len(block))
    for block, offset, target in links:
        ctypes.c_void_p.from_address(places[block] + offset).value = places[target]
    values = [
        getattr(ctypes, kind)(value) if kind else ctypes.c_void_p(places[value])
        for kind, value in arguments
    ]
    getattr(library, name)(*values)
    for place in places:
        c.free(place)


c = ctypes.CDLL(None)
c.malloc.argtypes, c.malloc.restype, c.free.argtypes = (
    [ctypes.c_size_t],
    ctypes.c_void_p,
    [ctypes.c_void_p],
)
calls = pickle.loads(Path(sys.argv[2]).read_bytes())
for call in calls:
    replay(ctypes.CDLL(sys.argv[1]), *call)
print(len(calls), "calls")
