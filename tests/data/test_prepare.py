"""From photos as they come to a data set: what is written, and what is said about the rest."""

import csv
import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.prepare import shard_csv, shard_folder, shard_gldv2, shard_revisited
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.errors import LandmarkRetrievalError

REAL = Path(os.environ.get("LANDMARK_PHOTOS", Path(__file__).parents[3] / "shared" / "data" / "gldv2mini"))
SPLITS = ("train", "index", "test")


def into_archives(root, out, count, splits=SPLITS):
    """A copy of a data set in the layout of GLDv2 with its photos in `count` archives a split, as downloaded."""
    out.mkdir(parents=True, exist_ok=True)
    for path in root.glob("*.csv"):
        shutil.copy(path, out)
    for split in splits:
        (out / split).mkdir()
        photos = sorted((root / split).rglob("*.jpg"))
        for n in range(count):
            path = out / split / f"images_{n:03d}.tar"
            with tarfile.open(path, "w") as tar:
                for photo in photos[n::count]:
                    tar.add(photo, photo.relative_to(root / split).as_posix())
            sum_ = hashlib.md5(path.read_bytes()).hexdigest()
            (path.parent / f"md5.{path.stem}.txt").write_text(f"{sum_}  {path.name}\n")
    return out


def contents(folder):
    """Path -> bytes of the shards, manifests and other files that a data set consists of."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".archives" not in path.parts
    }


def listing(out):
    return json.loads((out / "dataset.json").read_text())


def test_archives_give_the_shards_that_extracted_photos_give(photos, tmp_path):
    archived = into_archives(photos, tmp_path / "archived", 3)
    said = []
    manifests = shard_gldv2(archived, tmp_path / "a", ("c", "full"), 10, workers=1, verify_md5=True, say=said.append)
    shard_gldv2(photos, tmp_path / "b", ("c", "full"), 10, workers=1, say=said.append)
    assert said == []
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert manifests["train_full"].photos == 48
    assert listing(tmp_path / "a") == {
        "format": 1,
        "folders": ["index", "test", "train_c", "train_full"],
        "files": ["recognition_solution.csv", "retrieval_solution.csv"],
    }
    assert not list(archived.rglob("*.jpg"))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the photos of gldv2mini at {REAL} (or LANDMARK_PHOTOS)")
def test_real_photos_from_archives_and_extracted(tmp_path):
    """All of gldv2mini in its real formats; 2 workers, so that rows travel between processes."""
    archived = into_archives(REAL, tmp_path / "archived", 4)
    options = {"sets": ("c", "x", "full"), "photos_per_shard": 500, "workers": 2}
    shard_gldv2(archived, tmp_path / "a", verify_md5=True, **options)
    manifests = shard_gldv2(REAL, tmp_path / "b", **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {name: manifest.photos for name, manifest in manifests.items()} == {
        **{"train_c": 2345, "train_full": 4496, "index": 939, "test": 344},
        "train_x": manifests["train_x"].photos,
    }
    assert manifests["train_x"].classes == manifests["train_c"].classes
    # the full list, filtered to the landmarks of the clean set, is the expanded set
    arguments = (tmp_path / "c", REAL / "train.csv", "wit", tmp_path / "a" / "train_c")
    shard_csv(REAL / "train", *arguments, photos_per_shard=500, workers=2)
    assert contents(tmp_path / "c" / "train_wit") == contents(tmp_path / "a" / "train_x")


def test_a_damaged_archive_loses_what_it_lost_and_says_so(photos, tmp_path):
    archived = into_archives(photos, tmp_path / "archived", 2)
    victim = archived / "train" / "images_001.tar"
    with tarfile.open(victim) as tar:
        lost = [Path(member.name).stem for member in tar][-3:]
        cut = tar.getmembers()[-3].offset_data + 10
    victim.write_bytes(victim.read_bytes()[:cut])
    with tarfile.open(archived / "test" / "images_000.tar", "a") as tar:
        link = tarfile.TarInfo("a/b/c/abc.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(LandmarkRetrievalError, match=r"images_001\.tar"):
        shard_gldv2(archived, tmp_path / "never", ("full",), workers=1, verify_md5=True)
    said = []
    manifests = shard_gldv2(archived, tmp_path / "a", ("full",), workers=1, skip_bad=True, say=said.append)
    assert said == [
        f"1 members of archives are no photos, 1 archives are damaged: {tmp_path / 'a/skipped_members.csv'}"
    ]
    assert manifests["train_full"].photos == 45
    with (tmp_path / "a" / "train_full" / "refused.csv").open(newline="") as file:
        assert sorted(row["id"] for row in csv.DictReader(file)) == sorted(lost)
    with (tmp_path / "a" / "skipped_members.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["archive"], row["member"]) for row in rows] == [
        ("train/images_001.tar", ""),
        ("test/images_000.tar", "a/b/c/abc.jpg"),
    ]
    assert "damaged" in rows[0]["reason"] and "a link" in rows[1]["reason"]


def test_extracted_photos_come_before_archives_and_it_is_said(photos, tmp_path):
    archived = into_archives(photos, tmp_path / "archived", 1)
    shutil.copytree(photos / "train", archived / "train", dirs_exist_ok=True)
    (archived / "train" / "images_000.tar").write_bytes(b"never read")
    said = []
    assert shard_gldv2(archived, tmp_path / "a", ("c",), workers=1, say=said.append)["train_c"].refused == 0
    assert said == [f"{archived / 'train'} holds archives and extracted photos: the extracted ones are taken"]


def test_another_call_with_more_sets_reads_no_headers_again(photos, tmp_path):
    archived = into_archives(photos, tmp_path / "archived", 2)
    first = shard_gldv2(archived, tmp_path / "a", ("c",), workers=1)
    path = archived / "train" / "images_000.tar"
    held, whole = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
    with pytest.raises(LandmarkRetrievalError, match=r"images_000\.tar: the file|cannot be used"):
        shard_gldv2(archived, tmp_path / "a", ("c", "full"), workers=1)
    path.write_bytes(whole)
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
    again = shard_gldv2(archived, tmp_path / "a", ("c", "full"), workers=1)
    assert again["train_c"] == first["train_c"]
    assert again["train_full"].photos == 48


def test_md5_without_archives(photos, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"no archives .* to verify"):
        shard_gldv2(photos, tmp_path / "a", ("c",), workers=1, verify_md5=True)


def test_files_named_as_in_the_2019_download(photos, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(photos, root)
    (root / "metadata").mkdir()
    for name in ("retrieval_solution", "recognition_solution", "index", "test"):
        version = "_v2.1" if "solution" in name else ""
        (root / f"{name}.csv").rename(root / "metadata" / f"{name}{version}.csv")
    (root / "metadata" / "retrieval_solution_v2.csv").write_text("an old version\n")
    said = []
    shard_gldv2(root, tmp_path / "a", ("c",), workers=1, say=said.append)
    shard_gldv2(photos, tmp_path / "b", ("c",), workers=1, say=lambda _: pytest.fail("nothing to say"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(said) == 4
    assert f"{root / 'metadata' / 'retrieval_solution_v2.1.csv'} is taken for retrieval_solution.csv" in said


def test_a_bad_solution_is_told_before_the_sharding(photos, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(photos, root)
    (root / "retrieval_solution_v2.1.csv").write_text("id,images,Usage\nx,,Private\n")
    with pytest.raises(LandmarkRetrievalError, match=r"retrieval_solution_v2\.1\.csv, line 2"):
        shard_gldv2(root, tmp_path / "a", ("c",), workers=1)
    assert not (tmp_path / "a").exists()


def test_a_longest_side(photos, tmp_path):
    longest = []
    for side in (None, 40):
        out = tmp_path / str(side)
        shard_gldv2(photos, out, ("c",), workers=1, longest_side=side)
        images = [
            cv2.imdecode(np.frombuffer(photo.data, np.uint8), cv2.IMREAD_COLOR)
            for photo in ShardedPhotos.open(out / "index").photos()
        ]
        longest.append(max(max(image.shape) for image in images))
    assert longest[0] > 40 == longest[1]


def test_more_photos_of_known_landmarks(photos, shards, tmp_path):
    with (photos / "train.csv").open(newline="") as file:
        rows = [(row["id"], row["landmark_id"]) for row in csv.DictReader(file)]
    wanted = [row for row in rows if row[1] != rows[0][1]][:7]
    path = tmp_path / "extra.csv"
    lines = [f"{photo},{landmark}\n" for photo, landmark in [*wanted, ("new1", "999999"), ("new2", "999999")]]
    path.write_text("id,landmark_id\n" + "".join(lines), encoding="utf-8-sig")
    said = []
    out = tmp_path / "s"
    options = {"workers": 1, "say": said.append}
    manifest = shard_csv(photos / "train", out, path, "wit", shards / "train_c", **options)["train_wit"]
    known = Manifest.read(shards / "train_c")
    assert manifest.classes == known.classes
    assert manifest.photos == 7
    assert said == [f"2 photos of 1 landmarks that {shards / 'train_c'} does not have are left out"]
    labels = {photo.id: photo.label for photo in ShardedPhotos.open(out / "train_wit").photos()}
    assert labels == {photo: known.classes.index(landmark) for photo, landmark in wanted}
    assert listing(out) == {"format": 1, "folders": ["train_wit"], "files": []}

    path.write_text("id,landmark_id\n" + "".join(lines[:7]))
    alone = shard_csv(photos / "train", out, path, **options)["train_extra"]
    assert alone.classes == tuple(sorted({landmark for _, landmark in wanted}, key=int))
    assert listing(out)["folders"] == ["train_extra", "train_wit"]
    path.write_text("id,landmark_id\n" + lines[0] + f"gone,{wanted[0][1]}\n")
    with pytest.raises(LandmarkRetrievalError, match=r"gone.*no such file"):
        shard_csv(photos / "train", out, path, "other", **options)
    assert shard_csv(photos / "train", out, path, "other", skip_bad=True, **options)["train_other"].refused == 1


def test_all_photos_filtered_to_the_clean_landmarks_are_the_expanded_set(photos, shards, tmp_path):
    arguments = (photos / "train.csv", "by_hand", shards / "train_c", 10)
    shard_csv(photos / "train", tmp_path, *arguments, workers=1)
    assert contents(tmp_path / "train_by_hand") == contents(shards / "train_x")


def test_refusals_of_lists(photos, shards, tmp_path):
    path = tmp_path / "extra.csv"
    path.write_text("id,landmark_id\nabc,1\n")
    for name in ("", "a/b", "..", "a b"):
        with pytest.raises(LandmarkRetrievalError, match="cannot be the name of a training set"):
            shard_csv(photos, tmp_path / "s", path, name)
    with pytest.raises(LandmarkRetrievalError, match="have no landmarks"):
        shard_csv(photos, tmp_path / "s", path, "wit", shards / "index")
    with pytest.raises(LandmarkRetrievalError, match="no shard manifest"):
        shard_csv(photos, tmp_path / "s", path, "wit", tmp_path / "nowhere")


def test_revisited(photos, tmp_path):
    pictures = sorted((photos / "index").rglob("*.jpg"))[:5]
    names = [f"oxford_{n:06d}" for n in range(5)]
    (tmp_path / "photos").mkdir()
    for picture, name in zip(pictures, names, strict=True):
        shutil.copy(picture, tmp_path / "photos" / f"{name}.jpg")
    queries = [
        {"id": names[3], "box": [1.5, 2.5, 30.2, 40.8], "easy": [0], "hard": [], "junk": [2]},
        {"id": names[4], "box": [0, 0, 20, 20], "easy": [], "hard": [1], "junk": []},
    ]
    truth = {"format": 1, "images": names[:3], "queries": queries}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    out = tmp_path / "s"
    manifests = shard_revisited(tmp_path / "photos", out, tmp_path / "truth.json", workers=1)
    assert {name: manifest.photos for name, manifest in manifests.items()} == {"index": 3, "test": 2}
    assert json.loads((out / "revisited.json").read_text()) == truth
    assert listing(out) == {"format": 1, "folders": ["index", "test"], "files": ["revisited.json"]}
    index, test = (list(ShardedPhotos.open(out / name).photos()) for name in ("index", "test"))
    assert [(photo.id, photo.label, photo.box) for photo in index] == [(name, None, None) for name in names[:3]]
    assert [(photo.id, photo.box) for photo in test] == [(names[3], (2, 2, 30, 41)), (names[4], (0, 0, 20, 20))]
    assert index[1].data == pictures[1].read_bytes()


def test_a_folder_says_what_it_has(photos, tmp_path):
    for n, path in enumerate(sorted((photos / "train").rglob("*.jpg"))[:8]):
        (tmp_path / "own" / f"Place {n % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "own" / f"Place {n % 2}")
    shard_folder(tmp_path / "own", tmp_path / "s", 0.5, workers=1)
    assert listing(tmp_path / "s") == {
        "format": 1,
        "folders": ["index", "test", "train"],
        "files": ["retrieval_solution.csv"],
    }
