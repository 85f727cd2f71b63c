import json

import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_and_fail():
        with open_replacing(path) as file:
            file.write("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_and_fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_comes_back_and_damage_is_told(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"ä": [1, None]})
    assert read_json(path, "page", "mend it") == {"ä": [1, None]} == json.loads(path.read_text())
    path.write_text('{"ä": ')
    with pytest.raises(LandmarkRetrievalError, match=r"page .*a\.json is damaged .*: mend it"):
        read_json(path, "page", "mend it")
    with pytest.raises(LandmarkRetrievalError, match=r"no page at .*b\.json: mend it"):
        read_json(tmp_path / "b.json", "page", "mend it")
    with pytest.raises(ValueError, match=r"NaN|nan"):
        write_json(path, float("nan"))
