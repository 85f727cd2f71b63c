"""FAISS itself, and whether and how it searches on GPUs."""

from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.indexes.faiss_kinds import Recipe

MOST_ON_GPU = 2048
"""Results of a query that FAISS can give on a GPU."""


def import_faiss() -> Any:
    """FAISS, or the error that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise LandmarkRetrievalError(
            f"The index needs FAISS ({error}): pip install faiss-cpu, or faiss-gpu on a machine with CUDA (never both)."
        ) from None
    return faiss


def check_device(device: str, kind: str, factory: str = "") -> None:
    """Refuse devices that are not there, and kinds that they cannot search."""
    if device == "cpu":
        return
    if device != "cuda":
        raise LandmarkRetrievalError(f"An index is searched on the device cpu or cuda, not on {device!r}.")
    faiss = import_faiss()
    if not hasattr(faiss, "index_cpu_to_all_gpus") or not faiss.get_num_gpus():
        # index_cpu_to_all_gpus would give an index for the CPU without a word
        raise LandmarkRetrievalError(
            "FAISS finds no GPU here: search on the CPU (device cpu), or install faiss-gpu in place of faiss-cpu on a "
            "machine with CUDA."
        )
    if kind not in ("flat", "ivf_pq") or factory.endswith("fs"):
        raise LandmarkRetrievalError(
            f"An index of kind {kind} as it was built cannot be searched on a GPU: build a flat or an ivf_pq one with "
            "device cuda, or search on the CPU."
        )


def to_gpus(index: Any, made: Recipe) -> Any:
    """A copy of an index on all GPUs."""
    faiss = import_faiss()
    options = faiss.GpuMultipleClonerOptions()
    # each GPU holds its share of the photos
    options.shard = True
    options.useFloat16LookupTables = True
    on_gpus = faiss.index_cpu_to_all_gpus(index, co=options)
    if made.probe:
        faiss.GpuParameterSpace().set_index_parameter(on_gpus, "nprobe", made.probe)
    return on_gpus
