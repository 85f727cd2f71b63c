"""A stage from config to hand-over, with a model small enough for a test."""

import csv
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import wandb
from omegaconf import OmegaConf
from safetensors.torch import load_file

from landmark_retrieval import DOLGNet
from landmark_retrieval.errors import LandmarkRetrievalError, Terminated
from landmark_retrieval.heads import ShardedSubCenterArcFace, SubCenterArcFace
from landmark_retrieval.training import stage as module
from landmark_retrieval.training.checkpoints import latest
from landmark_retrieval.training.configs import compose
from landmark_retrieval.training.handoff import Handoff
from landmark_retrieval.training.stage import finished_handoff, run_stage
from landmark_retrieval.zoo import load_model


@pytest.fixture
def config(tiny, tmp_path):
    def make(name="pretrain_small", *overrides):
        composed = compose([f"+stage={name}", *tiny, f"run_dir='{tmp_path}/${{stage.name}}'", *overrides])
        return OmegaConf.to_container(composed, resolve=True)

    return make


def same_weights(first, second):
    first, second = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return all(torch.equal(first[key], second[key]) for key in first)


def test_two_stages_hand_over(config, tmp_path):
    said = []
    first = run_stage(config(), said.append)
    assert first.stage == "pretrain_small"
    assert set(first.metrics) >= {"val/map_at_100", "val/precision_at_1", "val/gap", "train/loss", "data/broken_photos"}
    assert all(0 <= first.metrics[f"val/{name}"] <= 1 for name in ("map_at_100", "precision_at_1", "gap"))
    assert {path.name for path in first.folder.iterdir()} >= {
        "handoff.json",
        "model.json",
        "model.safetensors",
        "head.safetensors",
    }
    assert (first.folder / "logs" / "csv" / "metrics.csv").exists()
    assert list((first.folder / "logs" / "tensorboard").glob("events*"))
    assert (first.folder / "checkpoints" / "last.ckpt").exists()

    # a learning rate of 0 leaves what was handed over as it was
    second = run_stage(
        config("train_medium", "optimizer.lr=0", "stage.freeze=[backbone,neck,global_project,attention]"), said.append
    )
    before, after = (load_file(h.folder / "model.safetensors") for h in (first, second))
    learned = [key for key in before if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(before[key], after[key]) for key in learned)
    classes = len(first.classes)
    carried = f"Carried over from pretrain_small: the model, and the head's centers of {classes} of {classes} classes."
    assert any(sentence.endswith(carried) for sentence in said)


def test_a_finished_stage_is_not_run_again_unless_its_config_changes(config):
    first = run_stage(config())
    said = []
    run_stage(config(), said.append)
    assert said == [f"Stage pretrain_small is finished, see {first.folder / 'handoff.json'}; nothing to do."]
    # how often it logs does not matter to the result, how much it trains does
    run_stage(config("pretrain_small", "trainer.log_every_n_steps=5", "trainer.check_val_every_n_epoch=2"), said.append)
    assert len(said) == 2
    assert finished_handoff(config("pretrain_small", "trainer.limit_train_batches=2")) is None
    again = run_stage(config("pretrain_small", "optimizer.lr=3e-4"), said.append)
    assert any("config has changed" in sentence for sentence in said)
    assert again.config["optimizer"]["lr"] == 3e-4


def test_an_interrupted_stage_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    whole = run_stage(config("pretrain_small", f"run_dir={tmp_path}/whole"))
    cut = config("pretrain_small", f"run_dir={tmp_path}/cut")
    real = module.LandmarkModule.on_train_epoch_start

    def interrupted(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(module.LandmarkModule, "on_train_epoch_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(cut)
    assert not (tmp_path / "cut" / "handoff.json").exists()
    monkeypatch.setattr(module.LandmarkModule, "on_train_epoch_start", real)
    said = []
    resumed = run_stage(cut, said.append)
    assert any("Carrying on from" in sentence for sentence in said)
    assert same_weights(whole.folder, resumed.folder)
    assert resumed.metrics["val/map_at_100"] == whole.metrics["val/map_at_100"]


@pytest.mark.parametrize("step", [3, 8])
def test_a_stage_interrupted_within_an_epoch_goes_on_there(config, tmp_path, monkeypatch, step):
    """In the first epoch and in the second, of five steps each; at most one step is computed twice."""
    overrides = ("checkpoint_steps=1", "optimizer.lr=1e-3", "stage.freeze_batchnorm=[backbone]")
    whole = run_stage(config("pretrain_small", *overrides, f"run_dir={tmp_path}/whole"))
    cut = config("pretrain_small", *overrides, f"run_dir={tmp_path}/cut", "data.num_workers=1")
    real = module.LandmarkModule.training_step
    seen = []

    def interrupted(self, batch, index):
        seen.append(self.global_step)
        if self.global_step == step:
            raise KeyboardInterrupt
        return real(self, batch, index)

    monkeypatch.setattr(module.LandmarkModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(cut)
    step = 99
    cut["data"]["num_workers"] = 0
    resumed = run_stage(cut)
    assert len(seen) <= 10 + 1
    assert same_weights(whole.folder, resumed.folder)
    assert resumed.metrics["val/map_at_100"] == whole.metrics["val/map_at_100"]


def test_a_stage_interrupted_in_its_validation_is_validated(config, tmp_path, monkeypatch):
    """At the end of an epoch of five steps there is no checkpoint within it, from which its validation would be left
    out."""
    overrides = ("checkpoint_steps=5", "optimizer.lr=1e-3")
    whole = run_stage(config("pretrain_small", *overrides, f"run_dir={tmp_path}/whole"))
    cut = config("pretrain_small", *overrides, f"run_dir={tmp_path}/cut")
    real = module.LandmarkModule.on_validation_epoch_start

    def interrupted(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(module.LandmarkModule, "on_validation_epoch_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(cut)
    monkeypatch.setattr(module.LandmarkModule, "on_validation_epoch_start", real)
    resumed = run_stage(cut)
    assert same_weights(whole.folder, resumed.folder)
    assert resumed.metrics["val/map_at_100"] == whole.metrics["val/map_at_100"]


def test_another_number_of_processes_starts_again_and_says_so(config, tmp_path):
    run_stage(config("pretrain_small", "stage.epochs=1", "stage.warmup_epochs=0"))
    folder = tmp_path / "pretrain_small"
    (folder / "handoff.json").unlink()
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"processes": 4}))
    said = []
    run_stage(config("pretrain_small", "stage.epochs=1", "stage.warmup_epochs=0"), said.append)
    assert "The run in this folder had 4 processes, not 1: starting again." in said


def test_the_learning_rate_follows_the_schedule_of_the_stage(config, tmp_path):
    handoff = run_stage(config("pretrain_small", "stage.epochs=8", "stage.stop=2", "stage.warmup_epochs=1"))
    with (handoff.folder / "logs" / "csv" / "metrics.csv").open() as file:
        header, *rows = (line.rstrip("\n").split(",") for line in file)
    rates = [float(row[header.index("train/lr")]) for row in rows if row[header.index("train/lr")]]
    steps = len(rates) // 2
    assert rates[0] == pytest.approx(0.5e-4 / steps)
    assert max(rates) == pytest.approx(1e-4, rel=0.01)
    assert rates[-1] > 0.9e-4  # 2 of 8 epochs: the cosine has hardly begun to fall


def test_frozen_modules_stay_and_the_rest_learns(config, tmp_path):
    fresh = run_stage(config("pretrain_small", "optimizer.lr=0", f"run_dir={tmp_path}/fresh"))
    frozen = run_stage(config("pretrain_small", "stage.freeze=[backbone]"))
    before, after = (load_file(h.folder / "model.safetensors") for h in (fresh, frozen))
    assert before.keys() == after.keys()
    # same seed, same fresh model: only the first run's BatchNorm statistics of the backbone moved
    assert all(
        torch.equal(before[k], after[k]) for k in before if k.startswith("backbone") and k.endswith(("weight", "bias"))
    )
    assert not torch.equal(before["neck.0.weight"], after["neck.0.weight"])


def test_other_photos_under_the_same_path_start_again(config, shards, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(shards / "train_c")
    wanted = config("pretrain_small", f"data.root={tmp_path}/data")
    run_stage(wanted)
    assert finished_handoff(wanted)
    (tmp_path / "data" / "train").unlink()
    (tmp_path / "data" / "train").symlink_to(shards / "train_full")
    assert finished_handoff(wanted) is None


def poison(monkeypatch, steps):
    """Let the descriptors of these steps be no numbers."""
    real = module.LandmarkModule.forward

    def poisoned(self, images):
        descriptors = real(self, images)
        return descriptors * float("nan") if self.training and steps(self.global_step) else descriptors

    monkeypatch.setattr(module.LandmarkModule, "forward", poisoned)


def test_a_step_that_is_not_finite_is_left_out_and_counted(config, monkeypatch):
    poison(monkeypatch, lambda step: step in (0, 3, 4, 9))  # the first and the last of them
    handoff = run_stage(config("pretrain_small", "trainer.log_every_n_steps=2"))
    assert handoff.metrics["train/skipped_steps"] == 4
    assert all(value.isfinite().all() for value in load_file(handoff.folder / "model.safetensors").values())


def test_too_many_of_them_in_a_row_end_the_stage_with_the_batch_kept(config, monkeypatch, tmp_path):
    poison(monkeypatch, lambda step: step >= 3)
    with pytest.raises(
        LandmarkRetrievalError,
        match=r"not a finite number in 4 steps in a row, up to step 7.*bad_batch\.png",
    ):
        run_stage(config("pretrain_small", "max_bad_steps=4"))
    folder = tmp_path / "pretrain_small"
    assert not (folder / "handoff.json").exists()
    kept = torch.load(folder / "bad_batch.pt", weights_only=True)
    assert (kept["step"], kept["images"].shape, kept["labels"].shape) == (7, (8, 48, 48, 3), (8,))
    # what was learned before is good, and can be taken up
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


def test_a_checkpoint_is_written_after_each_epoch_and_of_the_best(config, monkeypatch):
    figures = iter([0.2, 0.5, 0.4, 0.3])
    monkeypatch.setattr("landmark_retrieval.training.module.measure", lambda *_: {"val/map_at_100": next(figures)})
    handoff = run_stage(config("pretrain_small", "stage.epochs=4"))
    files = handoff.folder / "checkpoints"
    kept = {path.stem: torch.load(path, weights_only=True)["epoch"] for path in files.iterdir()}
    assert kept == {"last": 3, "best": 1}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(config, tmp_path, precision):
    """SGD without momentum moves by no more than rate times norm in each of ten steps."""
    overrides = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0", "stage.freeze_batchnorm=['*']")
    overrides += (f"trainer.precision={precision}", "stage.warmup_epochs=0")

    def end(name, *more):
        run_stage(config("pretrain_small", *overrides, *more, f"run_dir={tmp_path}/{name}"))
        return load_file(tmp_path / name / "model.safetensors")

    start = end("start", "optimizer.lr=0")
    clipped = end("clipped", "optimizer.lr=1e-3", "trainer.gradient_clip_val=0.5")
    moved = sum((clipped[key] - start[key]).double().square().sum() for key in start) ** 0.5
    assert 0 < moved <= 10 * 1e-3 * 0.5 * 1.001


def test_float16_skips_what_overflows_and_logs_the_scale(config, monkeypatch):
    """The trainer has float16 on GPUs only; its parts work on a CPU too."""
    from pytorch_lightning.plugins import MixedPrecision

    real = module.pl.Trainer

    def with_scaler(**settings):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=10**6)
        settings["plugins"] += [MixedPrecision("16-mixed", "cpu", scaler)]
        return real(**settings | {"precision": None})

    monkeypatch.setattr(module.pl, "Trainer", with_scaler)
    handoff = run_stage(config("pretrain_small", "stage.epochs=4", "stage.freeze=[backbone,local_context]"))
    # each overflow halves the scale
    skipped = handoff.metrics["train/skipped_steps"]
    assert 0 < skipped < 20
    assert handoff.metrics["train/loss_scale"] == 2.0 ** (24 - skipped)
    assert all(value.isfinite().all() for value in load_file(handoff.folder / "model.safetensors").values())


def test_frozen_for_some_epochs_and_taken_up_in_any(config, tmp_path, monkeypatch):
    """Frozen for one epoch of three; the run that is interrupted in each epoch ends with the weights of the other."""
    overrides = (
        "stage.epochs=3",
        "stage.freeze=[attention,{backbone:1,head:2}]",
        "optimizer.lr=1e-3",
        "optimizer.backbone_lr_scale=0.5",
        "checkpoint_steps=2",
    )
    seen = {}
    real = module.LandmarkModule.on_train_batch_start

    def watched(self, batch, index):
        seen.setdefault(self.current_epoch, {n: p.detach().clone() for n, p in self.by_name().items()})
        trained = {id(p) for group in self.trainer.optimizers[0].param_groups for p in group["params"]}
        names = {name for name, p in self.by_name().items() if id(p) in trained}
        assert names == {name for name, p in self.by_name().items() if p.requires_grad}
        norms = [m for m in self.model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert all(norm.training == (self.current_epoch > 0) for norm in norms)
        real(self, batch, index)
        if self.global_step in stops:
            stops.remove(self.global_step)
            raise KeyboardInterrupt

    monkeypatch.setattr(module.LandmarkModule, "on_train_batch_start", watched)
    stops = []
    whole = run_stage(config("pretrain_small", *overrides, f"run_dir={tmp_path}/whole"))

    def moved(name, epoch):
        return not torch.equal(seen[epoch][name], seen[epoch + 1][name])

    backbone = next(name for name in seen[0] if name.startswith("backbone."))
    assert [moved(backbone, epoch) for epoch in (0, 1)] == [False, True]
    assert [moved("head.weight", epoch) for epoch in (0, 1)] == [False, False]
    assert not any(moved(name, epoch) for name in seen[0] if name.startswith("attention.") for epoch in (0, 1))
    assert all(moved("neck.0.weight", epoch) for epoch in (0, 1))
    assert not torch.equal(seen[2]["head.weight"], whole.head_weight())

    stops = [3, 5, 8, 10, 13]
    cut = config("pretrain_small", *overrides, f"run_dir={tmp_path}/cut")
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            run_stage(cut)
    resumed = run_stage(cut)
    assert same_weights(whole.folder, resumed.folder)
    assert torch.equal(whole.head_weight(), resumed.head_weight())


def test_what_a_model_draws_at_random_is_drawn_again(config, tmp_path, monkeypatch):
    """Drop path of a run that is taken up within an epoch."""
    overrides = ("checkpoint_steps=1", "optimizer.lr=1e-3", "stage.epochs=1")
    real, stops = module.LandmarkModule.forward, []

    def dropping(self, images):
        if self.training and self.global_step in stops:
            raise KeyboardInterrupt
        return torch.nn.functional.dropout(real(self, images), 0.5, self.training)

    monkeypatch.setattr(module.LandmarkModule, "forward", dropping)
    whole = run_stage(config("pretrain_small", *overrides, f"run_dir={tmp_path}/whole"))
    stops.append(3)
    cut = config("pretrain_small", *overrides, f"run_dir={tmp_path}/cut")
    with pytest.raises(KeyboardInterrupt):
        run_stage(cut)
    stops.clear()
    assert same_weights(whole.folder, run_stage(cut).folder)


def test_the_moving_average_is_what_is_handed_over(config, tmp_path, monkeypatch):
    """Against an average kept beside; and after an interruption, also one that left nothing but the hand-over."""
    overrides = ("stage.ema=0.8", "optimizer.lr=1e-3", "checkpoint_steps=2")
    average, stops = {}, []
    real = module.LandmarkModule.on_train_batch_end

    def watched(self, outputs, batch, index):
        for name, value in self.model.state_dict().items():
            now = value.detach().clone()
            mixed = average[name] * 0.8 + now * 0.2 if name in average and now.is_floating_point() else now
            average[name] = mixed
        if self.global_step in stops:
            raise KeyboardInterrupt
        real(self, outputs, batch, index)

    monkeypatch.setattr(module.LandmarkModule, "on_train_batch_end", watched)
    whole = run_stage(config("pretrain_small", *overrides, f"run_dir={tmp_path}/whole"))
    saved = load_file(whole.folder / "model.safetensors")
    for name, value in saved.items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    checkpoint = torch.load(whole.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not torch.equal(checkpoint["current_model_state"]["model.neck.0.weight"], saved["neck.0.weight"])

    cut = config("pretrain_small", *overrides, f"run_dir={tmp_path}/cut")
    for stop in (3, 7):
        stops[:] = [stop]
        with pytest.raises(KeyboardInterrupt):
            run_stage(cut)
    stops.clear()
    assert same_weights(whole.folder, run_stage(cut).folder)
    (tmp_path / "cut" / "handoff.json").unlink()
    assert same_weights(whole.folder, run_stage(cut).folder)


def test_on_sigterm_a_stage_ends_between_two_steps_and_carries_on_there(config, tmp_path, monkeypatch):
    whole = run_stage(config("pretrain_small", f"run_dir={tmp_path}/whole"))
    cut = config("pretrain_small", f"run_dir={tmp_path}/cut")
    real, seen = module.LandmarkModule.training_step, []

    def told(self, batch, index):
        if self.global_step == 7 and len(seen) == 7:
            signal.raise_signal(signal.SIGTERM)
        seen.append(self.global_step)
        return real(self, batch, index)

    monkeypatch.setattr(module.LandmarkModule, "training_step", told)
    with pytest.raises(Terminated, match="stopped by SIGTERM after step 8") as ended:
        run_stage(cut)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = run_stage(cut)
    assert seen == list(range(10))
    assert same_weights(whole.folder, resumed.folder)


def test_of_several_processes_one_that_is_told_stops_all(tiny, tmp_path):
    """The signal reaches the first process alone."""
    overrides = ["stage.epochs=1000", "run_dir=run", "checkpoint_steps=1000000", "stage.freeze=[backbone]"]
    command = [sys.executable, "-m", "landmark_retrieval.train", "+stage=pretrain_small", *tiny, "data.batch_size=4"]
    command += ["trainer.devices=2", "trainer.strategy=ddp", *overrides]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(1200):
            if (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():  # an epoch is over
                break
            assert running.poll() is None, running.stdout.read()
            time.sleep(0.1)
        running.terminate()
        out, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 143, out
    assert out.count("stopped by SIGTERM after") == 1
    # within an epoch or after one, as it happened
    assert torch.load(latest(tmp_path / "run"), weights_only=True)["global_step"] >= 5


def test_weights_and_biases_shows_one_run(config, tmp_path, monkeypatch):
    """Off line: what is synchronised later belongs to the same run before and after an interruption."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wanted = config("pretrain_small", "logger=wandb", "stage.epochs=2")
    real = module.LandmarkModule.on_train_epoch_start

    def interrupted(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(module.LandmarkModule, "on_train_epoch_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(wanted)
    wandb.finish()
    monkeypatch.setattr(module.LandmarkModule, "on_train_epoch_start", real)
    run_stage(wanted)
    wandb.finish()
    runs = {path.name.rpartition("-")[2] for path in (tmp_path / "pretrain_small" / "wandb").glob("offline-run-*")}
    assert runs == {(tmp_path / "pretrain_small" / "wandb_id.txt").read_text()}


def test_metrics_survive_a_kill_before_the_handover(config, monkeypatch):
    real = Handoff.write
    monkeypatch.setattr(Handoff, "write", classmethod(lambda *_: (_ for _ in ()).throw(OSError("disk full"))))
    with pytest.raises(OSError, match="disk full"):
        run_stage(config())
    monkeypatch.setattr(Handoff, "write", real)
    handoff = run_stage(config())
    assert 0 <= handoff.metrics["val/map_at_100"] <= 1
    assert (handoff.folder / "logs" / "csv" / "metrics-1.csv").exists()


def test_mixed_precision_and_no_validation(config, shards, tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "train").symlink_to(shards / "train_full")
    handoff = run_stage(config("pretrain_small", f"data.root={tmp_path}/only", "trainer.precision=bf16-mixed"))
    assert not [name for name in handoff.metrics if name.startswith("val/")]
    assert 0 < handoff.metrics["train/loss"] < 100
    weights = load_file(handoff.folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_synchronised_batchnorm_keeps_the_activations():
    """What `trainer.sync_batchnorm` does to a model changes nothing of what it computes outside training."""
    net = DOLGNet("tf_efficientnet_lite0").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(images)
        converted = module.convert_sync_batchnorm(net)
        torch.testing.assert_close(converted(images), before)
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in converted.modules())


def test_two_processes_train_one_stage(tiny, tmp_path):
    """With frozen layers, and with fewer query photos than a batch."""
    in_two_processes(tiny, tmp_path, "run", "stage.freeze=[backbone]")
    alone = [*tiny, "data.batch_size=4", f"run_dir={tmp_path}/again"]
    parent = Handoff.read(tmp_path / "run", "")
    # validation of both halves together equals validation of the whole by one process
    again = OmegaConf.to_container(
        compose(["+stage=train_medium", *alone, f"stage.weights={tmp_path}/run", "optimizer.lr=0"]), resolve=True
    )
    again["stage"]["freeze"] = ["backbone", "local_context", "attention", "global_project", "global_pool", "neck"]
    for name in ("map_at_100", "precision_at_1", "gap"):
        assert run_stage(again).metrics[f"val/{name}"] == pytest.approx(parent.metrics[f"val/{name}"], abs=1e-6)


def test_two_processes_see_the_photos_of_one_and_have_its_losses(tiny, tmp_path):
    """Half the batch for each of two real processes. BatchNorm stands still: its statistics are those of one process's
    half."""
    overrides = ("stage.freeze_batchnorm=['*']", "optimizer.lr=1e-3", "data.num_workers=1")
    both = in_two_processes(tiny, tmp_path, "both", *overrides)
    run_stage(
        OmegaConf.to_container(
            compose(["+stage=pretrain_small", *tiny, *overrides, f"run_dir={tmp_path}/one"]), resolve=True
        )
    )
    curves = [losses(folder) for folder in (both, tmp_path / "one")]
    assert len(curves[0]) == len(curves[1]) == 2 * (40 // 8)
    assert max(curves[1]) - min(curves[1]) > 0.1
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def losses(run):
    with (run / "logs" / "csv" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def in_two_processes(tiny, folder, run, *overrides):
    command = [sys.executable, "-m", "landmark_retrieval.train", "+stage=pretrain_small", *tiny, "data.batch_size=4"]
    command += ["trainer.devices=2", "trainer.strategy=ddp", f"run_dir={run}", *overrides]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"Handed over to {run}") == 1
    return folder / run


def test_a_head_split_over_processes_learns_what_the_whole_one_learns(tiny, tmp_path):
    overrides = ("stage.epochs=1", "stage.freeze=[backbone,local_context,attention]", "stage.warmup_epochs=0")
    whole = in_two_processes(tiny, tmp_path, "whole", *overrides)
    split = in_two_processes(tiny, tmp_path, "split", *overrides, "head.sharded=true")
    for file in ("head.safetensors", "model.safetensors"):
        expected, found = load_file(whole / file), load_file(split / file)
        for key, value in expected.items():
            # BatchNorm takes such a bias away again: its gradient is rounding, of which Adam makes steps of 1e-4,
            # as of a few weights elsewhere
            if not key.endswith(("0.bias", "running_mean")):
                assert (found[key] - value).float().abs().mean() < 1e-6, f"{file}: {key}"
    metrics, wanted = Handoff.read(split, "").metrics, Handoff.read(whole, "").metrics
    assert metrics["val/gap"] == pytest.approx(wanted["val/gap"], abs=1e-3)

    # a checkpoint of two processes holds the whole head and the whole of its optimizer's state ...
    checkpoint, reference = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (split, whole))
    rows = load_file(whole / "head.safetensors")["weight"].shape
    assert checkpoint["state_dict"]["head.weight"].shape == rows
    moments = [
        [s["exp_avg"] for s in c["optimizer_states"][0]["state"].values() if s["exp_avg"].shape == rows]
        for c in (checkpoint, reference)
    ]
    torch.testing.assert_close(*moments, rtol=1e-2, atol=1e-5)

    # ... from which one process can go on
    net = DOLGNet("mobilenetv3_small_050")
    alone = module.LandmarkModule(net, ShardedSubCenterArcFace(SubCenterArcFace(512, 5)), lr=0.1, sharded=True)
    alone.load_state_dict(checkpoint["state_dict"], strict=True)
    alone.on_load_checkpoint(checkpoint)
    state = checkpoint["optimizer_states"][0]["state"][checkpoint["head_place"]]
    assert torch.equal(state["exp_avg"], moments[0][0])
    assert torch.equal(alone.head.weight.data, load_file(split / "head.safetensors")["weight"])


def test_a_split_head_refuses_what_it_cannot_do(config):
    with pytest.raises(LandmarkRetrievalError, match=r"head.sample_rate is in \(0, 1\].*not 0.5"):
        run_stage(config("pretrain_small", "head.sample_rate=0.5"))
    net = DOLGNet("mobilenetv3_small_050")
    split = module.LandmarkModule(net, SubCenterArcFace(512, 5), lr=0.1, sharded=True)
    split._trainer = SimpleNamespace(gradient_clip_val=0.1, world_size=2)
    with pytest.raises(LandmarkRetrievalError, match="gradient_clip_val"):
        split.configure_model()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=null"], "No stage was chosen: add .stage=NAME, one of .*finetune_large"),
        (["data.root=/nowhere"], "no data at /nowhere"),
        (["model.backbone=resnet9000"], "DOLGNet: timm has no model called 'resnet9000'"),
        (["stage.freeze=[backbne]"], "no module of the model matches 'backbne'"),
        (["+trainer.max_epoch=3"], "Trainer: .*max_epoch"),
        (["+data.augment=true"], "LandmarkDataModule: .*augment"),
        (["+optimizer.nesterov=true"], "LandmarkModule: .*nesterov"),
        (["stage.weights=/nowhere"], "no hand-over of a finished stage at /nowhere"),
    ],
)
def test_mistakes_are_sentences(config, overrides, message):
    wanted = config("pretrain_small", *[o for o in overrides if o != "stage=null"])
    if "stage=null" in overrides:
        wanted["stage"] = None
    with pytest.raises(LandmarkRetrievalError, match=message):
        run_stage(wanted)


def test_no_checkpoint_of_the_stage_before(config):
    with pytest.raises(
        LandmarkRetrievalError, match=r"no hand-over .*train_medium.*run that stage first \(\+stage=train_medium\)"
    ):
        run_stage(config("finetune_large"))


def test_damaged_handovers(config, tmp_path):
    first = run_stage(config("pretrain_small", "stage.epochs=1", "stage.warmup_epochs=0"))
    with pytest.raises(LandmarkRetrievalError, match="hands over another model"):
        run_stage(config("train_medium", "model.embedding_dim=64"))
    weights = first.folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LandmarkRetrievalError, match=r"model\.safetensors are not those"):
        run_stage(config("train_medium"))
    weights.write_bytes(data)
    page = first.folder / "handoff.json"
    page.write_text(json.dumps({"stage": "pretrain_small"}))
    with pytest.raises(LandmarkRetrievalError, match=r"handoff\.json is damaged"):
        run_stage(config("train_medium"))


@pytest.mark.parametrize(
    "model",
    [
        ["model=hybrid_efficientnet_lite0_swin_tiny_224", "data.image_size=224", "model.embedding_dim=32"],
        ["model=dolg_resnet50", "data.image_size=48"],
        ["model=gem_efficientnet_b3", "data.image_size=48", "model.backbone=mobilenetv3_small_050"],
    ],
)
def test_every_kind_of_model_trains_and_is_loaded_again(tiny, tmp_path, model):
    small = [override for override in tiny if not override.startswith("model.backbone")]
    overrides = [*small, *model, "data.batch_size=4", "stage.epochs=1", f"run_dir={tmp_path}/run"]
    overrides += ["trainer.limit_train_batches=1", "optimizer.backbone_lr_scale=0.1"]
    composed = compose(["+stage=pretrain_small", *overrides])
    handoff = run_stage(OmegaConf.to_container(composed, resolve=True))
    net, card = load_model(handoff.folder)
    assert net(torch.zeros(1, 3, card["image_size"], card["image_size"])).shape == (1, net.embedding_dim)
