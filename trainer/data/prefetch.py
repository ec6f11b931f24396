"""Reads ahead in a thread. An error there is raised by the next call, never lost."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`read(first)` gives the items from number `first` on, at least one; they are kept in order.

    The thread starts with the first call of `get`, stays `ahead` items in front, and starts anew
    when another number than the next one is asked for.
    """

    def __init__(self, read: Callable[[int], list[T]], *, ahead: int) -> None:
        self._read = read
        self.ahead = ahead
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._first = 0  # number of the first item of _ready
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def get(self, number: int) -> T:
        """Item `number`. Raises: whatever `read` raised; ValueError once closed."""
        with self._changed:
            if self._closed:
                raise ValueError("the stream is closed")
            if self._thread is None or number != self._first:
                self._ready.clear()
                self._first, self._error = number, None
                self._start()
            while not self._ready:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            item = self._ready.popleft()
            self._first += 1
            if len(self._ready) < self.ahead:
                self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            # a daemon, so that a job which fails elsewhere is not kept alive by its reader
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (
                    self._error is not None or len(self._ready) >= self.ahead
                ):
                    self._changed.wait()
                if self._closed:
                    return
                wanted = self._first + len(self._ready)
            try:
                items, error = self._read(wanted), None
            except BaseException as e:  # handed to the caller, whatever it is
                items, error = [], e
            with self._changed:
                if wanted == self._first + len(self._ready):  # nobody jumped meanwhile
                    self._ready.extend(items)
                    self._error = error
                    self._changed.notify_all()
