"""Photos for the benchmarks where none are given: drawn ones, as large as those of GLDv2."""

from pathlib import Path

import cv2

from landmark_retrieval.data.importers.folder import list_photos
from landmark_retrieval.data.procedural import generate


def drawn(folder: Path, count: int = 32) -> Path:
    """A folder of so many JPEGs of 800 px."""
    generate(
        folder / "drawn",
        train_landmarks=4,
        index_landmarks=2,
        train_photos=count,
        index_photos=4,
        test_photos=4,
        workers=1,
        progress=False,
    )
    out = folder / "photos"
    out.mkdir()
    for number, path in enumerate(list_photos(folder / "drawn" / "train")):
        image = cv2.imread(str(path))
        scale = 800 / max(image.shape)
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(out / f"{number}.jpg"), image, (cv2.IMWRITE_JPEG_QUALITY, 92))
    return out
