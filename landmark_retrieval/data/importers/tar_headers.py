"""Where the members of a tar file lie, from its headers alone: nothing is extracted, and damage ends the walk, no more.

Python's tarfile follows sizes and links that a damaged or hostile header gives; here every number is held against the
file before it is used.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LONGEST_EXTENSION = 1 << 20  # of a long name or a pax header; real ones have a few hundred bytes
_KINDS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"5": "a directory", b"6": "a pipe"}


class DamagedTarError(Exception):
    """The archive cannot be followed any further; the text says from where and why."""


@dataclass(frozen=True)
class Member:
    """One member: its name as it stands in the archive, where its bytes begin, how many they are, and what it is where
    it is no plain file ("a link", "a device", "a directory", ...)."""

    name: str
    offset: int
    size: int
    kind: str | None


def walk(path: str | Path) -> Iterator[Member]:
    """The members of an uncompressed tar (ustar, GNU, pax) in the order of the file.

    Every member that is given lies within the file.

    Raises:
        DamagedTarError: after the last member before the damage: a header that is none, a member that reaches beyond
            the end of the file, a missing end mark.
        OSError: the file cannot be read.

    Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
    """
    file = os.open(path, os.O_RDONLY)
    try:
        yield from _walk(file, os.fstat(file).st_size)
    finally:
        os.close(file)


def _walk(file: int, end: int) -> Iterator[Member]:
    place = 0
    name: str | None = None  # what extension headers say about the next member
    size: int | None = None
    while True:
        header = os.pread(file, _BLOCK, place)
        if len(header) < _BLOCK:
            raise DamagedTarError(f"it ends at byte {end:,} without the end mark of a tar: it is cut short")
        if header == _ZEROS:
            _check_end(file, place, end)
            if name is not None or size is not None:
                raise DamagedTarError(f"the extended header before byte {place:,} belongs to no member")
            return
        _check_sum(header, place)
        kind = header[156:157]
        length = _number(header[124:136], place)
        data = place + _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            extension = _extension(file, data, length, place)
            if kind == b"L":
                name = _text(extension.split(b"\0", 1)[0])
            elif kind == b"x":
                pax = _pax(extension, place)
                name = _text(pax["path"]) if "path" in pax else name
                size = _pax_size(pax["size"], place) if "size" in pax else size
        else:
            if kind == b"S":
                raise DamagedTarError(f"the sparse file at byte {place:,} cannot be passed over")
            what = None if kind in (b"0", b"\0", b"7") else _KINDS.get(kind, "of an unknown kind")
            if name is None:
                name = _name(header)
            if what is None and name.endswith("/"):
                what = "a directory"  # as archives from before POSIX mark them
            # links, devices and directories have no data, whatever their headers say
            length = 0 if kind in _KINDS else length if size is None else size
            if data + length > end:
                raise DamagedTarError(
                    f"the member at byte {place:,} reaches beyond the end of the file ({end:,} bytes): it is cut short "
                    "or its header is damaged"
                )
            yield Member(name, data, length, what)
            name = size = None
        place = data + -(-length // _BLOCK) * _BLOCK


def _check_end(file: int, place: int, end: int) -> None:
    """Two blocks of zeros end a tar, padding may follow; anything else after zeros was lost by the damage."""
    while place < end:
        chunk = os.pread(file, 1 << 20, place)
        if chunk.strip(b"\0"):
            raise DamagedTarError(f"the block at byte {place:,} is zeros, but is not the end of the archive")
        if not chunk:
            return
        place += len(chunk)


def _check_sum(header: bytes, place: int) -> None:
    summed = sum(header) - sum(header[148:156]) + 8 * 32
    field = header[148:156].strip(b" \0")
    # by the book these are octal digits; a field that is not cannot be a header's
    if not field or field.strip(b"01234567") or int(field, 8) != summed:
        raise DamagedTarError(f"there is no member header at byte {place:,}")


def _number(field: bytes, place: int) -> int:
    """A size: octal digits, or, for 8 GiB and more, base 256 with the first bit set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise DamagedTarError(f"the header at byte {place:,} gives no size of a file")
    return int(digits or b"0", 8)


def _extension(file: int, data: int, length: int, place: int) -> bytes:
    extension = os.pread(file, length, data) if length <= _LONGEST_EXTENSION else b""
    if len(extension) < length:
        raise DamagedTarError(f"the extended header at byte {place:,} is cut short or damaged")
    return extension


def _pax(extension: bytes, place: int) -> dict[str, bytes]:
    """The records `<length> <key>=<value>\\n` of a pax header."""
    records: dict[str, bytes] = {}
    start = 0
    while start < len(extension) and extension[start]:
        digits, blank, _ = extension[start : start + 20].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        record = extension[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or start + length > len(extension):
            raise DamagedTarError(f"the extended header at byte {place:,} is damaged")
        records[_text(key)] = value[:-1]
        start += length
    return records


def _pax_size(value: bytes, place: int) -> int:
    if not value.isdigit() or len(value) > 18:
        raise DamagedTarError(f"the extended header at byte {place:,} gives no size of a file")
    return int(value)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    # GNU archives keep other things where ustar has the first part of a long name
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
