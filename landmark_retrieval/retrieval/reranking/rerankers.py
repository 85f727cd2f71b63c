"""The unsupervised re-rankers by name: ranked lists in, ranked lists out."""

import difflib

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.reranking.diffusion import diffusion
from landmark_retrieval.retrieval.reranking.expansion import alpha_query_expansion, database_augmentation
from landmark_retrieval.retrieval.reranking.k_reciprocal import k_reciprocal
from landmark_retrieval.retrieval.reranking.ranked import Reranker

RERANKERS: dict[str, Reranker] = {
    "alpha_query_expansion": alpha_query_expansion,
    "database_augmentation": database_augmentation,
    "k_reciprocal": k_reciprocal,
    "diffusion": diffusion,
}


def find_reranker(name: str) -> Reranker:
    """The re-ranker of a name. LandmarkRetrievalError with the nearest names if there is none."""
    if name not in RERANKERS:
        near = difflib.get_close_matches(name.lower(), RERANKERS, 2, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(RERANKERS)}."
        raise LandmarkRetrievalError(f"There is no re-ranker called {name!r}: {hint}")
    return RERANKERS[name]
