import json
import os
import subprocess
import sys

import huggingface_hub
import pytest

from landmark_retrieval import DOLGNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo import hub, load_model, save_model

ARGUMENTS = {"backbone": "mobilenetv3_small_050", "embedding_dim": 32}
COMMIT = "0123456789" * 4


@pytest.fixture
def folder(tmp_path):
    card = {"architecture": "DOLGNet", "arguments": ARGUMENTS, "image_size": 64, "licence": "MIT", "source": "a test"}
    save_model(tmp_path / "model", DOLGNet(**ARGUMENTS), card)
    return tmp_path / "model"


def test_from_the_hub_and_then_from_its_cache(folder, server, tmp_path):
    """In a process of its own, since the hub's client looks at its environment when it is imported."""
    for name in ("model.json", "model.safetensors"):
        for revision in ("main", "v1", COMMIT):
            server.files[f"/owner/name/resolve/{revision}/{name}"] = (folder / name).read_bytes()
    server.headers["X-Repo-Commit"] = COMMIT
    code = """if True:
        import sys
        from landmark_retrieval import create_model
        from landmark_retrieval.errors import LandmarkRetrievalError
        from landmark_retrieval.zoo import load_model

        for where in sys.argv[1:]:
            try:
                model, card = load_model(where)
                net = create_model("dolg_efficientnet_b5", checkpoint=where, backbone="mobilenetv3_small_050")
                print(card["weights_sha256"], model.training, net.pretrained_cfg["licence"])
            except LandmarkRetrievalError as error:
                print(error)
    """

    def run(offline, *names):
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": offline,
        }
        command = [sys.executable, "-c", code, *names]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
        return ended.stdout.splitlines()

    found = f"{load_model(folder)[1]['weights_sha256']} False MIT"
    *whole, missing, malformed = run(
        "0", "hf-hub:owner/name", "hf-hub:owner/name@v1", "hf-hub:owner/no", "hf-hub:a/b/c"
    )
    assert whole == [found, found]
    assert "hf-hub:owner/no cannot be fetched" in missing and "check the name" in missing
    assert "hf-hub:a/b/c cannot be fetched" in malformed
    asked = len(server.requests)
    cached, unknown = run("1", "hf-hub:owner/name", "hf-hub:owner/other")
    assert cached == found
    assert "HF_HUB_OFFLINE" in unknown and "put both into a folder" in unknown
    assert len(server.requests) == asked


class FakeApi:
    """Of huggingface_hub.HfApi what is used."""

    calls: list = []  # noqa: RUF012

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create_repo", repo_id, private, exist_ok))

    def create_commit(self, repo_id, operations, *, commit_message):
        self.calls.append(("create_commit", repo_id, {o.path_in_repo: o.path_or_fileobj for o in operations}))


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(FakeApi, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return FakeApi


@pytest.mark.parametrize("public", [False, True])
def test_push(folder, api, public):
    assert hub.push(folder, "owner/name", public) == "https://huggingface.co/owner/name"
    made, (_, repository, files) = api.calls
    assert made == ("create_repo", "owner/name", not public, True)
    assert repository == "owner/name"
    assert set(files) == {"model.json", "model.safetensors", "README.md"}
    assert json.loads((folder / "model.json").read_text())["weights_sha256"] in files["README.md"].decode()
    page = files["README.md"].decode()
    assert page.startswith("---\nlicense: mit\n")
    assert '"hf-hub:owner/name"' in page
    assert "64 x 64 px" in page


def test_nothing_broken_is_pushed(folder, api):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(LandmarkRetrievalError, match="not those"):
        hub.push(folder, "owner/name")
    assert api.calls == []


def test_push_refusals(folder, api, monkeypatch):
    def refuse(*arguments, **more):
        raise PermissionError("403 Forbidden\nand a long text")

    monkeypatch.setattr(api, "create_commit", refuse)
    with pytest.raises(
        LandmarkRetrievalError, match=r"cannot be pushed to owner/name \(PermissionError: 403 Forbidden\)"
    ):
        hub.push(folder, "owner/name")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(LandmarkRetrievalError, match="hf auth login"):
        hub.push(folder, "owner/name")
