import contextlib
import copy
import json
import os
import pickle
import pickletools
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmark_retrieval.data.importers.revisited import read_ground_truth, read_revisited
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional import revisited_average_precision

REAL = Path(os.environ.get("REVISITED_GROUND_TRUTH", Path(__file__).parents[4] / "shared" / "data" / "revisited"))

SMALL = {
    "imlist": ["i_0", "i_1", "i_2", "i_3"],
    "qimlist": ["q_0", "q_1"],
    "gnd": [
        {"bbx": [0.5, 1.5, 10.5, 12], "easy": [0], "hard": [2], "junk": []},
        {"bbx": [3, 4, 20, 15], "easy": [], "hard": [1, 3], "junk": [0]},
    ],
}


def dumped(path, content, protocol=3):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "jpg"
    folder.mkdir(parents=True)
    for n, name in enumerate(SMALL["imlist"] + SMALL["qimlist"]):
        cv2.imwrite(str(folder / f"{name}.jpg"), np.full((18, 24, 3), 20 * n, np.uint8))
    return folder


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_small_ground_truth(tmp_path, photos, protocol):
    truth = read_ground_truth(dumped(tmp_path / "gnd.pkl", SMALL, protocol))
    assert truth.images == ("i_0", "i_1", "i_2", "i_3")
    assert truth.queries == ("q_0", "q_1")
    # halves go to the even side, as in PIL's crop
    assert truth.whole_boxes.tolist() == [[0, 2, 10, 12], [3, 4, 20, 15]]
    index, query = read_revisited(photos.parent, truth)
    assert list(index.ids) == SMALL["imlist"]
    assert index.labels is None and query.labels is None and index.boxes is None
    assert query.photo(1).box == (3, 4, 20, 15)
    assert query.photo(1).data == (photos / "q_1.jpg").read_bytes()
    assert read_revisited(photos, truth)[0].photo(2).data == (photos / "i_2.jpg").read_bytes()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_are_read_as_lists(tmp_path, protocol):
    content = copy.deepcopy(SMALL)
    content["gnd"][0].update(bbx=np.array([0.5, 1.5, 10.5, 12]), easy=np.array([0]), junk=np.array([], ">i4"))
    content["gnd"][1].update(hard=[np.int64(1), np.int32(3)], bbx=np.array([3, 4, 20, 15], np.float32))
    truth = read_ground_truth(dumped(tmp_path / "gnd.pkl", content, protocol))
    plain = read_ground_truth(dumped(tmp_path / "plain.pkl", SMALL))
    assert truth.relevant == plain.relevant
    np.testing.assert_array_equal(truth.boxes, plain.boxes)


def test_json_says_the_same(tmp_path):
    truth = read_ground_truth(dumped(tmp_path / "gnd.pkl", SMALL))
    truth.write(tmp_path / "revisited.json")
    again = read_ground_truth(tmp_path / "revisited.json")
    assert (again.images, again.queries, again.relevant) == (truth.images, truth.queries, truth.relevant)
    np.testing.assert_array_equal(again.boxes, truth.boxes)
    found = revisited_average_precision([[0, 2, 1, 3], [1, 3, 0, 2]], again.relevant)
    assert found["medium"]["map"] == 1.0


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real ground truth at {REAL} (or REVISITED_GROUND_TRUTH)")
@pytest.mark.parametrize(("name", "images"), [("roxford5k", 4993), ("rparis6k", 6322)])
def test_the_real_ground_truth(tmp_path, name, images):
    path = REAL / f"gnd_{name}.pkl"
    truth = read_ground_truth(path)
    trusted = pickle.loads(path.read_bytes())
    assert len(truth.images) == images
    assert len(truth.queries) == 70
    assert list(truth.images) == trusted["imlist"]
    for held, query in zip(truth.relevant, trusted["gnd"], strict=True):
        assert held == {key: list(query[key]) for key in ("easy", "hard", "junk")}
    np.testing.assert_array_equal(truth.boxes, [query["bbx"] for query in trusted["gnd"]])
    index, query = read_revisited(tmp_path, truth)
    assert (len(index), len(query)) == (images, 70)
    assert query.where(0).endswith(f"{trusted['qimlist'][0]}.jpg")
    truth.write(tmp_path / "revisited.json")
    assert read_ground_truth(tmp_path / "revisited.json").relevant == truth.relevant


class Harm:
    def __init__(self, call, *arguments):
        self.called = call, arguments

    def __reduce__(self):
        return self.called


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    touched = tmp_path / "touched"
    for harm in (
        Harm(os.system, f"touch {touched}"),
        Harm(os.mkdir, str(touched)),
        Harm(eval, f"open({str(touched)!r}, 'w')"),
        Harm(getattr, os, "system"),
        Harm(bytearray, 10),
        Harm(np.load, str(touched)),
        Path("x"),
        np.array(["text"]),
        np.array([{}]),
        np.zeros(3, [("x", "i4")]),
    ):
        content = {**SMALL, "more": harm}
        if isinstance(harm, Harm) and harm.called[0] is getattr:
            data = b"c__builtin__\ngetattr\n."
            (tmp_path / "gnd.pkl").write_bytes(data)
        else:
            dumped(tmp_path / "gnd.pkl", content)
        with pytest.raises(LandmarkRetrievalError, match=r"asks for .*Nothing of it was run"):
            read_ground_truth(tmp_path / "gnd.pkl")
        assert not touched.exists()


def test_pickles_that_would_fill_the_memory_are_refused(tmp_path):
    path = tmp_path / "gnd.pkl"
    path.write_bytes(b"\x80\x03]r\xff\xff\xff\x7f.")  # room for two billion remembered objects
    with pytest.raises(LandmarkRetrievalError, match="room for 2,147,483,647 objects"):
        read_ground_truth(path)
    path.write_bytes(b"\x80\x04\x8e" + b"\xff" * 6 + b"\0\0.")  # 280 TB of bytes
    with pytest.raises(LandmarkRetrievalError, match="not a whole pickle"):
        read_ground_truth(path)
    laughs = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 10
    for content in ({**SMALL, "more": laughs}, {**SMALL, "imlist": laughs}, {**SMALL, "gnd": laughs}):
        dumped(path, content)
        if "more" in content:
            assert len(read_ground_truth(path).queries) == 2
        else:
            with pytest.raises(LandmarkRetrievalError, match="is damaged"):
                read_ground_truth(path)
    itself = []
    itself.append(itself)
    with pytest.raises(LandmarkRetrievalError, match="contains itself"):
        read_ground_truth(dumped(path, {**SMALL, "more": itself}))


def test_a_pickle_damaged_anywhere_gives_an_error_or_a_ground_truth(tmp_path):
    whole = pickle.dumps(SMALL, 3)
    assert len(list(pickletools.genops(whole))) > 50
    rng = np.random.default_rng(1)
    path = tmp_path / "gnd.pkl"
    read = 0
    for n in range(400):
        changed = bytearray(whole[: int(rng.integers(len(whole)))] if n % 2 else whole)
        for _ in range(3):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256)) if changed else 0
        path.write_bytes(changed)
        with contextlib.suppress(LandmarkRetrievalError):
            read += len(read_ground_truth(path).queries) == 2
    assert read < 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("gnd"), "no 'gnd'"),
        (lambda c: c.pop("imlist"), "no 'imlist'"),
        (lambda c: c["gnd"][1].pop("junk"), "no 'junk'"),
        (lambda c: c["gnd"][1].pop("bbx"), "no 'bbx'"),
        (lambda c: c["gnd"].pop(), "names 2 queries and has the answers of 1"),
        (lambda c: c["gnd"][0]["easy"].append(4), r"easy of query q_0 must hold whole numbers from 0 to 3"),
        (lambda c: c["gnd"][0]["hard"].append(-1), "hard of query q_0"),
        (lambda c: c["gnd"][0]["hard"].append(1.0), "hard of query q_0"),
        (lambda c: c["gnd"][0]["hard"].append(10**5000), "hard of query q_0"),
        (lambda c: c["gnd"][0]["junk"].append(0), "stands twice among easy, hard and junk of query q_0"),
        (lambda c: c["gnd"][1].update(bbx=[3, 4, 3, 15]), "box of query q_1 .* is empty"),
        (lambda c: c["gnd"][1].update(bbx=[-3, 4, 3, 15]), "box of query q_1 .* begins outside"),
        (lambda c: c["gnd"][1].update(bbx=[3, 4, 15]), "box of query q_1 is not four numbers"),
        (lambda c: c["gnd"][1].update(bbx=[3, 4, 15, float("nan")]), "box of query q_1 is not four numbers"),
        (lambda c: c["gnd"][1].update(bbx=[3, 4, 15, "16"]), "box of query q_1 is not four numbers"),
        (lambda c: c["imlist"].append("i_0"), "i_0 stands twice among its images"),
        (lambda c: c["qimlist"].__setitem__(0, "../q_0"), "cannot be the name of a photo"),
        (lambda c: c["imlist"].__setitem__(0, 7), "a int among its images cannot be the name"),
    ],
)
def test_bad_ground_truth(tmp_path, change, message):
    content = copy.deepcopy(SMALL)
    change(content)
    with pytest.raises(LandmarkRetrievalError, match=message):
        read_ground_truth(dumped(tmp_path / "gnd.pkl", content))


def test_bad_json(tmp_path):
    path = tmp_path / "revisited.json"
    for text in ("[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "queries": [3], "images": []}', "{"):
        path.write_text(text)
        with pytest.raises(LandmarkRetrievalError, match=r"revisited\.json is damaged"):
            read_ground_truth(path)
    for name in ("nowhere.pkl", "nowhere.json"):
        with pytest.raises(LandmarkRetrievalError, match="no ground truth at"):
            read_ground_truth(tmp_path / name)
    truth = read_ground_truth(dumped(tmp_path / "gnd.pkl", SMALL))
    truth.write(path)
    content = json.loads(path.read_text())
    content["queries"][0]["easy"] = [9]
    path.write_text(json.dumps(content))
    with pytest.raises(LandmarkRetrievalError, match="easy of query q_0"):
        read_ground_truth(path)


def test_boxes_outside_of_the_photo(tmp_path, photos):
    content = copy.deepcopy(SMALL)
    content["gnd"][1]["bbx"] = [24, 4, 30, 15]
    truth = read_ground_truth(dumped(tmp_path / "gnd.pkl", content))
    with pytest.raises(LandmarkRetrievalError, match=r"box of query q_1 begins at 24, 4, outside .* 24 x 18 pixels"):
        read_revisited(photos, truth)
    (photos / "q_1.jpg").unlink()
    assert len(read_revisited(photos, truth)[1]) == 2  # a missing photo is refused when it is sharded
