"""Run one stage from its composed config: data, model, head, training, hand-over."""

import contextlib
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only
from timm.layers import convert_sync_batchnorm

from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.mixture import train_fingerprint
from landmark_retrieval.data.places import place
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from landmark_retrieval.errors import LandmarkRetrievalError, Terminated
from landmark_retrieval.training.agreement import first_decides, first_does, started_by_trainer, stop_others
from landmark_retrieval.training.checkpoints import MovingAverage, StopOnSigterm, WholeFiles, checkpoints
from landmark_retrieval.training.configs import checked
from landmark_retrieval.training.handoff import PAGE, Handoff
from landmark_retrieval.training.module import LandmarkModule
from landmark_retrieval.training.parameter_table import parameter_table
from landmark_retrieval.training.run_folder import begin, first_process, locked, to_carry_on, wandb_id
from landmark_retrieval.training.starting_point import SHARDING, build, make, model_arguments, starting_point

# what may differ between two calls for the second to carry on with what the first began
_FREE_KEYS = (
    "name",
    "logger",
    "run_dir",
    "resume",
    "default_stage",
    "checkpoint_steps",
    "max_bad_steps",
    "grad_checkpointing",
)
_FREE_DATA_KEYS = ("root", "num_workers", "cache_dir", "cache_gb")
_FREE_TRAINER_KEYS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "log_every_n_steps",
    "enable_progress_bar",
    "num_sanity_val_steps",
    "check_val_every_n_epoch",
)


# of several processes only the first one talks
say_once: Callable[[str], None] = rank_zero_only(print)


def run_stage(config: dict[str, Any], say: Callable[[str], None] = say_once) -> Handoff:
    """Train one stage and write its hand-over into the run folder.

    A stage that is finished with the same config is not run again; one that was interrupted carries on after its last
    checkpoint, of a whole epoch or of `checkpoint_steps`; one whose config has changed starts again.

    Args:
        config: as composed from `conf/train.yaml` with a stage, as plain Python types.
        say: receives a sentence about each step.

    Raises:
        LandmarkRetrievalError: no stage chosen, an earlier stage's hand-over is missing, or whatever model, head or
            data object to.
    """
    config = checked(config)
    stage, folder = config["stage"], Path(config["run_dir"])
    _quieten()
    trainer = _trainer(config, folder)
    with contextlib.ExitStack() as held:

        def decide() -> tuple[bool, str | None]:
            """Whether the stage is finished; the checkpoint to carry on with."""
            held.enter_context(locked(folder, say))
            if finished_handoff(config):
                return True, None
            return False, to_carry_on(folder, _record(comparable(config), trainer), config["resume"], say)

        finished, checkpoint = first_decides(trainer, decide)
        if finished:
            say(f"Stage {stage['name']} is finished, see {folder / PAGE}; nothing to do.")
        else:
            _train(config, folder, trainer, checkpoint, say)
        return Handoff.read(folder, "run the stage again")


def _train(
    config: dict[str, Any], folder: Path, trainer: pl.Trainer, checkpoint: str | None, say: Callable[[str], None]
) -> None:
    stage = config["stage"]
    make(pl.seed_everything, config["seed"], workers=True, verbose=False)
    data = make(LandmarkDataModule, **config["data"], seed=config["seed"])
    classes = list(data.train.classes)
    model, head, origin = starting_point(config, _parent(config), classes, data.train.class_counts)
    if config["trainer"]["sync_batchnorm"]:
        # timm's, since torch's own would drop the activations that timm keeps inside its BatchNorm layers
        model = convert_sync_batchnorm(model)
    if config["grad_checkpointing"]:
        _checkpoint_gradients(model)
    module = make(
        LandmarkModule,
        model,
        head,
        **config["optimizer"],
        **{key: config["head"][key] for key in SHARDING},
        **{key: stage[key] for key in ("epochs", "warmup_epochs", "freeze", "freeze_batchnorm")},
        max_bad_steps=config["max_bad_steps"],
        seed=config["seed"],
    )
    say(
        f"Stage {stage['name']}: {len(data.train):,} photos of {len(classes):,} landmarks from {data.train} at "
        f"{data.image_size} px. {origin.summary}"
    )
    say(parameter_table(module.by_name(), module.frozen(0), origin))
    del head  # where its classes are split, no process keeps the whole of it
    best_of = "val/map_at_100" if data.retrieval_solution else None
    stop = StopOnSigterm(folder)
    kept = make(checkpoints, folder, best_of, config["checkpoint_steps"])
    trainer.callbacks += [stop, *kept]  # type: ignore[attr-defined]
    decisive = comparable(config)
    if first_process():
        begin(folder, _record(decisive, trainer), checkpoint is not None)
    trainer.loggers = _loggers(config, folder)
    try:
        with stop:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as ended:
        agreed = isinstance(ended, Terminated) or ended.code == 2
        if agreed and started_by_trainer(trainer):
            # any other code would be taken for a failure, and the first process killed before it has said why
            raise SystemExit(0) from None
        if not agreed and trainer.interrupted:  # what the trainer makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except Exception:
        stop_others(trainer)
        raise
    weight = module.head.full_weight()  # of which each process may hold a part
    # a run that had only its hand-over left to write has measured nothing now
    metrics = module.metrics_so_far | {name: float(value) for name, value in trainer.callback_metrics.items()}
    # those of a last step that was left out are no numbers
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}

    def hand_over() -> None:
        Handoff.write(folder, stage["name"], model, weight, _card(config, data), classes, metrics, decisive)

    first_does(trainer, hand_over)


def finished_handoff(config: dict[str, Any]) -> Handoff | None:
    """The hand-over of a stage if it stands in its run folder and was made with this config and parent."""
    folder = Path(config["run_dir"])
    if not (config["resume"] and (folder / PAGE).exists()):
        return None
    handoff = Handoff.read(folder, "delete it and run the stage again")
    return handoff if handoff.config == comparable(config) else None


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config decides the result, with fingerprints of the photos and of the weights it starts from."""
    kept = {key: value for key, value in config.items() if key not in _FREE_KEYS}
    kept["trainer"] = {key: value for key, value in config["trainer"].items() if key not in _FREE_TRAINER_KEYS}
    # where weights lie does not matter, but what they are, see below
    kept["stage"] = {key: value for key, value in config["stage"].items() if key != "weights"}
    data = config["data"]
    kept["data"] = {key: value for key, value in data.items() if key not in _FREE_DATA_KEYS}
    cache = Cache.default(data["cache_dir"], data["cache_gb"])
    photos = train_fingerprint(place(data["root"], cache), data["train_set"], cache)
    parent = _parent_folder(config)
    weights = head = None
    if parent and (parent / PAGE).exists():
        handoff = Handoff.read(parent, "run that stage again")
        weights, head = handoff.card["weights_sha256"], handoff.head_sha256
    return {**kept, "photos_sha256": photos, "parent_weights_sha256": weights, "parent_head_sha256": head}


def _quieten() -> None:
    """Silence what the trainer says about things that are meant to be so here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in (
        ".*`IterableDataset` has `__len__` defined.*",  # each worker makes its own batches
        ".*in eval mode at the start of training.*",  # frozen BatchNorm
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # the figures are those of all processes already
        ".*Total length of `list` across ranks is zero.*",  # data without validation
        ".*WeightAveraging callback with a model that overrides.*",  # a head that is split is refused
        ".*your dataloader is not resumable.*",  # it is, see LandmarkDataModule
    ):
        warnings.filterwarnings("ignore", text)


def _record(decisive: dict[str, Any], trainer: pl.Trainer) -> dict[str, Any]:
    """What decides whether a run can be carried on: another number of processes is another number of batches."""
    return {**decisive, "processes": trainer.world_size, "precision": str(trainer.precision)}


def _checkpoint_gradients(model: Any) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise LandmarkRetrievalError(
            f"grad_checkpointing=true: {type(model).__name__} has no set_grad_checkpointing; leave it out."
        )
    make(model.set_grad_checkpointing)


def _parent_folder(config: dict[str, Any]) -> Path | None:
    stage = config["stage"]
    if stage["weights"]:
        return Path(stage["weights"])
    return Path(config["run_dir"]).parent / stage["after"] if stage["after"] else None


def _parent(config: dict[str, Any]) -> Handoff | None:
    folder, stage = _parent_folder(config), config["stage"]
    if folder is None:
        return None
    advice = (
        f"run that stage first (+stage={stage['after']}), name its folder with stage.weights=FOLDER, or start from "
        "ImageNet with stage.after=null"
    )
    return Handoff.read(folder, advice)


def _trainer(config: dict[str, Any], folder: Path) -> pl.Trainer:
    """Without loggers and checkpoints, which follow when it is known what there is to do."""
    settings = {key: value for key, value in config["trainer"].items() if key != "sync_batchnorm"}
    if settings["precision"] is None:
        cuda = torch.cuda.is_available() and settings["accelerator"] in ("auto", "gpu", "cuda")
        settings["precision"] = (
            "32-true"
            if not cuda
            else "bf16-mixed"
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else "16-mixed"
        )
    stage = config["stage"]
    callbacks: list[pl.Callback] = []
    if stage["ema"] is not None:
        if config["head"]["sharded"]:
            raise LandmarkRetrievalError("stage.ema averages a whole head: leave out head.sharded or stage.ema.")
        callbacks.append(make(MovingAverage, stage["ema"]))
    plugins: list[Any] = [WholeFiles()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # its own requeueing leaves a checkpoint that a later run would take up, whatever has changed
        plugins.append(make(SLURMEnvironment, auto_requeue=False))
    if settings["enable_progress_bar"]:
        # a look at the loss in each step would make the host wait for the device
        callbacks.append(TQDMProgressBar(max(1, settings["log_every_n_steps"] or 1)))
    return make(
        pl.Trainer,
        **settings,
        max_epochs=stage["stop"] or stage["epochs"],
        logger=False,
        enable_checkpointing=False,
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=folder,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )


def _loggers(config: dict[str, Any], folder: Path) -> list[Any]:
    loggers = []
    for logger in config["logger"].values():
        more = {}
        if logger["_target_"].endswith(".WandbLogger") and first_process():
            # a run that is taken up is the same run there
            more = {"id": wandb_id(folder), "resume": "allow"}
        loggers.append(build(logger, **more))
    return loggers


def _card(config: dict[str, Any], data: LandmarkDataModule) -> dict[str, Any]:
    return {
        "architecture": config["model"]["_target_"].rpartition(".")[2],
        "arguments": model_arguments(config),
        "image_size": data.validation_image_size,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "trained_on": data.train.name,
        "photos": len(data.train),
        "classes": len(data.train.classes),
        "stage": config["stage"]["name"],
    }
