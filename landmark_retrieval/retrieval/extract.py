"""Photos -> descriptors in a store: resumable, with a progress bar, broken photos counted and listed."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from landmark_retrieval.data.batches import PhotoBatches, PhotoSource, loader
from landmark_retrieval.data.tables import write_reasons
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter

BROKEN, SOURCE = "broken.csv", "source.json"


def extract(
    model: nn.Module,
    card: Mapping[str, Any],
    source: PhotoSource,
    out: str | Path,
    batch_size: int = 32,
    workers: int | None = None,
    dtype: str = "float32",
    part_size: int = 10_000,
    device: str | None = None,
    title: str = "describe",
) -> DescriptorStore:
    """Describe every photo of a source once and keep the descriptors in a store.

    Interrupted, the same call goes on after the last whole part; finished, it does nothing.

    Args:
        model: in eval mode; see `zoo.load_model`.
        card: of the model; its `image_size` (and `mean`, `std`, if they are not ImageNet's) is used and kept in the
            store.
        source: the photos.
        out: folder of the store; made if needed.
        batch_size: photos per forward pass.
        workers: processes that decode; as many as cores, at most 8, if None.
        dtype: of the stored descriptors, "float32" or "float16".
        part_size: photos per part.
        device: "cuda", "cpu", ...; a GPU where there is one if None.
        title: shown beside the progress bar.

    Returns:
        The store, with rows of unit length. Photos that cannot be decoded are not in it; they are listed in its
        broken.csv.

    Raises:
        LandmarkRetrievalError: the folder holds descriptors of other photos or of another model, or no photo can be
            decoded.
    """
    out = Path(out)
    if (out / SOURCE).exists() and read_json(out / SOURCE, "note on the photos", f"delete {out}") != source.fingerprint:
        raise LandmarkRetrievalError(f"{out} holds descriptors of other photos: delete it, or choose another folder.")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(target)
    writer = DescriptorWriter(out, card, dtype=dtype, part_size=part_size)
    write_json(out / SOURCE, source.fingerprint)
    # broken photos before this one are in no part, so this may lie a little before the first photo that is missing
    start = len(writer.done)
    if start < len(source):
        batches = loader(PhotoBatches(source, card["image_size"], batch_size, start), workers, target.type == "cuda")
        with tqdm(total=len(source), initial=start, desc=title, unit="photo") as bar, writer:
            for batch in batches:
                _note_broken(out, batch["broken"])
                new = [row for row, photo in enumerate(batch["ids"]) if photo not in writer.done]
                if new:
                    ids = [batch["ids"][row] for row in new]
                    writer.append(ids, describe(model, batch["images"][new].to(target, non_blocking=True), card))
                bar.update(len(batch["ids"]) + len(batch["broken"]))
    store = DescriptorStore.open(out)
    if not len(store):
        raise LandmarkRetrievalError(f"None of {len(source)} photos can be decoded, see {out / BROKEN}.")
    return store


@torch.inference_mode()
def describe(model: nn.Module, images: Tensor, card: Mapping[str, Any]) -> Tensor:
    """Descriptors of unit length, float32 (B, D), of uint8 images (B, S, S, 3); mixed precision on a GPU."""
    with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
        descriptors = model(normalize(images, card.get("mean", IMAGENET_MEAN), card.get("std", IMAGENET_STD)))
    return F.normalize(descriptors.float())


def broken_photos(out: str | Path) -> dict[str, str]:
    """The photos that `extract` could not decode, each with the reason."""
    path = Path(out) / BROKEN
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def _note_broken(out: Path, broken: list[tuple[str, str]]) -> None:
    if broken:
        write_reasons(out / BROKEN, broken_photos(out) | dict(broken))
