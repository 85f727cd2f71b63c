"""A trained run -> a small model to give away: its neck learned anew as a PCA-whitening, its weights as float16.

A neck trained by classification knows the landmarks it was trained on, and loses what tells others apart. The features
before it lose less: whitened they describe landmarks that were never seen better than the trained neck does
(docs/results.md has by how much). Source of the whitening: Jegou and Chum, "Negative evidences and co-occurences in
image retrieval: the benefit of PCA and whitening", ECCV 2012, section 3.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from landmark_retrieval.data.batches import PhotoBatches, PhotoSource, loader
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.models.blocks import is_neck, linear_neck
from landmark_retrieval.retrieval.whitening import Whitening
from landmark_retrieval.zoo.saved_model import save_model

LARGEST_SAMPLE = 50_000  # photos; more change a covariance of 2,048 numbers no further


def pack(
    model: nn.Module,
    card: Mapping[str, Any],
    photos: PhotoSource,
    out: str | Path,
    embedding_dim: int | None = None,
    power: float | None = 0.3,
    half: bool = True,
    batch_size: int = 32,
    workers: int | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write a model for others: `model.safetensors` and `model.json`, to be loaded with `load_model(out)`.

    Args:
        model: trained, in eval mode; left as it is.
        card: of it; its `image_size`, `mean` and `std` (ImageNet's where they are missing) are used.
        photos: that the whitening is learned from, best all that the model was trained on; evenly chosen ones if there
            are more than `LARGEST_SAMPLE`.
        out: folder for the model.
        embedding_dim: numbers per descriptor; those of the model if None. 16 KB of float16 weights for every 8 of them
            where 1,024 features go in.
        power: of the whitening, see `Whitening.fit`: 0 only turns, 1 makes all variances alike; None keeps the neck
            as it was trained.
        half: weights as float16 instead of float32.
        batch_size: photos per forward pass.
        workers: processes that decode; as many as cores, at most 8, if None.
        facts: entries of the card (name, licence, source, figure, command ...).

    Returns:
        The card of the packed model.

    Raises:
        LandmarkRetrievalError: the model has no neck of a linear layer, BatchNorm and PReLU; a card without a square
            image size; photos that cannot be decoded, or too few of them; numbers out of range (see `Whitening.fit`).
    """
    packed = copy.deepcopy(model).eval()
    card = {**card, **facts}
    if power is not None:
        neck = getattr(packed, "neck", None)
        if not is_neck(neck):
            raise LandmarkRetrievalError(
                f"{type(packed).__name__} has no neck of a linear layer, BatchNorm and PReLU that could be learned "
                "anew: keep what it has (--keep-neck)."
            )
        dim = embedding_dim or len(neck.get_parameter("0.weight"))
        rows = features(packed, card, photos, batch_size, workers)
        packed.neck = linear_neck(*_whitened(rows, dim, power))
        card["arguments"] = {**card["arguments"], "embedding_dim": dim}
        card["neck"] = f"PCA-whitening of the features of {len(rows):,} photos, power {power:g}"
    elif embedding_dim:
        raise LandmarkRetrievalError("Another number of descriptors takes another neck: leave out one of the two.")
    if half:
        packed = packed.half()
    return save_model(out, packed, card)


@torch.inference_mode()
def features(
    model: nn.Module,
    card: Mapping[str, Any],
    photos: PhotoSource,
    batch_size: int = 32,
    workers: int | None = None,
) -> np.ndarray:
    """What goes into the neck: float32 (n, features), a row for each photo, or for evenly chosen ones of many.

    Errors as `pack`.
    """
    if card.get("resize", "squash") != "squash":
        raise LandmarkRetrievalError(f"The model takes photos of any shape (resize {card['resize']!r}), not squares.")
    bare = copy.copy(model)
    bare._modules = {**model._modules, "neck": nn.Identity()}
    every = -(-len(photos) // LARGEST_SAMPLE)
    batches = PhotoBatches(photos, card["image_size"], batch_size)
    rows: list[Tensor] = []
    broken: list[tuple[str, str]] = []
    device = next(model.parameters()).device
    with tqdm(total=len(photos), desc="features", unit="photo", disable=None) as bar:
        for batch in loader(batches, workers):
            chosen = [row for row, position in enumerate(batch["positions"]) if position % every == 0]
            if chosen:
                images = batch["images"][chosen].to(device)
                pixels = normalize(images, card.get("mean", IMAGENET_MEAN), card.get("std", IMAGENET_STD))
                rows.append(bare(pixels).float().cpu())
            broken += batch["broken"]
            bar.update(len(batch["ids"]) + len(batch["broken"]))
    if broken:
        name, reason = broken[0]
        raise LandmarkRetrievalError(
            f"{len(broken):,} photos cannot be decoded, the first is {name} ({reason}): write the shards again without "
            "them (`landmark-retrieval shard ... --skip-bad`)."
        )
    return torch.cat(rows).numpy()


def _whitened(rows: np.ndarray, dim: int, power: float) -> tuple[Tensor, Tensor]:
    """Weight (dim, features) and bias (dim,) in float64 that whiten the rows, to a length of 1 on average."""
    whitening = Whitening.fit(rows, dim, power)
    weight = torch.from_numpy(whitening.matrix).double()
    bias = -(weight @ torch.from_numpy(whitening.mean).double())
    squares = sum(
        float((part.double() @ weight.T + bias).square().sum()) for part in torch.from_numpy(rows).split(4096)
    )
    length = (squares / len(rows)) ** 0.5
    return weight / length, bias / length
