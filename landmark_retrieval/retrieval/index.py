"""A FAISS index over photos that knows their ids and the model that made their descriptors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, replacing, sha256_of, write_json
from landmark_retrieval.retrieval.store import DescriptorStore, card_difference

_DESCRIPTION = "index.json"
_INDEX = "index.faiss"
_IDS = "index.ids.txt"
_REBUILD = "build the index again"
# float16 rows of unit length stay within this of 1
_UNIT_TOLERANCE = 1e-2


class PhotoIndex:
    """Photos to search in, by the dot product of their descriptors (exact, FAISS `IndexFlatIP`).

    Build it with `PhotoIndex.build(store)`, keep it with `save`, and come back with `PhotoIndex.open`. On disk it is a
    folder with `index.faiss`, `index.ids.txt` (one photo id per line) and `index.json` (kind, dim, count, card,
    checksums), which is written last.

    Attributes:
        ids: the photo ids, in the order of the rows.
        card: what made the descriptors.
        dim: length of a descriptor.
    """

    def __init__(self, index: Any, ids: Sequence[str], card: Mapping[str, Any]) -> None:
        self._index = index
        self.ids = list(ids)
        self.card = dict(card)
        self.dim: int = index.d

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(cls, store: DescriptorStore) -> "PhotoIndex":
        """Put the descriptors of a store into an index, part by part.

        Raises:
            LandmarkRetrievalError: FAISS is not installed, or a descriptor is not of unit length (the photo is named).
        """
        index = _faiss().IndexFlatIP(store.dim)
        for ids, part in store.parts():
            rows = np.ascontiguousarray(part, dtype=np.float32)
            lengths = np.linalg.norm(rows, axis=1)
            wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT_TOLERANCE))
            if len(wrong):
                raise LandmarkRetrievalError(
                    f"The descriptor of photo {ids[wrong[0]]!r} in {store.folder} has length {lengths[wrong[0]]:.4g}, "
                    "not 1: L2-normalise descriptors before you store them."
                )
            index.add(rows)
        return cls(index, store.ids, store.card)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder; an index that is there is replaced, other files in the folder stay.

        The index can be opened only once everything is written: a crash leaves the old one, the new one, or none.

        Raises:
            LandmarkRetrievalError: FAISS is not installed.
        """
        folder = Path(folder)
        with replacing(folder / _INDEX) as index_path, replacing(folder / _IDS) as ids_path:
            _faiss().write_index(self._index, str(index_path))
            with open_replacing(ids_path) as file:
                file.writelines(f"{photo}\n" for photo in self.ids)
            description = {
                "kind": "flat",
                "dim": self.dim,
                "count": len(self),
                "card": self.card,
                "ids": _IDS,
                "sha256": {_INDEX: sha256_of(index_path), _IDS: sha256_of(ids_path)},
            }
            # from here until the new description is written, the folder holds no index
            (folder / _DESCRIPTION).unlink(missing_ok=True)
        write_json(folder / _DESCRIPTION, description)

    @classmethod
    def open(cls, folder: str | Path) -> "PhotoIndex":
        """Open a saved index, after checking its files against their checksums.

        Raises:
            LandmarkRetrievalError: there is no index, one of its files is missing or damaged (it is named), or FAISS is
                not installed.
        """
        folder = Path(folder)
        advice = "index a folder of photos first, or give the folder of another index"
        description = read_json(folder / _DESCRIPTION, "photo index", advice)
        if not isinstance(description, dict) or not {"kind", "dim", "count", "card", "sha256"} <= description.keys():
            raise LandmarkRetrievalError(f"{folder / _DESCRIPTION} does not describe a photo index: {_REBUILD}.")
        if description["kind"] != "flat":
            raise LandmarkRetrievalError(f"{folder} holds an index of kind {description['kind']!r}: {_REBUILD}.")
        for name in (_INDEX, _IDS):
            path = folder / name
            if not path.exists():
                raise LandmarkRetrievalError(f"{path} is missing: {_REBUILD}.")
            if sha256_of(path) != description["sha256"].get(name):
                raise LandmarkRetrievalError(f"{path} is damaged (its checksum is another): {_REBUILD}.")
        index = _faiss().read_index(str(folder / _INDEX))
        ids = (folder / _IDS).read_text(encoding="utf-8").split("\n")[:-1]
        if not index.ntotal == len(ids) == description["count"] or index.d != description["dim"]:
            raise LandmarkRetrievalError(
                f"{folder} holds {index.ntotal} {index.d}-d descriptors and {len(ids)} photo ids, {_DESCRIPTION} says "
                f"{description['count']} of {description['dim']}-d: {_REBUILD}."
            )
        return cls(index, ids, description["card"])

    def search(
        self, descriptors: np.ndarray, k: int, card: Mapping[str, Any] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Find the k photos with the largest dot product for each descriptor.

        Larger scores come first, on a tie the photo that was stored first.

        Args:
            descriptors: (n, dim), rows L2-normalised by the caller, so that the dot product is the cosine.
            k: photos per query, at least 1; more than the index holds means all of them.
            card: what made `descriptors`; give it to be sure that they can be compared with those of the index.

        Returns:
            The photo ids, n lists of min(k, len(index)), and their scores (n, min(k, len(index))) float32.

        Raises:
            LandmarkRetrievalError: another dim or another model than that of the index, k < 1, or a row holds NaN or
                infinity.
        """
        if card is not None and dict(card) != self.card:
            raise LandmarkRetrievalError(
                f"The index was made by {_model(self.card)}, the query by {_model(card)}; their descriptors cannot be "
                f"compared ({card_difference(self.card, card)}): use the model of the index."
            )
        queries = np.ascontiguousarray(descriptors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise LandmarkRetrievalError(
                f"The index of {_model(self.card)} holds {self.dim}-d descriptors, the queries have shape "
                f"{queries.shape}{'' if card is None else f' ({_model(card)})'}: use the model of the index."
            )
        if k < 1:
            raise LandmarkRetrievalError(f"k must be at least 1, not {k}.")
        finite = np.isfinite(queries).all(axis=1)
        if not finite.all():
            raise LandmarkRetrievalError(f"Query {int(np.argmin(finite))} holds NaN or infinity: check the photo.")
        k = min(k, len(self))
        rows, scores = self._ranked(queries, k)
        return [[self.ids[row] for row in ranked] for ranked in rows], scores

    def _ranked(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's results, ties in order of the rows: FAISS promises no order, nor which of the tied ones it takes."""
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        waiting, depth = np.arange(len(queries)), min(k + 1, len(self))
        while len(waiting):
            found_scores, found_rows = self._index.search(queries[waiting], depth)
            order = np.lexsort((found_rows, -found_scores), axis=1)[:, :k]
            scores[waiting] = np.take_along_axis(found_scores, order, axis=1)
            rows[waiting] = np.take_along_axis(found_rows, order, axis=1)
            if depth == len(self):
                break
            # a tie at the last result that goes on to the end may go on behind it: look deeper there
            waiting = waiting[found_scores[:, k - 1] == found_scores[:, -1]]
            depth = min(4 * depth, len(self))
        return rows, scores


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise LandmarkRetrievalError(
            f"The index needs FAISS ({error}): pip install faiss-cpu, or faiss-gpu on a machine with CUDA (never both)."
        ) from None
    return faiss


def _model(card: Mapping[str, Any]) -> str:
    return f"model {card.get('model', 'without a name')!r}"
