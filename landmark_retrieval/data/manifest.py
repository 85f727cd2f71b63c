"""The manifest of a folder of shards: what is in it, so that reading can be planned and checked before it starts."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, sha256_of, write_json

NAME = "manifest.json"
SAMPLES = "samples.npy"
FORMAT = 2
_ADVICE = "write the shards with `landmark-retrieval shard`, or name the folder that holds them"


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many photos and bytes it has, the sha256 of its bytes, and of how many classes its
    photos are (0 without labels)."""

    file: str
    photos: int
    bytes: int
    sha256: str
    classes: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        shards: in the order they were written.
        classes: name of each class; empty for photos without labels.
        class_counts: photos per class.
        refused: photos that were left out because they are missing or broken (listed in refused.csv).
        plan: fingerprint of what the shards were to be made from.
        samples: bytes and sha256 of samples.npy, which says where in its shard each photo is (see `samples_type`).
    """

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    refused: int
    plan: str
    samples: tuple[int, str]

    @property
    def photos(self) -> int:
        """Number of photos in all shards."""
        return sum(shard.photos for shard in self.shards)

    @property
    def files(self) -> list[tuple[str, int, str]]:
        """Name, bytes and sha256 of each file beside the manifest."""
        return [*((shard.file, shard.bytes, shard.sha256) for shard in self.shards), (SAMPLES, *self.samples)]

    @property
    def fingerprint(self) -> str:
        """Says which photos the shards hold, to the byte: a sha256 over those of the shards."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, folder: str | Path) -> None:
        """Write it into `folder`, whole or not at all."""
        write_json(Path(folder) / NAME, {"format": FORMAT, "photos": self.photos, **asdict(self)})

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read the manifest of a folder. LandmarkRetrievalError if there is none, or it is damaged."""
        path = Path(folder) / NAME
        return cls.from_json(read_json(path, "shard manifest", _ADVICE), str(path))

    @classmethod
    def from_json(cls, content: Any, path: str) -> "Manifest":
        """The manifest that the JSON at `path` describes. LandmarkRetrievalError if it does not."""
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise LandmarkRetrievalError(
                f"{path} has format {content['format']}, this version reads {FORMAT}: write the shards again."
            )
        try:
            for key in ("shards", "classes", "class_counts", "samples"):
                if not isinstance(content[key], list):
                    raise TypeError(f"{key} is no list")
            size, sha256 = content["samples"]
            manifest = cls(
                tuple(Shard(**shard) for shard in content["shards"]),
                tuple(content["classes"]),
                tuple(content["class_counts"]),
                content["refused"],
                content["plan"],
                (size, sha256),
            )
            manifest._check()
            return manifest
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise LandmarkRetrievalError(f"The shard manifest {path} is damaged ({what}): {_ADVICE}.") from None

    def _check(self) -> None:
        """Refuse what cannot be: TypeError or ValueError."""
        numbers = [self.refused, self.samples[0], *self.class_counts]
        texts = [self.plan, self.samples[1], *self.classes]
        for shard in self.shards:
            numbers += [shard.photos, shard.bytes, shard.classes]
            texts += [shard.file, shard.sha256]
            if Path(str(shard.file)).name != shard.file or shard.file in ("", ".."):
                raise ValueError(f"{shard.file!r} is no name of a file")
        wrong: list[Any] = [value for value in numbers if type(value) is not int or value < 0]
        wrong += [value for value in texts if not isinstance(value, str)]
        if wrong:
            raise TypeError(f"{wrong[0]!r}")
        if len(self.classes) != len(self.class_counts):
            raise ValueError(f"{len(self.classes)} classes with {len(self.class_counts)} counts")

    def check_files(self, folder: str | Path, checksums: bool = False) -> None:
        """Refuse shards that are missing or not of the size (or, on request, the sha256) the manifest gives.

        Raises:
            LandmarkRetrievalError: naming the first such shard and how many there are.
        """
        folder = Path(folder)
        wrong = list(filter(None, (wrong_file(folder, row, checksums) for row in self.files)))
        if wrong:
            raise damaged_files(folder, wrong, len(self.shards))


def wrong_file(folder: Path, row: tuple[str, int, str], checksum: bool) -> str | None:
    """What is wrong with a file (name, bytes, sha256) of a folder of shards, if anything is."""
    name, size, sha256 = row
    path = folder / name
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != size:
        return f"{path} has {path.stat().st_size:,} bytes instead of {size:,}"
    if checksum and sha256_of(path) != sha256:
        return f"{path} has other contents than the manifest says"
    return None


def damaged_files(folder: Path, wrong: Sequence[str], of: int) -> LandmarkRetrievalError:
    """The error for files of a folder of shards that are not what its manifest says."""
    others = f"; also {'; '.join(wrong[1:20])}{' ...' if len(wrong) > 20 else ''}" if len(wrong) > 1 else ""
    return LandmarkRetrievalError(
        f"{wrong[0]} ({len(wrong)} of the files of {of} shards are damaged{others}): delete {folder} and write the "
        "shards again, or copy the damaged ones once more."
    )


def samples_type(id_bytes: int) -> np.dtype:
    """A row of samples.npy, for each photo in the order of the shards.

    Its id (UTF-8), where in the shard its first tar header is (in blocks of 512 bytes), the bytes of the photo and of
    the JSON about it, which follows as a member of its own, and its class, -1 where it has none.
    """
    return np.dtype([("id", f"S{id_bytes}"), ("start", "<u4"), ("photo", "<u4"), ("about", "<u4"), ("label", "<i4")])
