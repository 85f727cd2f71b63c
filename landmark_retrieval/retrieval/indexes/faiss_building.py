"""What a FAISS index is built from: checked blocks of descriptors, a sample to train on, and the training itself."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.retrieval.indexes.faiss_device import import_faiss
from landmark_retrieval.retrieval.indexes.faiss_kinds import Recipe
from landmark_retrieval.retrieval.indexes.index_checks import checked_rows
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_rows import StoreRows

BLOCK = 20_000
_ROUNDS = 10


def blocks(store: DescriptorStore, title: str) -> Iterator[np.ndarray]:
    """Checked rows, with a progress bar."""
    with tqdm(total=len(store), desc=title, unit="photo", disable=None) as bar:
        for ids, part in store.parts():
            for start in range(0, len(ids), BLOCK):
                stop = start + BLOCK
                rows = checked_rows(ids[start:stop], part[start:stop], store.dim, f" in {store.folder}")
                yield rows
                bar.update(len(rows))


def sample_of(store: DescriptorStore, count: int, seed: int) -> np.ndarray:
    """Checked float32 rows of so many photos, drawn with a seed."""
    chosen = np.sort(np.random.default_rng(seed).choice(len(store), min(count, len(store)), replace=False))
    rows = np.asarray(StoreRows(store).take(chosen), np.float32)
    return checked_rows([store.ids[row] for row in chosen], rows, store.dim, f" in {store.folder}")


def train(index: Any, made: Recipe, sample: np.ndarray, seed: int) -> None:
    """Train what learns: the ranges of sq8, the cells and codes of ivf_pq."""
    cells = index
    if isinstance(index, import_faiss().IndexPreTransform):
        turn = index.chain.at(0)
        turn.train(sample)
        sample, cells = turn.apply(sample), import_faiss().downcast_index(index.index)
    if made.cells:
        _train_cells(cells, made, sample, seed)
    cells.train(sample)
    index.is_trained = True


def _train_cells(index: Any, made: Recipe, sample: np.ndarray, seed: int) -> None:
    # FAISS takes seeds above 0 for this, and warns of fewer rows per center than it likes
    few = {"min_points_per_centroid": 1, "max_points_per_centroid": len(sample), "seed": seed + 1}
    cells = import_faiss().Kmeans(index.d, made.cells, niter=1, spherical=True, **few)
    for _ in tqdm(range(_ROUNDS), desc=f"train {made.cells} cells", unit="round", disable=None):
        # one round at a time, from where the last one ended, to show the progress
        cells.train(sample, init_centroids=cells.centroids)
    # FAISS takes the cells as trained if they are there
    index.quantizer.add(cells.centroids)
    index.pq.cp.seed, index.pq.cp.min_points_per_centroid = seed + 1, 1
