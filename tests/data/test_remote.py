import contextlib
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from filelock import FileLock

from landmark_retrieval.data.remote import cache as remote
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.data.remote.prefetch import Prefetch
from landmark_retrieval.data.remote.transfer import AbsentError, is_url, join
from landmark_retrieval.errors import LandmarkRetrievalError

DATA = bytes(range(256)) * 2000
HALF = len(DATA) // 2
LONG = 300  # seconds, against hangs only


def known(data):
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


class Server:
    """`answers` says how the next requests are answered, the last one for ever: ok, stall, cut, short, wrong, a status.

    Everything waits for `gate` in the middle of a file.
    """

    def __init__(self):
        self.answers: list[str | int] = ["ok"]
        self.requests: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.halfway = threading.Event()
        self.closing = threading.Event()
        self.url = ""

    def answer(self, handler):
        kind = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.requests.append(handler.path)
        if isinstance(kind, int):
            handler.send_response(kind)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if kind == "silent":
            self.closing.wait(LONG)
            return
        handler.send_response(200)
        if kind != "short":
            handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        handler.wfile.write(DATA[:HALF])
        handler.wfile.flush()
        self.halfway.set()
        if kind == "stall":
            self.closing.wait(LONG)
        if kind in ("ok", "wrong"):
            self.gate.wait(LONG)
            handler.wfile.write(DATA[HALF:] if kind == "ok" else DATA[HALF:][::-1])


@pytest.fixture
def server():
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):  # the client went away
                served.answer(self)

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    served.url = f"http://127.0.0.1:{http.server_port}/shards/shard-00000.tar"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield served
    served.closing.set()
    served.gate.set()
    http.shutdown()
    http.server_close()
    thread.join(LONG)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10**7, stall_seconds=LONG, pause_seconds=0.01)


def impatient(cache, **options):
    return Cache(cache.folder, cache.limit_bytes, **{"stall_seconds": 1.0, "pause_seconds": 0.01, **options})


def kept(cache):
    return sorted(path.name for path in cache.folder.iterdir() if path.is_file())


def local_file(folder, number, size=100_000):
    path = folder / f"{number}.tar"
    path.write_bytes(bytes([number]) * size)
    return path.as_uri(), known(path.read_bytes())


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_what_is_a_url():
    for place in ("http://h/x", "HTTPS://h", "s3://bucket/x", "gs://bucket", "file:///x", "hf://datasets/a/b"):
        assert is_url(place)
    for place in ("shards", "/data/shards", "C:\\shards", "pipe:cat x", "-"):
        assert not is_url(place)


def test_join():
    assert join("s3://bucket/shards/", "shard-00000.tar") == "s3://bucket/shards/shard-00000.tar"
    assert join("http://h", "/a/b.npy") == "http://h/a/b.npy"
    with pytest.raises(LandmarkRetrievalError, match="name the plain folder") as refused:
        join("https://user:secret@h/shards?token=secret", "x.tar")
    assert "secret" not in str(refused.value)


def test_fetched_once_and_kept_under_its_checksum(server, cache):
    path = cache.fetch(server.url, **known(DATA))
    assert path.read_bytes() == DATA
    assert (cache.files_fetched, cache.bytes_fetched) == (1, len(DATA))
    same = cache.fetch(server.url.replace("shards", "elsewhere"), sha256=known(DATA)["sha256"].upper(), size=len(DATA))
    assert same == path
    assert server.requests == ["/shards/shard-00000.tar"]
    assert kept(cache) == [known(DATA)["sha256"]]
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy, copy.files_fetched) == (cache, 0)
    with copy.open(server.url, **known(DATA)) as file:
        path.unlink()
        assert file.read() == DATA


def test_a_damaged_copy_is_fetched_again(server, cache):
    path = cache.fetch(server.url, **known(DATA))
    path.write_bytes(DATA[:-1])
    assert cache.fetch(server.url, **known(DATA)).read_bytes() == DATA


def test_absent(server, cache):
    server.answers = [404]
    with pytest.raises(AbsentError, match=r"shard-00000.tar cannot be fetched \(the server answers 404 Not Found\)"):
        cache.fetch(server.url, **known(DATA))
    assert len(server.requests) == 2  # curl, and the question for the status: no further attempt
    with pytest.raises(AbsentError, match="404"):
        cache.fetch_small(server.url)
    server.answers = [403]
    with pytest.raises(LandmarkRetrievalError, match="403 Forbidden"):
        cache.fetch_small(server.url)
    assert kept(cache) == []


def test_stalled(server, cache):
    server.answers = ["stall"]
    with pytest.raises(LandmarkRetrievalError, match=r"stalled, 1 s without a byte after [\d,]+ bytes, tried 2 times"):
        impatient(cache, attempts=2).fetch(server.url, **known(DATA))
    assert kept(cache) == []
    assert len(server.requests) == 2
    server.answers = ["stall", "ok"]
    assert impatient(cache).fetch(server.url, **known(DATA)).read_bytes() == DATA


def test_errors_that_curl_would_try_again_for_long(server, cache):
    server.answers = [503]
    with pytest.raises(LandmarkRetrievalError, match="after 0 bytes; the server answers 503 Service Unavailable"):
        impatient(cache, attempts=1).fetch_small(server.url)


@pytest.mark.parametrize("kind", ["cut", "short"])
def test_cut_short(server, cache, kind):
    server.answers = [kind]
    with pytest.raises(LandmarkRetrievalError, match=r"cut short.*tried 3 times"):
        cache.fetch(server.url, **known(DATA))
    assert len(server.requests) == 3
    assert kept(cache) == []
    server.answers = [kind, "ok"]
    assert cache.fetch(server.url, **known(DATA)).read_bytes() == DATA


def test_wrong_bytes_are_tried_twice(server, cache):
    server.answers = ["wrong"]
    with pytest.raises(LandmarkRetrievalError, match=r"not the file that was expected.*manifest"):
        cache.fetch(server.url, **known(DATA))
    assert len(server.requests) == 2
    assert kept(cache) == []
    server.answers = ["wrong", "ok"]
    assert cache.fetch(server.url, **known(DATA)).read_bytes() == DATA
    with pytest.raises(LandmarkRetrievalError, match="more than the 100 bytes"):
        cache.fetch(server.url, sha256="0" * 64, size=100)
    with pytest.raises(LandmarkRetrievalError, match="64 hexadecimal digits"):
        cache.fetch(server.url, sha256="../x", size=100)


def test_nobody_there(server, cache):
    with pytest.raises(LandmarkRetrievalError, match="the connection is refused, exit code 7, tried 3 times"):
        cache.fetch("http://127.0.0.1:1/x.tar", **known(DATA))


def test_small_files_are_fetched_anew(server, cache):
    assert cache.fetch_small(server.url) == DATA
    assert cache.fetch_small(server.url) == DATA
    assert len(server.requests) == 2
    with pytest.raises(LandmarkRetrievalError, match="more than 1,000 bytes"):
        cache.fetch_small(server.url, 1000)
    assert not cache.folder.exists()


def test_files_of_this_machine(tmp_path, cache):
    url, expected = local_file(tmp_path, 1)
    assert cache.fetch(url, **expected).read_bytes() == b"\1" * 100_000
    assert cache.fetch_small(url) == b"\1" * 100_000
    with pytest.raises(AbsentError):
        cache.fetch_small((tmp_path / "nothing").as_uri())
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):
        with pytest.raises(LandmarkRetrievalError, match="no such file"):
            cache.fetch_small(f"{tmp_path.as_uri()}/{name}")
    with pytest.raises(LandmarkRetrievalError, match="file:///"):
        cache.fetch_small("file://data/x")


@pytest.mark.parametrize("address", ["pipe:touch ran", "pipe://touch ran", "nothing://x", "x.tar"])
def test_addresses_that_are_refused(cache, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="begins with one of"):
        cache.fetch_small(address)
    assert list(tmp_path.iterdir()) == []


COMMAND = """#!/bin/sh
printf '%s ' "$@" > "{folder}/arguments"
for last; do case "$last" in *://bucket/*) key="${{last#*://bucket/}}";; esac; done
[ -f "{folder}/$key" ] && exec cat "{folder}/$key"
echo "a warning" >&2
echo "{words}" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("scheme", "command", "arguments", "words"),
    [
        (
            "s3",
            "aws",
            "s3 cp --only-show-errors {} - ",
            "fatal error: An error occurred (404) when calling the HeadObject operation: Not Found",
        ),
        ("gs", "gsutil", "cat {} ", "CommandException: No URLs matched: gs://bucket/x"),
    ],
)
def test_object_stores(tmp_path, cache, monkeypatch, running, wait_for, scheme, command, arguments, words):
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / command
    program.write_text(COMMAND.format(folder=tmp_path, words=words))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "x.tar").write_bytes(DATA)
    url = f"{scheme}://bucket/x.tar"
    assert cache.fetch(url, **known(DATA)).read_bytes() == DATA
    assert (tmp_path / "arguments").read_text() == arguments.format(url)
    with pytest.raises(AbsentError):
        cache.fetch_small(f"{scheme}://bucket/nothing")
    program.write_text(COMMAND.format(folder=tmp_path, words="Access denied"))
    with pytest.raises(LandmarkRetrievalError, match=f"{command} ended with exit code 1, Access denied, tried 3 times"):
        cache.fetch_small(f"{scheme}://bucket/nothing")
    # a script that waits for a child which stalls: the child ends with it
    program.write_text(f'#!/bin/sh\nsleep {LONG} & echo $! > "{tmp_path}/child"; printf x; wait\n')
    with pytest.raises(LandmarkRetrievalError, match="stalled"):
        impatient(cache, attempts=1, stall_seconds=2.0).fetch_small(url)
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not running(child), LONG)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LandmarkRetrievalError, match=f"the command {command} is not there.*install it"):
        cache.fetch_small(url)


def test_the_files_used_least_recently_go_first(tmp_path, cache):
    files = [local_file(tmp_path, number) for number in range(6)]
    small = Cache(cache.folder, 350_000)
    paths = [small.fetch(url, **expected) for url, expected in files[:3]]
    (small.folder / "note.txt").write_text("of somebody else")
    for path, seconds in zip(paths, (300, 500, 400), strict=True):
        age(path, seconds)
    assert small.fetch(files[1][0], **files[1][1]) == paths[1]  # used again
    paths.append(small.fetch(files[3][0], **files[3][1]))
    assert [path.exists() for path in paths] == [True, True, False, True]
    paths.append(small.fetch(files[4][0], **files[4][1]))
    assert [path.exists() for path in paths] == [False, True, False, True, True]
    # all three were used just now: the limit is passed rather than taking one away from its readers
    paths.append(small.fetch(files[5][0], **files[5][1]))
    assert [path.exists() for path in paths] == [False, True, False, True, True, True]
    for path in paths[3:]:
        age(path, 100)
    small.fetch(files[2][0], **files[2][1])
    held = [path for path in small.folder.iterdir() if len(path.name) == 64]
    assert sum(path.stat().st_size for path in held) <= small.limit_bytes
    assert paths[2] in held and (small.folder / "note.txt").exists()


def test_a_file_larger_than_the_cache(tmp_path, server):
    cache = Cache(tmp_path / "cache", len(DATA) - 1)
    with pytest.raises(LandmarkRetrievalError, match=r"raise its limit \(data\.cache_gb"):
        cache.fetch(server.url, **known(DATA))
    assert server.requests == []


def test_disk_full(tmp_path, server, cache):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, limits[1]))
    try:
        with pytest.raises(LandmarkRetrievalError, match=r"cannot take .*File too large.*make room"):
            cache.fetch(server.url, **known(DATA))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(cache) == []
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_one(tmp_path, server):
    (tmp_path / "file").touch()
    with pytest.raises(LandmarkRetrievalError, match="choose another folder"):
        Cache(tmp_path / "file" / "cache", 10**7).fetch(server.url, **known(DATA))


CHILD = """
import sys
from pathlib import Path
from landmark_retrieval.data.remote.prefetch import Prefetch
from landmark_retrieval.data.remote.cache import Cache
url, sha256, size, folder, how = sys.argv[1:]
cache = Cache(Path(folder), 10**7)
print("started", flush=True)
if how == "fetch":
    print(cache.fetch(url, sha256=sha256, size=int(size)), cache.files_fetched)
else:
    ahead = Prefetch(cache)
    ahead.request([(url, sha256, int(size))])
    sys.stdin.readline()
"""


def child(url, cache, how="fetch"):
    expected = known(DATA)
    command = [sys.executable, "-c", CHILD, url, expected["sha256"], str(expected["size"]), str(cache.folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def test_several_processes_download_once(server, cache):
    server.gate.clear()
    processes = [child(server.url, cache) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["started\n"] * 2
    assert server.halfway.wait(LONG)
    server.gate.set()
    said = sorted(process.communicate(timeout=LONG)[0].split() for process in processes)
    path = str(cache.folder / known(DATA)["sha256"])
    assert said == [[path, "0"], [path, "1"]]
    assert len(server.requests) == 1


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(server, cache, tmp_path, wait_for):
    server.answers = ["stall", "ok"]
    process = child(server.url, cache)
    assert server.halfway.wait(LONG)
    wait_for(lambda: kept(cache), LONG)
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(cache.fetch(server.url, **known(DATA))))
    thread.start()  # takes over when the other one is gone
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LONG)
    thread.join(LONG)
    assert waiting[0].read_bytes() == DATA
    assert kept(cache) == [known(DATA)["sha256"]]
    # left-overs of a file that nobody asks for again go with the next download, those of a running one stay
    other, busy = (cache.folder / f".{digit * 64}.0.partial" for digit in "ab")
    other.touch()
    busy.touch()
    with FileLock(cache.folder / "locks" / f"{'b' * 64}.lock"):
        url, expected = local_file(tmp_path, 1)
        cache.fetch(url, **expected)
    assert not other.exists() and busy.exists()


def test_those_who_wait_share_the_failure(server, cache, monkeypatch):
    arrived = threading.Semaphore(0)

    class Noticed(FileLock):
        def acquire(self, *arguments, **options):
            if "evict" not in self.lock_file:
                arrived.release()
            return super().acquire(*arguments, **options)

    monkeypatch.setattr(remote, "FileLock", Noticed)
    server.gate.clear()
    server.answers = ["wrong"]
    errors = []

    def fetch():
        with pytest.raises(LandmarkRetrievalError) as refused:
            cache.fetch(server.url, **known(DATA))
        errors.append(str(refused.value))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert arrived.acquire(timeout=LONG)
    server.gate.set()
    for thread in threads:
        thread.join(LONG)
    assert len(errors) == 3 and len(set(errors)) == 1
    assert len(server.requests) == 2  # both attempts of one thread
    server.answers = ["ok"]
    assert cache.fetch(server.url, **known(DATA)).read_bytes() == DATA


def test_a_process_that_hangs_is_not_waited_for(cache, server, monkeypatch):
    monkeypatch.setattr(remote, "_GRACE", 0.1)
    lock = cache.folder / "locks" / f"{known(DATA)['sha256']}.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(LandmarkRetrievalError, match=r"Another process.*no progress"):
        impatient(cache, stall_seconds=0.1).fetch(server.url, **known(DATA))


def test_prefetch(server, cache, tmp_path):
    ahead = pickle.loads(pickle.dumps(Prefetch(cache)))
    files = [local_file(tmp_path, number) for number in range(4)]
    ahead.request([(server.url, *known(DATA).values()), *((url, *expected.values()) for url, expected in files)])
    assert ahead.fetch(server.url, **known(DATA)).read_bytes() == DATA
    for url, expected in files:
        assert ahead.fetch(url, **expected).stat().st_size == expected["size"]
    assert len(server.requests) == 1
    # one that nobody requested
    url, expected = local_file(tmp_path, 5)
    assert ahead.fetch(url, **expected).stat().st_size == expected["size"]


def test_a_failure_in_the_background_comes_when_the_file_is_asked_for(server, cache):
    ahead = Prefetch(cache, threads=1)
    server.answers = [404]
    ahead.request([(server.url, *known(DATA).values())])
    with pytest.raises(LandmarkRetrievalError, match="404"):
        ahead.fetch(server.url, **known(DATA))
    server.answers = ["ok"]
    assert ahead.fetch(server.url, **known(DATA)).read_bytes() == DATA


def test_prefetch_survives_a_fork(server, cache, tmp_path):
    server.gate.clear()
    ahead = Prefetch(cache, threads=1)
    url, expected = local_file(tmp_path, 1)
    ahead.request([(server.url, *known(DATA).values()), (url, *expected.values())])
    assert server.halfway.wait(LONG)
    process = os.fork()
    if not process:
        # the threads of the parent are not here
        status = 1
        try:
            ahead.request([(url, *expected.values())])
            status = int(ahead.fetch(url, **expected).stat().st_size != expected["size"])
        finally:
            os._exit(status)
    assert os.waitpid(process, 0)[1] == 0
    server.gate.set()
    assert ahead.fetch(server.url, **known(DATA)).read_bytes() == DATA


def test_prefetch_does_not_keep_a_process_alive(server, cache):
    server.answers = ["stall"]
    process = child(server.url, cache, "prefetch")
    assert server.halfway.wait(LONG)
    assert process.communicate("\n", timeout=LONG)[0] == "started\n"
    assert process.returncode == 0
    assert known(DATA)["sha256"] not in kept(cache)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("LANDMARK_RETRIEVAL_CACHE", str(tmp_path / "own"))
    assert Cache.default(limit_gb=0.5) == Cache(tmp_path / "own", 5 * 10**8)
    assert Cache.default(tmp_path, stall_seconds=5).folder == tmp_path
    monkeypatch.delenv("LANDMARK_RETRIEVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.default().folder == tmp_path / "landmark-retrieval" / "shards"
