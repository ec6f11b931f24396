"""An object store whose failures are tried again: a network has bad minutes, a run has days."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from trainer.storage.local import Bytes
from trainer.storage.remote import Blocks, ObjectStore

T = TypeVar("T")
DELAYS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0)


class Patient:
    """`delays_s`: between tries. A missing object is an answer and asked for once, as is
    a folder in an object's place.

    `tell`: hears of the first failure of each thing that will be tried again.
    Only OSError is tried again: what the data themselves are wrong about stays wrong.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        delays_s: tuple[float, ...] = DELAYS_S,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self._store = store
        self._tell = tell
        self._delays_s = delays_s
        self._sleep = sleep
        self.retries = 0

    def names(self, folder: Path) -> list[str]:
        return self._try(lambda: self._store.names(folder))

    def sizes(self, folder: Path) -> dict[str, int]:
        return self._try(lambda: self._store.sizes(folder))

    def size(self, path: Path) -> int | None:
        return self._try(lambda: self._store.size(path))

    def read(self, path: Path, offset: int, out: Bytes) -> int:
        return self._try(lambda: self._store.read(path, offset, out))

    def put(self, path: Path, blocks: Blocks, *, size: int) -> None:
        self._try(lambda: self._store.put(path, blocks, size=size))

    def remove(self, paths: Iterable[Path]) -> None:
        listed = list(paths)
        self._try(lambda: self._store.remove(listed))

    def _try(self, act: Callable[[], T]) -> T:
        for number, delay_s in enumerate(self._delays_s):
            try:
                return act()
            except (FileNotFoundError, IsADirectoryError):
                raise
            except OSError as e:
                if number == 0:
                    self._tell(e)
                self.retries += 1
                self._sleep(delay_s)
        return act()
