"""Descriptors on disk: a folder of numpy parts, the photo ids beside them, and the card of the model that made them.

store.json           dim, dtype, count, card, and of each part its count and checksums; written last
part-00000.npy       (n, dim) float16 or float32
part-00000.ids.txt   one photo id per line
unfinished.json      the same as store.json, about the parts finished so far, while a store is being written
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, sha256_of, write_json

_DTYPES = ("float32", "float16")
_FINISHED = "store.json"
_UNFINISHED = "unfinished.json"
_REMAKE = "remove the folder and extract the descriptors again"


class DescriptorWriter:
    """Write a descriptor store batch by batch; an interrupted run goes on where the last finished part ends.

    Parts are written whole as they fill, `store.json` when the `with` block ends without an error. On a folder with an
    unfinished or finished store of the same model, `done` holds the ids that are already there, for the caller to skip.

    Args:
        folder: the store; made where it does not exist.
        card: what made the descriptors, for example `{"model": ..., "weights_sha256": ..., "image_size": ...}`; any
            mapping that JSON can hold.
        dim: length of a descriptor; by default that of the first batch.
        dtype: "float32" or "float16", in which the descriptors are kept.
        part_size: photos per part.

    Raises:
        LandmarkRetrievalError: the folder holds descriptors of another card, dim or dtype, or one of its parts is
            damaged.

    Example:
        with DescriptorWriter("store", card={"model": "dolg_efficientnet_b5"}) as writer:
            for ids, photos in batches_without(writer.done):
                writer.append(ids, net(photos))
    """

    def __init__(
        self,
        folder: str | Path,
        card: Mapping[str, Any],
        dim: int | None = None,
        dtype: str = "float32",
        part_size: int = 10_000,
    ) -> None:
        if dtype not in _DTYPES:
            raise LandmarkRetrievalError(f"Descriptors are stored as float32 or float16, not as {dtype!r}.")
        if part_size < 1:
            raise LandmarkRetrievalError(f"A part must hold at least 1 photo, not {part_size}.")
        self.folder = Path(folder)
        # as it comes back from a file (tuples become lists), so that cards can be compared
        self.card: dict[str, Any] = json.loads(json.dumps(dict(card)))
        self.dim = dim
        self.dtype = dtype
        self.part_size = part_size
        self._parts: list[dict[str, Any]] = []
        self._waiting_ids: list[str] = []
        self._waiting_rows: list[np.ndarray] = []
        self._changed = True
        self._resume()
        self._seen = set(self.done)

    def __enter__(self) -> "DescriptorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()

    def append(self, ids: Sequence[str], descriptors: Any) -> None:
        """Add a batch of photos.

        Args:
            ids: n photo ids, none of them in the store yet.
            descriptors: (n, dim) array or tensor, rows L2-normalised by the caller.

        Raises:
            LandmarkRetrievalError: the shapes do not fit, an id comes twice or holds a line break, or a descriptor
                holds NaN or infinity (in the store's dtype).
        """
        if hasattr(descriptors, "detach"):
            descriptors = descriptors.detach().float().cpu().numpy()
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinity and is refused below
            rows = np.array(descriptors, dtype=self.dtype)
        if rows.ndim != 2 or len(rows) != len(ids):
            raise LandmarkRetrievalError(f"{len(ids)} photos need ({len(ids)}, d) descriptors, not {rows.shape}.")
        if self.dim not in (None, rows.shape[1]):
            raise LandmarkRetrievalError(
                f"The store {self.folder} holds {self.dim}-d descriptors, the batch has {rows.shape[1]}-d ones."
            )
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise LandmarkRetrievalError(
                f"The descriptor of photo {ids[int(np.argmin(finite))]!r} holds NaN or infinity in {self.dtype}: "
                "check the photo and the model."
            )
        batch = set()
        for photo in ids:
            if photo.splitlines() != [photo]:
                raise LandmarkRetrievalError(f"Photo id {photo!r} is empty or holds a line break: rename the photo.")
            if photo in self._seen or photo in batch:
                raise LandmarkRetrievalError(f"Photo {photo!r} is in the store {self.folder} already.")
            batch.add(photo)
        self.dim = rows.shape[1]
        self._seen |= batch
        self._waiting_ids.extend(ids)
        self._waiting_rows.append(rows)
        if len(self._waiting_ids) >= self.part_size:
            self._write_full_parts()

    def finish(self) -> None:
        """Write the photos that still wait and `store.json`; the store can be opened from then on."""
        self._write_full_parts()
        if self._waiting_ids:
            self._write_part(self._waiting_ids, np.concatenate(self._waiting_rows))
            self._waiting_ids, self._waiting_rows = [], []
        if not self._parts:
            raise LandmarkRetrievalError(f"No photo was added to the store {self.folder}: there is nothing to finish.")
        if self._changed:
            write_json(self.folder / _FINISHED, self._description())
            (self.folder / _UNFINISHED).unlink(missing_ok=True)
            self._changed = False

    def _resume(self) -> None:
        self.done: frozenset[str] = frozenset()
        name = next((name for name in (_UNFINISHED, _FINISHED) if (self.folder / name).exists()), None)
        if name is None:
            return
        found = _read_description(self.folder / name)
        if found["card"] != self.card:
            difference = card_difference(found["card"], self.card)
            raise LandmarkRetrievalError(
                f"The store {self.folder} holds descriptors of another model ({difference}): "
                "choose another folder or remove this one."
            )
        for what, wanted in (("dim", self.dim), ("dtype", self.dtype)):
            if wanted not in (None, found[what]):
                raise LandmarkRetrievalError(
                    f"The store {self.folder} has {what} {found[what]}, not {wanted}: "
                    "choose another folder or remove this one."
                )
        parts = [_open_part(self.folder, number, part, found) for number, part in enumerate(found["parts"])]
        self.dim = found["dim"]
        self._parts = list(found["parts"])
        self._changed = name == _UNFINISHED
        self.done = frozenset(photo for ids, _ in parts for photo in ids)

    def _write_full_parts(self) -> None:
        if len(self._waiting_ids) < self.part_size:
            return
        ids, rows = self._waiting_ids, np.concatenate(self._waiting_rows)
        whole = len(ids) - len(ids) % self.part_size
        for start in range(0, whole, self.part_size):
            self._write_part(ids[start : start + self.part_size], rows[start : start + self.part_size])
        self._waiting_ids, self._waiting_rows = ids[whole:], [rows[whole:].copy()]

    def _write_part(self, ids: Sequence[str], rows: np.ndarray) -> None:
        array, names = _part_paths(self.folder, len(self._parts))
        with open_replacing(array, "wb") as file:
            np.save(file, rows, allow_pickle=False)
        with open_replacing(names) as file:
            file.writelines(f"{photo}\n" for photo in ids)
        part = {"count": len(ids), "sha256": sha256_of(array), "ids_sha256": sha256_of(names)}
        self._parts.append(part)
        self._changed = True
        # the part counts from here on: what a crash leaves behind before this line is written over
        write_json(self.folder / _UNFINISHED, self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "dtype": self.dtype,
            "count": sum(part["count"] for part in self._parts),
            "card": self.card,
            "parts": self._parts,
        }


class DescriptorStore:
    """A finished descriptor store, opened with `DescriptorStore.open(folder)`.

    Attributes:
        folder: where it lies.
        ids: the photo ids, in the order of the rows.
        card: what made the descriptors.
        dim: length of a descriptor.
        dtype: "float32" or "float16", in which they are kept.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], parts: Sequence[tuple[list[str], np.ndarray]]
    ) -> None:
        self.folder = folder
        self.card: dict[str, Any] = dict(description["card"])
        self.dim: int = description["dim"]
        self.dtype: str = description["dtype"]
        self.ids = [photo for ids, _ in parts for photo in ids]
        self._parts = parts

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "DescriptorStore":
        """Open a store; counts, shapes and ids are checked, the descriptors are memory-mapped.

        Args:
            folder: the store.
            verify: read everything once and compare the checksums too.

        Raises:
            LandmarkRetrievalError: there is no finished store, a part is missing or damaged (it is named), or an id
                comes twice.
        """
        folder = Path(folder)
        if not (folder / _FINISHED).exists() and (folder / _UNFINISHED).exists():
            raise LandmarkRetrievalError(f"The store {folder} is not finished: run the extraction again, it goes on.")
        description = _read_description(folder / _FINISHED)
        parts = [
            _open_part(folder, number, part, description, verify) for number, part in enumerate(description["parts"])
        ]
        store = cls(folder, description, parts)
        if len(store.ids) != description["count"]:
            raise LandmarkRetrievalError(
                f"The store {folder} has {len(store.ids)} descriptors where {_FINISHED} says "
                f"{description['count']}: {_REMAKE}."
            )
        seen: set[str] = set()
        for photo in store.ids:
            if photo in seen:
                raise LandmarkRetrievalError(f"Photo {photo!r} is in the store {folder} twice: {_REMAKE}.")
            seen.add(photo)
        return store

    def __len__(self) -> int:
        return len(self.ids)

    def parts(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield each part as (ids, memory-mapped (n, dim) array in the store's dtype), for work that streams."""
        yield from self._parts

    def load(self) -> np.ndarray:
        """All descriptors as (count, dim) float32, the rows as stored: L2-normalised by whoever appended them."""
        rows = np.empty((len(self), self.dim), dtype=np.float32)
        start = 0
        for ids, part in self._parts:
            rows[start : start + len(ids)] = part
            start += len(ids)
        return rows


def card_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What two cards disagree in, for an error: "model: 'a' and 'b'; image_size: 512 and 448"."""
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return "; ".join(f"{name}: {first.get(name)!r} and {second.get(name)!r}" for name in names)


def _part_paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"part-{number:05d}.npy", folder / f"part-{number:05d}.ids.txt"


def _open_part(
    folder: Path, number: int, part: Mapping[str, Any], description: Mapping[str, Any], verify: bool = False
) -> tuple[list[str], np.ndarray]:
    array, names = _part_paths(folder, number)

    def damaged(path: Path, what: str) -> LandmarkRetrievalError:
        return LandmarkRetrievalError(f"Part {path} is damaged ({what}): {_REMAKE}.")

    if verify:
        for path, name in ((array, "sha256"), (names, "ids_sha256")):
            if path.exists() and sha256_of(path) != part[name]:
                raise damaged(path, "its checksum is another")
    try:
        rows = np.load(array, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise damaged(array, "it is missing") from None
    except (ValueError, EOFError, OSError) as error:
        raise damaged(array, str(error)) from None
    wanted = (part["count"], description["dim"])
    if rows.shape != wanted or rows.dtype != description["dtype"]:
        raise damaged(array, f"it holds {rows.shape} {rows.dtype} instead of {wanted} {description['dtype']}")
    try:
        ids = names.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise damaged(names, "it is missing") from None
    except UnicodeDecodeError as error:
        raise damaged(names, str(error)) from None
    if ids.pop() != "" or len(ids) != part["count"]:
        raise damaged(names, f"it does not hold {part['count']} lines")
    return ids, rows


def _read_description(path: Path) -> dict[str, Any]:
    advice = "extract the descriptors of your photos first, or give the folder of another store"
    description = read_json(path, "descriptor store", advice)
    if not (
        isinstance(description, dict)
        and {"dim", "dtype", "count", "card", "parts"} <= description.keys()
        and description["dtype"] in _DTYPES
        and all({"count", "sha256", "ids_sha256"} <= part.keys() for part in description["parts"])
    ):
        raise LandmarkRetrievalError(f"{path} is not the description of a descriptor store: {_REMAKE}.")
    return description
