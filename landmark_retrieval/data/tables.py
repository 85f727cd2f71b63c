"""Rows of CSV files, with errors that name file, line and column."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import open_replacing


def read_rows(path: str | Path, columns: Sequence[str], what: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and the named cells of each row, blanks around them removed.

    Args:
        path: UTF-8, with or without a byte order mark; column order and further columns do not matter.
        columns: names of the cells wanted.
        what: what the file is, for errors ("solution").

    Raises:
        LandmarkRetrievalError: no such file, not CSV in UTF-8, a missing column, or a row of another length.
    """
    path = Path(path)
    # a landmark with ten thousand photos makes a cell longer than the csv module's default limit
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = next(reader, [])
            for column in columns:
                if column not in names:
                    raise LandmarkRetrievalError(
                        f"The {what} file {path} has no column {column!r}: its first line must have "
                        f"{','.join(columns)}."
                    )
            places = [names.index(column) for column in columns]
            for row in reader:
                if len(row) != len(names):
                    if not row:  # an empty line, at the end of the file for instance
                        continue
                    raise LandmarkRetrievalError(
                        f"{path}, line {reader.line_num}: the row must have {len(names)} cells like "
                        "the first line; separate several values in a cell by blanks, not commas."
                    )
                yield reader.line_num, [row[place].strip() for place in places]
    except (FileNotFoundError, IsADirectoryError):
        raise LandmarkRetrievalError(f"There is no {what} file at {path}: give the path of a CSV file.") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise LandmarkRetrievalError(f"The {what} file {path} is not a CSV file in UTF-8 ({error}).") from None
    finally:
        csv.field_size_limit(limit)


def write_reasons(path: str | Path, reasons: Mapping[str, str]) -> None:
    """Write `id, reason` of photos that cannot be used, whole or not at all."""
    with open_replacing(path) as file:
        csv.writer(file).writerows([("id", "reason"), *reasons.items()])
