"""Drawing from a source in a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def read_ahead(source: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Draw from `source` in a thread, at most `depth` items ahead; its exception is raised here, in place.

    Closing the iterator ends the thread; an item being drawn is waited for.
    """
    items: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=max(1, depth))
    stop = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            for item in source:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001  (handed to the consumer, whatever it is)
            put((False, error))

    thread = threading.Thread(target=draw, name="fcnopt-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = items.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stop.set()
        thread.join()
