"""Files from a web server: fetched once, resumed where they stopped, checked, and kept in a cache folder."""

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import sha256_of, write_json

TIMEOUT = 30  # seconds without a single byte
_ATTEMPTS = 3  # in one call, each going on where the one before broke off
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where fetched files are kept: $LANDMARK_RETRIEVAL_CACHE, else landmark_retrieval in the user's cache."""
    if own := os.environ.get("LANDMARK_RETRIEVAL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "landmark_retrieval"


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept, fetched or put there by hand."""
    stem = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name[-100:]
    stem = "file" if stem in ("", ".", "..") else stem
    return cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16] / stem


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file of a URL, from the cache or from its server.

    Of several processes one fetches and the others wait for it. What was fetched is recorded with its sha256, so that
    damage in the cache is noticed later even where nobody said what the sha256 must be.

    Args:
        url: https, or http of this machine; `#sha256=HEX` at its end is the sha256 that the file must have.
        sha256: the same.

    Raises:
        LandmarkRetrievalError: no such file, no way to the server, another file than expected.
    """
    url, _, fragment = url.partition("#")
    if fragment and not re.fullmatch("sha256=[0-9a-fA-F]{64}", fragment):
        raise LandmarkRetrievalError(
            f"{url}#{fragment} names no checksum that could be checked: write #sha256= and 64 hexadecimal digits, or "
            "leave it out."
        )
    sha256 = (sha256 or fragment.removeprefix("sha256=")).lower() or None
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise LandmarkRetrievalError(f"{url} is no address ({error}): check it.") from None
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1")):
        raise LandmarkRetrievalError(f"{url} is no https address: name one, or a file on this machine.")
    target = cached_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _download(url, target, sha256)
        expected = sha256 or _note(target).get("sha256")
        if expected and (found := sha256_of(target)) != expected:
            raise LandmarkRetrievalError(
                f"{target} is not the file that it should be (sha256 {found[:16]}..., not {expected[:16]}...; "
                f"{target.stat().st_size:,} bytes): delete it, so that it is fetched again from {url}."
            )
    return target


def _download(url: str, target: Path, sha256: str | None) -> None:
    by_hand = f"or fetch it where there is a network and put it at {target}"
    partial = _beside(target, ".partial")
    try:
        whole = any(_attempt(url, partial, target.name) for _ in range(_ATTEMPTS))
    except urllib.error.HTTPError as error:
        raise LandmarkRetrievalError(
            f"{url} cannot be fetched (the server answers {error.code} {error.reason}): check the address, {by_hand}."
        ) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise LandmarkRetrievalError(
            f"{url} cannot be reached ({reason}): check the network and run the same again, {by_hand}."
        ) from None
    if not whole:
        kept = partial.stat().st_size if partial.exists() else 0
        raise LandmarkRetrievalError(
            f"{url} broke off {_ATTEMPTS} times, {kept:,} bytes are kept: run the same again to go on from there, "
            f"{by_hand}."
        )
    found = sha256_of(partial)
    if sha256 and found != sha256:
        size = partial.stat().st_size
        partial.unlink()
        raise LandmarkRetrievalError(
            f"What {url} sent is not the file that was expected (sha256 {found[:16]}..., not {sha256[:16]}...; "
            f"{size:,} bytes); nothing of it was kept: try again, and if it stays so, do not use that file."
        )
    write_json(_beside(target, ".json"), {"url": url, "sha256": found, **_note(partial)})
    partial.replace(target)
    _beside(partial, ".json").unlink(missing_ok=True)


def _attempt(url: str, partial: Path, title: str) -> bool:
    """Fetch what is missing of the partial file; whether it is whole now."""
    note = _note(partial)
    have = partial.stat().st_size if partial.exists() and note else 0
    headers = {"User-Agent": "landmark-retrieval", "Accept-Encoding": "identity"}
    if have:
        # the server sends the rest only if its file is still the one that the first part came from
        headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if not have or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        partial.unlink()
        return False
    with response:
        if url.startswith("https:") and not response.url.startswith("https:"):
            raise urllib.error.URLError(f"it leads on to {response.url}, which is not https")
        if response.status == http.client.PARTIAL_CONTENT:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                partial.unlink()
                return False
        else:
            have = 0
            partial.unlink(missing_ok=True)
            write_json(_beside(partial, ".json"), _validator(response.headers))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        ended = _receive(response, partial, have, total, title)
    return ended and total in (None, partial.stat().st_size)


def _receive(response: Any, partial: Path, have: int, total: int | None, title: str) -> bool:
    """Append what the server sends; whether it came to an end by itself."""
    bar = tqdm(total=total, initial=have, desc=title, unit="B", unit_scale=True, unit_divisor=1024)
    with bar, partial.open("ab") as file, suppress(TimeoutError, ConnectionError, http.client.IncompleteRead):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        return True
    return False


def _validator(headers: Any) -> dict[str, str]:
    """What tells one version of a file from another; a weak ETag does not."""
    etag = headers.get("ETag") or ""
    value = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return {"validator": value} if value else {}


def _note(path: Path) -> dict[str, Any]:
    """What is recorded about a fetched file; nothing for one that was put there by hand."""
    with suppress(OSError, ValueError):
        note = json.loads(_beside(path, ".json").read_text(encoding="utf-8"))
        if isinstance(note, dict):
            return note
    return {}


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
