"""Tables of photos: what their fingerprints tell apart."""

import numpy as np

from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable


def test_the_fingerprint_changes_with_photos_order_and_boxes(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    ids, files = Ids(["a", "b"]), FilesById(tmp_path.joinpath)
    boxes = np.array([[0, 0, 5, 6], [1, 2, 3, 4]], np.int32)
    table = PhotoTable(ids, files, boxes=boxes)
    assert table.fingerprint == PhotoTable(ids, files, boxes=boxes.astype(np.int64)).fingerprint
    others = [PhotoTable(ids, files), PhotoTable(ids, files, boxes=boxes + 1), table.take(np.array([1, 0]))]
    before = {table.fingerprint, *(other.fingerprint for other in others)}
    assert len(before) == 4
    (tmp_path / "b").write_bytes(b"longer")
    assert table.fingerprint not in before
