"""What the way from photos to batches costs, side by side with its straightforward form, on one core.

    python benchmarks/input.py batches --photos FOLDER   photos per second to a ready batch, reading, sharding
    python benchmarks/input.py plan                      planning an epoch of GLDv2, and how well it mixes

The straightforward form decodes the whole photo with OpenCV, augments it step by step with albumentations as the
released code does, JPEG compression included, and normalises in float32 on the CPU. FOLDER holds photos of about 800
pixels like those of GLDv2 (30 to 130 kB); without it, landmarks are drawn, which compress better than photos.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from measure import in_turn, medians, seconds
from photos import drawn

from landmark_retrieval.data.augmentation import AlbumentationsTransform, FastTransform
from landmark_retrieval.data.decode import check, covering_scale, decode_stored
from landmark_retrieval.data.headers import read_header
from landmark_retrieval.data.importers.folder import list_photos, read_unlabelled
from landmark_retrieval.data.plan import EpochPlan, own_places, steps
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.data.transforms import IMAGENET_MEAN, IMAGENET_STD

SIDES = {256: 5.0, 448: 3.0, 768: 1.5}  # pixels -> how many times faster is wanted
BATCH = 32
PHOTOS, SHARDS, GLOBAL_BATCH = 4_132_914, 10_000, 512
RANKS, WORKERS = 64, 8


# --- photos to batches ---


def straightforward(photos: list[bytes], side: int) -> torch.Tensor:
    transform = _albumentations(side)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    images = []
    for data in photos:
        image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        image = transform.compose(image=image)["image"].astype(np.float32) / 255
        images.append(((image - mean) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images))


def ours(photos: list[bytes], side: int) -> torch.Tensor:
    transform = FastTransform(side)
    images = np.empty((len(photos), side, side, 3), np.uint8)
    for number, data in enumerate(photos):
        images[number] = transform(data, (0, 0, next(_numbers)))
    return torch.from_numpy(images)


def step_by_step(photos: list[bytes], side: int) -> torch.Tensor:
    transform = _albumentations(side)
    return torch.from_numpy(np.stack([transform(data, (0, 0, next(_numbers))) for data in photos]))


def bare_decoding(photos: list[bytes], side: int) -> None:
    """At the smallest fast scale that covers the side, without enlargement."""
    for data in photos:
        header = read_header(data)
        decode_stored(data, header, covering_scale(side / min(header.height, header.width)), channels=4)


_numbers = itertools.count()
_made: dict[int, AlbumentationsTransform] = {}


def _albumentations(side: int) -> AlbumentationsTransform:
    return _made.setdefault(side, AlbumentationsTransform(side))


def batches(photos: list[bytes], runs: int) -> None:
    print(f"{len(photos)} photos, {statistics.median(map(len, photos)) / 1e3:.0f} kB in the middle, one core")
    turns = itertools.cycle([photos[i : i + BATCH] for i in range(0, len(photos) - BATCH + 1, BATCH)])
    print("\n| px | straightforward, photos/s | fast | times | step by step, uint8 | bare decoding | of its speed |")
    print("|---|---|---|---|---|---|---|")
    sizes = {}
    for side, wanted in SIDES.items():
        forms: list[Callable[[list[bytes], int], object]] = [ours, straightforward, step_by_step, bare_decoding]
        taken: list[list[float]] = []
        for run in range(runs + 1):
            batch = next(turns)
            row = [seconds(partial(form, batch, side)) for form in forms]
            if run:
                taken.append(row)
        speeds = [len(photos[:BATCH]) / statistics.median(column) for column in zip(*taken, strict=True)]
        times = statistics.median(row[1] / row[0] for row in taken)
        share = statistics.median(row[3] / row[0] for row in taken)
        print(
            f"| {side} | {speeds[1]:.0f} | {speeds[0]:.0f} | {times:.2f} (wanted {wanted}) | {speeds[2]:.0f} | "
            f"{speeds[3]:.0f} | {share:.2f} |"
        )
        sizes[side] = ours(photos[:2], side).nbytes / straightforward(photos[:2], side).nbytes
    print(f"\nbytes to the device, of those of the straightforward form: {set(sizes.values())}")


def shards(folder: Path, photos: list[bytes], runs: int) -> None:
    """Sharding beside what it cannot do without, and reading through the plan beside decoding."""
    many = folder / "many"
    many.mkdir()
    for number in range(max(1, 16_000 // len(photos)) * len(photos)):
        (many / f"{number:05d}.jpg").write_bytes(photos[number % len(photos)])
    table = read_unlabelled(many)
    size = sum(path.stat().st_size for path in many.iterdir())

    def bare() -> None:
        """Read, verify, write."""
        with (folder / "bare").open("wb") as out:
            for path in sorted(many.iterdir()):
                data = path.read_bytes()
                check(data)
                out.write(data)
            out.flush()
            os.fsync(out.fileno())

    code = """
import sys, time
from landmark_retrieval.data.importers.folder import read_unlabelled
from landmark_retrieval.data.shards import write_shards
table, started = read_unlabelled(sys.argv[1]), time.perf_counter()
write_shards(table, sys.argv[2], 500, workers=int(sys.argv[3]))
print(time.perf_counter() - started)
"""

    def write(workers: int) -> float:
        """In a process of its own, whose workers do not load what this one has loaded."""
        with tempfile.TemporaryDirectory(dir=folder) as out:
            command = [sys.executable, "-c", code, str(many), f"{out}/shards", str(workers)]
            return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    seconds(bare)
    for workers in (1, 2):
        own, other, ratio = medians([(write(workers), seconds(bare)) for _ in range(runs)])
        print(
            f"sharding with {workers} processes: {len(table) / own:.0f} photos/s, {size / own / 1e6:.0f} MB/s; "
            f"one core that reads, verifies and writes them: {len(table) / other:.0f} photos/s; times {ratio:.2f}"
        )

    write_shards(table, folder / "small", 20)
    sharded = ShardedPhotos.open(folder / "small")
    plan = EpochPlan([[shard.photos for shard in sharded.manifest.shards]])

    def read() -> None:
        for number in plan.at(np.arange(BATCH * 8)).tolist():
            sharded.photo(number)

    def decode() -> None:
        bare_decoding([sharded.photo(number).data for number in range(BATCH * 8)], 256)

    own, other, ratio = medians(in_turn(read, decode, runs))
    share = 100 / (ratio - 1)
    print(f"from {len(sharded.manifest.shards)} shards, reading takes {share:.1f} % of decoding for 256 px (wanted: 5)")


# --- the plan ---


def plan_cost() -> None:
    """In a fresh process: all of an epoch, and what one worker needs of it."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from input import *
from measure import resident_peak
before = resident_peak()
started = time.perf_counter()
plan = EpochPlan([gldv2()], seed=0, epoch=3)
first = 0.0
for lane in range(plan.lanes):
    plan.lane(lane)
    if lane == 0:
        first = time.perf_counter() - started
print(f"| {{time.perf_counter() - started:.2f}} | {{first:.3f}} | {{(resident_peak() - before) / 1e6:.0f}} |")
"""
    print(f"\n{PHOTOS:,} photos in {SHARDS:,} shards, {RANKS} ranks x {WORKERS} workers, each plans for itself:\n")
    print("| whole epoch, s | what a rank of 64 needs, s | memory of the whole epoch, MB |\n|---|---|---|", flush=True)
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True)


def gldv2() -> list[int]:
    """Photos in each of the shards of GLDv2."""
    each = -(-PHOTOS // SHARDS)
    return [min(each, PHOTOS - first) for first in range(0, PHOTOS, each)]


def simulate() -> None:
    """Each photo once, equal numbers of batches, and pairs of photos that meet again."""
    print("\n| ranks | batches of each rank | photos seen | seen twice | left out |\n|---|---|---|---|---|")
    plans = [EpochPlan([gldv2()], seed=0, epoch=epoch) for epoch in (0, 1)]
    for ranks in (1, 8, RANKS):
        size = GLOBAL_BATCH // ranks
        count = steps(plans[0].photos, size, ranks)
        seen = np.zeros(PHOTOS, np.int8)
        for rank in range(ranks):
            places = np.concatenate([own_places(step, size, rank, ranks) for step in range(count)])
            np.add.at(seen, plans[0].at(places), 1)
        print(f"| {ranks} | {count:,} | {(seen == 1).sum():,} | {(seen > 1).sum()} | {(seen == 0).sum()} |")

    rng = np.random.default_rng(0)
    full = met([rng.permutation(PHOTOS) for _ in range(2)])
    print(f"\nPairs of photos that share a batch of {GLOBAL_BATCH} in two epochs:\n")
    print("| order | pairs | times those of a full shuffle |\n|---|---|---|")
    print(f"| full shuffle | {full:,} | 1 |")
    for lanes, buffer in ((64, 1000), (64, 2000), (64, 4000), (1, 2000)):
        chosen = [EpochPlan([gldv2()], seed=0, epoch=epoch, lanes=lanes, buffer=buffer) for epoch in (0, 1)]
        pairs = met([plan.at(np.arange(PHOTOS)) for plan in chosen])
        print(f"| {lanes} lanes, buffer {buffer} | {pairs:,} | {pairs / full:.2f} |")


def met(orders: list[np.ndarray]) -> int:
    batch = []
    for order in orders:
        of = np.empty(PHOTOS, np.int64)
        of[order] = np.arange(PHOTOS) // GLOBAL_BATCH
        batch.append(of)
    together = np.unique(batch[0] * (PHOTOS // GLOBAL_BATCH + 1) + batch[1], return_counts=True)[1]
    return int((together * (together - 1) // 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("batches", "plan"))
    parser.add_argument("--photos", type=Path, help="folder of photos of about 800 pixels (default: drawn ones)")
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if arguments.what == "plan":
        plan_cost()
        simulate()
        return
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.photos or drawn(Path(folder))
        photos = [path.read_bytes() for path in list_photos(source)]
        photos = list(itertools.islice(itertools.cycle(photos), -(-len(photos) // BATCH) * BATCH))
        batches(photos, arguments.runs)
        shards(Path(folder), photos, max(2, arguments.runs // 4))


if __name__ == "__main__":
    main()
