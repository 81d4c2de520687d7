"""Checkpoints of counting: each order on disk, so that a count that was stopped can go on.

order-N/          the n-grams of order N, a file for each array, and the state of the engine
    counted.json    the text and the settings of the count; another count does not use the order
    manifest.json   size and digest of every file; an order that differs is damaged, counted again
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from rung.errors import RunError
from rung.files import atomic_replace, find_damage, remove_leftovers, write_manifest

logger = logging.getLogger(__name__)

FACTS_FILE = "counted.json"


class OrderCheckpoints:
    """The orders of one count that are saved in a folder, from 2 to `highest`.

    Single tokens are not saved: they are counted in a moment.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Remove orders that are damaged or of another count than `facts`, and all above them."""
        self.folder = folder
        self.facts = json.loads(json.dumps(facts))
        self.highest = 1
        if folder.is_dir():
            remove_leftovers(folder, alone=True)
            while self._is_whole(self.highest + 1):
                self.highest += 1
            _remove([path for path in _list_orders(folder) if _order_of(path) > self.highest])

    def load(self) -> list[dict[str, NDArray[Any]]]:
        """Return the arrays of orders 2, 3, ... by their names, mapped into memory.

        Changes stay in memory and are not written.
        """
        return [
            {
                path.stem: numpy.load(path, mmap_mode="c")
                for path in sorted(self._place(order).glob("*.npy"))
            }
            for order in range(2, self.highest + 1)
        ]

    def save(self, order: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Save an order's arrays. Where the disk is full, log a warning and go on."""
        if order != self.highest + 1:  # the order below could not be saved
            return
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic_replace(self._place(order)) as beside:
                beside.mkdir()
                for name, array in arrays.items():
                    numpy.save(beside / f"{name}.npy", array)
                (beside / FACTS_FILE).write_text(json.dumps(self.facts), encoding="utf-8")
                write_manifest(beside, hashed_bytes=math.inf)
        except (OSError, RunError) as error:
            logger.warning(
                "order %d cannot be saved (%s): counting goes on, but if it is stopped it begins "
                "again with this order",
                order,
                error,
            )
        else:
            self.highest = order

    def _place(self, order: int) -> Path:
        return self.folder / f"order-{order}"

    def _is_whole(self, order: int) -> bool:
        """Whether the order is there and usable; a warning says why not."""
        place = self._place(order)
        if not place.exists():
            return False
        if damage := find_damage(place, FACTS_FILE):
            logger.warning("%s is damaged (%s): counting it again", place, damage)
            return False
        if json.loads((place / FACTS_FILE).read_text(encoding="utf-8")) != self.facts:
            logger.warning("%s is of another text, or of other settings: counting it again", place)
            return False
        return True


def remove_order_checkpoints(folder: Path) -> None:
    """Remove the saved orders in a folder, and the folder itself where it is empty then."""
    _remove(_list_orders(folder))
    with suppress(OSError):
        folder.rmdir()


def _list_orders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("order-*") if path.name.removeprefix("order-").isdigit()]


def _order_of(path: Path) -> int:
    return int(path.name.removeprefix("order-"))


def _remove(places: list[Path]) -> None:
    # From the highest down: no order is left without those that it is built on.
    for place in sorted(places, key=_order_of, reverse=True):
        shutil.rmtree(place, ignore_errors=True)
