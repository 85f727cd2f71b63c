"""The torchmetrics classes against the functional core: in batches, in several processes, moved, copied, and logged."""

import doctest
import json
import math
import os
import pickle
import random
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics import (
    GlobalAveragePrecision,
    LandmarkMeanAveragePrecision,
    MeanPosition,
    MeanPrecision,
    RecallAtK,
    RevisitedMeanAveragePrecision,
    functional,
)
from landmark_retrieval.metrics.classes import recognition, retrieval, revisited

GOLDEN = Path(__file__).parents[1] / "golden"


def cases(family):
    return [pytest.param(c, id=c["name"]) for c in json.loads((GOLDEN / family / "cases.json").read_text())]


def value_or_error(expected, compute):
    if isinstance(expected, dict) and "error" in expected:
        with pytest.raises(LandmarkRetrievalError):
            compute()
    else:
        assert float(compute()) == pytest.approx(expected, rel=0, abs=1e-9)


def in_batches(metric, *columns, size=3):
    # warns of compute before update where a case has no predictions
    warnings.filterwarnings("ignore", ".*was called before the ``update`` method", UserWarning)
    for start in range(0, len(columns[0]), size):
        metric.update(*(column[start : start + size] for column in columns))
    return metric


@pytest.mark.parametrize("case", cases("recognition_gap"))
def test_recognition_agrees_with_the_reference(case):
    rows = case["predictions"]
    columns = [[row[name] for row in rows] for name in ("id", "class", "score")]
    for ignore, name in ((False, "gap"), (True, "gap_ignore_non_landmark")):

        def compute(ignore=ignore):
            return in_batches(GlobalAveragePrecision(case["solution"], ignore), *columns).compute()

        value_or_error(case["expected"][name], compute)


@pytest.mark.parametrize("case", cases("retrieval_map"))
def test_retrieval_agrees_with_the_reference(case):
    expected, k = case["expected"], case["max_predictions"]
    columns = [[row[name] for row in case["predictions"]] for name in ("id", "images")]

    def judged(kind, *arguments):
        return lambda: in_batches(kind(case["solution"], *arguments), *columns).compute()

    value_or_error(expected["map"], judged(LandmarkMeanAveragePrecision, k))
    value_or_error(expected["mean_position"], judged(MeanPosition, k))
    value_or_error(expected["median_position"], judged(MeanPosition, k, "median"))
    precisions = expected["mean_precisions"]
    for cut in {1, 2, k // 2 or 1, k}:
        value_or_error(precisions if isinstance(precisions, dict) else precisions[cut - 1], judged(MeanPrecision, cut))


@pytest.mark.parametrize("case", cases("revisited"))
def test_revisited_agrees_with_the_reference(case):
    for setup, expected in case["expected"].items():
        if "error" in expected:
            with pytest.raises(LandmarkRetrievalError, match=setup):
                in_batches(
                    RevisitedMeanAveragePrecision(case["gnd"], case["kappas"], [setup]),
                    torch.arange(len(case["gnd"])),
                    case["ranks_by_query"],
                )
            continue
        metric = RevisitedMeanAveragePrecision(case["gnd"], case["kappas"], [setup])
        in_batches(metric, torch.arange(len(case["gnd"])), case["ranks_by_query"])
        values = {name: value.item() for name, value in metric.compute().items()}
        wanted = {f"map_{setup}": expected["map"]}
        wanted |= {f"mp_at_{k}_{setup}": value for k, value in zip(case["kappas"], expected["mp_at_k"], strict=True)}
        assert values == pytest.approx(wanted, rel=0, abs=1e-9)


QUERIES, IMAGES = [f"q{number:02d}" for number in range(23)], [f"i{number:03d}" for number in range(90)]


def benchmark():
    """Solutions and predictions of all kinds for the same queries; one query has no prediction."""
    rng = random.Random(4)
    landmarks = {query: [rng.randint(0, 4)] if rng.random() < 0.8 else [] for query in QUERIES}
    labels = [rng.randint(0, 4) for _ in QUERIES]
    scores = [rng.choice([0.25, rng.gauss(0, 1)]) for _ in QUERIES]
    relevant = {query: rng.sample(IMAGES, rng.randint(1, 30)) for query in QUERIES}
    ranked = [rng.choices(IMAGES, k=rng.randint(0, 80)) for _ in QUERIES]
    gnd, ranks = [], []
    for _ in QUERIES:
        rows = rng.sample(range(len(IMAGES)), 30)
        gnd.append({"easy": rows[:4], "hard": rows[4 : 4 + rng.randint(0, 6)], "junk": rows[15:20]})
        ranks.append(rng.sample(range(len(IMAGES)), len(IMAGES)))
    return landmarks, labels, scores, relevant, ranked, gnd, ranks


def metrics():
    landmarks, *_, gnd, _ = benchmark()
    relevant = benchmark()[3]
    return {
        "gap": GlobalAveragePrecision(landmarks),
        "map": LandmarkMeanAveragePrecision(relevant),
        "precision": MeanPrecision(relevant, 7),
        "position": MeanPosition(relevant, 70),
        "recall": RecallAtK(relevant, 5),
        "revisited": RevisitedMeanAveragePrecision(gnd, queries=QUERIES),
    }


def feed(made, chosen):
    """Give the predictions of these queries (by number) to all metrics, in two batches."""
    _, labels, scores, _, ranked, _, ranks = benchmark()
    for part in (chosen[:3], chosen[3:]):
        ids = [QUERIES[row] for row in part]
        made["gap"].update(ids, [labels[row] for row in part], torch.tensor([scores[row] for row in part]).double())
        for name in ("map", "precision", "position", "recall"):
            made[name].update(torch.tensor(part, dtype=torch.int64), [ranked[row] for row in part])
        made["revisited"].update(ids, [ranks[row] for row in part])
    return made


def values(made):
    found = {name: metric.compute() for name, metric in made.items()}
    return {name: value.item() for name, value in (found | found.pop("revisited")).items()}


ALL = list(range(len(QUERIES) - 1))  # the last one has no prediction


def test_values_are_those_of_the_functional_core_to_the_bit():
    landmarks, labels, scores, relevant, ranked, gnd, ranks = benchmark()
    found = values(feed(metrics(), random.Random(1).sample(ALL, len(ALL))))
    lists = {QUERIES[row]: ranked[row] for row in ALL}
    judged = {QUERIES[row]: (labels[row], scores[row]) for row in ALL}
    assert found["gap"] == functional.global_average_precision(judged, landmarks)
    assert found["map"] == functional.mean_average_precision(lists, relevant)
    assert found["precision"] == functional.mean_precisions(lists, relevant, 7)[-1]
    assert found["position"] == functional.mean_median_position(lists, relevant, 70)[0]
    assert found["recall"] == functional.recall_at_k(lists, relevant, [5])[5]
    # a query that was never given counts as one of which nothing was found
    for setup in ("easy", "medium", "hard"):
        given = functional.revisited_average_precision([ranks[row] for row in ALL], gnd[:-1], setups=[setup])[setup]
        counted = sum(not math.isnan(ap) for ap in given["aps"])
        missing = bool(gnd[-1]["hard"]) if setup == "hard" else True
        assert found[f"map_{setup}"] == pytest.approx(given["map"] * counted / (counted + missing), abs=1e-15)


# what a DistributedSampler would hand out, filled up with queries from the beginning; and uneven shares
SHARES = {
    2: ([*ALL[0::2], 0], ALL[1::2]),
    3: ([5, 6, *ALL[:5], 5], [*ALL[7:], 6, 7], []),
}


def process(rank, world, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    warnings.simplefilter("ignore")
    made = metrics()
    if SHARES[world][rank]:
        feed(made, SHARES[world][rank])
    found = [values(made), values(made)]  # the second from the cache
    found.append({name: int((metric.records[:, 0] != 0).sum()) for name, metric in made.items()})
    made["map"].reset()
    made["map"].update(["q04"], [["i001" if rank else "i002"]])
    found.append(float(made["map"].compute()))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_gives_the_values_of_one(world, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the server imports torch and torchmetrics once for all processes
    multiprocessing.get_context("forkserver").set_forkserver_preload(["landmark_retrieval.metrics.classes"])
    arguments = (world, port, str(tmp_path))
    multiprocessing.start_processes(process, arguments, nprocs=world, start_method="forkserver")
    wanted = values(feed(metrics(), ALL))
    lowest = metrics()["map"]
    lowest.update(["q04"], [["i002"]])
    for rank in range(world):
        first, again, own, disputed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert first == wanted
        assert again == wanted
        assert set(own.values()) == {len(set(SHARES[world][rank]))}  # each has its own share again
        assert disputed == float(lowest.compute())  # of two predictions that of the lowest rank


def test_a_query_given_again():
    made = feed(feed(metrics(), ALL), ALL[3:9])
    assert values(made) == values(feed(metrics(), ALL))
    with pytest.raises(LandmarkRetrievalError, match="'q03' was given with two different predictions"):
        made["map"].update(["q03"], [["i000"]])
    with pytest.raises(LandmarkRetrievalError, match="'q03' was given with two different"):
        made["gap"].update(["q03"], [3], [0.123])
    with pytest.raises(LandmarkRetrievalError, match="'q03' was given with two different"):
        made["revisited"].update(["q03"], [range(90)])
    fresh = metrics()["map"]
    with pytest.raises(LandmarkRetrievalError, match="'q03' was given with two different"):
        fresh.update(["q03", "q04", "q03"], [["i000"], [], ["i001"]])
    # the same hits, another list
    fresh.update(["q03"], [["x", "y"]])
    with pytest.raises(LandmarkRetrievalError, match="'q03' was given with two different"):
        fresh.update(["q03"], [["y", "x"]])
    assert values(made) == values(feed(metrics(), ALL))  # what was refused has changed nothing


def test_copies_moves_and_other_precisions_change_nothing():
    wanted = values(feed(metrics(), ALL))
    for change in (
        lambda metric: pickle.loads(pickle.dumps(metric)),
        lambda metric: metric.clone(),
        lambda metric: metric.to("cpu").half().double(),
        lambda metric: metric.set_dtype(torch.float16),
    ):
        made = {name: change(metric) for name, metric in feed(metrics(), ALL[:11]).items()}
        assert values(feed(made, ALL[8:])) == wanted
    assert metrics()["map"].to("meta").records.device.type == "meta"


def test_reset_forward_and_merge():
    made = feed(metrics(), ALL)
    for metric in made.values():
        metric.reset()
    assert values(feed(made, ALL)) == values(feed(metrics(), ALL))
    relevant, ranked = benchmark()[3:5]
    metric = LandmarkMeanAveragePrecision(relevant)
    first = metric(QUERIES[:8], ranked[:8])
    batch = dict(zip(QUERIES[:8], ranked[:8], strict=True))
    assert first.item() == functional.mean_average_precision(batch, relevant)
    metric(QUERIES[6:20], ranked[6:20])
    other = LandmarkMeanAveragePrecision(relevant)
    other.update(QUERIES[19:22], ranked[19:22])
    metric.merge_state(other)
    assert metric.compute().item() == values(feed(metrics(), ALL))["map"]


def test_scores_keep_their_float64():
    # in float32 both would be the same, and "a" would stand first
    solution = {"a": [], "b": [1]}
    metric = GlobalAveragePrecision(solution)
    metric.update(["a", "b"], torch.tensor([1, 1]), torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64))
    assert metric.compute().item() == 1.0


def test_rows_of_an_index_stand_for_its_ids():
    relevant, ranked = benchmark()[3:5]
    ranked = [(images * 50)[:40] if images else IMAGES[:40] for images in ranked]
    by_id = LandmarkMeanAveragePrecision(relevant, 30)
    by_id.update(QUERIES, ranked)
    rows = torch.tensor([[IMAGES.index(image) for image in images] for images in ranked])
    by_row = LandmarkMeanAveragePrecision(relevant, 30, index=IMAGES)
    by_row.update(torch.arange(len(QUERIES)), rows)
    numbered = LandmarkMeanAveragePrecision(
        {q: [IMAGES.index(i) for i in images] for q, images in relevant.items()}, 30
    )
    numbered.update(QUERIES, rows.numpy())
    assert by_id.compute() == by_row.compute() == numbered.compute() > 0
    for rows in ([[90]], [[-1, 3]]):
        with pytest.raises(LandmarkRetrievalError, match=f"no row {rows[0][0]} in an index of 90"):
            by_row.update([QUERIES[0]], torch.tensor(rows))


def test_lists_of_different_lengths_in_one_table():
    relevant, gnd = {"a": [3], "b": [5]}, [{"easy": [3], "hard": [], "junk": []}, {"easy": [5], "hard": [], "junk": []}]
    lists, table = [[4, 3], [5, 6, 7]], torch.tensor([[4, 3, -1], [5, 6, 7]])
    for make in (
        lambda: LandmarkMeanAveragePrecision(relevant),
        lambda: RevisitedMeanAveragePrecision(gnd, setups=["easy"], queries=["a", "b"]),
    ):
        one, other = make(), make()
        one.update(["a", "b"], lists)
        other.update(["a", "b"], table)
        assert torch.equal(one.records, other.records)
        assert one.compute() == other.compute()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: metrics()["map"].update(["x"], [[]]), "'x' is predicted but is not in the solution"),
        (lambda: metrics()["map"].update("q01", [[]]), "must be a list of ids"),
        (lambda: metrics()["map"].update(torch.tensor([23]), [[]]), "no query 23"),
        (lambda: metrics()["map"].update(torch.tensor([0.5]), [[]]), "must be integers, not float32"),
        (lambda: metrics()["map"].update(["q01"], [[], []]), "1 queries need as many ranked lists, not 2"),
        (lambda: metrics()["map"].update(["q01"], torch.tensor([1, 2])), r"must be a table .* not of shape \(2,\)"),
        (lambda: metrics()["map"].update(["q01"], ["i001"]), "must be a list, not 'i001'"),
        (lambda: metrics()["gap"].update(["q01"], [1], [math.nan]), "score of query 'q01' is NaN"),
        (lambda: metrics()["gap"].update(["q01"], [1.5], [0.5]), "Labels must be integers"),
        (lambda: metrics()["gap"].update(["q01"], [1, 2], [0.5]), "as many labels and scores"),
        (lambda: metrics()["revisited"].update(["q01"], [[0, 0]]), "more than once"),
        (lambda: metrics()["revisited"].update(["q01"], [[]]), "None of the .* positives of query q01"),
        (lambda: LandmarkMeanAveragePrecision({}), "holds no query"),
        (lambda: LandmarkMeanAveragePrecision({"a": []}, 0), "k must be at least 1"),
        (lambda: MeanPosition({"a": ["b"]}, reduction="mode"), "no 'mode'"),
        (
            lambda: RevisitedMeanAveragePrecision([{"easy": [0], "hard": [], "junk": []}]),
            "positives in the setup 'hard'",
        ),
        (lambda: RevisitedMeanAveragePrecision([], queries=["a"]), "1 ids of queries, but gnd holds 0"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        wrong()


def test_lightning_logs_them(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    relevant, ranked = benchmark()[3:5]

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.map = LandmarkMeanAveragePrecision(relevant)
            self.revisited = metrics()["revisited"]

        def validation_step(self, batch, _):
            rows = batch.tolist()
            self.map.update(batch, [ranked[row] for row in rows])
            self.revisited.update([QUERIES[row] for row in rows], [benchmark()[-1][row] for row in rows])
            self.log("map", self.map)

        def on_validation_epoch_end(self):
            self.log_dict(self.revisited.compute())
            self.revisited.reset()

    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    module = Module()
    wanted = values(feed(metrics(), ALL))
    for _ in range(2):  # the second time after a reset of Lightning's own
        (found,) = trainer.validate(module, torch.utils.data.DataLoader(ALL, 5), verbose=False)
        assert found["map"] == wanted["map"]
        assert {name: found[name] for name in found if name != "map"} == {
            name: value for name, value in wanted.items() if name in found and name != "map"
        }


def test_the_functions_do_not_wait_for_torch():
    code = "import sys; from landmark_retrieval.metrics import recall_at_k; print({'torch', 'numpy'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "{'numpy'}"


def test_docstring_examples():
    results = [doctest.testmod(module) for module in (recognition, retrieval, revisited)]
    assert sum(result.attempted for result in results) >= 18
    assert not any(result.failed for result in results)


def test_a_solution_as_numpy_and_torch_scalars():
    metric = GlobalAveragePrecision({"a": np.array([3, 4]), "b": torch.tensor([5])})
    metric.update(["a", "b"], np.array([4, 5]), np.array([0.5, 0.25], np.float32))
    assert metric.compute() == 1.0
