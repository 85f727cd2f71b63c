"""What the head costs on all of GLDv2x (81,313 classes of 3 centers, 512 numbers), forward and backward.

    python benchmarks/head.py [--runs N] [--quick]

Beside `SubCenterArcFace` stand the arithmetic of the code released in 2021 (`released` below),
pytorch-metric-learning's SubCenterArcFaceLoss, and three bare matrix products of that size, into buffers that stand
already: cosines, gradient of the weight, gradient of the embeddings. On the CPU everything is float32; on a GPU it runs
under bfloat16 autocast, and the time to read the weight twice and write its gradient once is printed as well. Loss and
gradients are compared before anything is timed.

Time: medians, and medians of the ratios of pairs taken in turn. Peak memory: of a fresh process each, over what it held
after its imports (on a GPU: what torch has allocated); weight and gradient are part of it. Threads that wait for each
other make everything slower where other processes run: then OMP_NUM_THREADS=1 gives the steadier figures.
"""

import argparse
import gc
import json
import math
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import DEVICE, Step, in_turn, peak_since, resident_peak, seconds
from torch import Tensor, multiprocessing, nn

from landmark_retrieval.heads import ShardedSubCenterArcFace, SubCenterArcFace, chunked

CLASSES, CENTERS, DIM, SCALE, MARGIN = 81_313, 3, 512, 45.0, 0.3
SCALING = (10_000, 81_313, 203_094, 1_000_000)


# --- what is compared: each builds its own weight and returns a step, forward and backward ---


def released(x: Tensor, labels: Tensor, weight: Tensor, margins: Tensor) -> Tensor:
    """Loss as the code of Henkel 2021 computes it."""
    cosine = F.linear(F.normalize(x), F.normalize(weight))
    cosine = cosine.view(len(x), -1, CENTERS).max(2).values.float()
    own = margins[labels][:, None]
    targets = F.one_hot(labels, cosine.shape[1]).float()
    sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
    phi = cosine * own.cos() - sine * own.sin()
    phi = torch.where(cosine > (math.pi - own).cos(), phi, cosine - (math.pi - own).sin() * own)
    logits = (targets * phi) + ((1.0 - targets) * cosine)
    logits = logits * SCALE
    return (-F.log_softmax(logits, dim=-1) * targets).sum(-1).mean()


def batch(classes: int, size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, labels = torch.randn(size, DIM), torch.randint(classes, (size,))
    return x.to(DEVICE).requires_grad_(), labels.to(DEVICE)


def step_of(loss: Callable[[Tensor, Tensor], Tensor], weight: Tensor, classes: int, size: int) -> Step:
    x, labels = batch(classes, size)

    def step() -> Tensor:
        x.grad = weight.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=DEVICE == "cuda"):
            value = loss(x, labels)
        value.backward()
        return value.detach()

    return step


def new_head(classes: int) -> SubCenterArcFace:
    torch.manual_seed(1)
    with torch.device(DEVICE):
        return SubCenterArcFace(DIM, classes, CENTERS, SCALE, MARGIN)


def ours(classes: int, size: int) -> Step:
    head = new_head(classes)
    return step_of(head, head.weight, classes, size)


def plain(classes: int, size: int) -> Step:
    weight = new_head(classes).weight
    margins = torch.full((classes,), MARGIN, device=DEVICE)
    return step_of(lambda x, labels: released(x, labels, weight, margins), weight, classes, size)


def metric_learning(classes: int, size: int) -> Step:
    from pytorch_metric_learning.losses import SubCenterArcFaceLoss

    with torch.device(DEVICE):
        loss = SubCenterArcFaceLoss(
            num_classes=classes,
            embedding_size=DIM,
            margin=math.degrees(MARGIN),
            scale=SCALE,
            sub_centers=CENTERS,
            weight_init_func=lambda weight: nn.init.uniform_(weight, -(DIM**-0.5), DIM**-0.5),
        )
    return step_of(loss, loss.W, classes, size)


def bare_products(classes: int, size: int) -> Step:
    weight, (x, _) = new_head(classes).weight.detach(), batch(classes, size)
    x = x.detach()
    cosines = torch.empty(size, len(weight), device=DEVICE)
    weight_grad, x_grad = torch.empty_like(weight), torch.empty_like(x)

    def step() -> Tensor:
        torch.mm(x, weight.T, out=cosines)
        torch.mm(cosines.T, x, out=weight_grad)
        return torch.mm(cosines, weight, out=x_grad)

    return step


STEPS = {
    "SubCenterArcFace": ours,
    "released arithmetic": plain,
    "pytorch-metric-learning": metric_learning,
    "three bare matrix products": bare_products,
}


def check(classes: int, size: int) -> str:
    """Loss and gradients of the head and of the released arithmetic, in float32."""
    head, (x, labels) = new_head(classes), batch(classes, size)
    margins = torch.full((classes,), MARGIN, device=DEVICE)
    found = []
    for loss in (head, lambda x, labels: released(x, labels, head.weight, margins)):
        x.grad = head.weight.grad = None
        value = loss(x, labels)
        value.backward()
        found.append((value.detach(), x.grad, head.weight.grad))
    off = [float((own - other).norm() / other.norm()) for own, other in zip(*found, strict=True)]
    if not max(off) < 1e-4:
        sys.exit(f"The head and the released arithmetic differ: loss, gradients of embeddings and weight by {off}.")
    return "relative difference of loss {:.0e}, gradients of embeddings {:.0e} and weight {:.0e}".format(*off)


# --- measuring ---


def alone(name: str, classes: int, size: int, runs: int) -> dict[str, float]:
    """Median seconds and peak memory in a process of its own: this one."""
    if name == "pytorch-metric-learning":
        import pytorch_metric_learning.losses  # noqa: F401  its own libraries are not counted either
    before = resident_peak()
    step = STEPS[name](classes, size)
    took = [seconds(step) for _ in range(2 + runs)][2:]
    return {"seconds": statistics.median(took), "bytes": peak_since(before)}


def in_fresh_process(name: str, classes: int, size: int, runs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", name, str(classes), str(size), "--runs", str(runs)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def available_bytes() -> float:
    if DEVICE == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def copy_bandwidth() -> float:
    """Bytes a second that this device reads and writes, copying 1 GiB."""
    source = torch.zeros(2**28, device=DEVICE)
    target = torch.empty_like(source)
    took = statistics.median(seconds(lambda: target.copy_(source)) for _ in range(20))
    return 2 * source.nbytes / took


# --- the tables ---


def compared(classes: int, size: int, runs: int) -> Iterator[str]:
    yield f"### {classes:,} classes, {CENTERS} centers, {DIM} numbers, batch {size}\n"
    peaks = {name: in_fresh_process(name, classes, size, 1)["bytes"] for name in STEPS}
    yield f"Checked: {check(classes, size)}.\n"
    own, rows = [], []
    for name in list(STEPS)[1:]:
        gc.collect()
        mine, other = ours(classes, size), STEPS[name](classes, size)
        pairs = in_turn(mine, other, runs)
        own += [a for a, _ in pairs]
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append((name, statistics.median(b for _, b in pairs), ratio))
        del mine, other
    first = next(iter(STEPS))
    yield f"| | median, ms | {first} takes | peak memory, MiB | {first} takes |\n|---|---|---|---|---|"
    yield f"| {first} | {statistics.median(own) * 1e3:,.1f} | | {peaks[first] / 2**20:,.0f} | |"
    for name, took, ratio in rows:
        share = peaks[first] / peaks[name]
        yield f"| {name} | {took * 1e3:,.1f} | {ratio:.2f} | {peaks[name] / 2**20:,.0f} | {share:.2f} |"
    if DEVICE == "cuda":
        rate = copy_bandwidth()
        moved = 3 * 4 * classes * CENTERS * DIM / rate
        name = f"weight read twice, gradient written once, at {rate / 1e9:,.0f} GB/s"
        yield f"| {name} | {moved * 1e3:,.1f} | {statistics.median(own) / moved:.2f} | | |"
    yield ""


def scaling(all_classes: tuple[int, ...], size: int, runs: int) -> Iterator[str]:
    yield f"### {next(iter(STEPS))} by number of classes, batch {size}\n"
    yield "| classes | median, ms | us per class | peak memory, MiB | KiB per class |\n|---|---|---|---|---|"
    for classes in all_classes:
        need = 2 * 4 * classes * CENTERS * DIM * 1.1 + 2**29  # weight and gradient, and some room
        if available_bytes() < need:
            room = available_bytes() / 2**30
            yield f"| {classes:,} | not run: needs {need / 2**30:.1f} GiB, {room:.1f} are free | | | |"
            continue
        found = in_fresh_process("SubCenterArcFace", classes, size, runs)
        took, peak = found["seconds"], found["bytes"]
        yield (
            f"| {classes:,} | {took * 1e3:,.1f} | {took * 1e6 / classes:.2f} "
            f"| {peak / 2**20:,.0f} | {peak / 2**10 / classes:.1f} |"
        )


# --- split over processes ---


def counted(collective: Callable[..., Any], given: int, sent: list[int]) -> Callable[..., Any]:
    """The collective, noting the bytes of the argument that it gives to the others."""

    def counting(*arguments: Any, **more: Any) -> Any:
        sent.append(arguments[given].nbytes)
        return collective(*arguments, **more)

    return counting


def sent_in_a_step(rank: int, classes: int, size: int, port: int) -> None:
    """In one of two gloo processes: bytes that it puts into collectives in a step, counted where they are called."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    head = ShardedSubCenterArcFace(SubCenterArcFace(DIM, classes, CENTERS, SCALE, MARGIN))
    sent: list[int] = []
    for module, name, given in (
        (dist, "all_gather_into_tensor", 1),
        (dist, "reduce_scatter_tensor", 1),
        (chunked, "all_reduce", 0),
    ):
        setattr(module, name, counted(getattr(module, name), given, sent))
    x, labels = batch(classes, size)
    head(x, labels).backward()
    if rank == 0:
        whole = 4 * classes * CENTERS * DIM
        print(f"| {classes:,} | {size} | {sum(sent) / 2**10:,.1f} | {whole / 2**10:,.0f} |", flush=True)
    dist.destroy_process_group()


def traffic(all_classes: tuple[int, ...]) -> None:
    print("\n### Split over two gloo processes: what each gives to the others in a step\n")
    print("| classes | batch per process | KiB | gradient of the whole weight, KiB |\n|---|---|---|---|", flush=True)
    for classes in all_classes:
        for size in (32, 64):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            multiprocessing.spawn(sent_in_a_step, (classes, size, port), nprocs=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="pairs per comparison")
    parser.add_argument("--quick", action="store_true", help="few classes and runs, to see that it works")
    parser.add_argument("--alone", nargs=3, metavar=("NAME", "CLASSES", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        name, classes, size = arguments.alone
        print(json.dumps(alone(name, int(classes), int(size), arguments.runs)))
        return
    runs = min(arguments.runs, 3) if arguments.quick else arguments.runs
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {'bfloat16 autocast' if DEVICE == 'cuda' else 'float32'}, {runs} pairs")
    # they decide whether freed buffers go back to the system, so whether each step pays for fresh pages
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
    print(", ".join(f"{name} {os.environ.get(name, 'not set')}" for name in names), "\n", flush=True)
    classes = 5_000 if arguments.quick else CLASSES
    sizes = (64, 256) if DEVICE == "cuda" else (32,)
    for size in sizes:
        for line in compared(classes, size, runs):
            print(line, flush=True)
    for line in scaling((2_000, 5_000) if arguments.quick else SCALING, sizes[0], max(3, runs // 2)):
        print(line, flush=True)
    traffic((2_000, 5_000) if arguments.quick else (10_000, CLASSES))


if __name__ == "__main__":
    main()
