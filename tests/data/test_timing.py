import pytest

from landmark_retrieval.data.mixture import Mixture
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.timing import measure_input
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.mark.parametrize(("workers", "transforms"), [(0, "fast"), (2, "albumentations")])
def test_every_step_is_measured(shards, workers, transforms):
    source = Mixture([ShardedPhotos.open(shards / "train_full")])
    said = []
    times = measure_input(source, 32, 8, 100, workers, transforms, "cpu", said.append)
    # 48 photos are six batches, the first of which warms up
    assert times.photos == 40
    assert times.broken == 0
    assert list(times.steps) == ["reading", "decoding", "augmenting", "to the device, normalised"]
    assert all(milliseconds >= 0 for milliseconds in times.steps.values())
    assert times.alone == pytest.approx(1e3 / sum(times.steps.values()))
    assert times.loaded > 0
    assert len(said) == 2
    for batch_size, batches in ((48, 5), (8, 0)):
        with pytest.raises(LandmarkRetrievalError, match="nothing to time"):
            measure_input(source, 32, batch_size, batches)
