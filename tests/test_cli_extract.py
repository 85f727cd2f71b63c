"""`landmark-retrieval extract`, from the command line to the store."""

import csv
import json

import numpy as np
import pytest
import torch

from landmark_retrieval import GeMNet, cli
from landmark_retrieval.data.importers.gldv2 import read_photos
from landmark_retrieval.retrieval.extract import DOLG_SCALES
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.zoo.saved_model import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    arguments = {"backbone": "mobilenetv3_small_050", "embedding_dim": None}
    save_model(folder, GeMNet(**arguments), {"architecture": "GeMNet", "arguments": arguments, "image_size": 48})
    return folder


def run(saved, *arguments):
    cli.main(["extract", *map(str, arguments), "--model", str(saved), "--workers", "0", "--device", "cpu"])


def test_shards_and_the_photos_they_are_made_of_give_the_same(saved, shards, photos, tmp_path, capsys):
    run(saved, shards, "--split", "test", "--out", tmp_path / "shards")
    assert "shards: 9 photos, 1024 numbers each, float32" in capsys.readouterr().out
    run(saved, photos, "--split", "test", "--out", tmp_path / "photos")
    one, two = (DescriptorStore.open(tmp_path / name, verify=True) for name in ("shards", "photos"))
    assert one.ids == two.ids == read_photos(photos, "test").ids
    np.testing.assert_array_equal(one.load(), two.load())


def test_options_stand_in_the_card(saved, shards, tmp_path):
    out, few = tmp_path / "out", tmp_path / "few"
    options = ("--dtype", "float16", "--scales", "dolg", "--flip", "--image-size", 64, "--resize", "longest_side")
    run(saved, shards / "test", "--out", out, *options, "--batch-size", 4, "--part-size", 5)
    store = DescriptorStore.open(out)
    assert store.dtype == "float16"
    assert [len(ids) for ids, _ in store.parts()] == [5, 4]
    assert store.card["views"] == {"scales": list(DOLG_SCALES), "flip": True}
    assert (store.card["resize"], store.card["image_size"]) == ("longest_side", 64)
    run(saved, shards / "test", "--out", few, "--resize", "original", "--scales", "0.75,1")
    card = DescriptorStore.open(few).card
    assert (card["resize"], card["image_size"]) == ("original", None)
    assert card["views"] == {"scales": [0.75, 1.0], "flip": False}


def test_a_list_with_a_broken_photo(saved, photos, tmp_path, capsys):
    table = read_photos(photos, "index")
    (tmp_path / "a.jpg").write_bytes(table.photo(0).data)
    (tmp_path / "b.jpg").write_bytes(table.photo(1).data[:500])
    (tmp_path / "list.csv").write_text("id,path\nfirst,a.jpg\nsecond,b.jpg\nthird,gone.jpg\n")
    run(saved, tmp_path / "list.csv", "--out", tmp_path / "out")
    told = capsys.readouterr()
    assert "out: 1 photos" in told.out
    assert "2 photos were left out (see broken.csv there), the first is second: the JPEG is cut short" in told.err
    with (tmp_path / "out" / "broken.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["second", "third"]


def test_mistakes(saved, shards, tmp_path, capsys):
    for arguments, message in (
        ((shards,), "choose one of them with split (--split)"),
        ((tmp_path / "nowhere",), "There are no photos at"),
        ((shards / "test", "--scales", "0,1"), "give numbers above 0"),
        ((shards / "test", "--scales", "big"), "numbers with commas between them, or dolg, not 'big'"),
        ((shards / "test", "--batch-size", 0), "A batch of 0 photos"),
        ((shards / "test", "--image-size", 0), "An image size of 0 px"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(saved, *arguments, "--out", tmp_path / "out")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_the_first_process_speaks(saved, shards, tmp_path, capsys, monkeypatch):
    run(saved, shards / "test", "--out", tmp_path)
    first = json.loads((tmp_path / "store.json").read_text())
    capsys.readouterr()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(saved, shards / "test", "--out", tmp_path)
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "store.json").read_text()) == first
