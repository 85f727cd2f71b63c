"""Run one stage from its composed config: data, model, head, training, hand-over."""

import contextlib
import importlib
import itertools
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from timm.layers import convert_sync_batchnorm

from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.mixture import train_fingerprint
from landmark_retrieval.data.places import place
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.heads import dynamic_margins
from landmark_retrieval.training.configs import no_stage
from landmark_retrieval.training.handoff import PAGE, Handoff
from landmark_retrieval.training.module import LandmarkModule

# name of the checkpoint that is written between the ends of epochs
_WITHIN = "within"

# what may differ between two calls for the second to carry on with what the first began
_FREE_KEYS = ("logger", "run_dir", "resume", "default_stage", "checkpoint_steps")
_FREE_DATA_KEYS = ("root", "num_workers", "cache_dir", "cache_gb")
_FREE_TRAINER_KEYS = ("accelerator", "strategy", "log_every_n_steps", "enable_progress_bar", "num_sanity_val_steps")


# of the head's config, what says how the trainer deals it out
_SHARDING_KEYS = ("sharded", "sample_rate")


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
    stage = config["stage"]
    if not stage:
        raise no_stage()
    folder = Path(config["run_dir"])
    if finished := finished_handoff(config):
        say(f"Stage {stage['name']} is finished, see {folder / PAGE}; nothing to do.")
        return finished

    _quieten()
    make(pl.seed_everything, config["seed"], workers=True, verbose=False)
    data = make(LandmarkDataModule, **config["data"], seed=config["seed"])
    parent = _parent(config)
    counts = data.train.class_counts
    model = build(config["model"], pretrained=config["model"]["pretrained"] and parent is None)
    sharding = {key: config["head"][key] for key in _SHARDING_KEYS}
    head = build(
        {key: value for key, value in config["head"].items() if key not in _SHARDING_KEYS},
        embedding_dim=model.embedding_dim,
        num_classes=len(counts),
        margins=_margins(config, counts),
    )
    classes = list(data.train.classes)
    if parent:
        say(f"Carried over from {parent.load_into(model, head, classes)}.")
    say(
        f"Stage {stage['name']}: {len(data.train):,} photos of {len(classes):,} landmarks from {data.train} at "
        f"{data.image_size} px, {sum(p.numel() for p in model.parameters()):,} parameters."
    )
    if config["trainer"]["sync_batchnorm"]:
        # timm's, since torch's own would drop the activations that timm keeps inside its BatchNorm layers
        model = convert_sync_batchnorm(model)
    module = make(
        LandmarkModule,
        model,
        head,
        **config["optimizer"],
        **sharding,
        epochs=stage["epochs"],
        warmup_epochs=stage["warmup_epochs"],
        freeze=stage["freeze"],
        freeze_batchnorm=stage["freeze_batchnorm"],
    )
    del head  # where its classes are split, no process keeps the whole of it
    trainer = _trainer(config, folder, bool(data.retrieval_solution))
    decisive = comparable(config)
    try:
        # another number of processes is another number of batches
        begun = {**decisive, "processes": trainer.world_size}
        checkpoint = _checkpoint(config["resume"], begun, folder, say)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what the trainer makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    weight = module.head.full_weight()  # of which each process may hold a part
    # a run that had only its hand-over left to write has measured nothing now
    metrics = module.metrics_so_far | {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        card = _card(config, data)
        Handoff.write(folder, stage["name"], model, weight, card, classes, metrics, decisive)
    trainer.strategy.barrier()
    return Handoff.read(folder, "run the stage again")


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


def build(config: dict[str, Any], **more: Any) -> Any:
    """Make the object that `_target_` names. LandmarkRetrievalError if there is none or it refuses the arguments."""
    module, _, name = config["_target_"].rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LandmarkRetrievalError(
            f"There is no {config['_target_']} ({error}): mend `_target_` in the config, or install what it needs."
        ) from error
    return make(factory, **{key: value for key, value in config.items() if key != "_target_"} | more)


def make(factory: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Call `factory`. LandmarkRetrievalError with its reason if it refuses the arguments."""
    try:
        return factory(*arguments, **more)
    except LandmarkRetrievalError:
        raise
    except (TypeError, ValueError, OSError, MisconfigurationException) as error:
        raise LandmarkRetrievalError(f"{getattr(factory, '__name__', factory)}: {error}") from error


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
        ".*your dataloader is not resumable.*",  # it is, see LandmarkDataModule
    ):
        warnings.filterwarnings("ignore", text)


def _margins(config: dict[str, Any], counts: tuple[int, ...]) -> Any:
    margins = config["head"]["margins"]
    return dynamic_margins(counts) if margins == "dynamic" else margins


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


def _checkpoint(resume: bool, wanted: dict[str, Any], folder: Path, say: Callable[[str], None]) -> str | None:
    """Where to carry on, if the run folder holds an unfinished run with these decisive parts of the config."""
    record = folder / "config.json"
    kept = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.stem in ("last", _WITHIN)]
    if resume and kept and record.exists():
        last = max(kept, key=lambda path: path.stat().st_mtime_ns)
        if read_json(record, "record of the run", f"delete {folder}") == wanted:
            say(f"Carrying on from {last}.")
            _keep_log(folder / "logs" / "csv" / "metrics.csv")
            return str(last)
        before = read_json(record, "record of the run", f"delete {folder}")
        if before | {"processes": wanted["processes"]} == wanted:
            had = before.get("processes")
            say(f"The run in this folder had {had} processes, not {wanted['processes']}: starting again.")
        else:
            say("The config has changed since the last run in this folder: starting again.")
    for old in (folder / "checkpoints").glob("*.ckpt"):
        old.unlink(missing_ok=True)  # several processes may be at it
    write_json(record, wanted)
    return None


def _keep_log(path: Path) -> None:
    """Move the log of the interrupted run aside, which the logger would delete."""
    numbers = (number for number in itertools.count(1) if not path.with_stem(f"metrics-{number}").exists())
    with contextlib.suppress(FileNotFoundError):  # of several processes one is the first
        path.rename(path.with_stem(f"metrics-{next(numbers)}"))


class _WithinEpochs(ModelCheckpoint):
    """Not after the last step of an epoch, whose validation a run taken up there would skip, and not between the
    batches of a step."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def _trainer(config: dict[str, Any], folder: Path, validated: bool) -> pl.Trainer:
    settings = {key: value for key, value in config["trainer"].items() if key != "sync_batchnorm"}
    if settings["precision"] is None:
        cuda = torch.cuda.is_available() and settings["accelerator"] in ("auto", "gpu", "cuda")
        settings["precision"] = (
            "32-true" if not cuda else "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        )
    checkpoints = [
        ModelCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor="val/map_at_100" if validated else None,
            mode="max",
            save_last=True,
            enable_version_counter=False,
        )
    ]
    if config["checkpoint_steps"]:
        checkpoints.append(
            make(
                _WithinEpochs,
                folder / "checkpoints",
                filename=_WITHIN,
                every_n_train_steps=config["checkpoint_steps"],
                enable_version_counter=False,
            )
        )
    stage = config["stage"]
    return make(
        pl.Trainer,
        **settings,
        max_epochs=stage["stop"] or stage["epochs"],
        logger=[build(logger) for logger in config["logger"].values()],
        callbacks=checkpoints,
        default_root_dir=folder,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
    )


def _card(config: dict[str, Any], data: LandmarkDataModule) -> dict[str, Any]:
    arguments = {key: value for key, value in config["model"].items() if key not in ("_target_", "pretrained")}
    return {
        "architecture": config["model"]["_target_"].rpartition(".")[2],
        "arguments": arguments,
        "image_size": data.validation_image_size,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "trained_on": data.train.name,
        "photos": len(data.train),
        "classes": len(data.train.classes),
        "stage": config["stage"]["name"],
    }
