"""The kinds of FAISS index: which one for how many photos, and with which parameters."""

import math
import os
from dataclasses import dataclass

from landmark_retrieval.errors import LandmarkRetrievalError

FAISS_KINDS = ("flat", "fp16", "sq8", "hnsw", "ivf_pq")
KINDS = (*FAISS_KINDS, "exact")
# from here on a query of an exact search takes tens of milliseconds on one core
_FLAT_BYTES = 2**29
_BYTES_PER_SECOND = 10e9


@dataclass(frozen=True)
class Recipe:
    """How an index is made.

    Attributes:
        kind: one of KINDS.
        why: a sentence for a person.
        factory: FAISS's description of the index.
        cells: of an inverted file; 0 where there is none.
        probe: cells that a query looks into.
        candidates: how many candidates an HNSW query keeps (efSearch), at least.
        training_rows: drawn from the photos to train on.
        rescore: candidates per wanted result that are compared again, exactly; 0 for none.
        fewest: photos that it takes to train on.
    """

    kind: str
    why: str
    factory: str = ""
    cells: int = 0
    probe: int = 0
    candidates: int = 0
    training_rows: int = 0
    rescore: int = 0
    fewest: int = 1


def recipe(kind: str, rows: int, dim: int, device: str = "cpu", memory: int | None = None) -> Recipe:
    """The parameters of an index of `rows` descriptors of length `dim`.

    Args:
        kind: one of KINDS, or "auto": flat (exact) while the descriptors take at most 512 MiB and a quarter of the
            memory, otherwise ivf_pq.
        rows: photos.
        dim: length of a descriptor.
        device: "cuda" takes codes that a GPU can search.
        memory: bytes that are there; by default those of the machine.

    Raises:
        LandmarkRetrievalError: no such kind.
    """
    whole = 4 * rows * dim
    if kind == "auto":
        limit = min(_FLAT_BYTES, (memory or _memory()) // 4)
        kind = "flat" if whole <= limit else "ivf_pq"
    if kind == "flat":
        return Recipe(kind, f"flat: {_costs(rows, whole)}; exact", "Flat")
    if kind == "exact":
        return Recipe(kind, f"exact: {rows:,} photos are read from the descriptors on disk; nothing is copied")
    if kind == "fp16":
        return Recipe(kind, f"fp16: {_costs(rows, whole // 2)}; scores are off by less than 0.001", "SQfp16")
    if kind == "sq8":
        why = f"sq8: {_costs(rows, whole // 4)}; a byte per number, the best candidates are compared exactly"
        return Recipe(kind, why, "SQ8", training_rows=min(rows, 50_000), rescore=2)
    if kind == "hnsw":
        why = (
            f"hnsw: {rows:,} photos take {_size(whole + 300 * rows)}, and few comparisons a query; for fast single "
            "queries where memory is plenty"
        )
        return Recipe(kind, why, "HNSW32,Flat", candidates=128)
    if kind == "ivf_pq":
        return _ivf_pq(rows, dim, device)
    raise LandmarkRetrievalError(f"There is no kind of index {kind!r}: choose auto, {', '.join(KINDS)}, or qdrant.")


def _ivf_pq(rows: int, dim: int, device: str) -> Recipe:
    # four times sqrt(rows) cells, and at least 39 rows to train each
    cells = 1 << max(0, min(round(math.log2(4 * rows**0.5)), (rows // 39).bit_length() - 1))
    probe = max(1, min(cells, max(8, cells * 5 // 32)))
    # the last quarter of the directions is left to the exact comparison of the candidates
    kept = dim * 3 // 4 if dim >= 256 and rows >= 4 * dim else dim
    if device == "cuda":
        # 8-bit codes, as the 4-bit ones below are for CPUs alone; a GPU's shared memory holds the tables of up to 64
        parts, bits, suffix = next(n for n in range(64, 0, -1) if kept % n == 0), 8, ""
    else:
        # 4 bits for each 2 numbers, compared in registers ("fast scan", Andre et al. 2017)
        parts, bits, suffix = kept // 2 if kept % 2 == 0 else kept, 4, "fs"
    size = rows * (parts * bits // 8 + 8)
    why = (
        f"ivf_pq: {rows:,} photos take {_size(size)} as codes where descriptors take {_size(4 * rows * dim)}; a query "
        f"looks into {probe} of {cells} cells, the best candidates are compared exactly"
    )
    return Recipe(
        "ivf_pq",
        why,
        f"{f'PCAR{kept},' if kept < dim else ''}IVF{cells},PQ{parts}x{bits}{suffix}",
        cells,
        probe,
        training_rows=min(rows, max(64 * cells, 10_000)),
        rescore=4,
        fewest=1 << bits,
    )


def check_enough(made: Recipe, photos: int) -> None:
    """Refuse fewer photos than the kind can be trained on."""
    if photos < made.fewest:
        raise LandmarkRetrievalError(
            f"An index of kind {made.kind} is trained on {made.fewest} photos or more, these are {photos}: choose flat."
        )


def _costs(rows: int, size: int) -> str:
    return f"{rows:,} photos take {_size(size)} and about {max(0.1, 1e3 * size / _BYTES_PER_SECOND):.2g} ms a query"


def _size(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{max(1, round(size / 1e6)):,} MB"


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
