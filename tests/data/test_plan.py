import itertools

import numpy as np
import pytest

from landmark_retrieval.data.plan import EpochPlan, own_places, steps
from landmark_retrieval.errors import LandmarkRetrievalError


def order(*sources, **options):
    plan = EpochPlan(sources, **options)
    return plan.at(np.arange(plan.photos))


SHARDS = {
    "many": [40] * 99 + [13],
    "uneven": [1, 200, 3, 77, 500, 2, 31],
    "one": [300],
    "fewer photos than lanes": [3, 4],
    "one photo": [1],
}


@pytest.mark.parametrize("lanes", [1, 8, 64])
@pytest.mark.parametrize("shards", SHARDS.values(), ids=SHARDS)
def test_each_photo_once(shards, lanes):
    for epoch in range(3):
        assert sorted(order(shards, epoch=epoch, lanes=lanes, buffer=20)) == list(range(sum(shards)))


@pytest.mark.parametrize("world", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("shards", [SHARDS["many"], SHARDS["uneven"]], ids=["many", "uneven"])
def test_processes_share_an_epoch(shards, world):
    """Each photo comes to one process, up to fewer than a batch of all at the end, and all make as many batches."""
    batch_size = 3
    plan = EpochPlan([shards], seed=1, epoch=4)
    count = steps(plan.photos, batch_size, world)
    taken = [plan.at(own_places(step, batch_size, rank, world)) for step in range(count) for rank in range(world)]
    seen = np.concatenate(taken)
    assert len(np.unique(seen)) == len(seen) == count * batch_size * world
    assert plan.photos - len(seen) < batch_size * world
    np.testing.assert_array_equal(np.sort(seen), np.sort(plan.at(np.arange(len(seen)))))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_together_processes_take_the_batches_of_one_process(world):
    plan = EpochPlan([SHARDS["many"]], seed=5)
    for step in (0, 7, 20):
        alone = plan.at(own_places(step, 6 * world, 0, 1))
        together = [plan.at(own_places(step, 6, rank, world)) for rank in range(world)]
        assert sorted(np.concatenate(together)) == sorted(alone)


def test_the_order_depends_on_seed_and_epoch_alone():
    shards = SHARDS["many"]
    first = order(shards, seed=3, epoch=2)
    np.testing.assert_array_equal(first, order(shards, seed=3, epoch=2))
    for other in (order(shards, seed=4, epoch=2), order(shards, seed=3, epoch=1)):
        # of random orders about one photo stands in the same place
        assert (first == other).sum() < 20


@pytest.mark.parametrize("world", [2, 8, 64])
def test_processes_have_lanes_of_their_own(world):
    """So each shard is read by one process, except those that lie on a border."""
    plan = EpochPlan([[100] * 640])
    shards = []
    for rank in range(world):
        count = steps(plan.photos, 5, world)
        mine = np.concatenate([plan.at(own_places(step, 5, rank, world)) for step in range(count)])
        shards.append(set((mine // 100).tolist()))
    shared = sum(len(a & b) for a, b in itertools.combinations(shards, 2))
    assert shared <= 64


def test_few_shards_are_in_use_at_a_time():
    plan = EpochPlan([[100] * 640], lanes=8, buffer=150)
    window = plan.at(np.arange(20_000, 20_512))
    # each lane: the shard at hand, those that 150 places reach back, and 64 rows further
    assert len(np.unique(window // 100)) <= 8 * 5


def test_a_photo_moves_within_its_buffer_only():
    (lane,) = (EpochPlan([[1] * 5000], lanes=1, buffer=buffer).lane(0) for buffer in (300,))
    straight = EpochPlan([[1] * 5000], lanes=1, buffer=1).lane(0)
    moved = np.argsort(lane)[straight] - np.arange(5000)
    assert np.abs(moved).max() < 300
    assert np.abs(moved).mean() > 50


def test_photos_of_a_batch_come_from_everywhere():
    shards = [500] * 200
    plan = EpochPlan([shards], seed=2)
    batch = plan.at(np.arange(6400, 6464))
    assert len(np.unique(batch // 500)) > 50


@pytest.mark.parametrize("lanes", [4, 64])
def test_positions_are_uniform(lanes):
    """Over many epochs a photo is found in all parts of the epoch."""
    places = np.array([np.argsort(order([30] * 20, epoch=epoch, lanes=lanes)) for epoch in range(200)])
    means = places.mean(0)
    # 200 draws from 0..599: mean 299.5, standard error 12.2
    assert np.abs(means - 299.5).max() < 5 * 12.2
    # with 600 photos about 2 of 600 are beyond 3 standard errors
    assert (np.abs(means - 299.5) > 3 * 12.2).sum() < 12


def test_neighbours_in_a_shard_are_parted():
    first, second = (np.argsort(order([1000], epoch=epoch, lanes=1, buffer=1)) for epoch in (0, 1))
    assert np.corrcoef(np.diff(first), np.diff(second))[0, 1] < 0.2
    assert np.abs(np.diff(first)).mean() > 200


# --- several sources ---


def test_sources_without_weights_give_each_photo_once():
    assert sorted(order([50] * 30, [7] * 10)) == list(range(1570))


def test_weights_are_shares_in_every_part_of_the_epoch():
    seen = order([100] * 50, [20] * 10, weights=[3, 1], epoch=1)
    small = seen >= 5000
    for part in np.array_split(small, 5):
        assert abs(part.mean() - 0.25) < 0.02


def test_a_small_weight_is_not_rounded_away():
    """Due are 2050 / 1001 photos of the small source an epoch."""
    drawn = sum((order([500] * 4, [50], weights=[1000, 1], epoch=epoch) >= 2000).sum() for epoch in range(10))
    assert drawn == pytest.approx(10 * 2050 / 1001, abs=10)
    with pytest.raises(LandmarkRetrievalError, match="too small for a single photo"):
        order([500], [50], weights=[1000, 1])


@pytest.mark.parametrize("sources", [2, 3, 12, 40, 100])
def test_any_number_of_sources(sources):
    seen = order(*[[20, 13]] * sources, weights=[1 + number % 3 for number in range(sources)])
    shares = np.bincount(seen // 33, minlength=sources) / len(seen)
    due = np.array([1 + number % 3 for number in range(sources)])
    # a place too many or too few in some lanes
    np.testing.assert_allclose(shares, due / due.sum(), atol=0.6 / sources)
    assert len(seen) == 33 * sources


def test_a_source_goes_on_where_it_stopped():
    """A source that is asked for less than all of its photos gives others in the next epoch, and all in the end."""
    epochs = [order([100] * 20, [25] * 8, weights=[9, 1], epoch=epoch, lanes=8) for epoch in range(10)]
    small = [set(seen[seen >= 2000].tolist()) for seen in epochs]
    assert len(small[0]) > 150
    assert small[0] != small[1]
    counts = np.bincount(np.concatenate([seen[seen >= 2000] - 2000 for seen in epochs]), minlength=200)
    assert counts.max() - counts.min() <= 2


def test_a_small_source_with_a_large_share_is_repeated():
    seen = order([100] * 10, [5, 5], weights=[1, 1], lanes=8)
    counts = np.bincount(seen[seen >= 1000] - 1000, minlength=10)
    assert counts.sum() == pytest.approx(505, abs=8)
    assert counts.max() - counts.min() <= 0.25 * 50.5


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([[]], {}, "without photos"),
        ([[5], [0]], {}, "without photos"),
        ([[5], [5]], {"weights": [1]}, "one for each"),
        ([[5], [5]], {"weights": [1, 0]}, "above 0"),
        ([[5], [5]], {"weights": [1, float("nan")]}, "above 0"),
        ([[5]], {"seed": -1}, "seed=-1"),
        ([[5]], {"lanes": 0}, "data.lanes=0"),
        ([[5]], {"buffer": 0}, "shuffle_buffer=0"),
    ],
)
def test_impossible_plans(sources, options, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        EpochPlan(sources, **options)
