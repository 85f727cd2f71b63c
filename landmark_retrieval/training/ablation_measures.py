"""Figures of trained runs for the ablations, each measured once and kept in a file of its own."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.photos import Ids
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.sources import open_photos
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.files import read_json, write_json
from landmark_retrieval.retrieval.benchmarks import Benchmark, open_benchmark
from landmark_retrieval.retrieval.ensemble import average_and_concatenate
from landmark_retrieval.retrieval.evaluate import evaluate
from landmark_retrieval.retrieval.extract import extract
from landmark_retrieval.retrieval.judge import recognition_figures, retrieval_figures
from landmark_retrieval.retrieval.members import Member, Wanted, labels_of
from landmark_retrieval.retrieval.recognition import recognize
from landmark_retrieval.retrieval.rerank import soft_vote
from landmark_retrieval.retrieval.steps import digest
from landmark_retrieval.retrieval.store import DescriptorStore
from landmark_retrieval.retrieval.store_rows import StoreRows
from landmark_retrieval.retrieval.submission import Ranking, ranked_lists
from landmark_retrieval.retrieval.views import card_as_asked
from landmark_retrieval.training.ablation_questions import FIGURES, MEASUREMENTS, Measurement
from landmark_retrieval.training.packing import pack
from landmark_retrieval.zoo import load_model

IMAGENET = "imagenet"
_FORMAT = 1


@dataclass(frozen=True)
class Yardstick:
    """What all runs are measured on.

    Attributes:
        root: data.root.
        benchmark: queries, index photos and what is right.
        bank: the labelled photos that vote.
        bank_set: name of their training set.
        non_landmark: photos of no landmark; None: index photos that are right for no query.
        out: takes descriptors and figures.
    """

    root: str
    benchmark: Benchmark
    bank: ShardedPhotos
    bank_set: str
    non_landmark: str | None
    out: Path

    @classmethod
    def open(cls, root: str, bank_set: str, non_landmark: str | None, out: Path) -> "Yardstick":
        """Open the photos.

        Raises:
            LandmarkRetrievalError: there are none, or nothing to compare with; see `open_benchmark` and `open_photos`.
        """
        benchmark = open_benchmark(root)
        bank = ShardedPhotos.open(train_place(benchmark.place, bank_set))
        if benchmark.recognition is not None and not all(map(str.isdecimal, bank.manifest.classes)):
            raise LandmarkRetrievalError(
                f"The landmarks of {bank.place} have names, where recognition_solution.csv speaks of numbers: name "
                "another data.train_set, or remove that file."
            )
        if non_landmark is not None:
            open_photos(non_landmark)
        return cls(root, benchmark, bank, bank_set, non_landmark, out)

    @property
    def fingerprint(self) -> str:
        """Eight digits that change with the photos, or with what is right."""
        known = self.benchmark.recognition
        return digest(
            _FORMAT,
            *(photos.fingerprint for photos in (self.benchmark.queries, self.benchmark.index, self.bank)),
            self.benchmark.solution.relevant,
            known.relevant if known else None,
        )

    def without_landmark(self) -> list[str]:
        """Ids of index photos that are right for no query."""
        right = {photo for images in self.benchmark.solution.relevant.values() for photo in images}
        return [photo for photo in self.benchmark.index.ids if photo not in right]

    def about_non_landmarks(self) -> str:
        """Where they come from, for a reader."""
        if self.non_landmark is not None:
            return f"{len(open_photos(self.non_landmark)):,} photos of {self.non_landmark}"
        return (
            f"the {len(self.without_landmark()):,} index photos that are right for no query, which some queries may "
            "resemble more than photos from elsewhere would"
        )

    def obstacle(self, measurement: Measurement) -> str | None:
        """Why these photos do not allow a measurement; None if they do."""
        if measurement.how != "recognize":
            return None
        if self.benchmark.recognition is None:
            return "the data holds no recognition_solution.csv"
        if measurement.setting and self.non_landmark is None and not self.without_landmark():
            return "each index photo is right for some query: name photos of no landmark with --non-landmark"
        return None


class Measured:
    """The figures of some runs of one seed.

    Args:
        yardstick: what they are measured on.
        runs: variant -> folder of its finished last stage.
        weights: variant -> sha256 of its weights.
    """

    def __init__(self, yardstick: Yardstick, runs: Mapping[str, Path], weights: Mapping[str, str]) -> None:
        self.yardstick, self.runs, self.weights = yardstick, runs, weights

    def figures(self, name: str) -> dict[str, Any]:
        """Make a measurement, or read it where it was made before.

        Returns:
            `figures` (see `FIGURES`; GAP where landmarks are known), `image_size`, and `commands` that do the same, as
            far as there are such.

        Raises:
            LandmarkRetrievalError: a photo, a model or an earlier figure is damaged; see `evaluate`, `ranked_lists` and
                `recognize`.
        """
        wanted = MEASUREMENTS[name]
        kept = self._folder(wanted.runs) / f"{name}-{self._facts(wanted)}.json"
        if not kept.exists():
            makers = {
                "evaluate": self._evaluate,
                "size": self._evaluate,
                "neck": self._evaluate,
                "rerank": self._rerank,
                "recognize": self._recognize,
                "ensemble": self._ensemble,
            }
            write_json(kept, makers[wanted.how](wanted))
        found = read_json(kept, "measurement", "delete it, and run the same again")
        if not isinstance(found, dict) or found.keys() != {"figures", "image_size", "commands"}:
            raise LandmarkRetrievalError(f"{kept} is no measurement: delete it, and run the same again.")
        return found

    def _facts(self, wanted: Measurement) -> str:
        photos = self.yardstick.non_landmark if wanted.how == "recognize" and wanted.setting else None
        others = open_photos(photos).fingerprint if photos else None
        return digest(self.yardstick.fingerprint, wanted.how, wanted.setting, others)

    def _model(self, runs: Sequence[str]) -> str:
        return str(self.runs[runs[0]]) if runs else IMAGENET

    def _folder(self, runs: Sequence[str]) -> Path:
        if not runs:
            return self.yardstick.out / IMAGENET
        return self.yardstick.out / "+".join(runs) / digest(*(self.weights[run] for run in runs))

    def _stores(self, runs: Sequence[str], size: int | None = None) -> Path:
        """Where the descriptors of a run go, at the size of its card or another."""
        side = "card" if size is None else f"{size}px"
        return self._folder(runs) / f"{side}-{self.yardstick.fingerprint}"

    def _evaluate(self, wanted: Measurement) -> dict[str, Any]:
        y = self.yardstick
        size = wanted.setting if wanted.how == "size" else None
        name, out, before = self._model(wanted.runs), self._stores(wanted.runs, size), []
        if wanted.how == "neck":
            folder = self._folder(wanted.runs) / f"packed-{self._facts(wanted)}"
            before = ["landmark-retrieval", "zoo", "pack", name, y.root, "--set", y.bank_set, "--out", str(folder)]
            before += ["--power", str(wanted.setting), "--float32"]
            pack(*load_model(name), y.bank, folder, power=wanted.setting, half=False)
            name, out = str(folder), folder / "evaluation"
        model, card = load_model(name)
        bank = None if y.benchmark.recognition is None else y.bank_set
        card = card_as_asked(card, size)
        found = evaluate(model, card, y.benchmark, out, bank=bank)
        command = ["landmark-retrieval", "evaluate", y.root, "--model", name, "--out", str(out)]
        command += ["--bank", bank] if bank else []
        command += ["--image-size", str(size)] if size else []
        figures = dict(found.metrics)
        if bank:
            figures["gap"] = figures["recognition_gap"]
        return _record(figures, card["image_size"], *([before] if before else []), command)

    def _member(self, run: str) -> Member:
        """A run with its descriptors, which `evaluate` has made; those of the bank where it had no use for them."""
        out, bank = self._stores((run,)), self.yardstick.bank
        self.figures(run)  # describes the photos
        model, card = load_model(self._model((run,)))
        # to the last key what evaluate keeps in the stores
        train = extract(model, card_as_asked(card), bank, out / f"bank-{bank.name}", title="bank")
        stores = {"test": DescriptorStore.open(out / "query"), "index": DescriptorStore.open(out / "index")}
        return Member(Wanted(self._model((run,))), card, out, {**stores, "train": train})

    def _labels(self, member: Member) -> np.ndarray:
        return labels_of(self.yardstick.bank, member.stores["train"].ids)

    def _rerank(self, wanted: Measurement) -> dict[str, Any]:
        member = self._member(wanted.runs[0])
        ranking = Ranking(rerank=wanted.setting)
        labels = self._labels(member) if ranking.needs_training_photos else None
        rows, _ = ranked_lists([member], labels, ranking)
        command = self._submit("retrieval", wanted.runs, f"retrieval.rerank={wanted.setting}")
        return _record(self._retrieval(member, rows), member.card["image_size"], command)

    def _ensemble(self, wanted: Measurement) -> dict[str, Any]:
        members = [self._member(run) for run in wanted.runs]
        rows, _ = ranked_lists(members, None, Ranking(rerank="none"))
        figures = self._retrieval(members[0], rows)
        if self.yardstick.benchmark.recognition is not None:
            groups = [1] * len(members)
            test, train = (
                average_and_concatenate([member.stores[name].load() for member in members], groups)
                for name in ("test", "train")
            )
            labels, sure = soft_vote(test, train, self._labels(members[0]), k=3)
            figures["gap"] = self._gap(members[0], labels, sure)
        command = self._submit("retrieval", wanted.runs, "retrieval.rerank=none")
        return _record(figures, members[0].card["image_size"], command)

    def _recognize(self, wanted: Measurement) -> dict[str, Any]:
        member = self._member(wanted.runs[0])
        others, more = None, ""
        if wanted.setting:
            others = self._non_landmarks(member)
            more = f"recognition.non_landmark={self.yardstick.non_landmark}"
        test = torch.from_numpy(member.stores["test"].load())
        labels, scores = recognize(
            [test], [member.rows("train")], self._labels(member), None if others is None else [others], progress=True
        )
        figures = {"gap": self._gap(member, labels.numpy(), scores.numpy())}
        if wanted.setting and self.yardstick.non_landmark is None:
            return _record(figures, member.card["image_size"])  # submit cannot take a part of the index
        words = [more] if more else []
        return _record(figures, member.card["image_size"], self._submit("recognition", wanted.runs, *words))

    def _non_landmarks(self, member: Member) -> StoreRows:
        y = self.yardstick
        if y.non_landmark is None:
            numbers = Ids(member.stores["index"].ids).rows(y.without_landmark())
            return StoreRows(member.stores["index"], numbers[numbers >= 0])  # without those that cannot be decoded
        photos = open_photos(y.non_landmark)
        model, card = load_model(member.wanted.model)
        folder = member.folder / f"non-landmark-{digest(photos.fingerprint)}"
        return StoreRows(extract(model, card_as_asked(card), photos, folder, title="non-landmarks"))

    def _retrieval(self, member: Member, rows: np.ndarray) -> dict[str, Any]:
        index = member.stores["index"].ids
        lists = ([index[row] for row in ranked if row >= 0] for ranked in rows.tolist())
        ranked = dict(zip(member.stores["test"].ids, lists, strict=True))
        return retrieval_figures(ranked, self.yardstick.benchmark.solution)

    def _gap(self, member: Member, labels: np.ndarray, scores: np.ndarray) -> float:
        classes = self.yardstick.bank.manifest.classes
        known = self.yardstick.benchmark.recognition
        assert known is not None
        pairs = zip(labels.tolist(), scores.tolist(), strict=True)
        answers = ((int(classes[label]), score) for label, score in pairs)
        return recognition_figures(dict(zip(member.stores["test"].ids, answers, strict=True)), known)["gap"]

    def _submit(self, track: str, runs: Sequence[str], *words: str) -> list[str]:
        models = f"models=[{','.join(str(self.runs[run]) for run in runs)}]"
        data = [f"data.root={self.yardstick.root}", f"data.train_set={self.yardstick.bank_set}"]
        command = ["python", "-m", "landmark_retrieval.submit", f"track={track}", models, *data, *words]
        return [*command, "extraction.dtype=float32", "out=submission"]


def _record(figures: Mapping[str, float], size: int | None, *commands: Sequence[str]) -> dict[str, Any]:
    kept = {name: float(figures[name]) for name in FIGURES if name in figures}
    return {"figures": kept, "image_size": size, "commands": [shlex.join(command) for command in commands]}
