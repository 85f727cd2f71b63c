"""The LightningModule: a model, a head, how they are optimised, and how they are measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landmark_retrieval.data.batches import Batch
from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.tables import write_reasons
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.heads import ShardedSubCenterArcFace, SubCenterArcFace
from landmark_retrieval.metrics.functional import global_average_precision, mean_average_precision, mean_precisions
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.training import freezing
from landmark_retrieval.training.schedule import cosine_with_warmup

# in the run folder: photos that could not be decoded in the last epoch that had any
BROKEN = "broken_photos.csv"


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
        sharded: split the classes of the head over the processes, see `ShardedSubCenterArcFace`.
        sample_rate: of its classes, if they are split.

    Logged: `train/loss` (of several processes the mean, in the steps that are logged; between them the progress bar
    shows that of the first), `train/lr`, `data/broken_photos`; at the end of an epoch `val/map_at_100`,
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
        sharded: bool = False,
        sample_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1 or (sample_rate != 1 and not sharded):
            raise ValueError(
                f"head.sample_rate is in (0, 1], and below 1 only with head.sharded=true; not {sample_rate}."
            )
        self.model, self.head = model, head
        self.lr, self.weight_decay = lr, weight_decay
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.backbone_lr_scale = backbone_lr_scale
        # tuples of references, not submodules of this module: the model already holds them
        self._frozen = tuple(freezing.matching_modules(model, freeze, "stage.freeze"))
        self._fixed_statistics = tuple(freezing.matching_modules(model, freeze_batchnorm, "stage.freeze_batchnorm"))
        self.sharded, self.sample_rate = sharded, sample_rate
        self._described: list[dict[str, Any]] = []
        self._broken: dict[str, str] = {}
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

    def configure_model(self) -> None:
        """Deal the head out, now that the processes know of each other."""
        if self.sharded and not isinstance(self.head, ShardedSubCenterArcFace):
            if self.trainer.gradient_clip_val and self.trainer.world_size > 1:
                raise LandmarkRetrievalError(
                    "trainer.gradient_clip_val takes the norm over all of a model's gradients, of which each process "
                    "has only its own with head.sharded=true: leave out one of the two."
                )
            try:
                self.head = ShardedSubCenterArcFace(self.head, self.sample_rate)
            except ValueError as error:
                raise LandmarkRetrievalError(f"head.sharded=true: {error}") from error
            # each process learns its own classes: nothing of this weight is to be averaged
            self._ddp_params_and_buffers_to_ignore = ["head.weight"]

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

    def on_train_start(self) -> None:  # noqa: D102
        # a run that is taken up within an epoch does not start one
        freezing.freeze_batchnorm([*self._frozen, *self._fixed_statistics])

    def on_train_epoch_start(self) -> None:  # noqa: D102
        # the trainer has put all modules into training mode
        freezing.freeze_batchnorm([*self._frozen, *self._fixed_statistics])
        self._bad_steps = 0
        self._broken = {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: D102
        self._broken |= batch["broken"]
        self.head.at_step(self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:  # noqa: D102
        try:
            loss = self.head(self(batch["images"]), batch["labels"])
        except ValueError as error:  # on a CPU the head looks at what it gets
            raise LandmarkRetrievalError(f"In step {self.global_step}, epoch {self.current_epoch}: {error}") from error
        self.log("train/loss", self._mean_when_logged(loss.detach()), prog_bar=True, batch_size=len(batch["labels"]))
        self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        # looked at when the epoch is over: a look at each step would make the host wait for the device
        self._bad_steps = self._bad_steps + ~torch.isfinite(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:  # noqa: D102
        self._refuse_bad_steps()
        broken = dict(self._gather(list(self._broken.items())))
        self.log("data/broken_photos", float(len(broken)))
        if broken:
            path = Path(self.trainer.default_root_dir) / BROKEN
            self.print(f"{len(broken):,} broken photos were skipped in epoch {self.current_epoch}, see {path}.")
            if self.trainer.is_global_zero:
                write_reasons(path, broken)

    def _mean_when_logged(self, value: Tensor) -> Tensor:
        """Of all processes, in the steps that are logged; the trainer's own way would make all wait in each step."""
        steps = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.world_size > 1 and steps and (self.global_step + 1) % steps == 0:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self.trainer.world_size
        return value

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
        self._refuse_bad_steps()
        checkpoint["broken"] = dict(self._gather(list(self._broken.items())))
        checkpoint["metrics"] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if "optimizer_states" not in checkpoint:  # of weights alone
            return
        groups = self.trainer.optimizers[0].param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        place = next((i for i, parameter in enumerate(parameters) if parameter is self.head.weight), None)
        checkpoint["head_place"] = place
        if isinstance(self.head, ShardedSubCenterArcFace) and place is not None:
            state = checkpoint["optimizer_states"][0]["state"].get(place, {})
            checkpoint["optimizer_states"][0]["state"][place] = _like_weight(state, self.head.weight, self.head.gather)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        self.metrics_so_far = checkpoint["metrics"]
        self._broken = checkpoint["broken"]
        place = checkpoint.get("head_place")
        if isinstance(self.head, ShardedSubCenterArcFace) and place is not None:
            states = checkpoint["optimizer_states"][0]["state"]
            whole = checkpoint["state_dict"]["head.weight"]
            states[place] = _like_weight(states[place], whole, self.head.own)

    # --- measurement ---

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        self._refuse_bad_steps()
        self._described = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: D102
        if not batch["ids"]:
            return
        descriptors = self(batch["images"]).float()
        rows = {"descriptors": F.normalize(descriptors).cpu(), "ids": batch["ids"], "split": dataloader_idx}
        self._described.append({**rows, "position": batch["positions"][0]})

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
        found, _ = exact_search(queries, index, min(100, len(index)))
        ranked = {q: [index_ids[i] for i in row] for q, row in zip(query_ids, found.tolist(), strict=True)}
        counted = {q: ranked[q] for q in solution.relevant if q in ranked}
        figures = {
            "val/map_at_100": mean_average_precision(counted, solution.relevant),
            "val/precision_at_1": mean_precisions(counted, solution.relevant, 1)[0],
        }
        recognition = self.data.recognition_solution
        if recognition is not None:
            classes = self.data.train.classes
            # every process has all queries here, and perhaps only some of the classes
            nearest = [self.head.nearest_class(part.to(self.device)) for part in queries.split(1024)]
            scores, labels = (torch.cat(parts).tolist() for parts in zip(*nearest, strict=True))
            predicted = {
                # a class that is no number, of another source, is none of the solution's
                q: (int(classes[label]) if classes[label].isdecimal() else -1, score)
                for q, label, score in zip(query_ids, labels, scores, strict=True)
                if q in recognition.relevant
            }
            figures["val/gap"] = global_average_precision(predicted, recognition.relevant)
        return figures


def _like_weight(state: dict[str, Any], weight: Tensor, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """An optimizer's state of a weight, with what has the weight's shape changed."""
    return {
        key: change(value) if isinstance(value, Tensor) and value.shape == weight.shape else value
        for key, value in state.items()
    }
