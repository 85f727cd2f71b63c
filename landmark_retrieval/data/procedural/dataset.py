"""Write a whole data set of drawn landmark photos in the file layout of Google Landmarks v2."""

from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import cv2
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, replacing, write_json
from landmark_retrieval.processes import in_processes

from .architecture import LandmarkSpec
from .plan import Parameters, Photo, plan
from .scene import landmark_photo, other_photo
from .tables import NAMES, write_tables

_VERSION = 1  # counts changes that draw other pictures from the same parameters
_FINISHED, _STARTED = "procedural.json", "procedural.started.json"


@dataclass(frozen=True)
class Summary:
    """What a call of `generate` left in its folder; `drawn` photos were new, the others were already there."""

    folder: Path
    train_photos: int
    index_photos: int
    test_photos: int
    train_landmarks: int
    index_landmarks: int
    queries: int
    drawn: int


@dataclass(frozen=True)
class _Job:
    path: Path
    shows: LandmarkSpec | None
    seed: tuple[int, ...]


def _draw(job: _Job) -> None:
    data = landmark_photo(job.shows, job.seed) if job.shows else other_photo(job.seed)
    with replacing(job.path) as temporary:
        temporary.write_bytes(data)


def _start_worker() -> None:
    cv2.setNumThreads(1)


def _whole(path: Path) -> bool:
    """Whether a JPEG file is there from its first marker to its last."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    return data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")


def _path(out: Path, photo: Photo) -> Path:
    return out / photo.split / photo.id[0] / photo.id[1] / photo.id[2] / f"{photo.id}.jpg"


def _claim(out: Path, wanted: dict[str, int]) -> bool:
    """Make sure that `out` is free for a data set of these parameters; whether a finished one is there already.

    Raises:
        LandmarkRetrievalError: the folder holds another data set, drawn or real.
    """
    advice = "choose another folder, or delete this one to draw it anew"
    for name in (_FINISHED, _STARTED):
        if (out / name).exists():
            held = read_json(out / name, "record of a drawn data set", advice)
            if held != wanted:
                raise LandmarkRetrievalError(
                    f"{out} holds a data set drawn with other parameters ({held}, not {wanted}): {advice}."
                )
            return name == _FINISHED
    if any((out / name).exists() for name in (*NAMES, "train", "index", "test")):
        raise LandmarkRetrievalError(
            f"{out} holds files that were not drawn here and would be overwritten: choose another folder."
        )
    write_json(out / _STARTED, wanted)
    return False


def _by_landmark(jobs: list[_Job], most: int = 12) -> list[list[_Job]]:
    """Jobs in groups of one landmark, small enough for the progress bar to move."""
    groups = [list(group) for _, group in groupby(jobs, lambda job: job.shows)]
    return [group[i : i + most] for group in groups for i in range(0, len(group), most)]


def _draw_landmark(jobs: list[_Job]) -> int:
    """Draw the photos of one landmark, which is built only once."""
    for job in jobs:
        _draw(job)
    return len(jobs)


def generate(
    out: str | Path,
    *,
    train_landmarks: int = 40,
    index_landmarks: int = 20,
    train_photos: int = 1100,
    index_photos: int = 350,
    test_photos: int = 120,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Summary:
    """Draw landmark photos and write them with their tables like Google Landmarks v2.

    Photos are JPEG files with a short side of 200 to 284 pixels under train/, index/ and test/. Index and test photos
    show landmarks that are not in train, or none; some test photos show train landmarks, for recognition only. About
    5 % of the labels in train.csv are wrong; train_clean.csv holds none of those.

    Every photo is drawn from a seed of its own: the same parameters give the same bytes whatever the number of workers,
    and an interrupted call goes on where it stopped. A finished folder is recognised by its procedural.json; photos
    missing from it are drawn again.

    Args:
        out: folder for the data set, made if it is missing.
        train_landmarks: at least 2. index_landmarks: at least 1.
        train_photos: at least 2 for each landmark, in a long tail of 0.2 to 2.1 times the mean.
        index_photos: of which 28 % show no landmark.
        test_photos: 58 % queries of index landmarks, 25 % of train landmarks, the rest shows none.
        seed: not negative. Other seeds give other landmarks.
        workers: processes that draw; 1 draws in this process. More start by "spawn", so a script that calls this needs
            the usual `if __name__ == "__main__":`.
        progress: show a progress bar.

    Raises:
        LandmarkRetrievalError: the folder holds another data set, or the numbers do not fit together.
    """
    out = Path(out)
    parameters = Parameters(train_landmarks, index_landmarks, train_photos, index_photos, test_photos, seed)
    whole = plan(parameters)
    record = {"version": _VERSION, **asdict(parameters)}
    finished = _claim(out, record)
    for stray in out.rglob(".*.jpg.*.partial"):  # a killed call leaves the photos that it was writing
        stray.unlink()
    ordered = sorted(whole.photos, key=lambda photo: (photo.shows.name if photo.shows else "", photo.id))
    missing = [photo for photo in ordered if not _whole(_path(out, photo))]
    jobs = [_Job(_path(out, photo), photo.shows, photo.seed) for photo in missing]
    if jobs:
        bar = tqdm(
            total=len(ordered), initial=len(ordered) - len(jobs), desc="drawing", unit="photo", disable=not progress
        )
        with bar:
            for count in in_processes(_draw_landmark, _by_landmark(jobs), workers, _start_worker):
                bar.update(count)
    if not finished or not all((out / name).exists() for name in NAMES):
        write_tables(out, whole)
        write_json(out / _FINISHED, record)
        (out / _STARTED).unlink(missing_ok=True)
    unseen = {photo.shows for photo in whole.of("index") if photo.shows}
    queries = sum(photo.shows in unseen for photo in whole.of("test"))
    return Summary(out, train_photos, index_photos, test_photos, train_landmarks, len(unseen), queries, len(jobs))
