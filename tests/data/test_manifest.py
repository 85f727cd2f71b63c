import json

import pytest

from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def content(shards):
    return json.loads((shards / "train_c" / "manifest.json").read_text())


def test_what_is_written_is_read(shards, tmp_path):
    manifest = Manifest.read(shards / "train_c")
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.photos == sum(manifest.class_counts) == 40


def test_another_format(content):
    with pytest.raises(LandmarkRetrievalError, match=r"^there/manifest.json has format 1, this version reads 2: write"):
        Manifest.from_json(content | {"format": 1}, "there/manifest.json")


@pytest.mark.parametrize(
    "change",
    [
        {"samples": []},
        {"samples": ["a", "b"]},
        {"samples": [-1, "b"]},
        {"classes": ["a"]},
        {"classes": "abcde"},
        {"classes": [1, 2, 3, 4, 5]},
        {"class_counts": [1]},
        {"class_counts": ["8"] * 5},
        {"refused": None},
        {"plan": 3},
        {"shards": 5},
        {"shards": [{"file": "a.tar"}]},
        *(
            {"shards": [{"file": name, "photos": 1, "bytes": 1, "sha256": "", "classes": 1}]}
            for name in (5, "../a", "..", "")
        ),
        {"shards": [{"file": "a.tar", "photos": "3", "bytes": 1, "sha256": "", "classes": 1}]},
        {"shards": [{"file": "a.tar", "photos": 3, "bytes": 1, "sha256": None, "classes": 1}]},
    ],
)
def test_a_damaged_manifest(content, change):
    with pytest.raises(LandmarkRetrievalError, match=r"shard manifest m is damaged \(.*write the shards"):
        Manifest.from_json(content | change, "m")


@pytest.mark.parametrize("content", [None, [], 3, "text", {}])
def test_no_manifest_at_all(content):
    with pytest.raises(LandmarkRetrievalError, match="is damaged"):
        Manifest.from_json(content, "m")
