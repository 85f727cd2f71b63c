"""PCA-whitening of descriptors, learned from descriptors and part of the card of what it was applied to."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import replacing
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter, card_difference
from landmark_retrieval.retrieval.store_files import as_stored

_BLOCK = 16_384
# directions with less than this share of the largest variance are rounding errors
_SMALLEST = 1e-10


@dataclass(frozen=True)
class Whitening:
    """Subtract the mean, turn to the principal axes, scale each by a power of its variance, L2-normalise.

    Source: Jegou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening",
    ECCV 2012, section 3.

    Attributes:
        mean: (d,) float32.
        matrix: (dim, d) float32, the scaled principal axes, that of the largest variance first.
        power: 1 whitens, 0 only turns, 0.5 lies between.
        shrinkage: share of the mean variance in each variance, against noise in the small ones.
        card: what made the descriptors it was learned from; None if that is not known.

    Example:
        whitening = Whitening.fit(DescriptorStore.open("train"), dim=256)
        whitening.save("whitening.safetensors")
        whitened = whiten_store(DescriptorStore.open("index"), whitening, "index-256")
        queries = whitening.apply(descriptors)
    """

    mean: np.ndarray
    matrix: np.ndarray
    power: float = 1.0
    shrinkage: float = 0.0
    card: dict[str, Any] | None = None

    @classmethod
    def fit(
        cls, descriptors: np.ndarray | DescriptorStore, dim: int, power: float = 1.0, shrinkage: float = 0.0
    ) -> "Whitening":
        """Learn from descriptors, in float64, block by block: a store is read through twice and never held in memory.

        Args:
            descriptors: (n, d), or a store; best those of other photos than will be searched.
            dim: numbers per whitened descriptor, at most d and below n.
            power: the axes are divided by standard deviation ** power.
            shrinkage: in [0, 1]; each variance v becomes (1 - shrinkage) * v + shrinkage * mean of all d variances.

        Raises:
            LandmarkRetrievalError: dim, power or shrinkage is out of range, the descriptors vary in fewer than dim
                directions, or one holds NaN or infinity.
        """
        count, width = len(descriptors), _width(descriptors)
        most = min(width, count - 1)
        if most < 1:
            raise LandmarkRetrievalError(
                f"A whitening cannot be learned from {count} descriptors of {width} numbers: it takes at least 2, and "
                "more than the numbers it keeps."
            )
        if not 1 <= dim <= most:
            raise LandmarkRetrievalError(
                f"{count:,} descriptors of {width} numbers can be whitened to 1 to {most} numbers, not {dim}: choose "
                "fewer, or learn from more photos."
            )
        if not power >= 0 or not 0 <= shrinkage <= 1:
            raise LandmarkRetrievalError(
                f"The power has to be at least 0 and the shrinkage in [0, 1], not {power} and {shrinkage}."
            )
        mean = sum((rows.sum(axis=0) for rows in _blocks(descriptors, "mean")), np.zeros(width)) / count
        covariance = np.zeros((width, width))
        for rows in _blocks(descriptors, "covariance"):
            centered = rows - mean
            covariance += centered.T @ centered
        variances, axes = np.linalg.eigh(covariance / (count - 1))
        variances, axes = variances[::-1], axes[:, ::-1].T
        if not variances[dim - 1] > _SMALLEST * variances[0]:
            there = int((variances > _SMALLEST * variances[0]).sum())
            raise LandmarkRetrievalError(
                f"The descriptors vary in {there} directions, they cannot be whitened to {dim} numbers: choose at most "
                f"{there}, or learn from more photos."
            )
        # eigh leaves the signs open
        axes = axes * np.sign(axes[np.arange(width), np.abs(axes).argmax(axis=1)])[:, None]
        shrunk = (1 - shrinkage) * variances[:dim] + shrinkage * variances.mean()
        matrix = axes[:dim] / shrunk[:, None] ** (power / 2)
        card = as_stored(descriptors.card) if isinstance(descriptors, DescriptorStore) else None
        return cls(mean.astype(np.float32), matrix.astype(np.float32), float(power), float(shrinkage), card)

    @property
    def dim(self) -> int:
        """Numbers per whitened descriptor."""
        return len(self.matrix)

    @property
    def sha256(self) -> str:
        """Of mean and matrix, in hexadecimal."""
        return hashlib.sha256(self.mean.tobytes() + self.matrix.tobytes()).hexdigest()

    def apply(self, rows: Any, ids: Sequence[str] | None = None) -> np.ndarray:
        """Whiten descriptors.

        Args:
            rows: (n, d), array or tensor.
            ids: of the n photos, for messages; without them the number of the row is named.

        Returns:
            (n, dim) float32, rows of unit length.

        Raises:
            LandmarkRetrievalError: another d, or a row holds NaN or infinity or lies at the mean (it is named).
        """
        if hasattr(rows, "detach"):
            rows = rows.detach().float().cpu().numpy()
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise LandmarkRetrievalError(
                f"The whitening was learned from {len(self.mean)}-d descriptors, these have shape {rows.shape}."
            )
        whitened = (rows - self.mean) @ self.matrix.T
        lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
        wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(wrong):
            name = f"Descriptor {wrong[0]}" if ids is None else f"The descriptor of photo {ids[wrong[0]]!r}"
            raise LandmarkRetrievalError(
                f"{name} cannot be whitened: it holds NaN or infinity, or is equal to the mean."
            )
        return whitened / lengths

    def card_of(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """The card of descriptors of this card after whitening: with an entry `whitening`.

        Raises:
            LandmarkRetrievalError: they are whitened already, or of another model than those it was learned from.
        """
        if "whitening" in card:
            raise LandmarkRetrievalError("These descriptors are whitened already: whiten those of the model itself.")
        card = as_stored(card)
        if self.card is not None and card != as_stored(self.card):
            raise LandmarkRetrievalError(
                "The whitening was learned from descriptors of another model "
                f"({card_difference(self.card, card)}): learn one for this model."
            )
        entry = {"dim": self.dim, "power": self.power, "shrinkage": self.shrinkage, "sha256": self.sha256}
        return {**card, "whitening": entry}

    def save(self, path: str | Path) -> None:
        """Write it as one .safetensors file, whole or not at all."""
        from safetensors.numpy import save_file

        about = {"power": self.power, "shrinkage": self.shrinkage, "sha256": self.sha256, "card": self.card}
        with replacing(path) as temporary:
            tensors = {"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}
            save_file(tensors, temporary, metadata={"whitening": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "Whitening":
        """Read a saved whitening.

        Raises:
            LandmarkRetrievalError: there is no such file, or it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["whitening"])
                mean, matrix = file.get_tensor("mean"), file.get_tensor("matrix")
        except FileNotFoundError:
            raise LandmarkRetrievalError(f"There is no whitening at {path}: learn one with Whitening.fit.") from None
        except (SafetensorError, KeyError, ValueError) as error:
            raise LandmarkRetrievalError(f"The whitening {path} is damaged ({error}): learn it again.") from None
        whitening = cls(mean, matrix, about["power"], about["shrinkage"], about["card"])
        if whitening.sha256 != about["sha256"]:
            raise LandmarkRetrievalError(f"The whitening {path} is damaged (its checksum is another): learn it again.")
        return whitening


def whiten_store(
    store: DescriptorStore, whitening: Whitening, out: str | Path, dtype: str | None = None
) -> DescriptorStore:
    """Write the whitened descriptors of a store to another store, with a progress bar; interrupted, it goes on.

    Args:
        store: of the model that the whitening was learned for.
        whitening: what to apply.
        out: folder of the new store; its card is that of `store` and says which whitening.
        dtype: "float32" or "float16"; by default that of `store`.

    Raises:
        LandmarkRetrievalError: another model, or `out` holds another store; see also `Whitening.apply`.
    """
    with DescriptorWriter(out, whitening.card_of(store.card), dtype=dtype or store.dtype) as writer:
        bar = tqdm(total=len(store), initial=len(writer.done), desc="whiten", unit="photo", disable=None)
        for ids, part in store.parts():
            new = [row for row, photo in enumerate(ids) if photo not in writer.done]
            for start in range(0, len(new), _BLOCK):
                rows = new[start : start + _BLOCK]
                photos = [ids[row] for row in rows]
                writer.append(photos, whitening.apply(part[rows], photos))
                bar.update(len(rows))
        bar.close()
    return DescriptorStore.open(out)


def _width(descriptors: np.ndarray | DescriptorStore) -> int:
    if isinstance(descriptors, DescriptorStore):
        return descriptors.dim
    if descriptors.ndim != 2:
        raise LandmarkRetrievalError(f"A whitening is learned from (n, d) descriptors, not {descriptors.shape}.")
    return descriptors.shape[1]


def _blocks(descriptors: np.ndarray | DescriptorStore, title: str) -> Iterator[np.ndarray]:
    parts = [part for _, part in descriptors.parts()] if isinstance(descriptors, DescriptorStore) else [descriptors]
    with tqdm(total=len(descriptors), desc=title, unit="row", disable=None) as bar:
        done = 0
        for part in parts:
            for start in range(0, len(part), _BLOCK):
                rows = np.asarray(part[start : start + _BLOCK], np.float64)
                finite = np.isfinite(rows).all(axis=1)
                if not finite.all():
                    raise LandmarkRetrievalError(
                        f"Descriptor {done + int(np.argmin(finite))} holds NaN or infinity: compute it again."
                    )
                yield rows
                done += len(rows)
                bar.update(len(rows))
