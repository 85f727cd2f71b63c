"""The bytes of a file at a URL: never waiting without a limit, tried again, with errors a person can act on."""

import contextlib
import http.client
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from landmark_retrieval.errors import LandmarkRetrievalError

_CHUNK = 1 << 20
_WRONG = 2  # downloads with wrong bytes before giving up
_CURL = {
    1: "curl does not know this protocol",
    3: "the address is malformed",
    6: "the server's name cannot be resolved",
    7: "the connection is refused",
    18: "the transfer was cut short",
    22: "the server answers with an error, such as 403 or 404",
    28: "the connection timed out",
    35: "the TLS connection failed",
    52: "the server sent nothing",
    56: "the connection broke",
    60: "the server's TLS certificate is not trusted",
    67: "the login was denied",
    78: "there is no such file",
}
_FINAL = (1, 3, 60, 67, 78)  # exit codes of curl after which trying again does not help
_COMMANDS = {"s3": ("aws", "s3", "cp", "--only-show-errors", "{}", "-"), "gs": ("gsutil", "cat", "{}")}
_ABSENT = {"aws": "(404)", "gsutil": "No URLs matched"}  # how the commands say that there is no such object
T = TypeVar("T")


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL (`scheme://...`) rather than a path on this machine."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(place), re.IGNORECASE) is not None


def join(root: str, name: str) -> str:
    """The URL of a file in the folder at a URL.

    Raises:
        LandmarkRetrievalError: a query string or a fragment, which cannot stay behind the name of each file.
    """
    if "?" in root + name or "#" in root + name:
        raise LandmarkRetrievalError(
            f"{shown(root)} with {name}: the address of a folder takes no ? and no #: name the plain folder."
        )
    return f"{root.rstrip('/')}/{name.lstrip('/')}"


class AbsentError(LandmarkRetrievalError):
    """The server answered, and has no such file."""


class Failure(Exception):  # noqa: N818 - of one attempt, never seen by callers of the cache
    """Why an attempt failed; whether the file is absent, was other bytes, and whether it is worth another attempt."""

    def __init__(
        self, what: str, *, again: bool = True, absent: bool = False, wrong: bool = False, advice: str | None = None
    ) -> None:
        super().__init__(what)
        self.again, self.absent, self.wrong = again and not absent, absent, wrong
        mismatch = "look whether the manifest and the files there belong together" if wrong else None
        self.advice = advice or mismatch or "check the address and the network, and run the same again"


def insist(
    url: str, receive: Callable[[Iterator[bytes]], T], stall_seconds: float, attempts: int, pause_seconds: float
) -> T:
    """What `receive` makes of the bytes of a URL, of the first attempt that succeeds."""
    wrong = 0
    for attempt in range(1, attempts + 1):
        try:
            with contextlib.closing(_chunks(url, stall_seconds)) as chunks:
                return receive(chunks)
        except Failure as failure:
            wrong += failure.wrong
            if failure.again and wrong < _WRONG and attempt < attempts:
                time.sleep(pause_seconds * 2 ** (attempt - 1))
                continue
            kind = AbsentError if failure.absent else LandmarkRetrievalError
            tried = f", tried {attempt} times" if attempt > 1 else ""
            raise kind(f"{shown(url)} cannot be fetched ({failure}{tried}): {failure.advice}.") from None
    raise LandmarkRetrievalError(f"attempts is {attempts}: it takes at least 1.")


def _open(url: str) -> Any:
    """A stream of webdataset; `proc` is the process that it reads from, if any, `words` what that says on stderr."""
    from webdataset.gopen import Pipe, gopen, gopen_gsutil, gopen_schemes, rewrite_url

    known = sorted({*gopen_schemes, "file", "s3"} - {"__default__", "pipe", "htgs"})
    if not is_url(url) or url.partition("://")[0].lower() not in known:
        raise Failure(f"no address that can be read: it begins with one of {', '.join(known)}, and ://", again=False)
    address = rewrite_url(url)
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    if scheme == "file":
        # gopen would look past a host, and wait for ever at a named pipe
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise Failure(f"{host} is taken for a machine: write file:/// and the whole path", again=False)
        local = Path(urllib.request.url2pathname(f"/{path}"))
        if not local.is_file():
            raise Failure("there is no such file", again=False, absent=not local.exists())
    command = _COMMANDS.get(scheme)
    try:
        # webdataset has nothing for s3 and loses what gsutil says, unless it was told to use ais for them
        if command and gopen_schemes.get(scheme, gopen_gsutil) is gopen_gsutil:
            words = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the stream
            stream = Pipe([part.format(address) for part in command], mode="rb", stderr=words, start_new_session=True)
            stream.words = words
            return stream
        return gopen(url, "rb")
    except (FileNotFoundError, PermissionError) as error:
        if error.filename and scheme != "file":
            advice = "install it, or copy the files to this machine by other means"
            raise Failure(f"the command {error.filename} is not there", again=False, advice=advice) from None
        raise Failure(str(error), again=False) from None
    except Exception as error:  # huggingface_hub asks its server already here and has many errors of its own
        raise Failure(f"{type(error).__name__}: {error}") from None


def _chunks(url: str, stall_seconds: float) -> Generator[bytes, None, None]:
    """The bytes of a URL as they come; closing it ends the process that they come from."""
    stream = _open(url)
    process, words = getattr(stream, "proc", None), getattr(stream, "words", None)
    if process is None:
        with stream:
            try:
                while chunk := stream.read(_CHUNK):
                    yield chunk
            except OSError as error:
                raise Failure(f"it cannot be read, {error.strerror}") from None
        return
    received = 0
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(stream.stream, selectors.EVENT_READ)
            # the stream's own read waits without a limit
            while selector.select(stall_seconds):
                chunk = os.read(stream.stream.fileno(), _CHUNK)
                if not chunk:
                    break
                received += len(chunk)
                yield chunk
            else:
                raise _stalled(process, received, stall_seconds)
        try:
            code = process.wait(stall_seconds)
        except subprocess.TimeoutExpired:
            raise _stalled(process, received, stall_seconds) from None
        if code:
            raise _failed(process, code, words)
    finally:
        if words is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # gsutil and aws may be scripts that start the real one
        process.kill()
        stream.ignore_errors = True  # that it was killed is no news
        stream.close()


def _stalled(process: Any, received: int, seconds: float) -> Failure:
    what = f"it stalled, {seconds:g} s without a byte after {received:,} bytes"
    # curl hides errors such as 503 while it tries again by itself
    status = None if received else _http_status(process, min(10.0, seconds))
    return Failure(what if status in (None, 200) else f"{what}; the server answers {_status_words(status)}")


def _failed(process: Any, code: int, words: IO[bytes] | None) -> Failure:
    """What the exit code of a command means, or what it said last."""
    program = process.args[0] if isinstance(process.args, list) else "the command"
    if program == "curl":
        status = _http_status(process, 10.0) if code == 22 else None
        if status is not None and status >= 400:
            again = status >= 500 or status in (408, 425, 429)
            return Failure(f"the server answers {_status_words(status)}", again=again, absent=status in (404, 410))
        return Failure(f"{_CURL.get(code, 'curl failed')}, exit code {code}", again=code not in _FINAL)
    said = ""
    if words is not None:
        words.seek(0)
        said = words.read().decode(errors="replace").strip()
    last = said.splitlines()[-1].strip() if said else "it said nothing"
    return Failure(
        f"{program} ended with exit code {code}, {last}", absent=program in _ABSENT and _ABSENT[program] in said
    )


def _http_status(process: Any, seconds: float) -> int | None:
    """The status that the server of a curl command answers, which curl itself keeps to itself."""
    command = process.args if isinstance(process.args, list) else []
    # a request that needs a header of its own would get another answer without it
    if not command or not re.match("https?://", command[-1], re.IGNORECASE) or "-H" in command:
        return None
    try:
        request = urllib.request.Request(command[-1], headers={"User-Agent": "landmark-retrieval"})
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _status_words(status: int | None) -> str:
    return f"{status} {http.client.responses.get(status or 0, '')}".strip()


def shown(url: str) -> str:
    """A URL without what may be secret: a password, a signed query."""
    plain, query, _ = url.partition("?")
    return re.sub("//[^/@]*@", "//", plain) + ("?..." if query else "")
