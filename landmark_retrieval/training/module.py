"""The LightningModule: a model, a head, how they are optimised, and how they are measured."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmark_retrieval.data.batches import Batch
from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.heads import SubCenterArcFace
from landmark_retrieval.metrics.functional import global_average_precision, mean_average_precision, mean_precisions
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.training import freezing
from landmark_retrieval.training.schedule import cosine_with_warmup


class LandmarkModule(pl.LightningModule):
    """Train a model and a head on a `LandmarkDataModule`, and measure retrieval and recognition after each epoch.

    Args:
        model: float images (B, 3, S, S) -> descriptors (B, D).
        head: descriptors and labels -> loss; its `cosine` gives the recognition score of each class.
        lr: peak learning rate, of Adam.
        weight_decay: of Adam.
        epochs: horizon of the cosine.
        warmup_epochs: of linear rise.
        backbone_lr_scale: factor on the learning rate of what ImageNet has trained, the model's `backbone_modules`.
        freeze: name patterns of modules of the model that stand still, see `freezing.matching_modules`.
        freeze_batchnorm: the same for modules that learn but keep their BatchNorm statistics.

    Logged: `train/loss`, `train/lr`, `data/broken_photos`; at the end of an epoch `val/map_at_100`,
    `val/precision_at_1`, and `val/gap` where the data has a recognition solution; all in [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        head: SubCenterArcFace,
        lr: float,
        weight_decay: float = 0.0,
        epochs: float = 10,
        warmup_epochs: float = 1,
        backbone_lr_scale: float = 1.0,
        freeze: Sequence[str] = (),
        freeze_batchnorm: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.lr, self.weight_decay = lr, weight_decay
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.backbone_lr_scale = backbone_lr_scale
        # tuples of references, not submodules of this module: the model already holds them
        self._frozen = tuple(freezing.matching_modules(model, freeze, "stage.freeze"))
        self._fixed_statistics = tuple(freezing.matching_modules(model, freeze_batchnorm, "stage.freeze_batchnorm"))
        self._described: list[dict[str, Any]] = []
        self._bad_steps: Any = 0
        self.metrics_so_far: dict[str, float] = {}
        # before any strategy wraps the module: it must not wait for gradients that never come
        freezing.freeze(self._frozen)

    @property
    def data(self) -> LandmarkDataModule:
        """The data module of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def forward(self, images: Tensor) -> Tensor:
        """Descriptors (B, D), not normalised, of uint8 images (B, S, S, 3)."""
        return self.model(normalize(images))

    # --- optimisation ---

    def configure_optimizers(self) -> Any:  # noqa: D102
        backbone = tuple(f"model.{name}." for name in getattr(self.model, "backbone_modules", ()))
        if self.backbone_lr_scale != 1 and not any(name.startswith(backbone) for name, _ in self.named_parameters()):
            raise LandmarkRetrievalError(
                f"optimizer.backbone_lr_scale is {self.backbone_lr_scale}, but {type(self.model).__name__} names no "
                "`backbone_modules` that it would apply to: set it to 1, or name them."
            )
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                scale = self.backbone_lr_scale if name.startswith(backbone) else 1.0
                groups.setdefault(scale, []).append(parameter)
        optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": self.lr * scale} for scale, parameters in groups.items()],
            weight_decay=self.weight_decay,
        )
        steps = max(1, self.trainer.estimated_stepping_batches / max(1, self.trainer.max_epochs or 1))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_with_warmup((step + 0.5) / steps, self.epochs, self.warmup_epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:  # noqa: D102
        # the trainer has put all modules into training mode
        freezing.freeze_batchnorm([*self._frozen, *self._fixed_statistics])
        self._bad_steps = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:  # noqa: D102
        loss = self.head(self(batch["images"]), batch["labels"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["labels"]))
        self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        # looked at when the epoch is over: a look at each step would make the host wait for the device
        self._bad_steps = self._bad_steps + ~torch.isfinite(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:  # noqa: D102
        self._refuse_bad_steps()
        broken = self._sum_over_processes(self.data.broken_photos)
        self.log("data/broken_photos", broken)
        if broken:
            self.print(f"{broken:.0f} broken photos were skipped in epoch {self.current_epoch}.")

    def _refuse_bad_steps(self) -> None:
        """End the run before a checkpoint of it is written, if the loss has not been a finite number."""
        # all processes end together: one alone would leave the others waiting for it
        bad, self._bad_steps = self._sum_over_processes(self._bad_steps), 0
        if bad:
            raise LandmarkRetrievalError(
                f"The loss was not a finite number in {bad:.0f} steps of epoch {self.current_epoch}: set a smaller "
                "optimizer.lr, or trainer.precision=32-true."
            )

    def _sum_over_processes(self, value: Any) -> float:
        # on the device of the module: NCCL takes no tensors of the host
        own = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        return float(self.trainer.strategy.reduce(own, reduce_op="sum"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        checkpoint["metrics"] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        self.metrics_so_far = checkpoint["metrics"]

    # --- measurement ---

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        self._refuse_bad_steps()
        self._described = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: D102
        if not batch["ids"]:
            return
        descriptors = self(batch["images"]).float()
        rows: dict[str, Any] = {"descriptors": F.normalize(descriptors).cpu(), "ids": batch["ids"]}
        rows |= {"split": dataloader_idx, "position": batch["positions"][0]}
        if dataloader_idx == 0 and self.data.recognition_solution is not None:
            score, label = self.head.cosine(descriptors).max(1)
            rows |= {"label": label.cpu(), "score": score.cpu()}
        self._described.append(rows)

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        described = self._gather(self._described)
        self._described = []
        if self.trainer.sanity_checking:
            return
        for name, value in self._measure(described).items():
            self.log(name, value, prog_bar=True, rank_zero_only=False, sync_dist=False)

    def _gather(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes."""
        if self.trainer.world_size == 1:
            return rows
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def _measure(self, described: list[Any]) -> dict[str, float]:
        solution = self.data.retrieval_solution
        # in the order of the photos, however many processes described them: ties go to the earlier photo
        described = sorted(described, key=lambda rows: rows["position"])
        sides = [[rows for rows in described if rows["split"] == side] for side in (0, 1)]
        if solution is None or not all(sides):
            return {}
        (query_ids, queries), (index_ids, index) = (
            ([i for rows in side for i in rows["ids"]], torch.cat([rows["descriptors"] for rows in side]))
            for side in sides
        )
        nearest, _ = exact_search(queries, index, min(100, len(index)))
        ranked = {q: [index_ids[i] for i in row] for q, row in zip(query_ids, nearest.tolist(), strict=True)}
        counted = {q: ranked[q] for q in solution.relevant if q in ranked}
        figures = {
            "val/map_at_100": mean_average_precision(counted, solution.relevant),
            "val/precision_at_1": mean_precisions(counted, solution.relevant, 1)[0],
        }
        recognition = self.data.recognition_solution
        if recognition is not None:
            classes = self.data.train.manifest.classes
            labels = torch.cat([rows["label"] for rows in sides[0]]).tolist()
            scores = torch.cat([rows["score"] for rows in sides[0]]).tolist()
            predicted = {
                q: (int(classes[label]), score)
                for q, label, score in zip(query_ids, labels, scores, strict=True)
                if q in recognition.relevant
            }
            figures["val/gap"] = global_average_precision(predicted, recognition.relevant)
        return figures
