"""Photos in a FAISS index: flat, fp16, sq8, hnsw or ivf_pq."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.indexes.faiss_building import BLOCK, blocks, sample_of, train
from landmark_retrieval.retrieval.indexes.faiss_device import MOST_ON_GPU, check_device, import_faiss, to_gpus
from landmark_retrieval.retrieval.indexes.faiss_kinds import Recipe, check_enough, recipe
from landmark_retrieval.retrieval.indexes.index_checks import (
    check_card,
    check_new,
    check_rescore,
    checked_queries,
    checked_rows,
    found_first,
    joined,
    named,
    rows_to_remove,
)
from landmark_retrieval.retrieval.indexes.index_files import (
    DESCRIPTION,
    IDS,
    INDEX,
    REBUILD,
    SLOTS,
    check_files,
    open_store,
    place_of_store,
    read_description,
    read_ids,
    write_folder,
    write_ids,
)
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_rows import StoreRows, rescored

# FAISS cannot take photos out of a graph, and 1.15 damages what is added to fast-scan codes after a removal: in these
# kinds, removed photos stay and are passed over, until they are so many that what is left is put in anew
_PASSED_OVER = ("hnsw", "ivf_pq")
_MOST_GONE = 0.25


class FaissIndex:
    """Photos to search in, by the dot product of their descriptors.

    Make it with `index.build_index(store, kind)`, keep it with `save`, and come back with `index.open_index`. Only
    "flat" and results that are rescored have exact scores; among equal scores of "flat" the photo that was stored first
    comes first.

    Attributes:
        kind: "flat", "fp16", "sq8", "hnsw" or "ivf_pq".
        why: why it is of that kind, a sentence.
        ids: the photo ids, in the order in which they were added.
        card: what made the descriptors.
        dim: length of a descriptor.
        rescore: this many candidates per wanted result are compared again with the descriptors of the store, which
            stay on disk; 0 for none, and at most 2048 in all on a GPU. Can be set.
    """

    def __init__(
        self,
        index: Any,
        made: Recipe,
        ids: Ids,
        card: Mapping[str, Any],
        place: Path | None = None,
        slots: np.ndarray | None = None,
        device: str = "cpu",
    ) -> None:
        self._index, self._recipe, self._device = index, made, device
        # of the descriptors that the index was made of
        self._place = place
        self.kind, self.why = made.kind, made.why
        self.ids = ids
        self.card = dict(card)
        self.dim: int = index.d
        self.rescore = made.rescore if place is not None else 0
        # FAISS's number of each photo, ascending; None while these are the rows
        self._slots = slots
        self._opened: StoreRows | None = None
        if self.rescore:
            # at once: a store that is missing is to be noticed now
            self._opened = self._stored(ids)
        self._on_device: Any = None
        self._changed()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(
        cls,
        store: DescriptorStore,
        kind: str = "flat",
        device: str = "cpu",
        rescore: int | None = None,
        seed: int = 0,
    ) -> "FaissIndex":
        """Put the descriptors of a store into an index, part by part, with progress bars.

        Args:
            store: the descriptors.
            kind: one of `faiss_kinds.FAISS_KINDS`, or "auto".
            device: "cuda" searches on all GPUs ("flat" and "ivf_pq").
            rescore: see the class; by default what suits the kind.
            seed: of the sample that "sq8" and "ivf_pq" are trained on.

        Raises:
            LandmarkRetrievalError: FAISS is not installed, there is no GPU for "cuda" or it cannot search the kind, or
                a descriptor is not of unit length (the photo is named).
        """
        check_rescore(rescore)
        made = recipe(kind, len(store), store.dim, device)
        if rescore is not None:
            made = replace(made, rescore=rescore)
        check_device(device, made.kind)
        check_enough(made, len(store))
        faiss = import_faiss()
        index = faiss.index_factory(store.dim, made.factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            train(index, made, sample_of(store, made.training_rows, seed), seed)
        if made.probe:
            import_faiss().extract_index_ivf(index).nprobe = made.probe
        for rows in blocks(store, f"build {made.kind}"):
            index.add(rows)
        return cls(index, made, Ids(store.ids), store.card, store.folder, device=device)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder; an index that is there is replaced, other files in the folder stay.

        The index can be opened only once everything is written: a crash leaves the old one, the new one, or none.
        """
        files = {INDEX: lambda path: import_faiss().write_index(self._index, str(path)), IDS: write_ids(self.ids)}
        if self._slots is not None:
            files[SLOTS] = self._write_slots
        description = {
            "kind": self.kind,
            "why": self.why,
            "dim": self.dim,
            "count": len(self),
            "card": self.card,
            "parameters": {
                "factory": self._recipe.factory,
                "probe": self._recipe.probe,
                "candidates": self._recipe.candidates,
                "rescore": self.rescore,
            },
            "store": place_of_store(self._place, folder) if self._place is not None else None,
        }
        write_folder(folder, description, files)

    @classmethod
    def open(cls, folder: str | Path, device: str = "cpu", rescore: int | None = None) -> "FaissIndex":
        """Open a saved index, after checking its files against their checksums.

        Args:
            folder: of the index.
            device: see `build`.
            rescore: see the class; by default as it was saved. 0 leaves the descriptors on disk alone.

        Raises:
            LandmarkRetrievalError: there is no index, one of its files is missing or damaged (it is named), results
                are to be rescored and the descriptors are not there, FAISS is not installed, or there is no GPU for
                "cuda".
        """
        check_rescore(rescore)
        description = read_description(folder)
        parameters = description.get("parameters", {})
        check_device(device, description["kind"], parameters.get("factory", ""))
        check_files(folder, description, (INDEX, IDS))
        index, ids = import_faiss().read_index(str(Path(folder) / INDEX)), read_ids(folder)
        if len(ids) != description["count"] or index.d != description["dim"] or index.ntotal < len(ids):
            raise LandmarkRetrievalError(
                f"{folder} holds {index.ntotal} {index.d}-d descriptors and {len(ids)} photo ids, {DESCRIPTION} says "
                f"{description['count']} of {description['dim']}-d: {REBUILD}."
            )
        slots = np.load(Path(folder) / SLOTS, allow_pickle=False) if SLOTS in description["sha256"] else None
        names = ("factory", "probe", "candidates", "rescore")
        made = Recipe(
            description["kind"],
            description.get("why", ""),
            **{name: parameters[name] for name in names if name in parameters},
        )
        if rescore is not None:
            made = replace(made, rescore=rescore)
        place = description.get("store")
        if made.rescore:
            _check_store(folder, description)
        if made.probe:
            import_faiss().extract_index_ivf(index).nprobe = made.probe
        return cls(index, made, ids, description["card"], place and Path(folder) / place, slots, device)

    def search(
        self, descriptors: np.ndarray, k: int, card: Mapping[str, Any] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Find the k photos with the largest dot product for each descriptor; see `index.Index.search`."""
        queries = checked_queries(descriptors, k, self.dim, self.card, card)
        k = min(k, len(self))
        if self._on_device is not None and k > MOST_ON_GPU:
            raise LandmarkRetrievalError(
                f"FAISS finds at most {MOST_ON_GPU} photos for a query on a GPU, not {k}: ask for fewer, or open the "
                "index on the CPU (device cpu)."
            )
        if not k or not len(queries):
            return [[] for _ in queries], np.empty((len(queries), k), np.float32)
        if self.kind == "flat":
            rows, scores = self._in_order(queries, k)
        elif self.rescore > 0 and self._place is not None:
            most = len(self) if self._on_device is None else min(len(self), MOST_ON_GPU)
            rows = self._found(queries, min(most, k * self.rescore))[0]
            rows, scores = rescored(queries, rows, self._rows, k)
        else:
            rows, scores = self._found(queries, k)
        return named(self.ids, rows), scores

    def add(self, ids: Sequence[str], descriptors: Any, card: Mapping[str, Any] | None = None) -> None:
        """Add photos; see `index.Index.add`. If results are rescored, their descriptors have to be in the store."""
        check_card(self.card, card, "the photos to add")
        rows = checked_rows(ids, descriptors, self.dim)
        check_new(self.ids, ids)
        together = joined(self.ids, ids)
        rescoring = self.rescore > 0 and self._place is not None
        self._opened = self._stored(together) if rescoring else None
        if self._slots is not None:
            self._slots = np.concatenate([self._slots, self._index.ntotal + np.arange(len(rows))])
        self._index.add(rows)
        self.ids = together
        self._changed()

    def remove(self, ids: Sequence[str]) -> None:
        """Remove photos; see `index.Index.remove`."""
        rows = rows_to_remove(self.ids, ids)
        left = np.delete(np.arange(len(self)), rows)
        if not len(left):
            raise LandmarkRetrievalError("All photos of the index were to be removed: delete its folder instead.")
        self.ids = self.ids.take(left)
        if self._opened is not None:
            self._opened = self._stored(self.ids)
        if self.kind in _PASSED_OVER:
            self._slots = left if self._slots is None else self._slots[left]
            if len(left) < (1 - _MOST_GONE) * self._index.ntotal:
                self._put_in_anew(self._slots)
        else:
            # the numbers of those behind them move up
            self._index.remove_ids(rows)
        self._changed()

    def _put_in_anew(self, slots: np.ndarray) -> None:
        if self.kind == "ivf_pq" and self._opened is None:
            # codes would lose once more: they go on being passed over
            return
        faiss = import_faiss()
        empty = faiss.index_factory(self.dim, self._recipe.factory, faiss.METRIC_INNER_PRODUCT)
        if self.kind == "ivf_pq":
            empty = faiss.clone_index(self._index)
            empty.reset()
        for start in tqdm(range(0, len(slots), BLOCK), desc=f"build {self.kind} again", unit="block", disable=None):
            if self._opened is not None:
                block = np.asarray(self._opened[start : start + BLOCK], np.float32)
            else:
                block = self._index.reconstruct_batch(slots[start : start + BLOCK])
            empty.add(block)
        self._index, self._slots = empty, None

    @property
    def _rows(self) -> StoreRows:
        """The descriptors of the photos, in their store on disk."""
        if self._opened is None:
            self._opened = self._stored(self.ids)
        return self._opened

    def _stored(self, ids: Ids) -> StoreRows:
        assert self._place is not None
        store = DescriptorStore.open(self._place)
        check_card(self.card, store.card, f"the store {self._place}")
        return StoreRows.of(store, ids)

    def _changed(self) -> None:
        if self._device != "cuda":
            return
        index = self._index
        if self._slots is not None:
            # no GPU passes photos over: it gets a copy without them, in which the others keep their numbers
            index = import_faiss().clone_index(index)
            index.remove_ids(np.setdiff1d(np.arange(index.ntotal), self._slots, assume_unique=True))
        self._on_device = to_gpus(index, self._recipe)

    def _write_slots(self, path: Path) -> None:
        assert self._slots is not None
        with path.open("wb") as file:
            np.save(file, self._slots, allow_pickle=False)

    def _found(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (-1: none) and scores (-inf there), (n, depth)."""
        faiss = import_faiss()
        # where ties go on further than a GPU looks, the CPU does
        index = self._index if self._on_device is None or depth > MOST_ON_GPU else self._on_device
        present = {}
        if self._slots is not None and index is self._index:
            alive = np.zeros(self._index.ntotal, bool)
            alive[self._slots] = True
            present["sel"] = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        chosen = None
        if self.kind == "hnsw":
            chosen = faiss.SearchParametersHNSW(efSearch=max(self._recipe.candidates, 2 * depth), **present)
        elif present:
            chosen = faiss.SearchParametersIVF(nprobe=self._recipe.probe, **present)
            if isinstance(self._index, faiss.IndexPreTransform):
                chosen = faiss.SearchParametersPreTransform(index_params=chosen)
        scores, slots = index.search(queries, depth, params=chosen)
        rows = slots
        if self._slots is not None:
            rows = np.minimum(np.searchsorted(self._slots, slots), len(self._slots) - 1)
            rows[self._slots[rows] != slots] = -1
        return found_first(rows, scores)

    def _in_order(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's results, ties in order of the rows: FAISS promises no order, nor which of the tied ones it takes."""
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        waiting, depth = np.arange(len(queries)), min(k + 1, len(self))
        while len(waiting):
            found_rows, found_scores = self._found(queries[waiting], depth)
            order = np.lexsort((found_rows, -found_scores), axis=1)[:, :k]
            scores[waiting] = np.take_along_axis(found_scores, order, axis=1)
            rows[waiting] = np.take_along_axis(found_rows, order, axis=1)
            if depth == len(self):
                break
            # a tie at the last result that goes on to the end may go on behind it: look deeper there
            waiting = waiting[found_scores[:, k - 1] == found_scores[:, -1]]
            depth = min(4 * depth, len(self))
        return rows, scores


def _check_store(folder: str | Path, description: Mapping[str, Any]) -> None:
    """Refuse to rescore without the descriptors."""
    place = description.get("store")
    if place is None:
        raise LandmarkRetrievalError(f"The index {folder} knows of no descriptors to rescore with: {REBUILD}.")
    try:
        open_store(place, folder, description["card"])
    except LandmarkRetrievalError as error:
        raise LandmarkRetrievalError(
            f"Results of the index {folder} are compared again with descriptors on disk ({error}) Without them, open "
            "it with rescore=0: scores are then approximate."
        ) from None
