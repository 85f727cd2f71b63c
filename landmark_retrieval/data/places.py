"""Where a data set lies: in a folder, or at a URL whose files are fetched into a cache."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from landmark_retrieval.data import manifest as manifests
from landmark_retrieval.data.manifest import Manifest, Shard
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.data.remote.prefetch import Prefetch
from landmark_retrieval.data.remote.transfer import is_url, join
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing

LISTING = "dataset.json"


class Place(Protocol):
    """A folder of a data set."""

    @property
    def name(self) -> str:
        """Of the folder."""
        ...

    @property
    def remote(self) -> bool:
        """Whether its files have to be fetched."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders of shards in it."""
        ...

    def below(self, name: str) -> "Place":
        """A folder in it."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such a file, of those that stand beside the folders of shards."""
        ...

    def file(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A file in it as one that can be opened here; fetched and verified where it lies elsewhere."""
        ...

    def open(self, shard: Shard) -> int:
        """A shard, to be read from any place in it, as a file descriptor that the caller closes.

        Raises:
            OSError: it cannot be opened here.
            LandmarkRetrievalError: it cannot be fetched.
        """
        ...

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        ...

    def manifest(self) -> Manifest:
        """The manifest of a folder of shards. LandmarkRetrievalError if there is none, or it is damaged."""
        ...

    def check(self, manifest: Manifest) -> None:
        """Refuse shards that are not what their manifest says, as far as a look shows it."""
        ...

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Fetch these shards in the background."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """A folder on this machine."""

    path: Path
    remote = False

    @property
    def name(self) -> str:  # noqa: D102
        return self.path.resolve().name

    def folders(self) -> list[str]:  # noqa: D102
        return sorted(path.name for path in self.path.iterdir() if (path / manifests.NAME).is_file())

    def below(self, name: str) -> "LocalPlace":  # noqa: D102
        return LocalPlace(self.path / name)

    def has(self, name: str) -> bool:  # noqa: D102
        return (self.path / name).is_file()

    def file(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:  # noqa: D102
        return self.path / name

    def open(self, shard: Shard) -> int:  # noqa: D102
        return os.open(f"{self.path}/{shard.file}", os.O_RDONLY | os.O_CLOEXEC)

    def where(self, name: str) -> str:  # noqa: D102
        return str(self.path / name)

    def manifest(self) -> Manifest:  # noqa: D102
        return Manifest.read(self.path)

    def check(self, manifest: Manifest) -> None:  # noqa: D102
        manifest.check_files(self.path)

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Nothing to do."""

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class RemotePlace:
    """A folder at a URL."""

    url: str
    cache: Cache
    background: Prefetch = field(compare=False, repr=False)
    _listed: dict[str, list[str]] = field(default_factory=dict, init=False, compare=False, repr=False)
    remote = True

    @property
    def name(self) -> str:  # noqa: D102
        return self.url.rstrip("/").rpartition("/")[2]

    def folders(self) -> list[str]:  # noqa: D102
        return self._listing()["folders"]

    def below(self, name: str) -> "RemotePlace":  # noqa: D102
        return RemotePlace(join(self.url, name), self.cache, self.background)

    def has(self, name: str) -> bool:  # noqa: D102
        return name in self._listing()["files"]

    def file(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:  # noqa: D102
        url = join(self.url, name)
        if sha256 is not None and size is not None:
            return self.background.fetch(url, sha256=sha256, size=size)
        path = self.cache.folder / "small" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
        with open_replacing(path, "wb") as file:
            file.write(self.cache.fetch_small(url))
        return path

    def open(self, shard: Shard) -> int:  # noqa: D102
        url = join(self.url, shard.file)
        with self.background.open(url, sha256=shard.sha256, size=shard.bytes) as file:
            return os.dup(file.fileno())

    def where(self, name: str) -> str:  # noqa: D102
        return join(self.url, name)

    def manifest(self) -> Manifest:  # noqa: D102
        return Manifest.from_json(self._json(manifests.NAME), join(self.url, manifests.NAME))

    def check(self, manifest: Manifest) -> None:
        """Nothing to do: each shard is verified when it is fetched."""

    def prefetch(self, shards: Iterable[Shard]) -> None:  # noqa: D102
        self.background.request([(join(self.url, shard.file), shard.sha256, shard.bytes) for shard in shards])

    def _listing(self) -> dict[str, list[str]]:
        if not self._listed:
            listing = self._json(LISTING)
            names = [listing.get("folders"), listing.get("files")] if isinstance(listing, dict) else [None]
            if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in names):
                raise LandmarkRetrievalError(f"{join(self.url, LISTING)} is damaged: copy it once more.")
            self._listed.update(listing)
        return self._listed

    def _json(self, name: str) -> Any:
        url = join(self.url, name)
        content = self.cache.fetch_small(url)
        try:
            return json.loads(content)
        except ValueError as error:
            raise LandmarkRetrievalError(f"{url} is damaged ({error}): copy it once more.") from None

    def __str__(self) -> str:
        return self.url


def place(root: str | Path, cache: Cache | None = None) -> Place:
    """The folder or URL `root`.

    Args:
        root: path of a folder, or a URL (http, https, s3, gs, file) of a folder that `landmark-retrieval shard` has
            written and that was copied there.
        cache: takes what is fetched; the default one if None.

    Raises:
        LandmarkRetrievalError: there is no such folder.
    """
    if is_url(root):
        cache = cache or Cache.default()
        return RemotePlace(str(root), cache, Prefetch(cache))
    if not Path(root).is_dir():
        raise LandmarkRetrievalError(
            f"There is no data at {root}: write shards there with `landmark-retrieval shard`, or set data.root to "
            f"their folder."
        )
    return LocalPlace(Path(root))
