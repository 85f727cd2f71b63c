"""Queries -> the nearest photos of an index of a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from landmark_retrieval.data.decode import BrokenPhotoError, decode
from landmark_retrieval.data.importers.folder import list_photos
from landmark_retrieval.data.resizing import Resizing
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json
from landmark_retrieval.retrieval.extract import describe
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult
from landmark_retrieval.retrieval.index import open_index
from landmark_retrieval.retrieval.photo_index import ABOUT, ADVICE, WHITENING
from landmark_retrieval.retrieval.views import VIEWS, card_with_views
from landmark_retrieval.retrieval.whitening import Whitening

# queries that are decoded at a time
_BLOCK = 256


@dataclass(frozen=True)
class Found:
    """What a search found for one query: photo files and cosines, best first."""

    query: Path
    photos: list[Path]
    scores: list[float]


def model_of(index: str | Path) -> str:
    """The name of the model that an index was made with, as `zoo.load_model` takes it."""
    return read_json(Path(index) / ABOUT, "photo index", ADVICE)["model"]


def search_photos(
    model: nn.Module,
    card: dict[str, Any],
    index: str | Path,
    queries: Sequence[str | Path],
    top: int = 20,
    device: str = "cpu",
) -> list[Found]:
    """The photos of an index that look most alike to each query.

    Args:
        model: in eval mode, the one the index was made with.
        card: of the model.
        index: folder of the index.
        queries: photo files, or folders of them.
        top: how many to give for each; all if the index holds fewer.
        device: "cuda" searches on GPUs.

    Raises:
        LandmarkRetrievalError: a query is missing or cannot be decoded; there is no such index; it was made with
            another model.
    """
    opened = open_index(index, device)
    root = Path(read_json(Path(index) / ABOUT, "photo index", ADVICE)["photos"])
    files = [file for query in queries for file in _files(Path(query))]
    card = card_with_views({**card, **({VIEWS: opened.card[VIEWS]} if VIEWS in opened.card else {})})
    descriptors = _described(model.to(device), card, files)
    if "whitening" in opened.card:
        whitening = Whitening.load(Path(index) / WHITENING)
        descriptors, card = whitening.apply(descriptors), whitening.card_of(card)
    ids, scores = opened.search(descriptors, min(top, len(opened)), card=card)
    return [
        Found(file, [root / photo for photo in row], row_scores[: len(row)])
        for file, row, row_scores in zip(files, ids, scores.tolist(), strict=True)
    ]


def _described(model: nn.Module, card: dict[str, Any], files: Sequence[Path]) -> np.ndarray:
    """Descriptors of the queries; only a block of them is in memory at a time."""
    resizing = Resizing(card)
    blocks = [
        _described_block(
            model, card, [torch.from_numpy(_read(file, resizing)) for file in files[start : start + _BLOCK]]
        )
        for start in range(0, len(files), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def _described_block(model: nn.Module, card: dict[str, Any], images: Sequence[torch.Tensor]) -> np.ndarray:
    """Descriptors of images, those of equal shape in batches."""
    target = next(model.parameters(), torch.empty(0)).device
    order: list[int] = []
    parts = []
    for shape in dict.fromkeys(image.shape for image in images):
        rows = [row for row, image in enumerate(images) if image.shape == shape]
        for start in range(0, len(rows), 32):
            batch = rows[start : start + 32]
            parts.append(describe(model, torch.stack([images[row] for row in batch]).to(target), card).cpu().numpy())
            order += batch
    return np.concatenate(parts)[np.argsort(order)]


def gallery_entries(found: Sequence[Found]) -> Iterator[GalleryEntry]:
    """Rows for `gallery.write_gallery`, with nothing marked, since nobody knows what is right."""
    for row in found:
        results = [
            GalleryResult(str(photo), photo.read_bytes() if photo.is_file() else None, score)
            for photo, score in zip(row.photos, row.scores, strict=True)
        ]
        yield GalleryEntry(str(row.query), row.query.read_bytes(), results)


def _files(query: Path) -> list[Path]:
    if query.is_dir():
        files = list_photos(query)
        if not files:
            raise LandmarkRetrievalError(
                f"The query folder {query} holds no photos: give a folder that does, or a photo."
            )
        return files
    if not query.is_file():
        raise LandmarkRetrievalError(f"There is no query photo {query}: check the path.")
    return [query]


def _read(file: Path, resizing: Resizing) -> np.ndarray:
    try:
        return resizing(decode(file.read_bytes()))
    except BrokenPhotoError as error:
        raise LandmarkRetrievalError(f"The query photo {file} cannot be used: {error}. Give another one.") from None
