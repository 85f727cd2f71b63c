"""How indexes grow: time, memory and recall of each kind over synthetic descriptors of up to a million photos.

The descriptors imitate those of landmark models. Each landmark has a direction; 500 kinds of landmark (towers, bridges,
...) share two fifths of it, and the directions vary more along some axes than along others (variance 1 / (16 + i)). A
photo is the direction of its landmark, plus its pose (a combination of 8 directions that many landmarks have in common,
variance 0.5), plus noise in all directions (variance 0.12), L2-normalised. 20,000 landmarks have from some thousand
photos to a dozen (rank ** -0.8); queries are further photos, drawn alike. Half of the queries show a landmark of fewer
than 100 photos: the rest of their 100 nearest are of other landmarks, which is the hard part.

Memory is what a process holds because of the opened index (anonymous memory; the files of the descriptors, which
rescoring reads, are the system's to cache). Recall@100 is the share of the 100 nearest of an exact search that are
found.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import in_turn, medians, resident_peak
from tqdm import tqdm

from landmark_retrieval.columns import aligned
from landmark_retrieval.retrieval.index import build_index, open_index
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter

DIM, LANDMARKS, KINDS, POSES = 512, 20_000, 500, 64
QUERIES, K = 1_000, 100
SIZES = (10_000, 100_000, 1_000_000)
_BLOCK = 50_000
# a graph over a million rows takes 2.4 GB and, on two cores, most of an hour
LARGEST_GRAPH = 100_000


# --- descriptors ---


class Photos:
    """Descriptors of landmark photos; see the module."""

    def __init__(self, dim: int = DIM, landmarks: int = LANDMARKS, seed: int = 0) -> None:
        self.seed, self.dim = seed, dim
        rng = np.random.default_rng(seed)
        spread = (np.arange(dim) + 16) ** -0.5
        turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]

        def directions(count: int) -> np.ndarray:
            return unit(rng.standard_normal((count, dim)) * spread @ turn)

        kinds = directions(KINDS)[rng.integers(KINDS, size=landmarks)]
        self.landmarks = unit(0.6**0.5 * directions(landmarks) + 0.4**0.5 * kinds).astype(np.float32)
        self.poses = (rng.standard_normal((POSES, 8, dim)) * (0.5 / 8 / dim) ** 0.5).astype(np.float32)
        share = (np.arange(landmarks) + 10) ** -0.8
        self.share = share / share.sum()

    def draw(self, count: int, number: int) -> np.ndarray:
        """The photos of block `number`: (count, dim) float32 of unit length."""
        rng = np.random.default_rng([self.seed, number])
        landmark = rng.choice(len(self.share), count, p=self.share)
        rows = rng.standard_normal((count, self.dim), dtype=np.float32) * np.float32((0.12 / self.dim) ** 0.5)
        rows += self.landmarks[landmark]
        pose = rng.standard_normal((count, 8), dtype=np.float32)
        for number in range(POSES):
            here = landmark % POSES == number
            rows[here] += pose[here] @ self.poses[number]
        return unit(rows)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_store(folder: Path, rows: int, dtype: str = "float16") -> DescriptorStore:
    """A store of so many photos; one that is there is taken as it is."""
    if not (folder / "store.json").exists():
        photos = Photos()
        with DescriptorWriter(folder, {"model": "synthetic", "rows": rows}, dtype=dtype, part_size=_BLOCK) as writer:
            for start in tqdm(range(0, rows, _BLOCK), desc=f"draw {rows:,}", unit="block", disable=None):
                if f"{start:016x}" not in writer.done:
                    count = min(_BLOCK, rows - start)
                    ids = [f"{row:016x}" for row in range(start, start + count)]
                    writer.append(ids, photos.draw(count, start // _BLOCK))
    return DescriptorStore.open(folder)


def make_queries(count: int = QUERIES) -> np.ndarray:
    return Photos().draw(count, 10**6)


# --- one process per measurement ---


def anonymous() -> int:
    """Bytes of memory that no file stands behind."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024


def alone_build(store: str, kind: str, out: str) -> dict[str, Any]:
    descriptors = DescriptorStore.open(store)
    build_index(DescriptorStore.open(store), "exact")  # what is imported, and the ids, are not counted
    before, started = resident_peak(), time.perf_counter()
    index = build_index(descriptors, kind)
    index.save(out)
    return {"seconds": time.perf_counter() - started, "peak": resident_peak() - before, "why": index.why}


def alone_memory(index: str, *_: str) -> dict[str, Any]:
    """What an opened index holds."""
    import faiss  # noqa: F401

    before = anonymous()
    opened = open_index(index)
    held = anonymous() - before
    return {"bytes": held, "photos": len(opened)}


def alone_search(index: str, truth: str, runs: int) -> dict[str, Any]:
    """Median seconds of all queries together and of one, and the recall."""
    opened, queries = open_index(index), make_queries()
    together, single = [], []
    for _ in range(runs):
        started = time.perf_counter()
        ids, _ = opened.search(queries, K)
        together.append(time.perf_counter() - started)
        for query in queries[:20]:
            started = time.perf_counter()
            opened.search(query[None], K)
            single.append(time.perf_counter() - started)
    if not Path(truth).exists():  # the first index that is searched is an exact one
        Path(truth).write_text(json.dumps(ids))
    recall = recall_of(ids, json.loads(Path(truth).read_text()))
    return {
        "together": statistics.median(together) / len(queries),
        "single": statistics.median(single),
        "recall": recall,
    }


def recall_of(found: list[list[str]], truth: list[list[str]]) -> float:
    return statistics.mean(len({*a} & {*b}) / len(b) for a, b in zip(found, truth, strict=True))


def in_fresh_process(step: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--alone", step, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


# --- the tables ---


def compressed(work: Path, rows: int = 1_000_000, runs: int = 3) -> Iterator[str]:
    """Recall, time and memory of ivf_pq, with and without its exact comparison, against flat search, in turn."""
    yield f"### {rows:,} photos x {DIM}, {QUERIES:,} queries, the {K} nearest\n"
    store = make_store(work / f"store-{rows}", rows)
    names = {"flat": "flat", "chosen": "ivf_pq"}
    built, held = {}, {}
    for name, kind in names.items():
        folder = work / f"{kind}-{rows}"
        built[name] = in_fresh_process("build", store.folder, kind, folder)
        held[name] = in_fresh_process("memory", folder, 0)["bytes"]
    yield f"{built['chosen']['why']}\n"
    queries = make_queries()
    flat, chosen = (open_index(work / f"{kind}-{rows}") for kind in names.values())
    rough = open_index(work / f"ivf_pq-{rows}", rescore=0)
    truth = flat.search(queries, K)[0]
    lines = [("", "ms a query", "of exact", "MB", "of exact", f"recall@{K}", "build, s", "MB at most")]
    exact_times = []
    for name, index in (("rescored from disk", chosen), ("not rescored", rough)):
        own, exact, _ = medians(
            pairs := in_turn(lambda index=index: index.search(queries, K), lambda: flat.search(queries, K), runs, 1)
        )
        exact_times += [other for _, other in pairs]
        ratio = statistics.median(other / mine for mine, other in pairs)
        made = built["chosen"]
        lines.append(
            (
                name,
                f"{own / QUERIES * 1e3:.2f}",
                f"1/{ratio:.1f}",
                f"{held['chosen'] / 1e6:,.0f}",
                f"1/{held['flat'] / held['chosen']:.1f}",
                f"{recall_of(index.search(queries, K)[0], truth):.3f}",
                f"{made['seconds']:,.0f}",
                f"{made['peak'] / 1e6:,.0f}",
            )
        )
    made = built["flat"]
    exact = statistics.median(exact_times)
    times = (f"{exact / QUERIES * 1e3:.2f}", "1", f"{held['flat'] / 1e6:,.0f}", "1", "1.000")
    lines.insert(1, ("flat (exact)", *times, f"{made['seconds']:,.0f}", f"{made['peak'] / 1e6:,.0f}"))
    yield from aligned(lines, range(1, 8))
    yield ""


def growth(work: Path, sizes: tuple[int, ...] = SIZES, runs: int = 3) -> Iterator[str]:
    """Every kind at every size, each in processes of its own."""
    yield f"### Kinds of index by number of photos x {DIM}, {QUERIES:,} queries, the {K} nearest\n"
    header = ("photos", "kind", "build, s", "MB at most", "MB held", "ms a query", "ms alone", f"recall@{K}")
    lines: list[tuple[str, ...]] = [header]
    for rows in sizes:
        store = make_store(work / f"store-{rows}", rows)
        for kind in ("flat", "exact", "fp16", "sq8", "hnsw", "ivf_pq"):
            if kind == "hnsw" and rows > LARGEST_GRAPH:
                lines.append((f"{rows:,}", kind, "not run: too slow to build here", "", "", "", "", ""))
                continue
            folder = work / f"{kind}-{rows}"
            made = in_fresh_process("build", store.folder, kind, folder)
            held = in_fresh_process("memory", folder, 0)["bytes"]
            searched = in_fresh_process("search", folder, work / f"truth-{rows}.json", runs if rows < 10**6 else 1)
            lines.append(
                (
                    f"{rows:,}",
                    kind,
                    f"{made['seconds']:,.1f}",
                    f"{made['peak'] / 1e6:,.0f}",
                    f"{held / 1e6:,.0f}",
                    f"{searched['together'] * 1e3:.2f}",
                    f"{searched['single'] * 1e3:.2f}",
                    f"{searched['recall']:.3f}",
                )
            )
            print("  ".join(lines[-1]), file=sys.stderr, flush=True)
            shutil.rmtree(folder)
    yield from aligned(lines, (0, *range(2, 8)))
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=("compressed", "growth"), help="(default: both)")
    parser.add_argument("--work", type=Path, help="folder for 4 GB of descriptors and indexes (default: a new one)")
    parser.add_argument("--quick", action="store_true", help="few photos, to see that it works")
    parser.add_argument("--alone", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        step, *rest = arguments.alone
        if step == "build":
            found = alone_build(*rest)
        elif step == "memory":
            found = alone_memory(*rest)
        else:
            found = alone_search(rest[0], rest[1], int(rest[2]))
        print(json.dumps(found))
        return
    print(f"{os.cpu_count()} cores, numpy {np.__version__}\n", flush=True)
    with tempfile.TemporaryDirectory() as fresh:
        work = arguments.work or Path(fresh)
        if arguments.table != "growth":
            for line in compressed(work, 20_000 if arguments.quick else 1_000_000):
                print(line, flush=True)
        if arguments.table != "compressed":
            for line in growth(work, (2_000, 10_000) if arguments.quick else SIZES):
                print(line, flush=True)


if __name__ == "__main__":
    main()
