"""Files at a URL: fetched whole, checked, and kept in a bounded cache of this machine."""

import contextlib
import hashlib
import math
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from landmark_retrieval.data.remote.transfer import Failure, insist, shown
from landmark_retrieval.errors import LandmarkRetrievalError

SMALL = 512 * 10**6  # bytes that fetch_small takes into memory at most
_IN_USE = 60  # seconds after its last use in which a file is not evicted
_GRACE = 30  # seconds beyond a stall and a pause that the process that downloads may be silent


@dataclass(frozen=True)
class Cache:
    """Whole files on this machine, named by their sha256, shared by all its processes.

    The files used least recently are deleted when the limit is passed. Files used within the last minute stay, so the
    limit is passed for a while if more than that is in use at once.

    Args:
        folder: where the files are kept, on a disk of this machine.
        limit_bytes: of all files together.
        stall_seconds: without a single byte, after which a transfer is given up and tried again.
        attempts: downloads of one file before an error.
        pause_seconds: before the second attempt; twice as long before each further one.
    """

    folder: Path
    limit_bytes: int
    stall_seconds: float = 60.0
    attempts: int = 3
    pause_seconds: float = 2.0
    # list.append needs no lock among threads
    _fetched: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def default(cls, folder: str | Path | None = None, limit_gb: float = 100.0, **options: Any) -> "Cache":
        """A cache of `limit_gb` (10**9 bytes each) in a folder.

        Without a folder it is $LANDMARK_RETRIEVAL_CACHE, else landmark-retrieval/shards in the user's cache.
        """
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if not 0 < limit_gb < math.inf:
            raise LandmarkRetrievalError(f"A cache of {limit_gb} GB (data.cache_gb) is not possible: set more than 0.")
        place = folder or os.environ.get("LANDMARK_RETRIEVAL_CACHE") or user / "landmark-retrieval" / "shards"
        return cls(Path(place).expanduser(), int(limit_gb * 10**9), **options)

    @property
    def files_fetched(self) -> int:
        """Files that this object downloaded; a pickled copy counts its own from 0."""
        return len(self._fetched)

    @property
    def bytes_fetched(self) -> int:
        """Bytes of those files."""
        return sum(self._fetched)

    def fetch(self, url: str, *, sha256: str, size: int) -> Path:
        """The local copy of a file, whole and verified; downloaded if it is not in the cache yet.

        Of several processes and threads one downloads, the others wait for it and share its failure. The path is good
        for a minute; to read later, ask again or keep the file open. Readers use `open`.

        Args:
            url: where the file is, if it is not in the cache.
            sha256: of its bytes, 64 hexadecimal digits.
            size: bytes.

        Raises:
            LandmarkRetrievalError: the file cannot be fetched, is not the one that was expected, is larger than the
                whole cache, or cannot be written.
        """
        sha256 = sha256.lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise LandmarkRetrievalError(f"{shown(url)}: {sha256!r} is no sha256, which has 64 hexadecimal digits.")
        path = self.folder / sha256
        try:
            if self._present(path, size):
                return path
            if size > self.limit_bytes:
                raise LandmarkRetrievalError(
                    f"{shown(url)} has {size:,} bytes, more than the whole cache in {self.folder}: raise its limit "
                    f"(data.cache_gb, or limit_bytes) of {self.limit_bytes:,} bytes."
                )
            failure = self._beside(sha256, "error")
            failure.parent.mkdir(parents=True, exist_ok=True)
            before = _version(failure)
            with self._turn(url, sha256):
                if self._present(path, size):
                    return path
                if _version(failure) not in (None, before):
                    raise LandmarkRetrievalError(failure.read_text(encoding="utf-8"))
                self._download(url, path, size, failure)
        except OSError as error:
            raise LandmarkRetrievalError(
                f"The cache {self.folder} cannot take {shown(url)} ({error.strerror or error}): make room there, "
                "lower its limit (data.cache_gb, or limit_bytes), or choose another folder (data.cache_dir)."
            ) from error
        return path

    def open(self, url: str, *, sha256: str, size: int) -> IO[bytes]:
        """The local copy of a file, open for reading; it stays readable when the cache drops it meanwhile."""
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):  # evicted between the two calls
                return self.fetch(url, sha256=sha256, size=size).open("rb")
        raise LandmarkRetrievalError(
            f"{self.folder} loses {shown(url)} at once: raise the limit of the cache (data.cache_gb)."
        )

    def fetch_small(self, url: str, limit_bytes: int = SMALL) -> bytes:
        """The bytes of a small file, fetched anew each time, as nobody said what its sha256 must be.

        Raises:
            AbsentError: there is no such file.
            LandmarkRetrievalError: it cannot be fetched, or has more than `limit_bytes`.
        """

        def receive(chunks: Iterator[bytes]) -> bytes:
            data = bytearray()
            for chunk in chunks:
                data += chunk
                if len(data) > limit_bytes:
                    raise Failure(f"it has more than {limit_bytes:,} bytes", again=False)
            return bytes(data)

        return insist(url, receive, self.stall_seconds, self.attempts, self.pause_seconds)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetched": []}

    def _beside(self, sha256: str, kind: str) -> Path:
        return self.folder / "locks" / f"{sha256}.{kind}"

    def _partials(self, sha256: str = "[0-9a-f]" * 64) -> dict[Path, int]:
        """Files that are being written, or were by killed processes, and their bytes so far."""
        sizes = {}
        for path in self.folder.glob(f".{sha256}.*.partial"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes

    def _present(self, path: Path, size: int) -> bool:
        """Whether the whole file is there; its time of change becomes that of its last use."""
        try:
            if path.stat().st_size != size:
                return False
            with contextlib.suppress(PermissionError):
                os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _turn(self, url: str, sha256: str) -> Iterator[None]:
        """Hold the lock of a file; wait for it as long as whoever has it makes progress."""
        patience = self.stall_seconds + self.pause_seconds * 2**self.attempts + _GRACE
        lock = FileLock(self._beside(sha256, "lock"))
        seen = self._partials(sha256)
        while True:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=patience)
                break
            now = self._partials(sha256)
            if now == seen:
                raise LandmarkRetrievalError(
                    f"Another process fetches {shown(url)} and made no progress in {patience:.0f} s: end that process "
                    f"(it holds {lock.lock_file}) and run the same again."
                )
            seen = now
        try:
            yield
        finally:
            lock.release()

    def _download(self, url: str, path: Path, size: int, failure: Path) -> None:
        self._make_room(size, path.name)

        def receive(chunks: Iterator[bytes]) -> None:
            digest, count = hashlib.sha256(), 0
            with _appearing(path) as file:
                for chunk in chunks:
                    count += len(chunk)
                    if count > size:
                        raise Failure(f"it has more than the {size:,} bytes that were expected", wrong=True)
                    digest.update(chunk)
                    _write(file, chunk)
                if count < size:
                    raise Failure(f"it was cut short, {count:,} of {size:,} bytes came")
                if digest.hexdigest() != path.name:
                    found = f"sha256 {digest.hexdigest()[:16]}..., not {path.name[:16]}..."
                    raise Failure(f"it is not the file that was expected, {found}", wrong=True)

        try:
            insist(url, receive, self.stall_seconds, self.attempts, self.pause_seconds)
        except LandmarkRetrievalError as error:
            # for those who wait; if it cannot be written, they find out for themselves
            with contextlib.suppress(OSError), _appearing(failure) as file:
                _write(file, str(error).encode())
            raise
        self._fetched.append(size)
        failure.unlink(missing_ok=True)
        self._make_room(0, path.name)

    def _make_room(self, needed: int, keep: str) -> None:
        """Delete the files used least recently until `needed` more bytes fit, and what killed processes left."""
        with contextlib.suppress(Timeout), FileLock(self._beside("evict", "lock"), timeout=self.stall_seconds):
            for partial in self._partials():
                sha256 = partial.name.split(".")[1]
                # whoever writes the file holds its lock, and `keep` is ours
                with contextlib.suppress(Timeout), contextlib.ExitStack() as stack:
                    if sha256 != keep:
                        stack.enter_context(FileLock(self._beside(sha256, "lock"), timeout=0))
                    partial.unlink(missing_ok=True)
            held = []
            for path in self.folder.iterdir():
                if re.fullmatch("[0-9a-f]{64}", path.name):
                    with contextlib.suppress(FileNotFoundError):
                        held.append((path.stat().st_mtime, path.stat().st_size, path))
            total = sum(size for _, size, _ in held) + needed
            for used, size, path in sorted(held):
                if total <= self.limit_bytes:
                    break
                if path.name != keep and not 0 <= time.time() - used < _IN_USE:
                    path.unlink(missing_ok=True)
                    total -= size


def _version(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        state = path.stat()
        return state.st_ino, state.st_mtime_ns
    return None


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears when it is whole.

    Not files.open_replacing: that sets the umask of the process, which threads must not do at the same time. Without a
    buffer, as a daemon thread that holds the lock of one can end the whole process badly.
    """
    name = path.name.partition(".")[0]
    temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("xb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: IO[bytes], data: bytes) -> None:
    """All of `data`: a file without a buffer may take a part of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
