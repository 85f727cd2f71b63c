import json
import shutil

import pytest
import torch

from landmark_retrieval import GeMNet
from landmark_retrieval.data.solutions import read_retrieval_solution
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.evaluate import evaluate, write_evaluation_gallery

CARD = {"architecture": "GeMNet", "image_size": 48}


@pytest.fixture(scope="module")
def evaluation(shards, tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("evaluation")
    return evaluate(GeMNet("mobilenetv3_small_050", embedding_dim=None).eval(), CARD, shards, out, workers=0), out


def test_figures_equal_a_second_way_of_counting(evaluation, shards):
    result, out = evaluation
    relevant = read_retrieval_solution(shards / "retrieval_solution.csv").relevant
    precisions = []
    for query, images in relevant.items():
        hits, total = 0, 0.0
        for rank, photo in enumerate(result.ranked[query][:100], 1):
            if photo in images:
                hits += 1
                total += hits / rank
        precisions.append(total / min(len(images), 100))
    assert result.metrics["map_at_100"] == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)
    first = [result.ranked[query][0] in relevant[query] for query in relevant]
    assert result.metrics["precision_at_1"] == pytest.approx(sum(first) / len(first))
    assert json.loads((out / "metrics.json").read_text()) == result.metrics


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
