"""Another split of Google Landmarks, or of a small copy: some training landmarks become queries and index.

    python benchmarks/held_out_landmarks.py PHOTOS OUT --fold 0 --of 4

A recipe is chosen on landmarks that its model has not seen, without a look at the queries it will be reported on: make
shards of each OUT (`landmark-retrieval shard gldv2 OUT`), train and evaluate on them. Every fourth photo of a landmark
that is held out is a query, the others are the index. OUT gets CSV files and links to the photos.
"""

import argparse
from pathlib import Path

import numpy as np
from seen_landmarks import rows, write


def split(photos: Path, out: Path, fold: int, folds: int) -> tuple[int, int, int]:
    """Write the split; the numbers of landmarks held out, of queries and of index photos."""
    train, clean = rows(photos / "train.csv"), rows(photos / "train_clean.csv")
    landmarks = np.array(sorted({int(row["landmark_id"]) for row in train}))
    out_of = {str(landmark) for landmark in np.random.RandomState(0).permutation(landmarks)[fold::folds]}
    out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "index", "test"):
        if not (out / name).exists():
            (out / name).symlink_to((photos / "train").resolve())
    kept = [row for row in train if row["landmark_id"] not in out_of]
    write(out / "train.csv", tuple(train[0]), [tuple(row.values()) for row in kept])
    kept = [row for row in clean if row["landmark_id"] not in out_of]
    write(out / "train_clean.csv", tuple(clean[0]), [tuple(row.values()) for row in kept])
    queries: list[tuple[str, ...]] = []
    index: list[str] = []
    for landmark in sorted(out_of, key=int):
        found = [row["id"] for row in train if row["landmark_id"] == landmark]
        answers = [photo for number, photo in enumerate(found) if number % 4]
        index += answers
        queries += [(photo, " ".join(answers), "Private") for photo in found[::4]]
    write(out / "index.csv", ("id",), [(photo,) for photo in index])
    write(out / "test.csv", ("id",), [(query,) for query, _, _ in queries])
    write(out / "retrieval_solution.csv", ("id", "images", "Usage"), queries)
    return len(out_of), len(queries), len(index)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="in the layout of Google Landmarks")
    parser.add_argument("out", type=Path)
    parser.add_argument("--fold", type=int, default=0, help="which part to hold out (default: %(default)s)")
    parser.add_argument("--of", type=int, default=4, help="of how many parts (default: %(default)s)")
    arguments = parser.parse_args()
    if not 0 <= arguments.fold < arguments.of:
        parser.error(f"--fold is 0 to {arguments.of - 1}, not {arguments.fold}")
    held, queries, indexed = split(arguments.photos, arguments.out, arguments.fold, arguments.of)
    print(f"{arguments.out}: {held} landmarks held out, {queries:,} queries, {indexed:,} index photos")
