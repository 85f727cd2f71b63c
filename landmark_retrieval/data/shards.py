"""Photos -> tar shards with a manifest: in parallel, verified, resumable shard by shard."""

import hashlib
import json
import math
import os
import shutil
import tarfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from tqdm import tqdm

from landmark_retrieval.data.decode import BrokenPhotoError, check, decode, kind_of
from landmark_retrieval.data.headers import read_header
from landmark_retrieval.data.manifest import NAME, SAMPLES, Manifest, Shard, samples_type
from landmark_retrieval.data.photos import Photo, PhotoTable
from landmark_retrieval.data.tables import write_reasons
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import FULL, open_replacing, read_json, write_json
from landmark_retrieval.processes import in_processes

REFUSED = "refused.csv"
_PROGRESS = ".progress"
_QUALITY = 95  # of photos that are scaled down and encoded again


def write_shards(
    table: PhotoTable,
    out: str | Path,
    photos_per_shard: int = 1000,
    shuffle: bool = True,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    title: str = "shards",
    longest_side: int | None = None,
    empty_classes: bool = False,
) -> Manifest:
    """Write the photos of a table into tar shards, byte for byte, each one verified.

    A sample is two members of a tar, `<number>.<suffix of the photo>` and `<number>.json` with its id, label and box,
    so that any id is allowed. `samples.npy` says where each one is. Interrupted, the same call goes on after the last
    whole shard, and writes those again whose photos have changed; finished, it does nothing.
    The same table and seed give the same bytes, whatever the number of workers.

    Args:
        table: the photos; with labels for training, without for index and query photos.
        out: folder of the shards; made if needed.
        photos_per_shard: 1000 photos of 800 px are some 250 MB.
        shuffle: mix the photos of all landmarks (training); False keeps the order of the table.
        seed: of the mixing.
        skip_bad: leave out photos that are missing or broken; they are counted in the manifest and listed in
            refused.csv.
        workers: processes; as many as cores by default.
        title: shown beside the progress bar.
        longest_side: pixels; larger photos are scaled down to it and encoded again (JPEG, quality 95), all others are
            kept byte for byte.
        empty_classes: allow classes without photos, where the list of classes is that of another set.

    Returns:
        The manifest, which stands in `out` as manifest.json, written last.

    Raises:
        LandmarkRetrievalError: `out` holds shards of other photos or settings; without `skip_bad`, a photo is missing
            or broken (all are listed in refused.csv; what was written is kept for the next call); the disk is full.
    """
    out = Path(out)
    for name, value, least in (
        ("photos_per_shard", photos_per_shard, 1),
        ("longest_side", longest_side, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise LandmarkRetrievalError(f"{name} is {value}: it takes at least {least}.")
    order = np.random.default_rng(seed).permutation(len(table)) if shuffle else np.arange(len(table))
    plan = _fingerprint(table, order, photos_per_shard, longest_side)
    finished = _finished(out, plan, skip_bad)
    if finished:
        return finished

    # class names stay here: they would travel to the processes with every job
    bare = replace(table, classes=())
    parts = [bare.take(rows) for rows in np.split(order, range(photos_per_shard, len(order), photos_per_shard))]
    work = partial(_write_shard, out, plan, longest_side)
    reports: list[_Report] = []
    try:
        with tqdm(total=len(table), desc=title, unit="photo") as bar:
            for report in in_processes(work, list(enumerate(parts)), workers or os.cpu_count() or 1):
                reports.append(report)
                bar.update(len(parts[report.number]))
        reports.sort(key=lambda report: report.number)
        return _finish(table, out, plan, reports, skip_bad, empty_classes)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise LandmarkRetrievalError(
            f"{out} cannot take more: {error.strerror}. Make room and run the same command again, it carries on."
        ) from error


@dataclass(frozen=True)
class _Report:
    """What became of one shard."""

    number: int
    shard: Shard
    samples: np.ndarray  # of samples_type
    refused: list[tuple[str, str]]  # id, reason


def _fingerprint(table: PhotoTable, order: np.ndarray, photos_per_shard: int, longest_side: int | None) -> str:
    digest = hashlib.sha256(f"{photos_per_shard}\n{len(table)}\n{longest_side}\n".encode())
    digest.update(order.astype("<i8").tobytes())
    for photo in table.ids:
        digest.update(f"{photo}\n".encode())
    if table.labels is not None:
        digest.update(table.labels.astype("<i8").tobytes())
        digest.update("\n".join(table.classes).encode())
    if table.boxes is not None:
        digest.update(table.boxes.astype("<i8").tobytes())
    return digest.hexdigest()


def _finished(out: Path, plan: str, skip_bad: bool) -> Manifest | None:
    if not (out / NAME).exists():
        started = out / _PROGRESS / "plan.json"
        if started.exists() and read_json(started, "shard plan", f"delete {out} and start again") != plan:
            raise LandmarkRetrievalError(
                f"{out} holds unfinished shards of other photos or settings: delete it, or choose another folder."
            )
        write_json(started, plan)
        return None
    manifest = Manifest.read(out)
    if manifest.plan != plan:
        raise LandmarkRetrievalError(
            f"{out} holds shards of other photos or settings: delete it to write them again, or choose another folder."
        )
    if manifest.refused and not skip_bad:
        raise LandmarkRetrievalError(
            f"{out} was written without {manifest.refused:,} photos that could not be used, see {out / REFUSED}: leave "
            "them out again (--skip-bad), or delete it to write all of them."
        )
    manifest.check_files(out)
    return manifest


def _write_shard(out: Path, plan: str, longest_side: int | None, job: tuple[int, PhotoTable]) -> _Report:
    """Write one shard, or find it written by an earlier run."""
    number, table = job
    name = f"shard-{number:05d}.tar"
    record, rows = out / _PROGRESS / f"{name}.json", out / _PROGRESS / f"{name}.npy"
    if record.exists():
        held = read_json(record, "record of a shard", f"delete {out} and start again")
        whole = (
            held["plan"] == plan
            and held["photos"] == table.fingerprint
            and (out / name).is_file()
            and (out / name).stat().st_size == held["shard"]["bytes"]
        )
        # a shard with refused photos is tried again: they may have been mended
        if whole and not held["refused"]:
            return _Report(number, Shard(**held["shard"]), np.load(rows), [])
    samples: list[tuple[Any, ...]] = []
    refused: list[tuple[str, str]] = []
    with open_replacing(out / name, "wb") as file:
        hashing = _Hashing(file)
        for row in range(len(table)):
            try:
                photo = _verified(table.photo(row), longest_side)
            except (OSError, BrokenPhotoError) as error:
                refused.append((table.ids[row], _reason(error, table, row)))
                continue
            start, about = hashing.size // tarfile.BLOCKSIZE, _about(photo)
            hashing.write(_member(f"{row:07d}{kind_of(photo.data)}", photo.data) + _member(f"{row:07d}.json", about))
            samples.append(
                (photo.id.encode(), start, len(photo.data), len(about), -1 if photo.label is None else photo.label)
            )
        hashing.write(bytes(2 * tarfile.BLOCKSIZE))
        hashing.write(bytes(-hashing.size % tarfile.RECORDSIZE))
    written = np.array(samples, samples_type(max(1, table.ids.column.itemsize)))
    classes = len(np.unique(written["label"])) if table.labels is not None else 0
    shard = Shard(name, len(samples), hashing.size, hashing.digest.hexdigest(), classes)
    with open_replacing(rows, "wb") as file:
        np.save(file, written)
    photos = table.fingerprint
    write_json(record, {"plan": plan, "photos": photos, "shard": asdict(shard), "refused": refused})
    return _Report(number, shard, written, refused)


class _Hashing:
    """A file with the sha256 and the number of the bytes written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _verified(photo: Photo, longest_side: int | None) -> Photo:
    """The photo as it goes into the shard. BrokenPhotoError if it is not a whole one."""
    check(photo.data)
    header = read_header(photo.data)
    scale = (longest_side or math.inf) / max(header.height, header.width)
    if scale >= 1:
        return photo
    image = decode(photo.data)
    height, width = (max(1, round(size * scale)) for size in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
    if photo.box is None:
        return replace(photo, data=data.tobytes())
    left, top, right, bottom = (round(edge * scale) for edge in photo.box)
    return replace(photo, data=data.tobytes(), box=(left, top, right, bottom))


def _reason(error: Exception, table: PhotoTable, row: int) -> str:
    return f"{table.where(row)}: {'there is no such file' if isinstance(error, FileNotFoundError) else error}"


def _about(photo: Photo) -> bytes:
    parts = {"id": photo.id, "label": photo.label, "box": photo.box}
    return json.dumps({name: value for name, value in parts.items() if value is not None}).encode()


def _member(name: str, data: bytes) -> bytes:
    """A file as it stands in a tar."""
    member = tarfile.TarInfo(name)  # time 0, no owner: the same photos give the same bytes
    member.size = len(data)
    member.mode = 0o644
    return member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _finish(
    table: PhotoTable, out: Path, plan: str, reports: list[_Report], skip_bad: bool, empty_classes: bool
) -> Manifest:
    refused = [row for report in reports for row in report.refused]
    (out / REFUSED).unlink(missing_ok=True)
    if refused:
        write_reasons(out / REFUSED, dict(refused))
        if not skip_bad:
            raise LandmarkRetrievalError(
                f"{len(refused)} of {len(table)} photos cannot be used, the first is {refused[0][1]} (all are in "
                f"{out / REFUSED}): mend or remove them, or leave them out with --skip-bad."
            )
    samples = np.concatenate([report.samples for report in reports])
    counts = np.bincount(samples["label"], minlength=len(table.classes)) if table.classes else np.empty(0, np.int64)
    gone = [table.classes[label] for label in np.flatnonzero(counts == 0)]
    if gone and not empty_classes:
        raise LandmarkRetrievalError(
            f"No photo of landmark {gone[0]} can be used ({len(gone)} landmarks are left without any): see "
            f"{out / REFUSED}, add photos, or remove the landmark."
        )
    if not len(samples):
        raise LandmarkRetrievalError(f"None of {len(table)} photos can be used: see {out / REFUSED}.")
    with open_replacing(out / SAMPLES, "wb") as file:
        hashing = _Hashing(file)
        np.lib.format.write_array(hashing, samples)
    shards = tuple(report.shard for report in reports if report.shard.photos)
    for empty in (report.shard for report in reports if not report.shard.photos):
        (out / empty.file).unlink()
    written = hashing.size, hashing.digest.hexdigest()
    manifest = Manifest(shards, table.classes, tuple(counts.tolist()), len(refused), plan, written)
    manifest.write(out)
    shutil.rmtree(out / _PROGRESS)
    for left in out.glob(".*.partial"):  # of a process that was killed
        left.unlink(missing_ok=True)
    return manifest
