"""The manifest of a folder of shards: what is in it, so that reading can be planned and checked before it starts."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, sha256_of, write_json

NAME = "manifest.json"
FORMAT = 1
_ADVICE = "write the shards with `landmark-retrieval shard`, or name the folder that holds them"


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many photos and bytes it has, and the sha256 of its bytes."""

    file: str
    photos: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Attributes:
        shards: in the order they were written.
        classes: name of each class; empty for photos without labels.
        class_counts: photos per class.
        refused: photos that were left out because they are missing or broken (listed in refused.csv).
        plan: fingerprint of what the shards were to be made from.
    """

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    refused: int
    plan: str

    @property
    def photos(self) -> int:
        """Number of photos in all shards."""
        return sum(shard.photos for shard in self.shards)

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
        content = read_json(path, "shard manifest", _ADVICE)
        try:
            if content["format"] != FORMAT:
                raise LandmarkRetrievalError(
                    f"{path} has format {content['format']}, this version reads {FORMAT}: write the shards again."
                )
            return cls(
                tuple(Shard(**shard) for shard in content["shards"]),
                tuple(content["classes"]),
                tuple(content["class_counts"]),
                content["refused"],
                content["plan"],
            )
        except (KeyError, TypeError) as error:
            raise LandmarkRetrievalError(f"The shard manifest {path} is damaged ({error!r}): {_ADVICE}.") from None

    def check_files(self, folder: str | Path, checksums: bool = False) -> None:
        """Refuse shards that are missing or not of the size (or, on request, the sha256) the manifest gives.

        Raises:
            LandmarkRetrievalError: naming the first such shard and how many there are.
        """
        folder = Path(folder)
        wrong: list[str] = []
        for shard in self.shards:
            path = folder / shard.file
            if not path.is_file():
                wrong.append(f"{path} is missing")
            elif path.stat().st_size != shard.bytes:
                wrong.append(f"{path} has {path.stat().st_size:,} bytes instead of {shard.bytes:,}")
            elif checksums and sha256_of(path) != shard.sha256:
                wrong.append(f"{path} has other contents than the manifest says")
        if wrong:
            raise LandmarkRetrievalError(
                f"Shard {wrong[0]} ({len(wrong)} of {len(self.shards)} shards are damaged): delete {folder} and write "
                "the shards again, or copy the damaged ones once more."
            )
