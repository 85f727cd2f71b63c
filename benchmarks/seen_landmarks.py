"""Another split of Google Landmarks, or of a small copy: the index shows landmarks that are in the training set.

    python benchmarks/seen_landmarks.py PHOTOS OUT

As in the challenges of 2021, where re-ranking by votes of training photos gains most. The bank is the cleaned training
set; the index is what train.csv holds of the same landmarks and the cleaned set does not; queries are the test photos
that recognition_solution.csv gives one of these landmarks. OUT gets CSV files and links to the photos, and is then
data.root of `python -m landmark_retrieval.submit` and DATA of `landmark-retrieval evaluate --predictions`. A model that
is measured on it must not have been trained on more than the cleaned set.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from landmark_retrieval.files import open_replacing


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, names: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    with open_replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(lines)


def split(photos: Path, out: Path) -> tuple[int, int]:
    """Write the split; the numbers of queries and of index photos."""
    clean = {row["landmark_id"]: row["images"].split() for row in rows(photos / "train_clean.csv")}
    kept = {photo for listed in clean.values() for photo in listed}
    index = defaultdict(list)
    for row in rows(photos / "train.csv"):
        if row["landmark_id"] in clean and row["id"] not in kept:
            index[row["landmark_id"]].append(row["id"])
    answers = []
    for row in rows(photos / "recognition_solution.csv"):
        found = [photo for landmark in row["landmarks"].split() for photo in index[landmark]]
        if found:
            answers.append((row["id"], " ".join(found), "Private"))
    out.mkdir(parents=True, exist_ok=True)
    for name, target in (("train", "train"), ("index", "train"), ("test", "test")):
        if not (out / name).exists():
            (out / name).symlink_to((photos / target).resolve())
    for name in ("train.csv", "train_clean.csv"):
        (out / name).write_bytes((photos / name).read_bytes())
    listed = sorted(photo for found in index.values() for photo in found)
    write(out / "index.csv", ("id",), [(photo,) for photo in listed])
    write(out / "test.csv", ("id",), [(query,) for query, _, _ in answers])
    write(out / "retrieval_solution.csv", ("id", "images", "Usage"), answers)
    return len(answers), len(listed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="in the layout of Google Landmarks")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    queries, indexed = split(arguments.photos, arguments.out)
    print(f"{arguments.out}: {queries:,} queries, {indexed:,} index photos of landmarks in the cleaned training set")
