"""What one stage hands to the next: model, head, and a page that says where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, replacing, sha256_of, write_json
from landmark_retrieval.zoo.saved_model import save_model

PAGE, HEAD = "handoff.json", "head.safetensors"


@dataclass(frozen=True)
class Handoff:
    """The hand-over of a finished stage: `handoff.json`, the saved model and `head.safetensors` in the run folder.

    Attributes:
        folder: where it is.
        stage: name of the stage that wrote it.
        card: of the model, see `zoo.save_model`.
        head_sha256: of the file with the head's weight.
        classes: class names, in the order of the head's centers.
        metrics: of the stage's last epoch.
        config: of the stage, whole.
        photos_sha256: of the manifest of the photos that it was trained on.
    """

    folder: Path
    stage: str
    card: dict[str, Any]
    head_sha256: str
    classes: list[str]
    metrics: dict[str, float]
    config: dict[str, Any]
    photos_sha256: str | None = None

    @classmethod
    def write(
        cls,
        folder: Path,
        stage: str,
        model: torch.nn.Module,
        head_weight: torch.Tensor,
        card: dict[str, Any],
        classes: list[str],
        metrics: dict[str, float],
        config: dict[str, Any],
    ) -> "Handoff":
        """Write model, head and page; the page comes last, so where it stands the rest is whole."""
        (folder / PAGE).unlink(missing_ok=True)
        card = save_model(folder, model, card)
        with replacing(folder / HEAD) as temporary:
            save_file({"weight": head_weight.detach().cpu().contiguous()}, temporary)
        photos = config.get("photos_sha256")
        written = cls(folder, stage, card, sha256_of(folder / HEAD), classes, metrics, config, photos)
        page = {key: value for key, value in vars(written).items() if key != "folder"}
        write_json(folder / PAGE, {"format": 1, **page})
        return written

    @classmethod
    def read(cls, folder: Path, advice: str) -> "Handoff":
        """Read the page of a hand-over. LandmarkRetrievalError, ending in `advice`, if it is missing or damaged."""
        page = read_json(folder / PAGE, "hand-over of a finished stage", advice)
        try:
            names = ("stage", "card", "head_sha256", "classes", "metrics", "config")
            return cls(folder, **{name: page[name] for name in names}, photos_sha256=page.get("photos_sha256"))
        except (KeyError, TypeError) as error:
            raise LandmarkRetrievalError(f"The hand-over {folder / PAGE} is damaged ({error!r}): {advice}.") from None

    def head_weight(self) -> torch.Tensor:
        """The head's weight, (classes * centers per class, D); the centers of a class follow each other.

        Raises:
            LandmarkRetrievalError: the file is missing, or not the one that the page describes.
        """
        path = self.folder / HEAD
        if not path.exists() or sha256_of(path) != self.head_sha256:
            raise LandmarkRetrievalError(
                f"The head {path} is missing or not the one that {self.folder / PAGE} describes: run stage "
                f"{self.stage} again."
            )
        return load_file(path)["weight"]
