"""The LightningModule: a model, a head, how they are optimised, and how they are measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from landmark_retrieval.data.batches import Batch
from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.tables import write_reasons
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.heads import ShardedSubCenterArcFace, SubCenterArcFace
from landmark_retrieval.training import freezing
from landmark_retrieval.training.optimizers import held_by, hold, make_optimizer
from landmark_retrieval.training.schedule import cosine_with_warmup
from landmark_retrieval.training.stability import StepGuard, save_batch
from landmark_retrieval.training.validation import Described, measure

# in the run folder: photos that could not be decoded in the last epoch that had any
BROKEN = "broken_photos.csv"


class LandmarkModule(pl.LightningModule):
    """Train a model and a head on a `LandmarkDataModule`, and measure retrieval and recognition after each epoch.

    Args:
        model: float images (B, 3, S, S) -> descriptors (B, D).
        head: descriptors and labels -> loss; its `cosine` gives the recognition score of each class.
        lr: peak learning rate.
        kind: of the optimizer, see `optimizers.make_optimizer`.
        weight_decay: of the optimizer.
        momentum: of SGD.
        epochs: horizon of the cosine.
        warmup_epochs: of linear rise.
        backbone_lr_scale: factor on the learning rate of what ImageNet has trained, the model's `backbone_modules`.
        freeze: name patterns of modules and parameters of the model, and "head", that stand still: for the whole run,
            or {pattern: epochs}. See `freezing.read_patterns`.
        freeze_batchnorm: patterns of modules that learn but keep their BatchNorm statistics.
        sharded: split the classes of the head over the processes, see `ShardedSubCenterArcFace`.
        sample_rate: of its classes, if they are split.
        max_bad_steps: so many steps in a row whose loss or gradient is not finite end the run, see `StepGuard`; looked
            at in the steps that are logged, and in the last of an epoch.
        seed: of what models draw at random in a step (drop path).

    Logged: `train/loss` (of several processes the mean, in the steps that are logged; between them the progress bar
    shows that of the first), `train/lr`, `train/gradient_norm` or, under float16, `train/loss_scale`,
    `train/skipped_steps`, `data/broken_photos`; at the end of an epoch `val/map_at_100`, `val/precision_at_1`, and
    `val/gap` where the data has a recognition solution; all of `val` in [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        head: SubCenterArcFace,
        lr: float,
        kind: str = "adam",
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        epochs: float = 10,
        warmup_epochs: float = 1,
        backbone_lr_scale: float = 1.0,
        freeze: Sequence[str | Mapping[str, int]] = (),
        freeze_batchnorm: Sequence[str] = (),
        sharded: bool = False,
        sample_rate: float = 1.0,
        max_bad_steps: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1 or (sample_rate != 1 and not sharded):
            raise ValueError(
                f"head.sample_rate is in (0, 1], and below 1 only with head.sharded=true; not {sample_rate}."
            )
        if max_bad_steps < 1:
            raise ValueError(f"max_bad_steps is at least 1, not {max_bad_steps}.")
        self.model, self.head = model, head
        # bad steps are skipped here
        self.head.refuse_not_finite = False
        self.kind, self.lr, self.weight_decay, self.momentum = kind, lr, weight_decay, momentum
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.backbone_lr_scale = backbone_lr_scale
        self._backbone = tuple(f"{name}." for name in getattr(model, "backbone_modules", ()))
        self.sharded, self.sample_rate = sharded, sample_rate
        self.max_bad_steps, self.seed = max_bad_steps, seed
        names = [*self.by_name(), *(name for name, _ in model.named_modules() if name)]
        self._freeze = freezing.read_patterns(freeze, names, "stage.freeze")
        self._keep = freezing.read_patterns(freeze_batchnorm, names, "stage.freeze_batchnorm")
        self._norms = freezing.batchnorms(dict(model.named_modules()))
        self._guard = StepGuard()
        self._described: list[Described] = []
        self._broken: dict[str, str] = {}
        self._frozen_epoch = 0
        self.metrics_so_far: dict[str, float] = {}
        # before any strategy wraps the module: it must not wait for gradients that never come
        for_ever = self.frozen(math.inf)
        for name, parameter in self.by_name().items():
            parameter.requires_grad_(name not in for_ever)

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

    # --- what trains ---

    def by_name(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the model, and those of the head."""
        return {name.removeprefix("model."): parameter for name, parameter in self.named_parameters()}

    def frozen(self, epoch: float) -> set[str]:
        """Names of the parameters that stand still in an epoch; those of the head begin with "head."."""
        return freezing.standing_still(self.by_name(), self._freeze, epoch)

    def _still_batchnorms(self, epoch: float) -> list[nn.Module]:
        still = [freezing.standing_still(self._norms, patterns, epoch) for patterns in (self._freeze, self._keep)]
        return [self._norms[name] for name in still[0] | still[1]]

    def train(self, mode: bool = True) -> "LandmarkModule":
        """As of any module, but BatchNorm that stands still stays in eval mode.

        Statistics of small, shifted and cut training images are not those of the whole photos that are described later.
        """
        super().train(mode)
        for norm in self._still_batchnorms(self._frozen_epoch):
            norm.eval()
        return self

    def _freeze_for(self, epoch: int) -> list[list[nn.Parameter]]:
        """Freeze what stands still in an epoch, and thaw the rest; the parameters that train, by learning rate."""
        self._frozen_epoch = epoch
        still = self.frozen(epoch)
        rest: list[nn.Parameter] = []
        backbone: list[nn.Parameter] = []
        for name, parameter in self.by_name().items():
            if self.trainer.world_size == 1:  # several exchange the gradients that they began with
                parameter.requires_grad_(name not in still)
            if name not in still:
                (backbone if self.backbone_lr_scale != 1 and name.startswith(self._backbone) else rest).append(
                    parameter
                )
        self.train(self.training)
        return [rest, backbone]

    # --- optimisation ---

    def configure_optimizers(self) -> Any:  # noqa: D102
        if self.backbone_lr_scale != 1 and not any(name.startswith(self._backbone) for name in self.by_name()):
            raise LandmarkRetrievalError(
                f"optimizer.backbone_lr_scale is {self.backbone_lr_scale}, but {type(self.model).__name__} names no "
                "`backbone_modules` that it would apply to: set it to 1, or name them."
            )
        groups = self._freeze_for(self._frozen_epoch)
        if not any(groups):
            raise LandmarkRetrievalError("stage.freeze leaves nothing to train: take out a pattern.")
        rates = (self.lr, self.lr * self.backbone_lr_scale)
        optimizer = make_optimizer(
            self.kind,
            [{"params": parameters, "lr": rate} for parameters, rate in zip(groups, rates, strict=True)],
            self.weight_decay,
            self.momentum,
            # the trainer cannot clip what such an optimizer is to unscale
            fused=not (self._scaler is not None and self.trainer.gradient_clip_val),
        )
        steps = max(1, self.trainer.estimated_stepping_batches / max(1, self.trainer.max_epochs or 1))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_with_warmup((step + 0.5) / steps, self.epochs, self.warmup_epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _scaler(self) -> Any:
        """What scales the loss under float16, or None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def on_train_epoch_start(self) -> None:  # noqa: D102
        if self.current_epoch != self._frozen_epoch:
            hold(self.trainer.optimizers[0], self._freeze_for(self.current_epoch))
        self._broken = {}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: D102
        self._broken |= batch["broken"]
        self.head.at_step(self.global_step)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._guard.before_step(self._norms, self.device)
        # what a model draws depends on nothing that came before: a run that is taken up draws the same
        place = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:  # noqa: D102
        try:
            loss = self.head(self(batch["images"]), batch["labels"])
        except ValueError as error:  # on a CPU the head looks at what it gets
            raise LandmarkRetrievalError(f"In step {self.global_step}, epoch {self.current_epoch}: {error}") from error
        self._guard.see_loss(loss)
        self.log("train/loss", self._mean_when_logged(loss.detach()), prog_bar=True, batch_size=len(batch["labels"]))
        self.log("train/lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: D102
        held = held_by(optimizer)
        inside = {id(parameter) for parameter in held}
        for parameter in self.parameters():  # exchanged by several processes while it stands still
            if id(parameter) not in inside:
                parameter.grad = None
        bad = self._guard.see_gradients(held)
        if self._scaler is None:
            # the optimizer looks at it on the device; under float16 the scaler has its own eye on the gradients, which
            # are not finite where the loss is not, in all processes
            optimizer.grad_scale, optimizer.found_inf = None, bad  # type: ignore[attr-defined]
            self.log("train/gradient_norm", self._guard.norm)
        self.log("train/skipped_steps", self._guard.skipped)

    def configure_gradient_clipping(  # noqa: D102
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if self._scaler is not None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:  # which the trainer refuses a fused optimizer under bfloat16, where nothing is scaled
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            clip(held_by(optimizer), gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: D102
        steps = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.is_last_batch or (steps and self.global_step % steps == 0):
            # looked at now and then: a look at each step would make the host wait for the device
            if self._scaler is not None:
                self.log("train/loss_scale", float(self._scaler.get_scale()))
            self._end_after_bad_steps(batch)

    def _end_after_bad_steps(self, batch: Batch) -> None:
        # the same in all processes, which end together: one alone would leave the others waiting for it
        in_a_row = int(self._guard.in_a_row)
        if in_a_row < self.max_bad_steps:
            return
        about = {"epoch": self.current_epoch, "step": self.global_step, "rank": self.global_rank}
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero or bool(self._guard.bad_loss):
            name = f"bad_batch-{self.global_rank}" if self.global_rank else "bad_batch"
            save_batch(folder, name, batch["images"], batch["labels"], about)
        self.trainer.strategy.barrier()
        if not self.trainer.is_global_zero:  # one of several processes says so
            raise SystemExit(2)
        raise LandmarkRetrievalError(
            f"Loss or gradient was not a finite number in {in_a_row} steps in a row, up to step {self.global_step} in "
            f"epoch {self.current_epoch}; all of them were left out. The last batch is in {folder / 'bad_batch.png'} "
            "and bad_batch.pt (of several processes those whose loss it was have their own): look at its photos, set a "
            "smaller optimizer.lr, trainer.gradient_clip_val, or trainer.precision=32-true; another config starts the "
            "stage again."
        )

    def on_train_epoch_end(self) -> None:  # noqa: D102
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        checkpoint["guard"] = self._guard.state_dict()
        checkpoint["broken"] = dict(self._gather(list(self._broken.items())))
        checkpoint["metrics"] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if "optimizer_states" not in checkpoint:  # of weights alone
            return
        parameters = held_by(self.trainer.optimizers[0])
        place = next((i for i, parameter in enumerate(parameters) if parameter is self.head.weight), None)
        checkpoint["head_place"] = place
        if isinstance(self.head, ShardedSubCenterArcFace) and place is not None:
            state = checkpoint["optimizer_states"][0]["state"].get(place, {})
            checkpoint["optimizer_states"][0]["state"][place] = _like_weight(state, self.head.weight, self.head.gather)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        self.metrics_so_far = checkpoint["metrics"]
        self._broken = checkpoint["broken"]
        self._guard.load_state_dict(checkpoint["guard"])
        # the optimizer whose state follows held what trained in this epoch
        self._frozen_epoch = checkpoint["epoch"]
        place = checkpoint.get("head_place")
        if isinstance(self.head, ShardedSubCenterArcFace) and place is not None:
            states = checkpoint["optimizer_states"][0]["state"]
            whole = checkpoint["state_dict"]["head.weight"]
            states[place] = _like_weight(states[place], whole, self.head.own)

    # --- measurement ---

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        self._described = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: D102
        if not batch["ids"]:
            return
        descriptors = F.normalize(self(batch["images"]).float()).cpu()
        self._described.append(
            Described(descriptors=descriptors, ids=batch["ids"], split=dataloader_idx, position=batch["positions"][0])
        )

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        described = self._gather(self._described)
        self._described = []
        if self.trainer.sanity_checking:
            return
        for name, value in measure(described, self.data, self._nearest_class).items():
            self.log(name, value, prog_bar=True, rank_zero_only=False, sync_dist=False)

    def _nearest_class(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.nearest_class(descriptors.to(self.device))

    def _gather(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes."""
        if self.trainer.world_size == 1:
            return rows
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, rows)
        return [row for part in parts for row in part]


def _like_weight(state: dict[str, Any], weight: Tensor, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """An optimizer's state of a weight, with what has the weight's shape changed."""
    return {
        key: change(value) if isinstance(value, Tensor) and value.shape == weight.shape else value
        for key, value in state.items()
    }
