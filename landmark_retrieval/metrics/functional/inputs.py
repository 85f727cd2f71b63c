"""What goes into the metrics, as plain Python values."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError

# query id -> (label, score)
Recognized = Mapping[Any, tuple[Hashable, float]]
# query id -> ranked ids, best first
Ranked = Mapping[Any, Iterable[Hashable]]
# query id -> labels or relevant ids
Truth = Mapping[Any, Iterable[Hashable]]


def plain_values(query: Hashable, values: Any, what: str) -> list[Hashable]:
    """The values as a list of plain scalars. `what` they are, and of which `query`, is for the error."""
    # a bare string would be taken apart into letters, and nothing would ever match
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise LandmarkRetrievalError(f"The {what} of query {query!r} must be a list, not {values!r}.")
    return [plain_value(value) for value in values]


def plain_value(value: Any) -> Hashable:
    """A numpy or torch scalar as Python's: a tensor is equal to a label but has another hash.

    Raises:
        LandmarkRetrievalError: it is no scalar, or nothing that can be looked up.
    """
    try:
        plain = value.item() if hasattr(value, "item") else value
        hash(plain)
    except (TypeError, ValueError, RuntimeError):
        raise LandmarkRetrievalError(f"An id or label must be one number or name, not {value!r}.") from None
    return plain
