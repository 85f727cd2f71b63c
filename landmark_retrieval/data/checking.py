"""Whether the shards of a data set are, to the byte, what their manifests say."""

import os
from functools import partial
from pathlib import Path

from tqdm import tqdm

from landmark_retrieval.data.manifest import NAME, Manifest, damaged_files, wrong_file
from landmark_retrieval.data.places import LocalPlace, place
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.processes import in_processes


def check_data(root: str | Path, workers: int | None = None) -> dict[str, Manifest]:
    """Compare size and sha256 of every shard below a folder, or of one folder of shards, with the manifests.

    Args:
        root: the folder.
        workers: processes; as many as cores if None.

    Returns:
        The manifest of each folder of shards, by its name.

    Raises:
        LandmarkRetrievalError: no shards there, or some are missing or damaged; all of those are named.
    """
    data = place(root)
    if not isinstance(data, LocalPlace):
        raise LandmarkRetrievalError(f"{root} is a URL: what comes from there is checked when it is fetched.")
    folders = [data] if data.has(NAME) else [data.below(name) for name in data.folders()]
    if not folders:
        raise LandmarkRetrievalError(
            f"{root} holds no shards: name a folder that `landmark-retrieval shard` has written."
        )
    manifests: dict[str, Manifest] = {}
    for folder in folders:
        manifest = manifests[folder.name] = folder.manifest()
        wrong = []
        total = sum(size for _, size, _ in manifest.files)
        with tqdm(total=total, desc=folder.name, unit="B", unit_scale=True) as bar:
            for size, found in in_processes(
                partial(_check, folder.path), manifest.files, workers or os.cpu_count() or 1
            ):
                wrong += [found] if found else []
                bar.update(size)
        if wrong:
            raise damaged_files(folder.path, sorted(wrong), len(manifest.shards))
    return manifests


def _check(folder: Path, row: tuple[str, int, str]) -> tuple[int, str | None]:
    return row[1], wrong_file(folder, row, checksum=True)
