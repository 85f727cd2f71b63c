import hashlib
import os
import socket
import subprocess
import sys

import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo.fetch import cache_folder, cached_path, fetch

DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def url(server, cache):
    server.files["/w.safetensors"] = DATA
    return f"{server.url}/w.safetensors"


def gets(server):
    return [(wanted, status) for method, _, wanted, status in server.requests if method == "GET"]


def test_fetched_once_and_kept(server, url, cache, capsys):
    path = fetch(url, SHA256)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(cache)
    assert "w.safetensors" in capsys.readouterr().err  # the progress bar
    assert fetch(f"{url}#sha256={SHA256}") == path
    assert gets(server) == [(None, 200)]
    assert {p.suffix for p in path.parent.iterdir()} == {".safetensors", ".json", ".lock"}


def test_resumed_within_a_call_and_in_the_next_one(server, url):
    server.cut_after = 300_000
    with pytest.raises(LandmarkRetrievalError, match="900,000 bytes are kept"):
        fetch(url, SHA256)
    assert not cached_path(url).exists()
    server.cut_after = None
    assert fetch(url, SHA256).read_bytes() == DATA
    assert gets(server) == [(None, 200), *((f"bytes={n}00000-", 206) for n in (3, 6, 9))]


@pytest.mark.parametrize("lacking", ["ranges", "etags"])
def test_a_server_that_cannot_resume_starts_over(server, url, lacking):
    setattr(server, lacking, False)
    server.cut_after = 300_000
    with pytest.raises(LandmarkRetrievalError, match="300,000 bytes are kept"):
        fetch(url)
    server.cut_after = None
    assert fetch(url).read_bytes() == DATA
    assert {status for _, status in gets(server)} == {200}


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, url):
    server.cut_after = 300_000
    with pytest.raises(LandmarkRetrievalError, match="broke off"):
        fetch(url)
    server.cut_after = None
    server.files["/w.safetensors"] = DATA[::-1]
    assert fetch(url).read_bytes() == DATA[::-1]


def test_killed_between_the_last_byte_and_the_name(server, url):
    path = fetch(url)
    partial = path.with_name(path.name + ".partial")
    path.rename(partial)
    path.with_name(path.name + ".json").rename(path.with_name(partial.name + ".json"))
    note = partial.with_name(partial.name + ".json")
    assert "validator" in note.read_text()
    assert fetch(url).read_bytes() == DATA
    assert gets(server)[-1] == (f"bytes={len(DATA)}-", 416)


def test_a_tampered_file_is_refused(server, url):
    server.files["/w.safetensors"] = DATA[:-1] + b"!"
    with pytest.raises(LandmarkRetrievalError, match="not the file that was expected"):
        fetch(url, SHA256)
    assert {p.suffix for p in cached_path(url).parent.iterdir()} <= {".lock", ".json"}
    server.files["/w.safetensors"] = DATA
    assert fetch(url, SHA256).read_bytes() == DATA


@pytest.mark.parametrize("expected", [SHA256, None])
def test_damage_in_the_cache_is_noticed(url, expected):
    path = fetch(url, expected)
    path.write_bytes(DATA[:1000])
    with pytest.raises(LandmarkRetrievalError, match="delete it"):
        fetch(url, expected)


def test_without_a_network_a_file_put_there_by_hand_is_taken(cache):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/w.safetensors"
        with pytest.raises(LandmarkRetrievalError, match="cannot be reached") as refused:
            fetch(url, SHA256)
    assert url in str(refused.value)
    assert str(cached_path(url)) in str(refused.value)
    cached_path(url).write_bytes(DATA)
    assert fetch(url, SHA256).read_bytes() == DATA


def test_refused_addresses(server, url):
    with pytest.raises(LandmarkRetrievalError, match="404"):
        fetch(f"{server.url}/nothing")
    for address in ("ftp://example.org/x", "http://example.org/x", "file:///etc/passwd"):
        with pytest.raises(LandmarkRetrievalError, match="no https address"):
            fetch(address)


def test_several_processes_fetch_once(server, url):
    code = "import sys; from landmark_retrieval.zoo.fetch import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, url]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(4)]
    assert {process.communicate(timeout=60)[0].decode().strip() for process in started} == {str(cached_path(url))}
    assert gets(server) == [(None, 200)]


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("LANDMARK_RETRIEVAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.sep + "c")
    assert cache_folder().as_posix() == "/c/landmark_retrieval"


@pytest.mark.parametrize("fragment", ["sha256:00", "SHA256=" + "0" * 64, "foo&sha256=" + "0" * 64, "sha256=12"])
def test_a_checksum_that_cannot_be_read_is_no_checksum(url, fragment):
    with pytest.raises(LandmarkRetrievalError, match="64 hexadecimal digits"):
        fetch(f"{url}#{fragment}")


def test_case_of_a_checksum_does_not_matter(url):
    assert fetch(url, SHA256.upper()).read_bytes() == DATA
