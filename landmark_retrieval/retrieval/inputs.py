"""What searches take: arrays and tensors of any kind, labels, devices, and float32 as it is."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from landmark_retrieval.errors import LandmarkRetrievalError

Devices = Sequence[str | torch.device] | str | torch.device


def as_tensor(values: Any) -> torch.Tensor:
    """A tensor of an array of any strides and byte order, also a read-only one, or of a list; without its gradient."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    array = np.asarray(values)
    # a copy where torch would not take the array itself
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def as_labels(labels: Any, count: int, what: str, called: str = "labels") -> torch.Tensor:
    """int64 (count,).

    Raises:
        LandmarkRetrievalError: another shape, or no integers.
    """
    try:
        values = as_tensor(labels)
    except (TypeError, ValueError):
        values = None
    if values is None or values.shape != (count,) or values.is_floating_point() or values.is_complex():
        found = np.asarray(labels, dtype=object) if values is None else values
        kind = "something else" if values is None else values.dtype
        raise LandmarkRetrievalError(
            f"{count} {what} need ({count},) integers as {called}, not {tuple(found.shape)} of {kind}."
        )
    return values.long()


def rows_of(
    rows: Any, start: int, stop: int, device: torch.device, what: str, check: bool = True, shift: int = 0
) -> torch.Tensor:
    """Rows [start, stop) as float32 on the device; where they are a part of more, `shift` rows stand before them.

    Raises:
        LandmarkRetrievalError: `check`, and a row holds NaN or infinity (it is named).
    """
    # first to the device: float16 is half of the way
    block = as_tensor(rows[start:stop]).to(device).to(torch.float32)
    # the sum of something not finite is not finite; a tenth of the cost of looking at each number
    if check and not torch.isfinite(block.sum()):
        finite = torch.isfinite(block).all(dim=1)
        if not finite.all():
            row = shift + start + int((~finite).nonzero()[0])
            raise LandmarkRetrievalError(
                f"Row {row} of the {what} holds NaN or infinity: remove it or compute it again."
            )
    return block


_precision_lock = threading.Lock()
_precision_held: list[tuple[Any, str]] = []
_precision_users = 0


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products as they are: TF32, which training may have switched on, would reorder close scores.

    The setting is that of the whole process; the last of several threads to leave gives it back.
    """
    global _precision_users
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    with _precision_lock:
        if not _precision_users:
            _precision_held[:] = [(place, place.fp32_precision) for place in places]
            for place in places:
                place.fp32_precision = "ieee"
        _precision_users += 1
    try:
        yield
    finally:
        with _precision_lock:
            _precision_users -= 1
            if not _precision_users:
                for place, value in _precision_held:
                    place.fp32_precision = value


def check_comparable(queries: Any, index: Any, k: int, chunk: tuple[int, int]) -> None:
    """LandmarkRetrievalError where `exact_search` would raise it for shapes, k or chunk."""
    if queries.ndim != 2 or index.ndim != 2 or queries.shape[1] != index.shape[1]:
        raise LandmarkRetrievalError(
            f"Queries of shape {tuple(queries.shape)} and an index of shape {tuple(index.shape)} cannot be compared: "
            "both must be (rows, d) with the same d."
        )
    if not len(index):
        raise LandmarkRetrievalError("The index holds no rows: there is nothing to search.")
    if k < 1 or min(chunk) < 1:
        raise LandmarkRetrievalError(f"k and both chunk sizes must be at least 1, not k={k}, chunk={chunk}.")


def as_kind_of(like: Any, values: torch.Tensor) -> Any:
    """A tensor where `like` is one, a numpy array otherwise."""
    return values if isinstance(like, torch.Tensor) else values.cpu().numpy()


def present_devices(devices: Devices) -> list[torch.device]:
    """Devices that are there. LandmarkRetrievalError if there is none of a name."""
    return [present_device(one) for one in ([devices] if isinstance(devices, str | torch.device) else devices)]


def present_device(device: str | torch.device) -> torch.device:
    """A device that is there. LandmarkRetrievalError if there is none of that name."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise LandmarkRetrievalError(f"There is no device {device!r} ({error}): name cpu, cuda or cuda:N.") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise LandmarkRetrievalError(
            f"There is no GPU {device} (torch sees {torch.cuda.device_count()}): leave out devices, or name cpu."
        )
    return place
