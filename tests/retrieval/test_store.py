"""The descriptor store: what is written is read, an interrupted run goes on, damage is found and named."""

import json
import threading

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import write_json
from landmark_retrieval.retrieval import parts
from landmark_retrieval.retrieval.parts import Parts
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter, card_difference

CARD = {"model": "tiny", "weights_sha256": "00", "image_size": [64, 64]}


def unit_rows(rows, dim=8, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def photo_ids(rows):
    return [f"photo {number:03d} é" for number in range(rows)]


def fill(folder, rows=25, batch=4, stop=None, **kwargs):
    kwargs = {"part_size": 10, "card": CARD, **kwargs}
    ids, descriptors = photo_ids(rows), unit_rows(rows)
    with DescriptorWriter(folder, **kwargs) as writer:
        todo = [row for row, photo in enumerate(ids) if photo not in writer.done]
        for start in range(0, len(todo), batch):
            if stop is not None and todo[start] >= stop:
                raise KeyboardInterrupt
            chosen = todo[start : start + batch]
            writer.append([ids[row] for row in chosen], descriptors[chosen])
    return ids, descriptors


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3)])
@pytest.mark.parametrize("batch", [1, 4, 10, 25])
def test_what_is_written_is_read(tmp_path, dtype, tolerance, batch):
    ids, descriptors = fill(tmp_path, batch=batch, dtype=dtype)
    store = DescriptorStore.open(tmp_path, verify=True)
    assert store.ids == ids
    assert store.card == CARD
    assert (len(store), store.dim, store.dtype) == (25, 8, dtype)
    assert [len(part_ids) for part_ids, _ in store.parts()] == [10, 10, 5]
    assert all(part.dtype == dtype for _, part in store.parts())
    loaded = store.load()
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, descriptors, rtol=0, atol=tolerance)
    assert {path.name for path in tmp_path.iterdir()} == {"store.json"} | {
        f"part-0000{number}.{kind}" for number in range(3) for kind in ("npy", "ids.txt")
    }


def test_tensors_in_any_precision_are_taken(tmp_path):
    with DescriptorWriter(tmp_path, card=CARD) as writer:
        writer.append(["a"], torch.tensor([[0.5, -0.5]], dtype=torch.bfloat16, requires_grad=True))
    np.testing.assert_array_equal(DescriptorStore.open(tmp_path).load(), [[0.5, -0.5]])


def test_an_interrupted_run_goes_on_after_the_last_finished_part(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, stop=16)
    with pytest.raises(LandmarkRetrievalError, match="not finished"):
        DescriptorStore.open(tmp_path)
    assert DescriptorWriter(tmp_path, card=CARD, part_size=10).done == set(photo_ids(10))
    ids, descriptors = fill(tmp_path)
    store = DescriptorStore.open(tmp_path, verify=True)
    assert store.ids == ids
    np.testing.assert_array_equal(store.load(), descriptors)
    assert not (tmp_path / "unfinished.json").exists()


def test_half_a_part_left_by_a_crash_is_written_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, stop=16)
    (tmp_path / "part-00001.npy").write_bytes(b"half")
    ids, _ = fill(tmp_path)
    assert DescriptorStore.open(tmp_path, verify=True).ids == ids


def test_a_finished_store_is_left_alone_or_extended(tmp_path):
    fill(tmp_path, rows=25)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    fill(tmp_path, rows=25)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    ids, descriptors = fill(tmp_path, rows=40)
    store = DescriptorStore.open(tmp_path, verify=True)
    assert store.ids == ids
    np.testing.assert_array_equal(store.load()[:25], unit_rows(25))
    np.testing.assert_array_equal(store.load()[25:], descriptors[25:])


def test_a_finished_store_stays_readable_while_it_is_extended(tmp_path):
    fill(tmp_path, rows=25)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, rows=60, stop=45)
    assert len(DescriptorStore.open(tmp_path, verify=True)) == 25
    fill(tmp_path, rows=60)
    assert DescriptorStore.open(tmp_path, verify=True).ids == photo_ids(60)


@pytest.mark.parametrize("stop", [None, 16])
def test_another_card_dim_or_dtype_is_refused(tmp_path, stop):
    if stop is None:
        fill(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path, stop=stop)
    with pytest.raises(LandmarkRetrievalError, match=r"another model .*model: 'tiny' and 'huge'"):
        DescriptorWriter(tmp_path, card={**CARD, "model": "huge"})
    with pytest.raises(LandmarkRetrievalError, match="has dim 8, not 9"):
        DescriptorWriter(tmp_path, card=CARD, dim=9)
    with pytest.raises(LandmarkRetrievalError, match="has dtype float32, not float16"):
        DescriptorWriter(tmp_path, card=CARD, dtype="float16")
    assert DescriptorWriter(tmp_path, card={**CARD, "image_size": (64, 64)}).dim == 8


def test_bad_batches_are_refused_and_change_nothing(tmp_path):
    rows = unit_rows(2)
    broken, huge = rows.copy(), rows.copy()
    broken[1, 3] = np.nan
    huge[0, 0] = 1e6
    with DescriptorWriter(tmp_path, card=CARD, dtype="float16") as writer:
        writer.append(["a", "b"], rows)
        for ids, descriptors, message in [
            (["c", "d"], broken, "photo 'd' holds NaN or infinity"),
            (["c", "d"], huge, "photo 'c' holds NaN or infinity in float16"),
            (["c", "a"], rows, "Photo 'a' is in the store"),
            (["c", "c"], rows, "Photo 'c' is in the store"),
            (["c", ""], rows, "Photo id '' is empty"),
            (["c", "d\ne"], rows, "line break"),
            (["c"], rows, r"1 photos need \(1, d\)"),
            (["c", "d"], rows[:, :5], "8-d descriptors, the batch has 5-d"),
            (["c", "d"], rows[0], r"not \(8,\)"),
        ]:
            with pytest.raises(LandmarkRetrievalError, match=message):
                writer.append(ids, descriptors)
        writer.append(["c"], rows[:1])
    assert DescriptorStore.open(tmp_path).ids == ["a", "b", "c"]


def test_an_empty_store_and_odd_settings_are_refused(tmp_path):
    with (
        pytest.raises(LandmarkRetrievalError, match="No photo was added"),
        DescriptorWriter(tmp_path, card=CARD, dim=4),
    ):
        pass
    with pytest.raises(LandmarkRetrievalError, match="float32 or float16"):
        DescriptorWriter(tmp_path, card=CARD, dtype="int8")
    with pytest.raises(LandmarkRetrievalError, match="at least 1 photo"):
        DescriptorWriter(tmp_path, card=CARD, part_size=0)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def other_shape(path):
    np.save(path, np.zeros((3, 8), np.float32))


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [("part-00001.npy", damage) for damage in (truncate, other_shape, pickled, remove)]
    + [("part-00001.ids.txt", damage) for damage in (truncate, remove)],
)
def test_a_damaged_part_is_named(tmp_path, name, damage):
    fill(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(LandmarkRetrievalError, match=f"Part .*{name} is damaged .*extract the descriptors again"):
        DescriptorStore.open(tmp_path)


@pytest.mark.parametrize("name", ["part-00000.npy", "part-00001.ids.txt"])
def test_checksums_are_compared_on_request(tmp_path, name):
    fill(tmp_path)
    flip(tmp_path / name)
    assert len(DescriptorStore.open(tmp_path)) == 25
    with pytest.raises(LandmarkRetrievalError, match=f"{name} is damaged"):
        DescriptorStore.open(tmp_path, verify=True)


def test_an_id_that_comes_twice_is_named(tmp_path):
    fill(tmp_path)
    names = tmp_path / "part-00001.ids.txt"
    names.write_text(names.read_text().replace("photo 012", "photo 003"))
    with pytest.raises(LandmarkRetrievalError, match="'photo 003 é' is in the store"):
        DescriptorStore.open(tmp_path)


def test_a_folder_without_a_store_and_a_strange_description_are_named(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="no descriptor store at"):
        DescriptorStore.open(tmp_path / "nowhere")
    (tmp_path / "store.json").write_text(json.dumps({"dim": 3}))
    with pytest.raises(LandmarkRetrievalError, match="not the description of a descriptor store"):
        DescriptorStore.open(tmp_path)


def test_a_count_that_does_not_add_up_is_named(tmp_path):
    fill(tmp_path)
    description = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**description, "count": 26}))
    with pytest.raises(LandmarkRetrievalError, match=r"25 descriptors where store\.json says 26"):
        DescriptorStore.open(tmp_path)


def test_photos_can_be_left_out(tmp_path):
    ids, descriptors = fill(tmp_path)
    store = DescriptorStore.open(tmp_path)
    some = store.without([ids[3], ids[24], "elsewhere"])
    kept = [row for row in range(25) if row not in (3, 24)]
    assert some.ids == [ids[row] for row in kept]
    assert (len(some), some.dim, some.dtype, some.card) == (23, 8, "float32", CARD)
    np.testing.assert_array_equal(some.load(), descriptors[kept])
    assert [len(rows) for _, rows in some.parts()] == [9, 10, 4]
    assert len(store) == len(DescriptorStore.open(tmp_path, verify=True)) == 25
    with pytest.raises(LandmarkRetrievalError, match=r"No photo of the store .* is left"):
        store.without(ids)


def test_a_note_of_another_version_is_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, stop=16)
    (tmp_path / "unfinished.json").write_text(json.dumps({"dim": 8, "card": CARD, "parts": []}))
    with pytest.raises(LandmarkRetrievalError, match=r"unfinished\.json was not written by this version: remove"):
        DescriptorWriter(tmp_path, card=CARD)


def test_parts_of_different_lengths_do_not_become_a_store(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, stop=21)
    note = tmp_path / "part-00001.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"dim": 9}))
    with pytest.raises(LandmarkRetrievalError, match=r"different lengths, \[8, 9\]"):
        DescriptorWriter(tmp_path, card=CARD)


def test_the_difference_of_cards_is_told():
    assert card_difference({"model": "a", "size": 1}, {"model": "b", "size": 1}) == "model: 'a' and 'b'"
    assert card_difference({"size": 1}, {}) == "size: 1 and None"


def test_one_writer_at_a_time(tmp_path):
    fill(tmp_path)
    rows = unit_rows(30)
    first = DescriptorWriter(tmp_path, card=CARD, part_size=1)
    first.append(["one"], rows[:1])
    with pytest.raises(LandmarkRetrievalError, match=f"Another writer is at work on the store {tmp_path}"):
        DescriptorWriter(tmp_path, card=CARD, part_size=1)
    first.append(["two"], rows[1:2])
    first.finish()
    with pytest.raises(LandmarkRetrievalError, match="has finished: open another"):
        first.append(["three"], rows[2:3])
    with pytest.raises(KeyboardInterrupt), DescriptorWriter(tmp_path, card=CARD):
        raise KeyboardInterrupt
    with pytest.raises(LandmarkRetrievalError, match="has dim 8, not 9"):
        DescriptorWriter(tmp_path, card=CARD, dim=9)
    with DescriptorWriter(tmp_path, card=CARD, part_size=1) as second:
        second.append(["three"], rows[2:3])
    assert DescriptorStore.open(tmp_path, verify=True).ids == [*photo_ids(25), "one", "two", "three"]
    assert not list(tmp_path.glob("*.lock"))


def test_the_first_part_size_counts_for_all(tmp_path, monkeypatch):
    first, late = Parts(tmp_path, CARD, "float32", 5), Parts(tmp_path, CARD, "float32", 7)
    other = threading.Thread(target=late.begin)

    def slowly(path, value):
        if not other.ident:  # between the look and the writing of the first, the other begins, too
            other.start()
            other.join(0.2)
        write_json(path, value)

    monkeypatch.setattr(parts, "write_json", slowly)
    first.begin()
    other.join()
    assert (first.part_size, late.part_size) == (5, 5)
    assert json.loads((tmp_path / "unfinished.json").read_text())["part_size"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished.json"]


def test_notes_of_a_process_that_was_killed_last_are_removed(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_remove_notes", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path)
    (tmp_path / "part-00001.lock").touch()
    left = Parts(tmp_path, CARD, "float32", 10)
    assert left.readable and not left.finished
    left.tidy()
    assert left.finished
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"store.json", *(f"part-0000{n}.{kind}" for n in range(3) for kind in ("npy", "ids.txt"))}
    # parts of an extension are kept, whether somebody is at work on it or not
    writer = DescriptorWriter(tmp_path, CARD, part_size=1)
    left.tidy()
    writer.append(["one more"], unit_rows(1))
    left.tidy()
    del writer
    left.tidy()
    with DescriptorWriter(tmp_path, CARD) as writer:
        assert "one more" in writer.done
    assert DescriptorStore.open(tmp_path, verify=True).ids == [*photo_ids(25), "one more"]


def test_the_fingerprint_tells_stores_apart(tmp_path):
    ids, rows = fill(tmp_path / "a")
    fill(tmp_path / "b")
    store = DescriptorStore.open(tmp_path / "a")
    assert store.fingerprint == DescriptorStore.open(tmp_path / "b").fingerprint
    assert store.fingerprint == store.without(["elsewhere"]).fingerprint
    others = {store.fingerprint, store.without(ids[:1]).fingerprint, store.without(ids[:2]).fingerprint}
    for name, photos, descriptors in (("c", ids, rows[::-1]), ("d", ids[::-1], rows)):
        with DescriptorWriter(tmp_path / name, CARD) as writer:
            writer.append(photos, descriptors)
        others.add(DescriptorStore.open(tmp_path / name).fingerprint)
    assert len(others) == 5
