"""What search, soft re-ranking with an ensemble, and recognition cost beside the matrix products they have to do.

    python benchmarks/search.py [exact] [rerank] [recognition] [compressed] [growth] [--quick]

Without a name all of them run. Each stands beside the bare work in the same run: matrix products in blocks of the same
size and `torch.topk` of each block, nothing merged, checked or kept. Results are compared with the rules written as
plain numpy loops on a slice, which is timed, too. Memory is the most that the process held beyond the inputs.
Descriptors are random unit rows; `compressed` and `growth` are in growth.py, which says what theirs are.
"""

import argparse
import contextlib
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import growth
import numpy as np
import torch
from measure import in_turn, medians, seconds

from landmark_retrieval.columns import aligned
from landmark_retrieval.retrieval.recognition import recognize_in_detail
from landmark_retrieval.retrieval.rerank import ensemble, soft_rerank
from landmark_retrieval.retrieval.search import CHUNK, exact_search

DIM, TOP, K = 512, 750, 3
LABELS = 5_000


def unit_rows(rows: int, seed: int, dim: int = DIM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator))


def bare(queries: torch.Tensor, index: torch.Tensor, k: int) -> None:
    """Matrix products and top-k, in the blocks of `exact_search`."""
    with torch.inference_mode():
        for block in queries.split(CHUNK[0]):
            for rows in index.split(CHUNK[1]):
                (block @ rows.T).topk(min(k, len(rows)), dim=1)


class Peak:
    """The most memory held in a `with` block, beyond what was held when it began, in bytes."""

    def __enter__(self) -> "Peak":
        # what earlier steps have given back would hide what this one takes
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = self._read("VmHWM") - self._before

    @staticmethod
    def _read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


# --- exact search ---


def exact(quick: bool) -> None:
    rows = 20_000 if quick else 200_000
    queries, index = unit_rows(1_000, 0), unit_rows(rows, 1)
    table = [("k", "ours, s", "bare, s", "ours / bare")]
    for k in (10, 100, 750):
        pairs = in_turn(lambda k=k: exact_search(queries, index, k), lambda k=k: bare(queries, index, k), 5, warmup=1)
        ours, theirs, _ = medians(pairs)
        ratio = statistics.median(own / other for own, other in pairs)
        table.append((str(k), f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}"))
    print(f"\nExact search, 1,000 queries x {rows:,} rows x {DIM}\n")
    print("\n".join(aligned(table, right=range(4))))


# --- soft re-ranking and ensemble ---


class Models:
    """The descriptors of one model at a time: eight would be 3.3 GB of inputs."""

    def __init__(self, count: int, queries: int, index: int, train: int) -> None:
        self.count, self.sizes = count, (queries, index, train)
        self.labels = torch.randint(LABELS, (train,), generator=torch.Generator().manual_seed(0))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for model in range(self.count):
            yield tuple(unit_rows(size, 3 * model + part) for part, size in enumerate(self.sizes))


def by_loops(
    query: np.ndarray, index: np.ndarray, train: np.ndarray, labels: np.ndarray, top: int
) -> list[tuple[list[int], list[float]]]:
    """The rules of soft re-ranking, photo by photo."""

    def vote(image: np.ndarray) -> tuple[int, float]:
        similarity = train @ image
        nearest = np.argsort(-similarity, kind="stable")[:K]
        votes: dict[int, float] = {}
        for row in nearest:
            votes[labels[row]] = votes.get(labels[row], 0.0) + similarity[row]
        best = max(votes, key=lambda label: votes[label])
        return best, votes[best] / K

    of_index = [vote(image) for image in index]
    found = []
    for image in query:
        label, _ = vote(image)
        adjusted = []
        for photo, (other, sure) in zip(index, of_index, strict=True):
            adjusted.append(float(photo @ image) + (sure if other == label else -0.1 * sure))
        order = np.argsort(-np.array(adjusted), kind="stable")[:top]
        found.append((order.tolist(), [adjusted[row] for row in order]))
    return found


def rerank(quick: bool) -> None:
    models, queries, photos = (2, 100, 5_000) if quick else (8, 1_000, 100_000)
    all_models = Models(models, queries, photos, photos)
    ours = theirs = 0.0
    lists = []
    peak = 0
    for query, index, train in all_models:
        theirs += seconds(lambda q=query, x=index, t=train: (bare(q, t, K), bare(x, t, K), bare(q, x, TOP)))
        with Peak() as used:
            started = time.perf_counter()
            lists.append(soft_rerank(query, index, train, all_models.labels, K, top=TOP))
            ours += time.perf_counter() - started
        peak = max(peak, used.bytes)
        print(f"  model {len(lists)}: ours {ours:.1f} s, bare {theirs:.1f} s so far", flush=True)
    with Peak() as used:
        started = time.perf_counter()
        ensemble(lists, 100)
        adding = time.perf_counter() - started
    print(f"\nSoft re-ranking and ensemble, {models} models, {queries:,} queries, {photos:,} index and train rows\n")
    lines = [
        ("", "seconds", "beyond the inputs, MiB"),
        ("ours: re-ranking", f"{ours:.1f}", f"{peak / 2**20:.0f}"),
        ("ours: ensemble", f"{adding:.2f}", f"{used.bytes / 2**20:.0f}"),
        ("bare products and top-k", f"{theirs:.1f}", ""),
        ("ours / bare", f"{(ours + adding) / theirs:.2f}", ""),
    ]
    print("\n".join(aligned(lines, right=(1, 2))))

    query, index, train = next(iter(all_models))
    few, some = query[:2], index[:100]
    labels = all_models.labels
    # votes cost as much as the photos voted for; the pairs of query and index photo as much as there are
    slow = seconds(lambda: by_loops(few.numpy(), some.numpy(), train.numpy(), labels.numpy(), TOP))
    voting = seconds(lambda: [train.numpy() @ image for image in some.numpy()])
    whole = slow * (photos + queries) / (len(some) + len(few))
    print(
        f"\nplain loops, {len(some)} index photos and {len(few)} queries: {slow:.2f} s, products {voting:.2f} s of it;"
    )
    print(f"a model in full {whole:,.0f} s by the number of photos voted for: {whole / (ours / models):.0f} times ours")
    rows, scores = soft_rerank(few, some, train, labels, K, top=TOP)
    for number, (wanted, values) in enumerate(by_loops(few.numpy(), some.numpy(), train.numpy(), labels.numpy(), TOP)):
        assert rows[number].tolist() == wanted
        np.testing.assert_allclose(scores[number], values, atol=1e-5)

    peaks = []
    for count in (queries // 4, queries, 4 * queries):
        many = unit_rows(count, 99)
        with Peak() as used:
            for block in many.split(CHUNK[0]):
                soft_rerank(block, index[: photos // 10], train[: photos // 10], labels[: photos // 10], K, top=TOP)
        peaks.append((f"{count:,}", f"{used.bytes / 2**20:.0f}"))
    print("\nmemory by queries, in blocks as submit works, a tenth of the rows\n")
    print("\n".join(aligned([("queries", "MiB"), *peaks], right=(0, 1))))


# --- recognition ---


def recognition(quick: bool) -> None:
    test, train, others = (500, 5_000, 500) if quick else (10_000, 100_000, 5_000)
    dim = 3 * DIM
    rows = [unit_rows(count, number, dim) for number, count in enumerate((test, train, others))]
    labels = torch.randint(LABELS, (train,))

    def bare_products() -> None:
        bare(rows[0], rows[1], 3)
        bare(rows[1], rows[2], 5)
        bare(rows[0], rows[2], 10)

    theirs = seconds(bare_products)
    with Peak() as used:
        started = time.perf_counter()
        recognize_in_detail(rows[0], rows[1], labels, rows[2], progress=True)
        ours = time.perf_counter() - started
    print(f"\nRecognition, {test:,} test x {train:,} training photos x {dim}, {others:,} non-landmarks\n")
    lines = [
        ("", "seconds", "beyond the inputs, MiB"),
        ("ours", f"{ours:.1f}", f"{used.bytes / 2**20:.0f}"),
        ("bare products and top-k", f"{theirs:.1f}", ""),
    ]
    print("\n".join(aligned(lines, right=(1, 2))))


def grown(table: Callable[..., Iterable[str]], most: Any) -> Callable[[bool], None]:
    def run(quick: bool) -> None:
        with tempfile.TemporaryDirectory() as work:
            for line in table(Path(work), most[quick]):
                print(line, flush=True)

    return run


PARTS = {
    "exact": exact,
    "rerank": rerank,
    "recognition": recognition,
    "compressed": grown(growth.compressed, (1_000_000, 20_000)),
    "growth": grown(growth.growth, (growth.SIZES, (2_000, 10_000))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in arguments.parts or PARTS:
        PARTS[name](arguments.quick)


if __name__ == "__main__":
    main()
