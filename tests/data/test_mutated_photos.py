"""Damaged photos, 2,000 JPEGs of them: each one is a picture or a refusal, never anything else."""

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landmark_retrieval.data.augmentation import FastTransform
from landmark_retrieval.data.decode import BrokenPhotoError, check, decode

REAL = Path(os.environ.get("LANDMARK_PHOTOS", Path(__file__).parents[3] / "shared" / "data" / "gldv2mini"))


@pytest.fixture(scope="module")
def originals(photos):
    """Real photos where they are at hand, else drawn ones."""
    if REAL.is_dir():
        large, small = sorted((REAL.parent / "gldv2" / "images").glob("*.jpg")), sorted(REAL.rglob("*.jpg"))
        found = large[:5] + small[:: max(len(small) // 35, 1)]
    else:
        found = sorted(photos.rglob("*.jpg"))[:40]
    assert len(found) >= 30
    return [path.read_bytes() for path in found]


def cut(data, rng):
    return data[: rng.integers(len(data))]


def cut_with_end_mark(data, rng):
    return data[: rng.integers(len(data))] + b"\xff\xd9"


def bytes_flipped(data, rng):
    made = bytearray(data)
    for at in rng.integers(2, len(data), rng.integers(1, 6)):
        made[at] = rng.integers(256)
    return bytes(made)


def block(data, rng):
    first = int(rng.integers(2, len(data) - 1))
    return first, min(first + int(rng.integers(1, 600)), len(data))


def removed(data, rng):
    first, last = block(data, rng)
    return data[:first] + data[last:]


def doubled(data, rng):
    first, last = block(data, rng)
    return data[:last] + data[first:]


def zeroed(data, rng):
    first, last = block(data, rng)
    return data[:first] + bytes(last - first) + data[last:]


def header_changed(data, rng):
    made = bytearray(data)
    for at in rng.integers(2, min(620, len(data)), rng.integers(1, 4)):
        made[at] = rng.integers(256)
    return bytes(made)


def size_changed(data, rng):
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    made = bytearray(data)
    made[frame + 5 + rng.integers(4)] = rng.integers(256)
    return bytes(made)


def rubbish_after_the_end(data, rng):
    return data + rng.bytes(int(rng.integers(1, 2000)))


MUTATIONS = [
    cut,
    cut_with_end_mark,
    bytes_flipped,
    removed,
    doubled,
    zeroed,
    header_changed,
    size_changed,
    rubbish_after_the_end,
]


def outcome_of(way, data):
    try:
        return "good", way(data)
    except BrokenPhotoError as error:
        return ("refused", None) if len(str(error)) > 10 else ("refused without a reason", None)


def ways_to_decode():
    transform = FastTransform(64)
    return {"decode": decode, "check": check, "fast": lambda data: transform(data, (0, 1))}


def outcomes_of(data):
    """ "good" or "refused" by the way to decode; a good picture is also looked at."""
    outcomes = {}
    for name, way in ways_to_decode().items():
        outcomes[name], image = outcome_of(way, data)
        if outcomes[name] == "good" and name != "check":
            assert image.dtype == np.uint8
            assert image.ndim == 3 and image.shape[2] == 3 and image.size
            assert name == "decode" or image.shape == (64, 64, 3)
    return outcomes


def test_every_mutated_photo_decodes_or_is_refused_with_a_reason(originals, capfd):
    rng = np.random.default_rng(0)
    counts = {name: Counter() for name in ways_to_decode()}
    for number in range(2000):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        outcomes = outcomes_of(mutation(originals[number % len(originals)], rng))
        assert len(set(outcomes.values())) == 1, f"photo {number}: {outcomes}"
        for name, outcome in outcomes.items():
            counts[name][outcome] += 1
        if mutation in (cut, cut_with_end_mark):
            assert outcomes["decode"] == "refused", f"photo {number} is cut"
        if mutation is rubbish_after_the_end:
            assert outcomes["decode"] == "good", f"photo {number} is whole"
    for count in counts.values():
        assert count["good"] + count["refused"] == 2000
        assert min(count["good"], count["refused"]) > 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_mutated_photos_of_other_kinds(form, originals, capfd):
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(originals[-1])).resize((60, 40)).save(buffer, form)
    counts = Counter()
    for number in range(300):
        mutation = [cut, bytes_flipped, removed, doubled, zeroed, header_changed, rubbish_after_the_end][number % 7]
        outcomes = outcomes_of(mutation(buffer.getvalue(), rng))
        assert len(set(outcomes.values())) == 1, f"photo {number}: {outcomes}"
        counts[outcomes["decode"]] += 1
        assert mutation is not cut or outcomes["decode"] == "refused"
    assert counts["good"] + counts["refused"] == 300
    assert min(counts.values()) > 30
    assert capfd.readouterr() == ("", "")
