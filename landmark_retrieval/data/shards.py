"""Photos -> tar shards with a manifest: in parallel, verified, resumable shard by shard."""

import csv
import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.data.decode import BrokenPhotoError, decode
from landmark_retrieval.data.manifest import Manifest, Shard
from landmark_retrieval.data.photos import Photo, PhotoTable
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, sha256_of, write_json
from landmark_retrieval.processes import in_processes

REFUSED = "refused.csv"
_PROGRESS = ".progress"


def write_shards(
    table: PhotoTable,
    out: str | Path,
    photos_per_shard: int = 1000,
    shuffle: bool = True,
    seed: int = 0,
    skip_bad: bool = False,
    workers: int | None = None,
    title: str = "shards",
) -> Manifest:
    """Write the photos of a table into tar shards, byte for byte, each one verified.

    A sample is two members of a tar, `<number>.<suffix of the photo>` and `<number>.json` with its id and label, so
    that any id is allowed. Interrupted, the same call goes on after the last whole shard; finished, it does nothing.
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

    Returns:
        The manifest, which stands in `out` as manifest.json, written last.

    Raises:
        LandmarkRetrievalError: `out` holds shards of other photos or settings; without `skip_bad`, a photo is missing
            or broken (all are listed in refused.csv; what was written is kept for the next call).
    """
    out = Path(out)
    if photos_per_shard < 1:
        raise LandmarkRetrievalError(f"photos_per_shard is {photos_per_shard}: it takes at least 1.")
    order = np.random.default_rng(seed).permutation(len(table)) if shuffle else np.arange(len(table))
    plan = _fingerprint(table, order, photos_per_shard)
    finished = _finished(out, plan, skip_bad)
    if finished:
        return finished

    parts = [table.take(rows) for rows in np.split(order, range(photos_per_shard, len(order), photos_per_shard))]
    work = partial(_write_shard, out, plan)
    reports: list[_Report] = []
    with tqdm(total=len(table), desc=title, unit="photo") as bar:
        for report in in_processes(work, list(enumerate(parts)), workers or os.cpu_count() or 1):
            reports.append(report)
            bar.update(len(parts[report.number]))
    return _finish(table, out, plan, sorted(reports, key=lambda report: report.number), skip_bad)


@dataclass(frozen=True)
class _Report:
    """What became of one shard."""

    number: int
    shard: Shard
    labels: list[int]
    refused: list[tuple[str, str]]  # id, reason


def _fingerprint(table: PhotoTable, order: np.ndarray, photos_per_shard: int) -> str:
    digest = hashlib.sha256(f"{photos_per_shard}\n{len(table)}\n".encode())
    digest.update(order.astype("<i8").tobytes())
    digest.update("\n".join(table.ids).encode())
    if table.labels is not None:
        digest.update(table.labels.astype("<i8").tobytes())
        digest.update("\n".join(table.classes).encode())
    return digest.hexdigest()


def _finished(out: Path, plan: str, skip_bad: bool) -> Manifest | None:
    if not (out / "manifest.json").exists():
        started = out / _PROGRESS / "plan.json"
        if started.exists() and read_json(started, "shard plan", f"delete {out} and start again") != plan:
            raise LandmarkRetrievalError(
                f"{out} holds unfinished shards of other photos or settings: delete it, or choose another folder."
            )
        write_json(started, plan)
        return None
    manifest = Manifest.read(out)
    if manifest.plan != plan or (manifest.refused and not skip_bad):
        raise LandmarkRetrievalError(
            f"{out} holds shards of other photos or settings: delete it to write them again, or choose another folder."
        )
    manifest.check_files(out)
    return manifest


def _write_shard(out: Path, plan: str, job: tuple[int, PhotoTable]) -> _Report:
    """Write one shard, or find it written by an earlier run."""
    number, table = job
    name = f"shard-{number:05d}.tar"
    record = out / _PROGRESS / f"{name}.json"
    if record.exists():
        held = read_json(record, "record of a shard", f"delete {out} and start again")
        whole = (
            held["plan"] == plan and (out / name).is_file() and (out / name).stat().st_size == held["shard"]["bytes"]
        )
        # a shard with refused photos is tried again: they may have been mended
        if whole and not held["refused"]:
            return _Report(number, Shard(**held["shard"]), held["labels"], [])
    labels: list[int] = []
    refused: list[tuple[str, str]] = []
    with (
        open_replacing(out / name, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row in range(len(table)):
            try:
                photo = table.photo(row)
                decode(photo.data, reduced=True)
            except (OSError, BrokenPhotoError) as error:
                refused.append((table.ids[row], _reason(error, table, row)))
                continue
            _add(tar, f"{row:07d}", table.locate(photo.id).suffix.lower(), photo)
            if photo.label is not None:
                labels.append(photo.label)
    shard = Shard(name, len(table) - len(refused), (out / name).stat().st_size, sha256_of(out / name))
    report = _Report(number, shard, labels, refused)
    write_json(record, {"plan": plan, **asdict(report)})
    return report


def _reason(error: Exception, table: PhotoTable, row: int) -> str:
    path = table.locate(table.ids[row])
    return f"{path}: there is no such file" if isinstance(error, FileNotFoundError) else f"{path}: {error}"


def _add(tar: tarfile.TarFile, key: str, suffix: str, photo: Photo) -> None:
    about: dict[str, Any] = {"id": photo.id}
    if photo.label is not None:
        about["label"] = photo.label
    for name, data in ((key + suffix, photo.data), (key + ".json", json.dumps(about).encode())):
        member = tarfile.TarInfo(name)  # time 0, no owner: the same photos give the same bytes
        member.size = len(data)
        member.mode = 0o644
        tar.addfile(member, io.BytesIO(data))


def _finish(table: PhotoTable, out: Path, plan: str, reports: list[_Report], skip_bad: bool) -> Manifest:
    refused = [row for report in reports for row in report.refused]
    (out / REFUSED).unlink(missing_ok=True)
    if refused:
        with open_replacing(out / REFUSED) as file:
            csv.writer(file).writerows([("id", "reason"), *refused])
        if not skip_bad:
            raise LandmarkRetrievalError(
                f"{len(refused)} of {len(table)} photos cannot be used, the first is {refused[0][1]} (all are in "
                f"{out / REFUSED}): mend or remove them, or leave them out with --skip-bad."
            )
    counts = np.bincount([label for report in reports for label in report.labels], minlength=len(table.classes))
    gone = [table.classes[label] for label in np.flatnonzero(counts == 0)] if table.classes else []
    if gone:
        raise LandmarkRetrievalError(
            f"No photo of landmark {gone[0]} can be used ({len(gone)} landmarks are left without any): see "
            f"{out / REFUSED}, add photos, or remove the landmark."
        )
    shards = tuple(report.shard for report in reports if report.shard.photos)
    manifest = Manifest(shards, table.classes, tuple(counts.tolist()) if table.classes else (), len(refused), plan)
    manifest.write(out)
    shutil.rmtree(out / _PROGRESS)
    return manifest
