import json
import math
import shutil

import numpy as np
import pytest
import torch

from landmark_retrieval import GeMNet
from landmark_retrieval.data.prepare import shard_folder, shard_revisited
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.solutions import (
    read_recognition_predictions,
    read_recognition_solution,
    read_retrieval_predictions,
    read_retrieval_solution,
)
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional import revisited_average_precision
from landmark_retrieval.retrieval.benchmarks import open_benchmark
from landmark_retrieval.retrieval.evaluate import evaluate, write_evaluation_gallery
from landmark_retrieval.retrieval.judge import judge_predictions
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter

CARD = {"architecture": "GeMNet", "image_size": 48}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GeMNet("mobilenetv3_small_050", embedding_dim=None).eval()


@pytest.fixture(scope="module")
def evaluation(model, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return evaluate(model, CARD, shards, out, bank="full", workers=0), out


def cosines(out, *stores):
    """Ids of the queries, ids of all photos of the stores, and the cosines."""
    query, opened = DescriptorStore.open(out / "query"), [DescriptorStore.open(store) for store in stores]
    rows = np.concatenate([store.load() for store in opened])
    return query.ids, [photo for store in opened for photo in store.ids], query.load() @ rows.T


def test_figures_equal_a_second_way_of_counting(evaluation, shards):
    result, out = evaluation
    relevant = read_retrieval_solution(shards / "retrieval_solution.csv").relevant
    queries, ids, scores = cosines(out, out / "index")
    ranked = {
        query: [ids[i] for i in np.argsort(-row, kind="stable")] for query, row in zip(queries, scores, strict=True)
    }
    precisions, first_right = [], []
    for query, images in relevant.items():
        assert result.ranked[query] == ranked[query][:100]
        hits, total = 0, 0.0
        for rank, photo in enumerate(ranked[query][:100], 1):
            if photo in images:
                hits += 1
                total += hits / rank
        precisions.append(total / min(len(images), 100))
        first_right.append(next(rank for rank, photo in enumerate(ranked[query], 1) if photo in images))
    figures = result.metrics
    assert figures["map_at_100"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)
    assert figures["precision_at_1"] == pytest.approx(np.mean([rank == 1 for rank in first_right]))
    for k in (1, 5, 10):
        assert figures[f"recall_at_{k}"] == pytest.approx(np.mean([rank <= k for rank in first_right]))
    assert figures["mean_position"] == pytest.approx(np.mean(first_right))
    assert figures["median_position"] == pytest.approx(np.median(first_right))


def test_recognition_by_the_nearest_photos_of_a_training_set(evaluation, shards):
    result, out = evaluation
    bank = ShardedPhotos.open(shards / "train_full")
    queries, ids, scores = cosines(out, out / "bank-train_full")
    landmark_of = {photo.id: int(bank.manifest.classes[photo.label]) for photo in bank.photos()}
    labels = read_recognition_solution(shards / "recognition_solution.csv").relevant
    rows = []
    for query, row in zip(queries, scores, strict=True):
        votes = {}
        for i in np.argsort(-row, kind="stable")[:3]:
            votes[landmark_of[ids[i]]] = votes.get(landmark_of[ids[i]], 0) + row[i]
        best = max(votes, key=votes.get)
        if query in labels:
            rows.append((-votes[best] / 3, query, best))
    total, correct = 0.0, 0
    for rank, (_, query, label) in enumerate(sorted(rows), 1):
        if label in labels[query]:
            correct += 1
            total += correct / rank
    with_landmark = sum(bool(right) for right in labels.values())
    assert with_landmark
    assert result.report["recognition"]["gap"] == pytest.approx(total / with_landmark, abs=1e-6)
    assert result.report["recognition"]["top1_accuracy"] == pytest.approx(correct / with_landmark)
    assert result.metrics["recognition_gap"] == result.report["recognition"]["gap"]
    written = read_recognition_predictions(out / "recognition_predictions.csv")
    assert {query: label for query, (label, _) in written.items()} == {query: label for _, query, label in rows}


def test_the_files_say_the_same(evaluation, shards):
    result, out = evaluation
    report = json.loads((out / "metrics.json").read_text())
    assert report == result.report
    assert len(report["mean_precisions"]) == 100
    solution = read_retrieval_solution(shards / "retrieval_solution.csv")
    assert read_retrieval_predictions(out / "predictions.csv", solution) == result.ranked
    again = judge_predictions(out / "predictions.csv", shards)
    assert again == {name: value for name, value in report.items() if name != "recognition"}
    recognition = judge_predictions(out / "recognition_predictions.csv", shards)["recognition"]
    assert recognition == {name: value for name, value in report["recognition"].items() if name != "bank"}


def test_gallery_shows_the_queries_with_their_photos(evaluation, shards, tmp_path):
    result, _ = evaluation
    write_evaluation_gallery(tmp_path / "g.html", result, shards, "Test")
    page = (tmp_path / "g.html").read_text()
    shown = len(result.relevant)
    assert page.count("data:image/jpeg;base64,") == shown * (1 + min(10, len(result.ranked[next(iter(result.ranked))])))


def test_data_without_solution(shards, tmp_path):
    shutil.copytree(shards / "index", tmp_path / "index")
    with pytest.raises(LandmarkRetrievalError, match="nothing to compare with"):
        evaluate(torch.nn.Identity(), CARD, tmp_path, tmp_path / "out")


def test_what_does_not_go_together(shards, revisited, own, tmp_path):
    for data, options, message in (
        (shards, {"distractors": [tmp_path]}, "Distractors are for Revisited"),
        (revisited, {"bank": "c"}, r"holds no recognition_solution\.csv"),
        (own, {"bank": "c"}, r"holds no recognition_solution\.csv"),
        (shards, {"bank": "huge"}, "no training set 'huge'"),
    ):
        with pytest.raises(LandmarkRetrievalError, match=message):
            evaluate(torch.nn.Identity(), CARD, data, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    shutil.copytree(shards, tmp_path / "named")
    shard_folder(own, tmp_path / "named", workers=1)
    with pytest.raises(LandmarkRetrievalError, match=r"has the landmark 'Place 0', where .* speaks of numbers"):
        evaluate(torch.nn.Identity(), CARD, tmp_path / "named", tmp_path / "out", bank=str(tmp_path / "named/train"))


@pytest.fixture(scope="module")
def revisited(photos, tmp_path_factory):
    """Drawn photos as a small Revisited Oxford: 12 images, 4 queries, the last without positives in any setup."""
    folder = tmp_path_factory.mktemp("revisited")
    pictures = sorted((photos / "index").rglob("*.jpg"))
    names = [f"oxford_{number:06d}" for number in range(16)]
    (folder / "jpg").mkdir()
    for number, name in enumerate(names):
        shutil.copy(pictures[number % len(pictures)], folder / "jpg" / f"{name}.jpg")
    lists = [
        {"easy": [0, 5], "hard": [7], "junk": [1, 2]},
        {"easy": [], "hard": [3, 4, 9], "junk": []},
        {"easy": [11], "hard": [], "junk": [0]},
        {"easy": [], "hard": [], "junk": [6]},
    ]
    queries = [{"id": name, "box": [0, 0, 30, 30], **row} for name, row in zip(names[12:], lists, strict=True)]
    (folder / "truth.json").write_text(json.dumps({"format": 1, "images": names[:12], "queries": queries}))
    shard_revisited(folder / "jpg", folder / "shards", folder / "truth.json", workers=1)
    return folder / "shards"


@pytest.fixture(scope="module")
def distractors(model, shards, tmp_path_factory):
    """Two stores of descriptors near those of the photos, under names with blanks."""
    folder = tmp_path_factory.mktemp("distractors")
    evaluate(model, CARD, shards, folder / "first", workers=0)
    real = DescriptorStore.open(folder / "first" / "index")
    rng = np.random.default_rng(0)
    for name, count in (("one", 9), ("two", 150)):
        rows = real.load()[rng.integers(0, len(real), count)] + 0.01 * rng.normal(size=(count, real.dim))
        with DescriptorWriter(folder / name, real.card, part_size=40) as writer:
            writer.append([f"{name} {i}.jpg" for i in range(count)], rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return folder


@pytest.mark.parametrize("others", [(), ("one", "two")])
def test_revisited_equals_a_full_sort(model, revisited, distractors, others, tmp_path):
    folders = [distractors / name for name in others]
    result = evaluate(model, CARD, revisited, tmp_path, distractors=folders, workers=0)
    truth = json.loads((revisited / "revisited.json").read_text())
    queries, ids, scores = cosines(tmp_path, tmp_path / "index", *folders)
    assert queries == [query["id"] for query in truth["queries"]]
    assert ids[:12] == truth["images"]
    order = np.argsort(-scores, axis=1, kind="stable")
    wanted = revisited_average_precision(order, truth["queries"])
    for setup, figures in wanted.items():
        found = result.report[setup]
        assert found["map"] == pytest.approx(figures["map"], abs=1e-12)
        assert [found[f"mp_at_{k}"] for k in (1, 5, 10)] == pytest.approx(figures["mp_at_k"], abs=1e-12)
        assert result.metrics[f"map_{setup}"] == found["map"]
    assert (result.report["queries"], result.report["distractors"]) == (4, 159 if others else 0)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result.report
    wanted_aps = {query: ap for query, ap in zip(queries, wanted["medium"]["aps"], strict=True) if not math.isnan(ap)}
    assert result.average_precision == pytest.approx(wanted_aps, abs=1e-12)
    written = read_retrieval_predictions(tmp_path / "predictions.csv")
    for query, row in zip(queries, order, strict=True):
        assert written[query] == [ids[i].replace(" ", "%20") for i in row[:100]]

    write_evaluation_gallery(tmp_path / "g.html", result, revisited, "Test")
    page = (tmp_path / "g.html").read_text()
    assert page.count('class="query"') == 3  # the query without positives is not judged
    assert ("no photo" in page) == bool(others)


def test_distractors_of_another_model(model, revisited, distractors, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"distractors .*one .*image_size: 48 and 64"):
        evaluate(
            model,
            CARD | {"image_size": 64},
            revisited,
            tmp_path,
            distractors=[distractors / "one"],
            workers=0,
        )


def test_broken_photos_of_revisited_are_not_found(model, revisited, tmp_path):
    shutil.copytree(revisited, tmp_path / "shards")
    for name, photo in (("index", "oxford_000005"), ("test", "oxford_000014")):
        source = ShardedPhotos.open(revisited / name)
        data = source.find([photo])[photo]
        shard = tmp_path / "shards" / name / source.manifest.shards[0].file
        shard.write_bytes(shard.read_bytes().replace(data, b"\0" * len(data)))
    result = evaluate(model, CARD, tmp_path / "shards", tmp_path / "out", workers=0)
    assert {"oxford_000005", "oxford_000014"} <= set(result.broken)
    assert result.average_precision["oxford_000014"] == 0.0
    assert 0 < result.average_precision["oxford_000012"] <= 2 / 3  # of three positives one cannot be found


@pytest.fixture(scope="module")
def own(photos, tmp_path_factory):
    """A folder per landmark: three with 5, 4 and 1 photos."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    pictures = iter(sorted((photos / "train").rglob("*.jpg")))
    for place, count in (("Place 0", 5), ("Place 1", 4), ("Place 2", 1)):
        (folder / place).mkdir(parents=True)
        for number in range(count):
            shutil.copy(next(pictures), folder / place / f"{number}.jpg")
    return folder


def test_a_folder_per_landmark(model, own, tmp_path):
    benchmark = open_benchmark(own, seed=3)
    assert len(benchmark.queries) == 2
    assert len(benchmark.index) == 8
    result = evaluate(model, CARD, benchmark, tmp_path, workers=0)
    for query, relevant in result.relevant.items():
        assert sorted([query, *relevant]) == [
            f"{query.split('/')[0]}/{number}.jpg" for number in range(len(relevant) + 1)
        ]
        assert sorted(result.ranked[query]) == sorted(benchmark.index.ids)
    assert result.metrics["map_at_100"] == pytest.approx(np.mean(list(result.average_precision.values())))
    write_evaluation_gallery(tmp_path / "g.html", result, benchmark, "Test")
    assert (tmp_path / "g.html").read_text().count("data:image/jpeg;base64,") == 2 * (1 + 8)


def test_folders_of_queries_and_index(model, own, tmp_path):
    shutil.copytree(own, tmp_path / "photos" / "index")
    for place in ("Place 0", "Elsewhere"):
        (tmp_path / "photos" / "query" / place).mkdir(parents=True)
    shutil.copy(own / "Place 0" / "2.jpg", tmp_path / "photos" / "query" / "Place 0" / "q.jpg")
    shutil.copy(own / "Place 1" / "2.jpg", tmp_path / "photos" / "query" / "Elsewhere" / "q.jpg")
    benchmark = open_benchmark(tmp_path / "photos")
    assert benchmark.left_out == 1
    result = evaluate(model, CARD, benchmark, tmp_path / "out", workers=0)
    assert list(result.ranked) == ["Place%200/q.jpg"]
    assert result.ranked["Place%200/q.jpg"][0] == "Place%200/2.jpg"  # the same photo
    assert result.metrics["precision_at_1"] == 1.0


def test_folders_without_landmarks(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="holds no folders"):
        open_benchmark(tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="There is no data at"):
        open_benchmark(tmp_path / "nowhere")


def test_a_ground_truth_of_another_set(revisited, tmp_path):
    shutil.copytree(revisited, tmp_path / "shards")
    truth = json.loads((revisited / "revisited.json").read_text())
    truth["images"][4] = "paris_000000"
    (tmp_path / "shards" / "revisited.json").write_text(json.dumps(truth))
    with pytest.raises(LandmarkRetrievalError, match=r"index holds oxford_000004, which .* does not know"):
        open_benchmark(tmp_path / "shards")
