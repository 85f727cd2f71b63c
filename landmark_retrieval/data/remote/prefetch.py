"""Files fetched in the background before they are asked for."""

import os
import queue
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

from landmark_retrieval.data.remote.cache import Cache


class Prefetch:
    """Fetches files in the background that will be needed soon.

    It may be pickled and forked: each process has its own threads, which start with its first request and do not keep
    it alive; what was requested elsewhere is not passed on. What was not begun is dropped with the object.

    Args:
        cache: where the files go.
        threads: files that are fetched at the same time.
    """

    def __init__(self, cache: Cache, threads: int = 2) -> None:
        self.cache, self.threads = cache, threads
        self._process: int | None = None
        self._asked: dict[str, Future[Path]] = {}

    def request(self, files: Iterable[tuple[str, str, int]]) -> None:
        """Begin to fetch files (URL, sha256, bytes), in this order; request no more than the cache holds."""
        if self._process != os.getpid():
            # not first in a thread: a fork in the middle of an import would leave its lock held in the child for ever
            import webdataset.gopen  # noqa: F401

            self._process, self._asked, self._queue = os.getpid(), {}, queue.SimpleQueue[Any]()
            for _ in range(self.threads):
                threading.Thread(target=_work, args=(self.cache, self._queue), daemon=True).start()
            weakref.finalize(self, _end, os.getpid(), self._queue, self._asked, self.threads)
        for url, sha256, size in files:
            known = self._asked.get(sha256.lower())
            if known is None or known.done():
                future = self._asked[sha256.lower()] = Future[Path]()
                self._queue.put((future, url, sha256, size))

    def fetch(self, url: str, *, sha256: str, size: int) -> Path:
        """Like `Cache.fetch`; waits for the background if it is at this file, and raises its failure."""
        self._wait_for(sha256)
        return self.cache.fetch(url, sha256=sha256, size=size)

    def open(self, url: str, *, sha256: str, size: int) -> IO[bytes]:
        """Like `Cache.open`; waits as `fetch` does."""
        self._wait_for(sha256)
        return self.cache.open(url, sha256=sha256, size=size)

    def _wait_for(self, sha256: str) -> None:
        future = self._asked.pop(sha256.lower(), None) if self._process == os.getpid() else None
        # one that was not begun yet is fetched here and now, not after all others
        if future is not None and not future.cancel():
            future.result()

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache, "threads": self.threads, "_process": None, "_asked": {}}


def _work(cache: Cache, requests: "queue.SimpleQueue[Any]") -> None:
    while (request := requests.get()) is not None:
        future, url, sha256, size = request
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(cache.fetch(url, sha256=sha256, size=size))
            except BaseException as error:
                future.set_exception(error)


def _end(process: int, requests: "queue.SimpleQueue[Any]", asked: dict[str, Future[Path]], threads: int) -> None:
    if process != os.getpid():
        return  # a fork has the futures, whose locks may be held, but not the threads
    for future in list(asked.values()):
        future.cancel()
    for _ in range(threads):
        requests.put(None)
