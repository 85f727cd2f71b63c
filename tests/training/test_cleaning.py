"""Wrongly labelled photos are found and dropped, with planted descriptors and with a stage that was really trained."""

import csv
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from landmark_retrieval.data.importers.gldv2 import read_clean
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval import extract as extraction
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter
from landmark_retrieval.training import cleaning
from landmark_retrieval.training.cleaning import clean
from landmark_retrieval.training.configs import compose
from landmark_retrieval.training.handoff import Handoff
from landmark_retrieval.training.stage import run_stage


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def listed(path):
    return {photo: landmark for _, landmark, photos in read_clean(path) for photo in photos}


def hand_over(folder, classes, sub_centers=3):
    """The hand-over of a head whose centers are the axes of a space with one axis to spare."""
    weight = 2 * torch.eye(len(classes) * sub_centers, len(classes) * sub_centers + 1)
    config = {"data": {"train_set": "full"}, "head": {"sub_centers": sub_centers}}
    return Handoff.write(folder, "planted", torch.nn.Linear(1, 1), weight, {}, list(classes), {}, config)


@pytest.fixture
def source(shards):
    return ShardedPhotos.open(shards / "train_full")


@pytest.fixture
def plant(source, monkeypatch):
    """Plant descriptors: id -> vector, or a reason why it is broken."""

    def planted(descriptors):
        def extract(model, card, photos, out, **_):
            with DescriptorWriter(out, card, part_size=7) as writer:
                for photo in photos.ids:
                    if photo in writer.done:
                        continue
                    if isinstance(descriptors[photo], str):
                        extraction._note_broken(out, [(photo, descriptors[photo])])
                    else:
                        writer.append([photo], descriptors[photo][None])
            return DescriptorStore.open(out)

        monkeypatch.setattr(cleaning, "extract", extract)
        monkeypatch.setattr(cleaning, "load_model", lambda run: (torch.nn.Linear(1, 1), {}))

    return planted


def at(degrees, axis, width):
    """So many degrees from an axis, towards the spare one."""
    vector = np.zeros(width, np.float32)
    vector[axis], vector[-1] = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return vector


def members(source):
    """Ids by landmark."""
    found = {}
    for photo, label in zip(source.ids, source.labels.tolist(), strict=True):
        found.setdefault(source.manifest.classes[label], []).append(photo)
    return found


def test_planted_mistakes_are_found(source, plant, shards, tmp_path):
    names, by_name = source.manifest.classes, members(source)
    # the head knows them in another order, and one that has no photo here
    classes = [*reversed(names), "elsewhere"]
    width = 3 * len(classes) + 1
    hand_over(tmp_path / "run", classes)
    descriptors, expected, dominant = {}, {}, {}
    for n, name in enumerate(names):
        center = dominant[name] = n % 3
        first = 3 * classes.index(name)
        ids = by_name[name]
        for i, photo in enumerate(ids):
            descriptors[photo], expected[photo] = at(i, first + center, width), (i, True)
        wrong = 3 * classes.index(names[n - 1]) + (n - 1) % 3
        planted = [
            (75, first + center, True),  # just at the limit
            (75.001, first + center, False),
            (0, first + (center + 1) % 3, False),  # at another center of its landmark
            (3, wrong, False),  # of another landmark
        ]
        for photo, (degrees, axis, keep) in zip(ids, planted[: len(ids) // 2], strict=False):
            angle = degrees if axis == first + center else 90
            descriptors[photo], expected[photo] = at(degrees, axis, width), (angle, keep)
    broken = by_name[names[0]][-1]
    descriptors[broken] = "cut short"
    del expected[broken]
    plant(descriptors)

    done = clean(tmp_path / "run", shards, tmp_path / "out", drop_sub_centers=True)
    assert (done.photos, done.unknown, done.unseen, done.left_out) == (len(source) - 1, 0, 1, {})
    assert done.broken == {broken: "cut short"}
    kept = {photo for photo, (_, keep) in expected.items() if keep}
    assert (done.kept, done.dropped) == (len(kept), len(expected) - len(kept))
    landmark_of = {photo: name for name, ids in by_name.items() for photo in ids}
    assert listed(tmp_path / "out" / "train_clean.csv") == {photo: landmark_of[photo] for photo in kept}
    table = rows(tmp_path / "out" / "angles.csv")
    assert [row["id"] for row in table] == [photo for photo in source.ids if photo != broken]
    for row in table:
        angle, keep = expected[row["id"]]
        assert float(row["angle"]) == pytest.approx(angle, abs=0.03 if angle < 2 else 1e-3)
        assert row["kept"] == str(int(keep))
        assert row["landmark_id"] == landmark_of[row["id"]]
        assert int(row["center"]) == dominant[row["landmark_id"]]
    assert rows(tmp_path / "out" / "left_out.csv") == []
    # one center per class, the dominant one; the first of the class without photos
    weight = Handoff.read(tmp_path / "out", "").head_weight()
    centers = [dominant.get(name, 0) for name in classes]
    assert weight.argmax(1).tolist() == [3 * n + center for n, center in enumerate(centers)]


def test_landmarks_that_are_left_out_are_named(source, plant, shards, tmp_path):
    unknown, empty, broken, *good = source.manifest.classes
    by_name = members(source)
    hand_over(tmp_path / "run", [empty, broken, *good])
    width = 3 * (len(good) + 2) + 1
    descriptors = {photo: at(90, 0, width) for name in (unknown, empty) for photo in by_name[name]}
    descriptors |= dict.fromkeys(by_name[broken], "cut short")
    descriptors |= {photo: at(1, 3 * n, width) for n, name in enumerate(good, 2) for photo in by_name[name]}
    plant(descriptors)
    done = clean(tmp_path / "run", shards, tmp_path / "out", "full")
    assert done.left_out == {
        unknown: "the head has not learnt it",
        empty: "all its photos are beyond the angle",
        broken: "none of its photos can be decoded",
    }
    table = rows(tmp_path / "out" / "left_out.csv")
    assert {row["landmark_id"]: row["reason"] for row in table} == done.left_out
    assert {row["landmark_id"]: int(row["photos"]) for row in table} == {
        **{name: len(by_name[name]) for name in (unknown, empty)},
        broken: 0,
    }
    assert done.unknown == len(by_name[unknown])
    assert done.photos == sum(len(by_name[name]) for name in (empty, *good))
    assert done.kept == sum(len(by_name[name]) for name in good)
    assert set(listed(tmp_path / "out" / "train_clean.csv").values()) == set(good)
    # a photo that cannot be judged is not among those that were
    assert {row["landmark_id"] for row in rows(tmp_path / "out" / "angles.csv")} == {empty, *good}


def test_of_one_center_it_is_that_one(source, plant, shards, tmp_path):
    names, by_name = source.manifest.classes, members(source)
    hand_over(tmp_path / "run", names, sub_centers=1)
    descriptors = {photo: at(30, n, len(names) + 1) for n, name in enumerate(names) for photo in by_name[name]}
    descriptors[by_name[names[0]][0]] = at(80, 0, len(names) + 1)
    plant(descriptors)
    done = clean(tmp_path / "run", shards, tmp_path / "out", drop_sub_centers=True)
    assert done.dropped == 1
    assert {row["center"] for row in rows(tmp_path / "out" / "angles.csv")} == {"0"}
    assert torch.equal(*(load_file(tmp_path / f / "head.safetensors")["weight"] for f in ("run", "out")))


@pytest.mark.parametrize("angle", [0.0, 180.0, -75.0, math.nan, math.inf])
def test_impossible_angles(shards, tmp_path, angle):
    with pytest.raises(LandmarkRetrievalError, match="between 0 and 180"):
        clean(tmp_path, shards, tmp_path / "out", angle=angle)


def test_mistakes_are_sentences(source, plant, shards, tmp_path):
    names = source.manifest.classes
    width = 3 * len(names) + 1
    plant({photo: at(90, 0, width) for photo in source.ids})
    run, out = tmp_path / "run", tmp_path / "out"
    with pytest.raises(LandmarkRetrievalError, match=r"no hand-over .*name the run folder of a finished stage"):
        clean(run, shards, out)
    hand_over(run, ["Tower", "Arch"])
    with pytest.raises(LandmarkRetrievalError, match="has learnt none of the 5 landmarks"):
        clean(run, shards, out)
    hand_over(run, names)
    with pytest.raises(LandmarkRetrievalError, match="is the run folder of a stage: choose another folder"):
        clean(run, shards, run)
    with pytest.raises(LandmarkRetrievalError, match="no data at"):
        clean(run, tmp_path / "nowhere", out)
    with pytest.raises(LandmarkRetrievalError, match="No photo is within 75 degrees"):
        clean(run, shards, out)
    assert len(rows(out / "angles.csv")) == len(source)
    assert not (out / "train_clean.csv").exists()
    assert clean(run, shards, out, angle=91).dropped == 0
    (run / "head.safetensors").unlink()
    with pytest.raises(LandmarkRetrievalError, match=r"head\.safetensors is missing"):
        clean(run, shards, out)


def test_a_trained_stage_cleans_and_hands_over_to_the_next(tiny, shards, tmp_path, monkeypatch):
    def config(name, *overrides):
        composed = compose([f"+stage={name}", *tiny, f"run_dir='{tmp_path}/${{stage.name}}'", *overrides])
        return OmegaConf.to_container(composed, resolve=True)

    first = run_stage(config("pretrain_small"), lambda _: None)
    out = tmp_path / "clean"
    small = {"workers": 0, "batch_size": 16, "part_size": 10}
    everything = clean(first.folder, shards, out, angle=179.9, drop_sub_centers=True, **small)
    assert everything.photos == everything.kept == len(ShardedPhotos.open(shards / "train_c"))

    # the same from the descriptors and the head, the long way
    store = DescriptorStore.open(out / "descriptors")
    photos = ShardedPhotos.open(shards / "train_c")
    label_of = dict(zip(photos.ids, photos.labels.tolist(), strict=True))
    weight = first.head_weight().numpy()
    weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    cosines = (store.load() @ weight.T).reshape(len(store), len(first.classes), 3)
    votes = np.zeros((len(first.classes), 3), int)
    for photo, cosine in zip(store.ids, cosines, strict=True):
        votes[label_of[photo], cosine[label_of[photo]].argmax()] += 1
    angles = [
        np.degrees(np.arccos(cosine[label_of[photo], votes[label_of[photo]].argmax()]))
        for photo, cosine in zip(store.ids, cosines, strict=True)
    ]
    np.testing.assert_allclose([float(row["angle"]) for row in rows(out / "angles.csv")], angles, atol=0.01)

    # another angle does not describe the photos again
    monkeypatch.setattr(extraction, "describe", None)
    middle = float(np.median(angles))
    half = clean(first.folder, shards, out, angle=middle, **small)
    assert half.kept == sum(angle <= middle for angle in angles)
    assert len(listed(out / "train_clean.csv")) == half.kept

    # a learning rate of 0 leaves what was handed over as it was
    said = []
    start = [
        f"stage.weights='{out}'",
        "head.sub_centers=1",
        "optimizer.lr=0",
        "stage.epochs=1",
        "stage.warmup_epochs=0",
    ]
    second = run_stage(config("train_medium", *start), said.append)
    carried = "Carried over from pretrain_small: the model, and the head's centers of 5 of 5 classes."
    assert said[0].endswith(carried)
    by_name = dict(zip(first.classes, first.head_weight().view(-1, 3, weight.shape[1]), strict=True))
    for n, name in enumerate(second.classes):
        assert torch.equal(second.head_weight()[n], by_name[name][votes[first.classes.index(name)].argmax()])
    assert Handoff.read(out, "").config["head"]["sub_centers"] == 1
    assert (first.folder / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
