"""A small web server whose files can be cut, changed, and served with or without ranges."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Served:
    """What a server has and how it behaves; `requests` is the log of (method, path, Range, status)."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.etags = True
        self.cut_after: int | None = None  # bytes of an answer after which the connection breaks
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None, int]] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        served = self.served
        data = served.files.get(self.path)
        wanted = self.headers.get("Range")
        if data is None:
            served.requests.append((self.command, self.path, wanted, 404))
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")  # as the hub says it
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        start = 0
        if wanted and served.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        status = 200 if not start else 206 if start < len(data) else 416
        served.requests.append((self.command, self.path, wanted, status))
        self.send_response(status)
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(data)}")
            data, start = b"", 0
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if served.etags:
            self.send_header("ETag", etag)
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            end = None if served.cut_after is None else start + served.cut_after
            self.wfile.write(data[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    served = Served()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": served}))
    served.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDMARK_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
