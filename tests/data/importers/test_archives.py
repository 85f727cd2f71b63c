"""Photos in tars: found by their headers, read in place; hostile and damaged archives are accounted for."""

import csv
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from landmark_retrieval.data.importers.archive_scan import archives_in, scan_archives
from landmark_retrieval.data.importers.archives import Skipped, write_skipped
from landmark_retrieval.data.importers.md5sums import verify_md5
from landmark_retrieval.data.photos import Ids, PhotoTable
from landmark_retrieval.errors import LandmarkRetrievalError

BLOCK = 512


def place(photo, prefix=""):
    return f"{prefix}{photo[0]}/{photo[1]}/{photo[2]}/{photo}.jpg"


def member(name, data=b"", kind=tarfile.REGTYPE, **attributes):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def some_photos(count, seed=0, prefix=""):
    rng = np.random.default_rng(seed)
    ids = [f"{prefix}{rng.integers(16**14):014x}" for _ in range(count)]
    return {photo: rng.bytes(int(rng.integers(1, 2000))) for photo in ids}


def read_all(found, ids):
    """id -> bytes of those that can be read; every other one has to be reported as missing."""
    ids = Ids(ids)
    table = PhotoTable(ids, found.files(ids))
    held = {}
    for row, photo in enumerate(ids):
        try:
            held[photo] = table.photo(row).data
        except FileNotFoundError:
            assert table.files.stamp(row, photo) is None
    return held


@pytest.fixture
def photos():
    return some_photos(30)


@pytest.fixture
def archives(photos, tmp_path):
    """The photos in three archives."""
    ids = list(photos)
    return [
        write_tar(
            tmp_path / "train" / f"images_{n:03d}.tar",
            [member(place(photo, "./" if n == 1 else ""), photos[photo]) for photo in ids[n * 10 : n * 10 + 10]],
        )
        for n in range(3)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_photos_are_read_in_place(archives, photos, tmp_path, workers):
    assert archives_in(tmp_path / "train") == archives
    found = scan_archives(archives, tmp_path / "cache", workers)
    assert found.skipped == ()
    assert list(found.ids) == sorted(photos)
    assert read_all(found, photos) == photos
    assert read_all(found, ["0" * 16, *photos]) == photos
    table = PhotoTable(Ids(photos), found.files(Ids(photos)))
    assert "images_001.tar" in table.where(12)


def test_a_job_carries_its_own_rows_and_works_in_another_process(archives, photos, tmp_path):
    found = scan_archives(archives, tmp_path / "cache", 1)
    ids = Ids([*photos] * 1000)
    table = PhotoTable(ids, found.files(ids))
    part = pickle.dumps(table.take(np.array([5, 29])))
    assert len(part) < 2000
    assert [photo.data for photo in pickle.loads(part).photos()] == [list(photos.values())[row] for row in (5, 29)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, format):
    photos = {"ä" * 5: b"one", "abc" + "d" * 90: b"two"}
    folders = "a folder that has a long name/" * 4
    members = [member(place(photo, folders), data) for photo, data in photos.items()]
    found = scan_archives([write_tar(tmp_path / "t.tar", members, format)], tmp_path / "cache", 1)
    assert found.skipped == ()
    assert read_all(found, photos) == photos


def test_hostile_members_are_listed_and_never_read(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    good = {"abc1": b"good", "abd2": b"also good"}
    hostile = [
        member("a/b/c/abcl.jpg", kind=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.jpg")),
        member("a/b/c/abch.jpg", kind=tarfile.LNKTYPE, linkname="a/b/c/abc1.jpg"),
        member("a/b/c/abcd.jpg", kind=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("a/b/c/abcf.jpg", kind=tarfile.FIFOTYPE),
        member("a/b/c/abcu.jpg", b"x", kind=b"Z"),
        member("/a/b/c/abca.jpg", b"absolute"),
        member("../a/b/c/abcp.jpg", b"above"),
        member("a/../a/b/c/abcq.jpg", b"above"),
        member("a/b/c/xyz1.jpg", b"elsewhere"),
        member("a/b/c/abc blank.jpg", b"blank"),
        member("a/b/c/abc\\1.jpg", b"backslash"),
        member("a/b/c/abc.png", b"png"),
        member("README", b"text"),
    ]
    folders = [member(name, kind=tarfile.DIRTYPE) for name in ("a", "a/b", "a/b/c")]
    members = [*folders, member("a/b/c/abc1.jpg", good["abc1"]), *hostile, member("a/b/d/abd2.jpg", good["abd2"])]
    found = scan_archives([write_tar(tmp_path / "t.tar", members)], tmp_path / "cache", 1)
    assert list(found.ids) == list(good)
    assert read_all(found, good) == good
    listed = {row.member: row for row in found.skipped}
    assert set(listed) == {info.name for info, _ in hostile} | {"a/"}
    assert listed["a/"].count == 3
    assert "a link" in listed["a/b/c/abcl.jpg"].reason
    assert "a device" in listed["a/b/c/abcd.jpg"].reason
    assert write_skipped(tmp_path / "skipped.csv", found.skipped) == len(hostile) + 3
    with (tmp_path / "skipped.csv").open(newline="") as file:
        assert [row["member"] for row in csv.DictReader(file)] == [row.member for row in found.skipped]
    assert write_skipped(tmp_path / "skipped.csv", []) == 0
    assert not (tmp_path / "skipped.csv").exists()


def test_of_equal_ids_the_first_counts(tmp_path):
    first = write_tar(tmp_path / "a.tar", [member("a/b/c/abc.jpg", b"first"), member("x/y/z/xyz.jpg", b"z")])
    other = write_tar(tmp_path / "b.tar", [member("a/b/c/abc.jpg", b"again"), member("./a/b/c/abc.jpg", b"3rd")])
    found = scan_archives([first, other], tmp_path / "cache", 1)
    assert read_all(found, ["abc", "xyz"]) == {"abc": b"first", "xyz": b"z"}
    assert [(row.archive, row.member) for row in found.skipped] == [("b.tar", "abc")] * 2
    assert all("a.tar" in row.reason for row in found.skipped)


def test_what_was_scanned_is_not_read_again(archives, photos, tmp_path):
    cache = tmp_path / "cache"
    scan_archives(archives, cache, 1)
    changed, whole = os.stat(archives[0]), archives[0].read_bytes()
    archives[0].write_bytes(bytes(len(whole)))
    os.utime(archives[0], ns=(changed.st_atime_ns, changed.st_mtime_ns))
    assert list(scan_archives(archives, cache, 1).ids) == sorted(photos)  # from the cache: the archive is all zeros
    os.utime(archives[0], ns=(changed.st_atime_ns, changed.st_mtime_ns + 10**9))
    assert len(scan_archives(archives, cache, 1).ids) == 20
    archives[0].write_bytes(whole)
    for damaged in (b"", b"PK\x03\x04 no archive", (cache / "images_001.tar.npz").read_bytes()[:300]):
        (cache / "images_001.tar.npz").write_bytes(damaged)
        assert read_all(scan_archives(archives, cache, 1), photos) == photos
    (cache / "images_002.tar.npz").write_bytes((cache / "images_001.tar.npz").read_bytes())
    assert read_all(scan_archives(archives, cache, 1), photos) == photos


def test_an_archive_that_changes_after_the_scan_is_not_trusted(archives, photos, tmp_path):
    ids = Ids(photos)
    files = scan_archives(archives, tmp_path / "cache", 1).files(ids)
    archives[0].write_bytes(archives[0].read_bytes()[:3000])
    with pytest.raises(OSError, match=r"images_000\.tar has changed since"):
        files.read(0, ids[0])


def test_few_descriptors_stay_open(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counts open files in /proc")
    photos = some_photos(150)
    archives = [
        write_tar(tmp_path / f"{n:03d}.tar", [member(place(photo), data)])
        for n, (photo, data) in enumerate(photos.items())
    ]
    found = scan_archives(archives, tmp_path / "cache", 1)
    before = len(os.listdir("/proc/self/fd"))
    assert read_all(found, photos) == photos
    assert len(os.listdir("/proc/self/fd")) - before <= 64


def test_extracted_photos_come_before_archives(archives, tmp_path):
    (tmp_path / "train" / "md5sum").mkdir()
    assert archives_in(tmp_path / "train") == archives
    (tmp_path / "train" / "a").mkdir()
    assert archives_in(tmp_path / "train") == []
    assert archives_in(tmp_path / "nowhere") == []


def cut_at(path, place):
    path.write_bytes(path.read_bytes()[:place])


def test_what_lies_before_damage_is_used_and_the_damage_is_one_entry(archives, photos, tmp_path):
    ids = list(photos)
    with tarfile.open(archives[1]) as tar:
        fifth = tar.getmembers()[5]
    for place_, what in (
        (fifth.offset_data + 1, "beyond the end"),
        (fifth.offset + 100, "cut short"),
        (fifth.offset, "without the end mark"),
    ):
        cut_at(archives[1], place_)
        found = scan_archives(archives, tmp_path / "cache", 1)
        (damage,) = found.skipped
        assert (damage.archive, damage.member, damage.count) == ("images_001.tar", "", 1)
        assert what in damage.reason
        assert read_all(found, ids) == {photo: photos[photo] for photo in ids[:15] + ids[20:]}
    archives[1].write_bytes(b"")
    (damage,) = scan_archives(archives, tmp_path / "cache", 1).skipped
    assert "byte 0" in damage.reason


def sealed(header):
    """A header with the checksum that fits it."""
    summed = sum(header[:148]) + 8 * 32 + sum(header[156:])
    return header[:148] + b"%06o\0 " % summed + header[156:]


def mutate(whole, headers, rng):
    """A damaged archive and the first byte at which it differs."""
    kind = rng.integers(8)
    at = int(rng.integers(len(whole)))
    header = int(rng.choice(headers))
    block = at // BLOCK * BLOCK
    if kind == 0:
        changed = bytearray(whole)
        for place_ in rng.integers(len(whole), size=20):
            changed[place_] ^= int(rng.integers(1, 256))
        changed = bytes(changed)
    elif kind == 1:
        changed = bytearray(whole)
        changed[header + int(rng.integers(BLOCK))] ^= int(rng.integers(1, 256))
        changed = bytes(changed)
    elif kind == 2:
        changed = whole[:at]
    elif kind == 3:
        changed = whole[:block] + whole[block : block + BLOCK] * 2 + whole[block + BLOCK :]
    elif kind == 4:
        block = header if rng.integers(2) else block
        changed = whole[:block] + bytes(BLOCK) + whole[block + BLOCK :]
    elif kind == 5:
        changed = whole[:block] + whole[block + BLOCK :]
    else:
        size = [
            b"77777777777\0",  # 8 GiB
            b"\x80" + b"\xff" * 11,
            b"\xff" * 12,  # -1 in base 256
            b"\xff" * 10 + b"\xfe\0",
            b"-0000000001\0",
            b"%011o\0" % int(rng.integers(10 * len(whole))),
            b"%011o\0" % int(rng.integers(3000)),
            b"\0" * 12,
            rng.bytes(12),
        ][rng.integers(9)]
        old = whole[header : header + BLOCK]
        new = old[:124] + size + old[136:]
        if kind == 7:
            new = new[:156] + bytes([int(rng.choice(list(b"017xgLKSDZ\0")))]) + new[157:]
        changed = whole[:header] + sealed(new) + whole[header + BLOCK :]
    both = min(len(changed), len(whole))
    differs = np.flatnonzero(np.frombuffer(changed[:both], np.uint8) != np.frombuffer(whole[:both], np.uint8))
    return changed, int(differs[0]) if len(differs) else both


def test_two_hundred_damaged_archives(tmp_path):
    """Each photo is read or reported as missing, nothing is read outside of the archive, and what lies before the
    damage is as it was."""
    rng = np.random.default_rng(5)
    photos = some_photos(40)
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    damaged = 0
    for n in range(200):
        long = "x" * 120 + "/" if n % 5 == 0 else ""  # long names have headers of their own in two of the formats
        path = tmp_path / f"{n}.tar"
        members = [member(place(photo, long), data) for photo, data in photos.items()]
        write_tar(path, members, formats[n % 3])
        with tarfile.open(path) as tar:
            ends = {photo: m.offset_data + m.size for photo, m in zip(photos, tar.getmembers(), strict=True)}
            headers = [m.offset for m in tar.getmembers()] + [m.offset_data - BLOCK for m in tar.getmembers()]
        changed, first = mutate(path.read_bytes(), headers, rng)
        path.write_bytes(changed)

        found = scan_archives([path], tmp_path / "cache", 1)
        located = found.located
        assert np.all(located.offset + located.size.astype(np.int64) <= len(changed))
        assert np.all(located.offset >= BLOCK)
        held = read_all(found, photos)
        assert set(held) <= set(photos)
        for photo, data in held.items():
            row = list(found.ids).index(photo)
            assert data == changed[located.offset[row] : located.offset[row] + located.size[row]]
        untouched = {photo: data for photo, data in photos.items() if ends[photo] <= first}
        assert untouched.items() <= held.items()
        assert sum(not row.member for row in found.skipped) <= 1
        damaged += any("damaged" in row.reason for row in found.skipped)
    assert damaged > 80  # flips in photos are no damage of an archive


def write_md5(folder, path, text=None):
    folder.mkdir(parents=True, exist_ok=True)
    sum_ = hashlib.md5(path.read_bytes()).hexdigest()
    (folder / f"md5.{path.stem}.txt").write_text(text if text is not None else f"{sum_}  {path.name}\n")


def test_md5_files(archives, tmp_path):
    beside, apart, cache = tmp_path / "train", tmp_path / "md5sum" / "train", tmp_path / "cache"
    for path in archives[:2]:
        write_md5(beside, path)
    with pytest.raises(LandmarkRetrievalError, match=r"1 of 3 .* have no md5 file.*images_002\.tar"):
        verify_md5(archives, (beside, apart), cache, 1)
    write_md5(apart, archives[2], hashlib.md5(archives[2].read_bytes()).hexdigest().upper())
    verify_md5(archives, (beside, apart), cache, 1)
    archives[0].write_bytes(archives[0].read_bytes() + bytes(512))
    write_md5(beside, archives[1], "")
    with pytest.raises(LandmarkRetrievalError, match=r"2 of 3 archives .*images_000\.tar, images_001\.tar\. Download"):
        verify_md5(archives, (beside, apart), cache, 1)
    write_md5(beside, archives[0])
    write_md5(beside, archives[1])
    verify_md5(archives, (beside, apart), cache, 1)


def test_impossible_archives(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="0 archives cannot be scanned"):
        scan_archives([], tmp_path)


def test_an_account_survives_odd_names(tmp_path):
    odd = Skipped("a.tar", "a\\xff\n\ud800", "odd")
    assert write_skipped(tmp_path / "s.csv", [odd]) == 1
    assert (tmp_path / "s.csv").exists()
