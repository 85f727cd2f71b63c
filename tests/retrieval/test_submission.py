"""Ensembles of whole models on drawn photos, against the functions they are made of called by hand."""

import shutil

import numpy as np
import pytest
import torch

from landmark_retrieval import GeMNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import write_json
from landmark_retrieval.retrieval.ensemble import average_and_concatenate
from landmark_retrieval.retrieval.members import (
    Wanted,
    card_of,
    classes_of,
    describe_sets,
    folder_of,
    labels_of,
    open_sets,
    store_of,
)
from landmark_retrieval.retrieval.recognition import recognize
from landmark_retrieval.retrieval.rerank import ensemble, hard_rerank, soft_rerank
from landmark_retrieval.retrieval.reranking.rerankers import RERANKERS
from landmark_retrieval.retrieval.search import exact_search
from landmark_retrieval.retrieval.submission import Ranking, ranked_lists, recognized
from landmark_retrieval.retrieval.submission_plan import Machine, cost, plan

SIDE = 48


def load(name):
    """Three models that differ in their weights, or in the length of their descriptors."""
    torch.manual_seed(len(name))
    model = GeMNet("mobilenetv3_small_050", embedding_dim=24 if name == "wide" else 16).eval()
    return model, {"architecture": "Wide" if name == "wide" else "GeMNet", "image_size": SIDE, "name": name}


@pytest.fixture(scope="module")
def sets(shards):
    return open_sets(shards, ["test", "index", "train"], "full")


@pytest.fixture(scope="module")
def described(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("submission")
    wanted = [Wanted("a", weight=2.0), Wanted("wide"), Wanted("bbb", image_size=40)]
    return describe_sets(wanted, load, sets, out, workers=0), out


@pytest.fixture
def members(described, tmp_path):
    """With folders of their own, where nothing is ranked yet."""
    members, out = described
    shutil.copytree(out, tmp_path / "out")
    again = []
    for member in members:
        folder = tmp_path / "out" / member.folder.relative_to(out)
        stores = {name: type(store).open(folder / store.folder.name) for name, store in member.stores.items()}
        again.append(type(member)(member.wanted, member.card, folder, stores))
    return again


@pytest.fixture(scope="module")
def labels(sets, described):
    return labels_of(sets["train"], described[0][0].stores["train"].ids)


def rows(member, name):
    return member.stores[name].load()


def test_labels_are_those_of_the_photos(sets, labels, described):
    source = sets["train"]
    wanted = {photo.id: photo.label for photo in source.photos()}
    assert [wanted[photo] for photo in described[0][0].stores["train"].ids] == labels.tolist()
    assert len(classes_of(source)) == labels.max() + 1


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["soft", "none", "hard", *RERANKERS])
def test_lists_are_those_of_the_functions(name, count, members, labels):
    members = members[:count]
    if name == "hard" and count > 1:
        with pytest.raises(LandmarkRetrievalError, match="no scores that could be added up"):
            ranked_lists(members, labels, Ranking("hard"))
        return
    found, scores = ranked_lists(members, labels, Ranking(name, k=2, up=0.5, per_model=9, top=7))
    lists = []
    for member in members:
        query, index, train = (rows(member, part) for part in ("test", "index", "train"))
        if name == "soft":
            lists.append(soft_rerank(query, index, train, labels, k=2, up=0.5, top=9))
        elif name == "hard":
            lists.append(hard_rerank(query, index, train, labels, k=2, top=7))
        else:
            ranked = exact_search(query, index, 9)
            lists.append(ranked if name == "none" else RERANKERS[name](ranked, query, index))
    alone = lists[0][0][:, :7], lists[0][1][:, :7]
    wanted = alone if count == 1 else ensemble(lists, 7, weights=[2.0, 1.0, 1.0])
    np.testing.assert_array_equal(found, wanted[0])
    np.testing.assert_allclose(scores, wanted[1], atol=1e-5)


def test_an_interrupted_ranking_goes_on_and_other_settings_do_not_mix(members, labels, monkeypatch):
    from landmark_retrieval.retrieval import submission

    monkeypatch.setattr(submission, "_QUERIES", 4)
    monkeypatch.setattr(submission, "_VOTES", 5)
    done = []

    def counting(query, *rest, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(query))
        return soft(query, *rest, **options)

    soft = submission.rerank_voted
    monkeypatch.setattr(submission, "rerank_voted", counting)
    with pytest.raises(KeyboardInterrupt):
        ranked_lists(members[:1], labels, Ranking())
    monkeypatch.setattr(submission, "rerank_voted", soft)
    monkeypatch.setattr(submission, "soft_vote", lambda *_, **__: pytest.fail("the votes are there"))
    found, _ = ranked_lists(members[:1], labels, Ranking())
    monkeypatch.undo()
    wanted, _ = soft_rerank(*(rows(members[0], name) for name in ("test", "index", "train")), labels, top=100)
    np.testing.assert_array_equal(found, wanted)
    other, _ = ranked_lists(members[:1], labels, Ranking(up=-5.0))
    assert not np.array_equal(other, found)
    shifted, _ = ranked_lists(members[:1], np.roll(labels, 3), Ranking())
    assert not np.array_equal(shifted, found)


def test_hard_lists_of_another_length_are_not_the_old_ones_cut(members, labels):
    found = [ranked_lists(members[:1], labels, Ranking("hard", top=top))[0] for top in (3, 9, 3)]
    query, index, train = (rows(members[0], name) for name in ("test", "index", "train"))
    for rows_found, top in zip(found, (3, 9, 3), strict=True):
        np.testing.assert_array_equal(rows_found, hard_rerank(query, index, train, labels, top=top)[0])


def test_recognition_averages_within_types_and_puts_types_side_by_side(members, labels):
    options = {"quantile_transform": False, "top": 2}
    classes, scores = recognized(members, labels, **options)
    parts = {
        name: average_and_concatenate([rows(members[i], name) for i in (0, 2, 1)], (2, 1)) for name in ("test", "train")
    }
    assert parts["test"].shape[1] == 16 + 24
    wanted = recognize(parts["test"], parts["train"], labels, None, **options)
    np.testing.assert_array_equal(classes, wanted[0])
    np.testing.assert_allclose(scores, wanted[1], atol=1e-5)
    separate = recognized(members, labels, combine="separate", **options)
    wanted = recognize(
        *([rows(members[i], name) for i in (0, 2, 1)] for name in ("test", "train")), labels, None, **options
    )
    np.testing.assert_array_equal(separate[0], wanted[0])
    np.testing.assert_allclose(separate[1], wanted[1], atol=1e-5)
    with pytest.raises(LandmarkRetrievalError, match="average or separate"):
        recognized(members, labels, combine="mean")


def test_models_that_described_other_photos_are_refused(sets, tmp_path):
    describe_sets([Wanted("a")], load, {"index": sets["index"]}, tmp_path, workers=0)
    # as if the second model's store came from elsewhere
    folder = folder_of(Wanted("bbb"), card_of(Wanted("bbb"), load("bbb")[1]), tmp_path)
    other = describe_sets([Wanted("bbb")], load, {"index": sets["test"]}, tmp_path / "else", workers=0)[0]
    store = store_of(folder, "index", sets["index"], "float32")
    shutil.copytree(other.stores["index"].folder, store)
    write_json(store / "source.json", sets["index"].fingerprint)
    with pytest.raises(LandmarkRetrievalError, match="is in one alone"):
        describe_sets([Wanted("a"), Wanted("bbb")], load, {"index": sets["index"]}, tmp_path, workers=0)


def test_another_training_set_in_the_same_folder_is_another_store(shards, tmp_path):
    folders = set()
    for which in ("c", "full", "c"):
        photos = open_sets(shards, ["train"], which)
        folders.add(describe_sets([Wanted("a")], load, photos, tmp_path, workers=0)[0].stores["train"].folder)
    assert len(folders) == 2


def test_a_model_stands_once(sets, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="stands twice"):
        describe_sets([Wanted("a"), Wanted("a")], load, {"index": sets["index"]}, tmp_path, workers=0)


def test_settings_are_checked_before_anything_is_described():
    for settings in ({"confidence": "typo"}, {"top": 0}, {"per_model": -1}, {"k": 0}):
        with pytest.raises(LandmarkRetrievalError, match=r"confidence|at least 1"):
            Ranking(**settings).check(1)


def test_unknown_reranking_is_named_with_what_is_near():
    with pytest.raises(LandmarkRetrievalError, match=r"k_reciprocal.*Also: soft, hard, none"):
        Ranking("k_recipocal").check(1)


def test_the_plan_counts_operations_and_what_is_left(described, sets, tmp_path):
    model, card = load("a")
    operations, dim = cost(model, card)
    assert dim == 16
    seen = []

    def count(module, inputs, output):
        # multiplications and additions of a convolution or a linear layer
        weight = module.weight
        seen.append(2 * output.numel() * weight[0].numel())

    for part in model.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            part.register_forward_hook(count)
    model(torch.zeros(1, 3, SIDE, SIDE))
    assert operations == pytest.approx(sum(seen), rel=1e-3)
    twice, _ = cost(model, {**card, "views": {"scales": [1.0], "flip": True}})
    assert twice == pytest.approx(2 * operations)

    machine = Machine(cores=2, decoded_per_core=80, network_tflops=1e-6, product_tflops=1e-6, limit_hours=1)
    text = plan([Wanted("a")], load, sets, tmp_path, "float32", machine)
    count = sum(len(sets[name]) for name in ("test", "index", "train"))
    described_hours = count * operations / 1e6 / 3600
    product_hours = (2 * len(sets["test"]) * (len(sets["train"]) + len(sets["index"])) * 16) / 1e6 / 3600
    product_hours += 2 * len(sets["index"]) * len(sets["train"]) * 16 / 1e6 / 3600
    assert f"{described_hours + product_hours:.1f} hours" in text
    _, out = described
    assert " 0  " in plan([Wanted("a")], load, sets, out, "float32", machine)
