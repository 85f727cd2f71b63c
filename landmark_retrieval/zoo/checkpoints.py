"""Weights from wherever they are: a folder with a card, a .safetensors file, the hub, a web server, a package."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import sha256_of
from landmark_retrieval.zoo.fetch import fetch
from landmark_retrieval.zoo.hub import PREFIX, fetch_from_hub
from landmark_retrieval.zoo.records import PACKAGED
from landmark_retrieval.zoo.records import Weights as Record
from landmark_retrieval.zoo.saved_model import CARD, WEIGHTS, load_tensors, load_weights, read_card

PIP = "pip:"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors, and what is known about them.

    Attributes:
        state: name -> tensor.
        card: None for a file without one.
        file: that they were read from.
        sha256: of that file.
    """

    state: dict[str, Tensor]
    card: dict[str, Any] | None
    file: Path
    sha256: str


def read_checkpoint(where: str | Path, sha256: str | None = None) -> Checkpoint:
    """Read weights, with their card if they have one.

    Args:
        where: a folder written by `save_model`, a .safetensors file, `hf-hub:OWNER/NAME[@REVISION]`, or an https URL of
            a .safetensors file (`#sha256=HEX` at its end is checked).
        sha256: what the file with the tensors must have.

    Raises:
        LandmarkRetrievalError: it is not there, cannot be fetched, is damaged, or another one than it should be.
    """
    text = str(where)
    if text.startswith(PREFIX):
        path = fetch_from_hub(text)
    elif "://" in text:
        path = fetch(text, sha256)
    else:
        path = Path(where)
    if path.name == WEIGHTS and (path.parent / CARD).exists():
        path = path.parent  # the card beside it knows more than the tensors do
    folder = path.is_dir()
    if not folder and path.suffix != ".safetensors":
        raise LandmarkRetrievalError(
            f"{text} is neither a folder with {CARD} nor a .safetensors file: for a checkpoint of other code use "
            "`landmark-retrieval zoo convert FILE --source SOURCE --model NAME --out DIR`."
        )
    card = read_card(path) if folder else None
    state = load_weights(path, card) if card is not None else load_tensors(path)
    file = path / WEIGHTS if folder else path
    found = card["weights_sha256"] if card is not None else sha256_of(file)
    if sha256 and found != sha256.lower():
        raise LandmarkRetrievalError(
            f"The weights {file} are not those that were asked for (sha256 {found[:16]}..., not {sha256[:16]}...): "
            "they were cut or changed; delete them and fetch them again."
        )
    return Checkpoint(state, card, file, found)


def read_record(record: Record) -> Checkpoint:
    """The weights of a record of the zoo that can be fetched, checked by its sha256. Errors as `read_checkpoint`."""
    where = PACKAGED / record.name if record.location == "packaged" else record.location
    assert where is not None
    return read_checkpoint(where, record.sha256)


def check_installed(record: Record) -> bool:
    """Whether the installed package that a record names is there.

    Raises:
        LandmarkRetrievalError: it is, with another file than the record describes.
    """
    package, _, file = str(record.location).removeprefix(PIP).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    path = Path(spec.origin).parent / file
    if not path.exists() or sha256_of(path) != record.sha256:
        raise LandmarkRetrievalError(
            f"{path} is not the file that {record.name} is made from (sha256 {record.sha256}): run `pip install "
            f"--force-reinstall {package.replace('_', '-')}`."
        )
    return True
