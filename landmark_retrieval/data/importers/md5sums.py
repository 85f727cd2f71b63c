"""The md5 files that GLDv2's archives come with, held against the archives."""

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.processes import in_processes


def verify_md5(
    archives: Sequence[Path],
    folders: Sequence[Path],
    cache: str | Path,
    workers: int | None = None,
    title: str = "md5",
) -> None:
    """Compare archives with their md5 files: `md5.images_000.txt` for images_000.tar, its first word the md5.

    Args:
        archives: what to read, whole.
        folders: where the md5 files may be; the first that has one counts.
        cache: folder for the sums, a file an archive: an archive of the same name, size and time of change is not read
            again, so that an interrupted comparison goes on where it stopped.
        workers: processes; as many as cores by default.
        title: shown beside the progress bar.

    Raises:
        LandmarkRetrievalError: an archive has no md5 file, or another md5; the message names them.
    """
    expected = {path: _expected(path, folders) for path in archives}
    without = [path.name for path, md5 in expected.items() if md5 is None]
    if without:
        raise LandmarkRetrievalError(
            f"{len(without)} of {len(archives)} archives have no md5 file, the first is {without[0]}: download "
            f"md5.{Path(without[0]).stem}.txt into {' or '.join(map(str, folders))}, or leave out --verify-md5."
        )
    sums: dict[Path, str] = {}
    with tqdm(total=sum(path.stat().st_size for path in archives), desc=title, unit="B", unit_scale=True) as bar:
        for path, md5 in in_processes(partial(_md5, Path(cache)), list(archives), workers or os.cpu_count() or 1):
            sums[path] = md5
            bar.update(path.stat().st_size)
    wrong = [path.name for path in archives if sums[path] != expected[path]]
    if wrong:
        raise LandmarkRetrievalError(
            f"{len(wrong)} of {len(archives)} archives in {archives[0].parent} do not have the md5 that their md5 "
            f"files give: {', '.join(wrong[:20])}{', ...' if len(wrong) > 20 else ''}. Download them again."
        )


def _expected(path: Path, folders: Sequence[Path]) -> str | None:
    for folder in folders:
        try:
            words = (folder / f"md5.{path.stem}.txt").read_text(encoding="utf-8", errors="replace").split()
        except FileNotFoundError:
            continue
        return words[0].lower() if words else ""
    return None


def _md5(cache: Path, path: Path) -> tuple[Path, str]:
    held = path.stat()
    stamp = {"archive": path.name, "size": held.st_size, "changed": held.st_mtime_ns}
    record = cache / f"{path.name}.md5.json"
    if record.exists():
        known = read_json(record, "md5 of an archive", "delete it")
        if isinstance(known, dict) and {**stamp, "md5": known.get("md5")} == known:
            return path, str(known["md5"])
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    write_json(record, {**stamp, "md5": md5})
    return path, md5
