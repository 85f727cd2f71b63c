"""One's own photos: describe and index a folder, then find the nearest photos of a query."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landmark_retrieval.data.decode import BrokenPhotoError, decode, resize
from landmark_retrieval.data.importers.folder import list_photos, read_unlabelled
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.retrieval.extract import broken_photos, describe, extract
from landmark_retrieval.retrieval.gallery import GalleryEntry, GalleryResult
from landmark_retrieval.retrieval.index import PhotoIndex

_ABOUT = "photos.json"


@dataclass(frozen=True)
class Found:
    """What a search found for one query: photo files and cosines, best first."""

    query: Path
    photos: list[Path]
    scores: list[float]


def index_photos(
    model: nn.Module, card: dict[str, Any], model_name: str, photos: str | Path, out: str | Path, **extraction: Any
) -> tuple[PhotoIndex, dict[str, str]]:
    """Describe all photos below a folder and build an index over them.

    Args:
        model: in eval mode.
        card: of the model.
        model_name: as `zoo.load_model` takes it; kept, so that a search can load the same model.
        photos: the folder.
        out: folder of the index; gets the descriptors, too.
        extraction: passed on to `extract`.

    Returns:
        The index, and the photos that could not be decoded with the reason.

    Raises:
        LandmarkRetrievalError: no such folder, no photo in it, or `out` holds an index of other photos or of another
            model.
    """
    out = Path(out)
    table = read_unlabelled(photos)
    index = PhotoIndex.build(extract(model, card, table, out / "descriptors", **extraction))
    index.save(out)
    name = model_name if model_name == "imagenet" else str(Path(model_name).resolve())
    write_json(out / _ABOUT, {"photos": str(Path(photos).resolve()), "model": name})
    return index, broken_photos(out / "descriptors")


def model_of(index: str | Path) -> str:
    """The name of the model that an index was made with, as `zoo.load_model` takes it."""
    return read_json(Path(index) / _ABOUT, "photo index", "build it with `landmark-retrieval index`")["model"]


def search_photos(
    model: nn.Module, card: dict[str, Any], index: str | Path, queries: Sequence[str | Path], top: int = 20
) -> list[Found]:
    """The photos of an index that look most alike to each query.

    Args:
        model: in eval mode, the one the index was made with.
        card: of the model.
        index: folder of the index.
        queries: photo files, or folders of them.
        top: how many to give for each; all if the index holds fewer.

    Raises:
        LandmarkRetrievalError: a query is missing or cannot be decoded; there is no such index; it was made with
            another model.
    """
    opened = PhotoIndex.open(index)
    root = Path(read_json(Path(index) / _ABOUT, "photo index", "build it with `landmark-retrieval index`")["photos"])
    files = [file for query in queries for file in _files(Path(query))]
    images = torch.stack([torch.from_numpy(_read(file, card["image_size"])) for file in files])
    descriptors = torch.cat([describe(model, part, card) for part in images.split(32)])
    ids, scores = opened.search(descriptors.numpy(), min(top, len(opened)), card=card)
    return [
        Found(file, [root / photo for photo in row], row_scores)
        for file, row, row_scores in zip(files, ids, scores.tolist(), strict=True)
    ]


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


def _read(file: Path, side: int) -> Any:
    try:
        return resize(decode(file.read_bytes()), side)
    except BrokenPhotoError as error:
        raise LandmarkRetrievalError(f"The query photo {file} cannot be used: {error}. Give another one.") from None
