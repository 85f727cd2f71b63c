"""What a whole training step costs, from uint8 photos to new weights, with the head of GLDv2x (81,313 classes).

    python benchmarks/train.py step [NAME]      where its time goes, real input included; gradient checkpointing
    python benchmarks/train.py compare [NAME]   beside the straightforward form, on one and the same batch

A step takes a batch of uint8 photos (B, S, S, 3), normalises it on the device, and goes through model and head (3
centers a class, margins by class frequency), backward, and Adam. Ours is the form of the trainer: channels_last, the
head chunk by chunk, fused Adam, a look at the norm of the gradients, on a GPU bfloat16 autocast. The straightforward
form is that of the code released in 2021: NCHW, all stages of the EfficientNet, the full map of fused features, the
whole matrix of cosines, Adam that is not fused, on a GPU float16 autocast with a scaler of the loss. Both are float32
on a CPU.

Before anything is timed, losses, gradients and the weights after a step are compared, with the model in float64: a deep
network with random weights makes a hundredth of the gradients out of the rounding of float32. Times are medians, ratios
are medians of the ratios of pairs taken in turn. Peak memory is of a fresh process each, over what it held after
its imports (on a GPU: what torch has allocated); of it, the weights, their gradients and Adam's two averages are there
whatever is computed. Photos are drawn, and enlarged to 800 px.

On a CPU, give back no memory between the steps, or each pays for fresh pages; where other processes run, threads that
wait for each other make everything slower, and OMP_NUM_THREADS=1 gives the steadier figures:

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python benchmarks/train.py compare
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from head import CENTERS, CLASSES, DIM, SCALE, released
from measure import DEVICE, in_turn, medians, peak_since, resident_peak, seconds
from models import straightforward
from photos import drawn
from torch import Tensor, nn

from landmark_retrieval import create_model
from landmark_retrieval.data.batches import TrainingBatches, default_workers, loader
from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.mixture import Mixture
from landmark_retrieval.data.prepare import shard_folder
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from landmark_retrieval.heads import SubCenterArcFace, dynamic_margins
from landmark_retrieval.training.freezing import batchnorms
from landmark_retrieval.training.stability import StepGuard

GPU = DEVICE == "cuda"
# name -> (px, batch)
SIZES = {
    "dolg_efficientnet_b5": (448, 32) if GPU else (256, 4),
    "hybrid_efficientnet_b5_swin_base_224": (448, 32) if GPU else (448, 2),
    "dolg_efficientnet_lite0": (448, 64) if GPU else (224, 16),
    "hybrid_efficientnet_lite0_swin_tiny_224": (224, 64) if GPU else (224, 8),
}
DEFAULT = tuple(SIZES)[:2] if GPU else ("dolg_efficientnet_lite0", "dolg_efficientnet_b5")
WANTED = 1.5  # times faster than the straightforward form, of the first two on a GPU
WARMUP = 5 if GPU else 2
LR = 1e-4
LARGEST = 1e-4  # relative difference of the numbers that are compared
PHASES = ("input", "forward", "backward", "optimiser")
IN_BRACKETS = "In brackets: memory besides weights, their gradients and Adam's averages."


# --- the two forms ---


class Training:
    """A model, a head, and how they are trained; the phases of a step are methods."""

    def __init__(
        self, net: nn.Module, head: nn.Module, prepare: Callable[..., Tensor], dtype: torch.dtype, fused: bool
    ) -> None:
        self.net, self.head, self.prepare, self.dtype = net.to(DEVICE).train(), head, prepare, dtype
        parameters = [*net.parameters(), *head.parameters()]
        # not fused, torch chooses by itself: one loop over all parameters on a CPU, a few kernels on a GPU
        self.optimizer = torch.optim.Adam(parameters, lr=LR, fused=fused)
        self.parameters, self.guard = parameters, StepGuard() if fused else None
        self.norms = batchnorms(dict(net.named_modules()))
        self.scaler = torch.amp.GradScaler(DEVICE, enabled=GPU and dtype == torch.float16)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        images, labels = (part.to(DEVICE, non_blocking=True) for part in (images, labels))
        if self.guard:
            self.guard.before_step(self.norms, images.device)
        with torch.autocast(DEVICE, self.dtype, enabled=GPU):
            loss = self.head(self.net(self.prepare(images)), labels)
        if self.guard:
            self.guard.see_loss(loss)
        return loss

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        if self.guard:  # as the trainer leaves out a step that is not finite
            self.optimizer.grad_scale, self.optimizer.found_inf = None, self.guard.see_gradients(self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.backward(self.forward(images, labels))
        self.update()

    def standing_bytes(self) -> int:
        """Of what is trained: weights, gradients, and Adam's two averages."""
        trained = (p for part in (self.net, self.head) for p in part.parameters() if p.grad is not None)
        return sum(4 * parameter.nbytes for parameter in trained)


def margins() -> np.ndarray:
    """By class counts with a long tail, as those of GLDv2x."""
    counts = np.ceil(10 * (1 + np.random.default_rng(0).pareto(1.2, CLASSES)))
    return dynamic_margins(counts)


def new_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name)


def new_head() -> SubCenterArcFace:
    torch.manual_seed(1)
    with torch.device(DEVICE):
        return SubCenterArcFace(DIM, CLASSES, CENTERS, SCALE, margins())


def ours(name: str) -> Training:
    return Training(new_net(name), new_head(), normalize, torch.bfloat16, fused=True)


def checkpointed(name: str) -> Training:
    training = ours(name)
    training.net.set_grad_checkpointing()
    return training


class ReleasedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = new_head().weight
        self.margins = torch.from_numpy(margins()).float().to(DEVICE)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return released(embeddings, labels, self.weight, self.margins)


def plain_normalize(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    mean, std = (
        torch.tensor(values, dtype=dtype, device=images.device).view(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images.permute(0, 3, 1, 2).contiguous().to(dtype) / 255 - mean) / std


def straight(name: str) -> Training:
    return Training(straightforward(new_net(name)), ReleasedHead(), plain_normalize, torch.float16, fused=False)


FORMS = {"ours": ours, "checkpointed": checkpointed, "straightforward": straight}


def random_batch(name: str, size: int | None = None) -> tuple[Tensor, Tensor]:
    side, batch = SIZES[name]
    torch.manual_seed(2)
    images = torch.randint(0, 256, (size or batch, side, side, 3), dtype=torch.uint8)
    return images, torch.randint(CLASSES, (len(images),))


# --- the same numbers ---


def own_name(name: str) -> str:
    """What a weight of the straightforward form is called in ours."""
    return f"patch_embedding.{name}" if name.startswith("cnn.") else name.removeprefix("net.")


def difference(own: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Length of the difference of all numbers together, relative to their length."""
    if own.keys() != other.keys():
        sys.exit(f"Only one of the two forms has {sorted(own.keys() ^ other.keys())[:5]}.")
    off = sum(float((own[name] - value).double().square().sum()) for name, value in other.items())
    return (off / sum(float(value.double().square().sum()) for value in other.values())) ** 0.5


def check(one: Training, two: Training, name: str) -> str:
    """A step of both, on four photos; dropped paths are drawn from the same seed."""
    images, labels = (part.to(DEVICE) for part in random_batch(name, 4))
    losses, gradients, weights = [], [], []
    for training in (one, two):
        training.net.double()
        torch.manual_seed(3)
        loss = training.head(training.net(training.prepare(images, dtype=torch.float64)).float(), labels)
        loss.backward()
        training.optimizer.step()
        # the straightforward form has weights that nothing uses
        used = {
            own_name(name): parameter
            for part in (training.net, training.head)
            for name, parameter in part.named_parameters()
            if parameter.grad is not None
        }
        losses.append(loss.item())
        gradients.append({name: parameter.grad for name, parameter in used.items()})
        weights.append({name: parameter.detach().clone() for name, parameter in used.items()})
        training.optimizer.zero_grad()
        training.optimizer.state.clear()  # of weights in float64
        training.net.float()
    found = abs(losses[0] / losses[1] - 1), difference(*gradients), difference(*weights)
    told = "relative differences: loss {:.0e}, gradients {:.0e}, weights after a step {:.0e}".format(*found)
    if not max(found) <= LARGEST:
        sys.exit(f"The two are not the same step; {told}, allowed {LARGEST:.0e}.")
    return told


# --- measuring ---


def alone(name: str, form: str) -> dict[str, float]:
    """Peak memory of two steps, in a process of its own: this one."""
    before = resident_peak()
    training, batch = FORMS[form](name), random_batch(name)
    for _ in range(2):
        training.step(*batch)
    return {"bytes": peak_since(before), "standing": training.standing_bytes()}


def in_fresh_process(name: str, form: str) -> str:
    command = [sys.executable, __file__, "alone", name, "--form", form]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return f"{found['bytes'] / 2**20:,.0f} ({(found['bytes'] - found['standing']) / 2**20:,.0f})"


def phases(training: Training, batches: Iterator[Any]) -> list[float]:
    """Seconds of each phase of a step; the first is how long the next batch lets it wait."""
    held: list[Any] = []
    return [
        seconds(lambda: held.append(next(batches))),
        seconds(lambda: held.append(training.forward(held[0]["images"], held[0]["labels"]))),
        seconds(lambda: training.backward(held[1])),
        seconds(training.update),
    ]


def next_step(training: Training, batches: Iterator[Any]) -> None:
    batch = next(batches)
    training.step(batch["images"], batch["labels"])


def drawn_photos(folder: Path, count: int) -> Mixture:
    """Shards of so many photos: drawn ones, as large as those of GLDv2, again and again under other names."""
    photos = [path.read_bytes() for path in sorted(drawn(folder).iterdir())]
    for number in range(count):
        landmark = folder / "many" / str(number % 16)
        landmark.mkdir(parents=True, exist_ok=True)
        (landmark / f"{number}.jpg").write_bytes(photos[number % len(photos)])
    shard_folder(folder / "many", folder / "shards", photos_per_shard=64, workers=1)
    return LandmarkDataModule(folder / "shards").train


def read_alone(batches: TrainingBatches, count: int) -> float:
    """Photos a second where nothing but the input runs."""
    turns = iter(loader(batches, None, pin_memory=GPU))
    next(turns)  # the processes have begun
    took = seconds(lambda: list(itertools.islice(turns, count)))
    return count * batches.batch_size / took


def step(name: str, runs: int) -> None:
    side, size = SIZES[name]
    # first, while this process holds nothing
    memory = {form: in_fresh_process(name, form) for form in ("ours", "checkpointed")}
    training = ours(name)
    print(f"\n### {name}, {side} px, batch {size}\n")
    print(f"With and without gradient checkpointing, {check(checkpointed(name), training, name)}.\n", flush=True)
    # what the workers have decoded ahead must be gone before waiting can be seen
    ahead = 4 * default_workers() if GPU else 0
    steps = 2 * (WARMUP + runs) * (2 if GPU else 1) + ahead
    rows: dict[bool, list[list[float]]] = {False: [], True: []}
    whole: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        batches = TrainingBatches(drawn_photos(Path(folder), steps * size), side, size)
        alone_speed = read_alone(batches, steps - 1)
        turns = iter(loader(batches, None, pin_memory=GPU))
        for _ in range(ahead):
            next(turns)
        for run in range(WARMUP + runs):
            for on in rows:
                training.net.set_grad_checkpointing(on)
                row = phases(training, turns)
                # a GPU that nobody looks at in between does not wait for the host
                undivided = seconds(partial(next_step, training, turns)) if GPU else sum(row)
                if run >= WARMUP:
                    rows[on].append(row)
                    whole[on].append(undivided)
        del turns  # ends its processes
    parts = " | ".join(f"{phase}, %" for phase in PHASES)
    print(f"| checkpointing | s / step | images / s | {parts} | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for on, form in ((False, "ours"), (True, "checkpointed")):
        middle = [statistics.median(column) for column in zip(*rows[on], strict=True)]
        shares = " | ".join(f"{100 * part / sum(middle):.1f}" for part in middle)
        took = statistics.median(whole[on])
        print(f"| {'on' if on else 'off'} | {took:.3f} | {size / took:.1f} | {shares} | {memory[form]} |", flush=True)
    ratio = statistics.median(two / one for one, two in zip(whole[False], whole[True], strict=True))
    print(f"\nWith checkpointing a step takes {ratio:.2f} times as long ({runs} pairs taken in turn). {IN_BRACKETS}")
    print(
        f"Input alone, {default_workers()} processes and nothing else at work: {alone_speed:.0f} photos/s.", flush=True
    )


def compare(name: str, runs: int) -> None:
    side, size = SIZES[name]
    # first, while this process holds nothing
    memory = {form: in_fresh_process(name, form) for form in ("ours", "straightforward")}
    one, two = ours(name), straight(name)
    print(f"\n### {name}, {side} px, batch {size}\n")
    print(f"The two forms, {check(one, two, name)}.", flush=True)
    batch = random_batch(name)
    if GPU:
        with torch.no_grad():
            losses = [training.forward(*batch).item() for training in (one, two)]
        print(f"Losses in bfloat16 {losses[0]:.3f}, in float16 {losses[1]:.3f}.", flush=True)
    pairs = in_turn(partial(one.step, *batch), partial(two.step, *batch), runs, WARMUP)
    own, other, ratio = medians(pairs)
    spread = sorted(theirs / mine for mine, theirs in pairs)
    wanted = f" (wanted: {WANTED})" if GPU and name in DEFAULT else ""
    print("\n| | s / step | images / s | peak memory, MiB |\n|---|---|---|---|")
    for form, took in (("ours", own), ("straightforward", other)):
        print(f"| {form} | {took:.3f} | {size / took:.1f} | {memory[form]} |", flush=True)
    print(f"\n{ratio:.2f} times faster{wanted}, {spread[0]:.2f} to {spread[-1]:.2f} in {runs} pairs taken in turn.")
    print(IN_BRACKETS, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("step", "compare", "alone"))
    parser.add_argument("name", nargs="?", choices=SIZES)
    parser.add_argument("--runs", type=int, default=21 if GPU else 7, help="pairs")
    parser.add_argument("--form", choices=FORMS, default="ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.command == "alone":
        print(json.dumps(alone(arguments.name, arguments.form)))
        return
    where = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, load {os.getloadavg()[0]:.1f}", flush=True)
    for name in [arguments.name] if arguments.name else DEFAULT:
        {"step": step, "compare": compare}[arguments.command](name, arguments.runs)


if __name__ == "__main__":
    main()
