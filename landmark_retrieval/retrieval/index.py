"""One way to search in photos, whatever finds them: build an index, open it, search, add, remove, save."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.indexes.faiss_device import check_device, import_faiss
from landmark_retrieval.retrieval.indexes.faiss_kinds import FAISS_KINDS, KINDS, check_enough, recipe
from landmark_retrieval.retrieval.indexes.index_files import REBUILD, read_description
from landmark_retrieval.retrieval.store import DescriptorStore


class Index(Protocol):
    """Photos to search in, by the dot product of their descriptors.

    `build_index` and `open_index` give one of:

    - flat: all descriptors in memory; exact.
    - exact: the descriptors stay in their store on disk and are read through by each search; exact, on CPU or GPU.
    - fp16, sq8: two bytes, one byte per number.
    - hnsw: a graph; few comparisons per query, more memory than flat.
    - ivf_pq: short codes in cells, of which a query looks into a part.
    - qdrant: a collection of a Qdrant server, or of its embedded form.

    sq8 and ivf_pq compare their best candidates again with the descriptors of the store, where it is at hand.

    Attributes:
        kind: see above.
        why: why it is of that kind, a sentence.
        ids: the photo ids.
        card: what made the descriptors.
        dim: length of a descriptor.
    """

    kind: str
    card: dict[str, Any]
    dim: int

    @property
    def why(self) -> str:
        """Why it is of that kind, a sentence."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """The photo ids."""
        ...

    def __len__(self) -> int: ...

    def search(
        self, descriptors: np.ndarray, k: int, card: Mapping[str, Any] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Find the k photos with the largest dot product for each descriptor.

        Larger scores come first. An index that is not exact may find fewer than k photos, never a wrong id: then the
        list of ids is shorter than the row of scores, which goes on with -inf.

        Args:
            descriptors: (n, dim), rows L2-normalised by the caller, so that the dot product is the cosine.
            k: photos per query, at least 1; more than the index holds means all of them.
            card: what made `descriptors`; give it to be sure that they can be compared with those of the index.

        Returns:
            The photo ids, n lists of at most min(k, len(index)), and the scores (n, min(k, len(index))) float32.

        Raises:
            LandmarkRetrievalError: another dim or another model than that of the index, k < 1, or a row holds NaN or
                infinity.
        """
        ...

    def add(self, ids: Sequence[str], descriptors: Any, card: Mapping[str, Any] | None = None) -> None:
        """Add photos; kept once the index is saved.

        Args:
            ids: n photo ids, none of them in the index yet.
            descriptors: (n, dim), rows L2-normalised by the caller.
            card: what made `descriptors`; see `search`.

        Raises:
            LandmarkRetrievalError: a photo is in the index already or comes twice, a row is not of length 1 (the photo
                is named), or another dim or another model than that of the index.
        """
        ...

    def remove(self, ids: Sequence[str]) -> None:
        """Remove photos; kept once the index is saved.

        Raises:
            LandmarkRetrievalError: a photo is not in the index (it is named), or none would be left.
        """
        ...

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, whole or not at all; `open_index` opens it."""
        ...


def build_index(
    store: DescriptorStore,
    kind: str = "auto",
    device: str = "cpu",
    rescore: int | None = None,
    seed: int = 0,
) -> Index:
    """Build an index over the descriptors of a store.

    Args:
        store: the descriptors, rows of unit length.
        kind: "flat", "exact", "fp16", "sq8", "hnsw", "ivf_pq", or "auto" to choose by number and length of the
            descriptors and by memory; the index says why (`why`). For "qdrant" see `qdrant_index.QdrantIndex.build`.
        device: "cpu", or "cuda" to search on GPUs ("flat", "ivf_pq" and "exact").
        rescore: candidates per wanted result that are compared again with the descriptors of the store, which stay on
            disk; 0 for none; by default 2 for "sq8", 4 for "ivf_pq" and 0 for the others.
        seed: of the sample that "sq8" and "ivf_pq" are trained on.

    Raises:
        LandmarkRetrievalError: there is no such kind, FAISS is not installed, there is no GPU for "cuda" or it cannot
            search the kind, the photos are too few to train it, rescore is negative, or a descriptor is not of unit
            length (the photo is named).

    Example:
        index = build_index(DescriptorStore.open("store"))
        index.save("my-index")
        ids, scores = open_index("my-index").search(descriptors, k=100)
    """
    chosen = recipe(kind, len(store), store.dim, device).kind
    if chosen == "exact":
        from landmark_retrieval.retrieval.indexes.exact_index import ExactIndex

        return ExactIndex.build(store, device)
    from landmark_retrieval.retrieval.indexes.faiss_index import FaissIndex

    return FaissIndex.build(store, kind, device, rescore, seed)


def check_buildable(kind: str, photos: int, device: str = "cpu") -> None:
    """Raise what `build_index` would raise for a kind, so many photos and a device, before they are described."""
    made = recipe(kind, photos, 1, device)
    if kind == "exact":
        from landmark_retrieval.retrieval.indexes.exact_index import check_torch_device

        check_torch_device(device)
        return
    import_faiss()
    check_device(device, made.kind)
    check_enough(made, photos)


def open_index(folder: str | Path, device: str = "cpu", rescore: int | None = None) -> Index:
    """Open a saved index, of whatever kind.

    Args:
        folder: of the index.
        device: "cpu", or "cuda" to search on GPUs ("flat", "exact", and "ivf_pq" that was built for them).
        rescore: see `build_index`; by default as it was saved.

    Raises:
        LandmarkRetrievalError: there is no index, one of its files is missing or damaged (it is named), or what it
            needs is not there: its descriptors, FAISS, a GPU, Qdrant.
    """
    kind = read_description(folder)["kind"]
    if kind in FAISS_KINDS:
        from landmark_retrieval.retrieval.indexes.faiss_index import FaissIndex

        return FaissIndex.open(folder, device, rescore)
    if kind == "exact":
        from landmark_retrieval.retrieval.indexes.exact_index import ExactIndex

        return ExactIndex.open(folder, device)
    if kind == "qdrant":
        if device != "cpu":
            raise LandmarkRetrievalError(
                f"The index {folder} is a collection of Qdrant, which searches where it runs, not on {device!r}: leave "
                "out the device, or name cpu."
            )
        from landmark_retrieval.retrieval.indexes.qdrant_index import QdrantIndex

        return QdrantIndex.open(folder)
    raise LandmarkRetrievalError(
        f"{folder} holds an index of kind {kind!r}, not {', '.join(KINDS)} or qdrant: {REBUILD}."
    )
