"""Find wrongly labelled training photos with the sub-centers of a trained head, and drop both.

Source: Deng et al. 2020, "Sub-center ArcFace" (ECCV 2020), section 3.3: a photo further than 75 degrees from the
dominant center of its class, the one nearest to most of the class's photos, is taken for wrongly labelled; the net is
trained again on the rest, with one center per class.
"""

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from landmark_retrieval import heads
from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.importers.gldv2 import CLEAN
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing
from landmark_retrieval.retrieval.extract import broken_photos, extract
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.training.handoff import PAGE, Handoff
from landmark_retrieval.zoo import load_model

ANGLES, LEFT_OUT, DESCRIPTORS = "angles.csv", "left_out.csv", "descriptors"


@dataclass(frozen=True)
class Cleaning:
    """What became of a training set.

    Attributes:
        photos: number of photos that were scored.
        kept: how many of them are in train_clean.csv.
        unknown: number of photos of landmarks that the head has not learnt. They cannot be scored and are left out.
        left_out: landmarks without a photo in train_clean.csv, each with the reason.
        unseen: number of landmarks of the head without a photo here; their first center counts as the dominant one.
        broken: photos that could not be decoded, each with the reason.
    """

    photos: int
    kept: int
    unknown: int
    left_out: dict[str, str]
    unseen: int
    broken: dict[str, str]

    @property
    def dropped(self) -> int:
        """Number of photos further from their dominant center than the angle."""
        return self.photos - self.kept


def clean(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    train_set: str | None = None,
    angle: float = 75.0,
    drop_sub_centers: bool = False,
    **extraction: Any,
) -> Cleaning:
    """Measure the angle of every training photo to the dominant center of its landmark, and list those to keep.

    Interrupted, the same call goes on; with another angle it does not describe the photos again.

    Args:
        run: run folder of a finished stage.
        data: folder of shards, as `landmark-retrieval shard` writes it.
        out: gets `train_clean.csv` (landmark_id, images: the photos to keep, in GLDv2's own form), `angles.csv` (id,
            landmark_id, center, angle in degrees, kept: all photos scored), `left_out.csv` (landmark_id, photos,
            reason: landmarks without a photo to keep), and the store `descriptors`.
        train_set: "c", "x" or "full"; the one that the stage was trained on if None.
        angle: degrees in (0, 180); photos further from the dominant center are dropped.
        drop_sub_centers: write a hand-over into `out` too, with the model and a head that has only the dominant center
            of each landmark; a stage with one center per class starts from it (`stage.weights`).
        extraction: passed on to `extract`.

    Raises:
        LandmarkRetrievalError: an angle outside (0, 180); no finished stage in `run`, or a damaged one; no such
            training set; none of its landmarks, or no photo left; `out` is the folder of a stage. See also `extract`.
    """
    run, out = Path(run), Path(out)
    if not 0 < angle < 180:
        raise LandmarkRetrievalError(f"An angle of {angle:g} degrees is not possible: set one between 0 and 180.")
    stage = Handoff.read(run, "name the run folder of a finished stage")
    if (out / PAGE).exists() and not (out / DESCRIPTORS).exists():
        raise LandmarkRetrievalError(f"{out} is the run folder of a stage: choose another folder.")
    weight = stage.head_weight()
    sub_centers = len(weight) // len(stage.classes)
    photos = ShardedPhotos.open(train_place(data, train_set or _only_set(stage)))
    names = photos.manifest.classes
    numbers = {name: number for number, name in enumerate(stage.classes)}
    learnt = np.array([numbers.get(name, -1) for name in names], np.int64)
    if (learnt < 0).all():
        raise LandmarkRetrievalError(
            f"{run} has learnt none of the {len(names):,} landmarks in {photos.place}: name the photos that it was "
            "trained on, or another run folder."
        )

    model, card = load_model(run)
    store = extract(model, card, photos, out / DESCRIPTORS, **extraction)
    labels, cosines = _own_cosines(store, photos, learnt, weight, sub_centers)
    scored = np.flatnonzero(learnt[labels] >= 0)
    own = torch.from_numpy(learnt[labels[scored]])
    cosines = cosines[scored]
    counts, dominant = heads.dominant_centers(cosines, own, len(stage.classes))
    centers = dominant[own]
    # to the digits of angles.csv, so that whoever reads it finds the same photos beyond the angle
    angles = cosines.gather(1, centers[:, None])[:, 0].double().acos().rad2deg().numpy().round(4)
    kept = angles <= angle
    with open_replacing(out / ANGLES) as file:
        rows = zip(scored.tolist(), centers.tolist(), angles.tolist(), kept.astype(int).tolist(), strict=True)
        writer = csv.writer(file)
        writer.writerow(("id", "landmark_id", "center", "angle", "kept"))
        writer.writerows(
            (store.ids[row], names[labels[row]], center, f"{degrees:.4f}", keep) for row, center, degrees, keep in rows
        )
    (out / CLEAN).unlink(missing_ok=True)  # of an earlier angle
    if not kept.any():
        raise LandmarkRetrievalError(
            f"No photo is within {angle:g} degrees of its landmark's dominant center, see {out / ANGLES}: set a larger "
            "angle, or name a stage that has learnt more."
        )
    left_out = _write_left_out(out / LEFT_OUT, photos, labels, scored[kept], learnt)
    with open_replacing(out / CLEAN) as file:
        order = scored[kept][np.argsort(labels[scored[kept]], kind="stable")]
        writer = csv.writer(file)
        writer.writerow(("landmark_id", "images"))
        for label, group in itertools.groupby(order.tolist(), labels.tolist().__getitem__):
            writer.writerow((names[label], " ".join(store.ids[row] for row in group)))
    if drop_sub_centers:
        _hand_over(stage, model, heads.drop_sub_centers(weight, sub_centers, dominant), out)
    return Cleaning(
        photos=len(scored),
        kept=int(kept.sum()),
        unknown=len(labels) - len(scored),
        left_out=left_out,
        unseen=int((counts.sum(1) == 0).sum()),
        broken=broken_photos(out / DESCRIPTORS),
    )


def _only_set(stage: Handoff) -> str:
    trained = stage.config["data"]["train_set"]
    if not isinstance(trained, str):
        raise LandmarkRetrievalError(f"{stage.folder} was trained on several sets, {', '.join(trained)}: name one.")
    return trained


def _own_cosines(
    store: DescriptorStore, photos: ShardedPhotos, learnt: np.ndarray, weight: Tensor, sub_centers: int
) -> tuple[np.ndarray, Tensor]:
    """Labels (N,) of the described photos, and their cosines with the centers of their class, (N, sub_centers).

    learnt: for each label the number of the class in the head, or -1: cosines of such photos are 0.
    """
    labels = photos.labels[photos.ids.rows(store.ids)].astype(np.int64)
    cosines = torch.zeros(len(store), sub_centers)
    start = 0
    with tqdm(total=len(store), desc="angles", unit="photo") as bar:
        for ids, rows in store.parts():
            own = learnt[labels[start : start + len(ids)]]
            known = np.flatnonzero(own >= 0)
            descriptors = torch.from_numpy(rows[known].astype(np.float32))
            cosines[start + known] = heads.center_cosines(
                descriptors, torch.from_numpy(own[known]), weight, sub_centers
            )
            start += len(ids)
            bar.update(len(ids))
    return labels, cosines


def _write_left_out(
    path: Path, photos: ShardedPhotos, labels: np.ndarray, kept: np.ndarray, learnt: np.ndarray
) -> dict[str, str]:
    """Landmarks without a photo among the rows `kept`, each with the reason."""
    names = photos.manifest.classes
    described = np.bincount(labels, minlength=len(names))
    gone = np.flatnonzero(np.bincount(labels[kept], minlength=len(names)) == 0).tolist()
    reasons = [
        "the head has not learnt it"
        if learnt[label] < 0
        else "all its photos are beyond the angle"
        if described[label]
        else "none of its photos can be decoded"
        for label in gone
    ]
    with open_replacing(path) as file:
        writer = csv.writer(file)
        writer.writerow(("landmark_id", "photos", "reason"))
        writer.writerows((names[label], described[label], reason) for label, reason in zip(gone, reasons, strict=True))
    return {names[label]: reason for label, reason in zip(gone, reasons, strict=True)}


def _hand_over(stage: Handoff, model: torch.nn.Module, weight: Tensor, out: Path) -> None:
    config = {**stage.config, "head": {**stage.config["head"], "sub_centers": 1}}
    Handoff.write(out, stage.stage, model, weight, stage.card, stage.classes, stage.metrics, config)
