"""Photos in a Qdrant collection: a cluster for what one machine cannot hold, or the embedded form for trying it out."""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from landmark_retrieval.data.photos import Ids
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.indexes.index_checks import (
    check_card,
    check_new,
    checked_queries,
    checked_rows,
    rows_to_remove,
)
from landmark_retrieval.retrieval.indexes.index_files import read_description, write_folder
from landmark_retrieval.retrieval.store import DescriptorStore

# Qdrant's ids are numbers or UUIDs: those of the photos are made with this
_NAMESPACE = uuid.UUID("6f0d3a52-5a3c-4f43-8a0e-2f6f1f0c9f5b")
_OURS = "landmark_retrieval"
_QUERIES = 64
_SENT = 256
_PAGE = 10_000


class QdrantIndex:
    """Photos of a Qdrant collection, by the dot product of their descriptors; see `index.Index`.

    Each photo is a point: its descriptor, and its id as payload `photo`. The card is in the metadata of the collection.
    `add` and `remove` change the collection at once; `save` writes where it is.

    Attributes:
        kind: "qdrant".
        why: which collection it is, a sentence.
        card: what made the descriptors.
        dim: length of a descriptor.
        exact: compare each query with all descriptors, in place of Qdrant's HNSW graph. Can be set.
    """

    kind = "qdrant"

    def __init__(self, client: Any, location: str, collection: str, exact: bool = False) -> None:
        self._client, self.location, self.collection, self.exact = client, location, collection, exact
        found = client.get_collection(collection).config
        about = (found.metadata or {}).get(_OURS)
        if not about:
            raise LandmarkRetrievalError(
                f"The collection {collection!r} at {location} was not made by landmark_retrieval (or by a Qdrant "
                "before 1.16): choose another name, or build it again."
            )
        self.card: dict[str, Any] = about["card"]
        self.dim: int = about["dim"]
        self._made_of: str | None = about.get("store")
        self._ids: Ids | None = None

    @property
    def why(self) -> str:
        """Which collection it is, a sentence."""
        return f"qdrant: {len(self):,} photos in the collection {self.collection!r} at {self.location}"

    @property
    def ids(self) -> Ids:
        """The photo ids, sorted; read from the collection when they are first asked for."""
        if self._ids is None:
            self._ids = Ids(sorted(self._photos()))
        return self._ids

    def __len__(self) -> int:
        return self._client.count(self.collection, exact=True).count

    @classmethod
    def build(
        cls,
        store: DescriptorStore,
        location: str | Path,
        collection: str = "landmarks",
        exact: bool = False,
        batch_size: int = _SENT,
        quantize: bool = False,
        on_disk: bool = False,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> "QdrantIndex":
        """Put the descriptors of a store into a collection, in batches, with a progress bar.

        Interrupted, the same call goes on: photos that are in the collection are not sent again. A collection takes
        the descriptors of one store, as it was when the collection was made; later ones come with `add`.

        Args:
            store: the descriptors.
            location: "http://host:6333" of a cluster (its key, if it has one, in the environment variable
                QDRANT_API_KEY), a folder for the embedded form, or ":memory:".
            collection: its name; made if needed.
            exact: see the class.
            batch_size: photos per request.
            quantize: the cluster keeps a byte per number in memory and compares the best candidates exactly.
            on_disk: the cluster keeps descriptors (and the graph) on disk.
            shards: parts of the collection, for several nodes; by default what the cluster does.
            replicas: copies of each part; by default what the cluster does.

        Raises:
            LandmarkRetrievalError: qdrant-client is not installed, there is no server, the collection holds
                descriptors of another model or of another store, or a descriptor is not of unit length (the photo is
                named).
        """
        location = _place(location)
        client = _connect(location)
        try:
            if not client.collection_exists(collection):
                _create(client, collection, store, quantize, on_disk, shards, replicas)
            index = cls(client, location, collection, exact)
            check_card(index.card, store.card, "the descriptors")
            if index._made_of != store.fingerprint:
                raise LandmarkRetrievalError(
                    f"The collection {collection!r} at {location} was made from other descriptors than those in "
                    f"{store.folder}: choose another name, or delete the collection first."
                )
            index._upload(store, batch_size)
        except BaseException:
            client.close()
            raise
        return index

    @classmethod
    def open(cls, folder: str | Path) -> "QdrantIndex":
        """Open the collection that a saved index names.

        Raises:
            LandmarkRetrievalError: there is no index or no such collection, it holds descriptors of another model,
                qdrant-client is not installed, or there is no server.
        """
        description = read_description(folder)
        location, collection = _place(description["location"], folder), description["collection"]
        if "://" not in location and not Path(location).is_dir():
            # it would be made, and be empty
            raise LandmarkRetrievalError(
                f"There is no folder {location}, where the collection of the index {folder} was: move it back, or "
                "build the index again."
            )
        client = _connect(location)
        try:
            if not client.collection_exists(collection):
                raise LandmarkRetrievalError(
                    f"There is no collection {collection!r} at {location}: build the index again."
                )
            index = cls(client, location, collection, description["exact"])
            check_card(description["card"], index.card, "the collection")
        except BaseException:
            client.close()
            raise
        return index

    def save(self, folder: str | Path) -> None:
        """Write index.json: where the collection is, its name, and the card; see `index.Index.save`.

        Raises:
            LandmarkRetrievalError: the collection is in memory alone.
        """
        if self.location == ":memory:":
            raise LandmarkRetrievalError("A collection in memory cannot be saved: build it in a folder or on a server.")
        location = self.location if "://" in self.location else os.path.relpath(self.location, Path(folder).resolve())
        description = {
            "kind": self.kind,
            "why": self.why,
            "dim": self.dim,
            "count": len(self),
            "card": self.card,
            "location": location,
            "collection": self.collection,
            "exact": self.exact,
        }
        write_folder(folder, description, {})

    def close(self) -> None:
        """Let go of the collection: one process at a time can have an embedded one."""
        self._client.close()

    def search(
        self, descriptors: np.ndarray, k: int, card: Mapping[str, Any] | None = None
    ) -> tuple[list[list[str]], np.ndarray]:
        """Find the k photos with the largest dot product for each descriptor; see `index.Index.search`."""
        from qdrant_client.models import QueryRequest, SearchParams

        queries = checked_queries(descriptors, k, self.dim, self.card, card)
        k = min(k, len(self))
        # the embedded form is always exact, and warns if it is asked to be
        how = SearchParams(exact=self.exact) if "://" in self.location else None
        ids: list[list[str]] = []
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for block in _batched(queries.tolist() if k else [], _QUERIES):
            asked = [QueryRequest(query=query, limit=k, params=how, with_payload=True) for query in block]
            for answer in self._client.query_batch_points(self.collection, asked):
                found = sorted((-point.score, point.payload["photo"]) for point in answer.points)
                scores[len(ids), : len(found)] = [-score for score, _ in found]
                ids.append([photo for _, photo in found])
        return ids or [[] for _ in queries], scores

    def add(self, ids: Sequence[str], descriptors: Any, card: Mapping[str, Any] | None = None) -> None:
        """Add photos to the collection at once; see `index.Index.add`."""
        check_card(self.card, card, "the photos to add")
        rows = checked_rows(ids, descriptors, self.dim)
        check_new(self._held(ids), ids)
        for start in range(0, len(ids), _SENT):
            self._send(ids[start : start + _SENT], rows[start : start + _SENT])
        self._ids = None

    def remove(self, ids: Sequence[str]) -> None:
        """Remove photos from the collection at once; see `index.Index.remove`."""
        if len(rows_to_remove(self._held(ids), ids)) == len(self):
            raise LandmarkRetrievalError("All photos of the index were to be removed: delete the collection instead.")
        for photos in _batched(ids, _PAGE):
            self._client.delete(self.collection, [_point(photo) for photo in photos])
        self._ids = None

    def _upload(self, store: DescriptorStore, batch_size: int) -> None:
        with tqdm(total=len(store), desc=f"to {self.collection}", unit="photo", disable=None) as bar:
            for ids, part in store.parts():
                for start in range(0, len(ids), batch_size):
                    batch = ids[start : start + batch_size]
                    rows = checked_rows(batch, part[start : start + batch_size], self.dim, f" in {store.folder}")
                    points = [_point(photo) for photo in batch]
                    there = {point.id for point in self._client.retrieve(self.collection, points, with_payload=False)}
                    new = [row for row, point in enumerate(points) if point not in there]
                    if new:
                        self._send([batch[row] for row in new], rows[new])
                    bar.update(len(batch))
        self._ids = None

    def _send(self, ids: Sequence[str], rows: np.ndarray) -> None:
        from qdrant_client.models import Batch

        points: list[Any] = [_point(photo) for photo in ids]
        payloads = [{"photo": photo} for photo in ids]
        # waits until the cluster has it, so that what was sent can be found and counted
        self._client.upsert(self.collection, Batch(ids=points, vectors=rows.tolist(), payloads=payloads), wait=True)

    def _held(self, ids: Sequence[str]) -> Ids:
        """Those of the photos that are in the collection."""
        found: list[str] = []
        for photos in _batched(ids, _PAGE):
            points = [_point(photo) for photo in photos]
            there = self._client.retrieve(self.collection, points, with_payload=["photo"])
            found += [point.payload["photo"] for point in there]
        return Ids(found)

    def _photos(self) -> Iterator[str]:
        after = None
        while True:
            points, after = self._client.scroll(self.collection, limit=_PAGE, offset=after, with_payload=["photo"])
            yield from (point.payload["photo"] for point in points)
            if after is None:
                return


def _batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _point(photo: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, photo))


def _place(location: str | Path, folder: str | Path = ".") -> str:
    """An address, ":memory:", or a whole path, which holds wherever the process goes."""
    text = str(location)
    return text if text == ":memory:" or "://" in text else str((Path(folder) / text).resolve())


def _connect(text: str) -> Any:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise LandmarkRetrievalError(
            f"An index in Qdrant needs {error.name}, which is not installed: pip install landmark-retrieval[qdrant]."
        ) from error
    if text == ":memory:":
        return QdrantClient(":memory:")
    if "://" not in text:
        try:
            return QdrantClient(path=text)
        except RuntimeError as error:  # another process has the folder
            raise LandmarkRetrievalError(f"{text} cannot be opened: {error}") from error
    client = QdrantClient(url=text, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
    try:
        client.get_collections()
    except Exception as error:  # httpx's and Qdrant's own, of many types
        client.close()
        raise LandmarkRetrievalError(
            f"There is no answer from a Qdrant server at {text} ({error}): check the address, and the key in "
            "QDRANT_API_KEY."
        ) from error
    return client


def _create(
    client: Any,
    collection: str,
    store: DescriptorStore,
    quantize: bool,
    on_disk: bool,
    shards: int | None,
    replicas: int | None,
) -> None:
    from qdrant_client import models

    quantized = None
    if quantize:
        scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        quantized = models.ScalarQuantization(scalar=scalar)
    client.create_collection(
        collection,
        vectors_config=models.VectorParams(
            size=store.dim,
            distance=models.Distance.DOT,
            on_disk=on_disk,
            datatype=models.Datatype(store.dtype),
            hnsw_config=models.HnswConfigDiff(on_disk=on_disk),
        ),
        quantization_config=quantized,
        shard_number=shards,
        replication_factor=replicas,
        metadata={_OURS: {"card": store.card, "dim": store.dim, "store": store.fingerprint}},
    )
