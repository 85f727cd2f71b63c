"""The plan of a chain for a person: what each stage is, how many images it will see, and what is left of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landmark_retrieval.columns import aligned
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.configs import start_of
from landmark_retrieval.training.ranks import Ranks

RATE_SIZE = 448
"""Side, in px, of the images that a rate is for."""

# of GLDv2 as published (arXiv 2004.01804), and of the larger set of the 81,313 landmarks of its cleaned one
_PUBLISHED = {"c": 1_580_470, "x": 3_200_000, "full": 4_132_914}
_WORDS = {
    "photos_sha256": "the photos",
    "parent_weights_sha256": "the weights of the stage before",
    "parent_head_sha256": "the head of the stage before",
}
_PAGE, _RECORD = "handoff.json", "config.json"
FINISHED, CARRIES_ON, TO_DO, AGAIN, UNKNOWN = "finished", "carries on", "to do", "to do again", "?"


@dataclass
class Row:
    """What is known of a stage before it runs.

    Attributes:
        config: of the stage.
        state: one of finished, carries on, to do, to do again, ?.
        photos: of its training set; None if unknown.
        counted: whether they are of the shards, not the published number.
        notes: sentences.
    """

    config: dict[str, Any]
    state: str = TO_DO
    photos: int | None = None
    counted: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs that are trained."""
        return self.config["stage"]["stop"] or self.config["stage"]["epochs"]

    @property
    def images(self) -> float | None:
        """Images seen in all epochs; None if unknown."""
        if self.photos is None:
            return None
        limit, seen = self.config["trainer"]["limit_train_batches"], float(self.photos)
        if isinstance(limit, float):
            seen *= limit
        elif limit is not None:
            seen = min(seen, limit * self.config["data"]["batch_size"] * (processes(self.config) or 1))
        return seen * self.epochs

    def hours(self, rate: float, size: int = RATE_SIZE) -> float | None:
        """Hours of training at `rate` images per second of `size` px, where time goes by area."""
        side = self.config["data"]["image_size"]
        return None if self.images is None else self.images * (side / size) ** 2 / rate / 3600


def rows(configs: Sequence[dict[str, Any]]) -> list[Row]:
    """What is known of each stage of a chain. Data that is not there is no error."""
    found = []
    ahead: dict[Path, int] = {}  # folders of stages that will run, and their numbers
    for number, config in enumerate(configs, 1):
        row = Row(config)
        _count(row)
        stage, folder = config["stage"], Path(config["run_dir"])
        parent = Path(stage["weights"]) if stage["weights"] else folder.parent / str(stage["after"])
        _look(row, f"it comes after stage {ahead[parent]}" if parent in ahead else "")
        for key in ("freeze", "freeze_batchnorm"):
            if patterns := _patterns(stage.get(key)):
                what = "frozen" if key == "freeze" else "BatchNorm statistics kept"
                row.notes.append(f"{what}: {patterns}")
        if row.state != FINISHED:
            # of a row of stages the first is the reason
            ahead[folder] = ahead.get(parent, number)
        found.append(row)
    return found


def table(configs: Sequence[dict[str, Any]], rate: float | None = None, rate_size: int = RATE_SIZE) -> str:
    """The plan as a table, with totals and notes.

    Args:
        configs: of the stages.
        rate: images per second of all processes together; None: no hours.
        rate_size: side of the images for which that is the rate, px.
    """
    plan = rows(configs)
    header = ["#", "stage", "epochs", "set", "px", "batch", "lr", "from", "images", "state"]
    lines = []
    for number, row in enumerate(plan, 1):
        stage, data = row.config["stage"], row.config["data"]
        epochs = f"{row.epochs}" if row.epochs == stage["epochs"] else f"{row.epochs} of {stage['epochs']}"
        line = [str(number), stage["name"], epochs, _set(data["train_set"]), str(data["image_size"])]
        line += [_batch(row.config), f"{row.config['optimizer']['lr']:g}", start_of(row.config)]
        lines.append([*line, _images(row.images, row.counted), row.state])
    left = [row for row in plan if row.state != FINISHED]
    totals = [["", title, *[""] * 6, _images(_sum(part), _counted(part)), ""] for title, part in _parts(plan, left)]
    if rate is not None:
        header.append("hours")
        for line, row in zip(lines, plan, strict=True):
            line.append(_hours([row], rate, rate_size))
        for line, (_, part) in zip(totals, _parts(plan, left), strict=True):
            line.append(_hours(part, rate, rate_size))
    text = [*aligned([header, *lines, *totals], right={2, 4, 6, 8, 10})]
    notes: dict[str, list[str]] = {}
    for number, row in enumerate(plan, 1):
        for note in row.notes:
            notes.setdefault(note, []).append(str(number))
    text += [f"  {', '.join(numbers)}: {note}" for note, numbers in notes.items()]
    if rate is not None:
        text.append(f"  hours: at {rate:g} images of {rate_size} px per second in all, other sizes by their area")
    return "\n".join(text)


def processes(config: dict[str, Any]) -> int | None:
    """Processes that will train; None where the machine decides."""
    ranks = Ranks.here()
    if ranks.kind:
        return ranks.size
    devices, nodes = config["trainer"]["devices"], config["trainer"]["num_nodes"]
    if isinstance(devices, list):
        return len(devices) * nodes
    return int(devices) * nodes if str(devices).isdigit() else None


def _count(row: Row) -> None:
    """The photos of the training set: of its manifests, or as published."""
    from landmark_retrieval.data.dataset import train_place
    from landmark_retrieval.data.places import place
    from landmark_retrieval.data.remote.cache import Cache

    data = row.config["data"]
    names = [data["train_set"]] if isinstance(data["train_set"], str) else list(data["train_set"])
    try:
        cache = Cache.default(data["cache_dir"], data["cache_gb"])
        root = place(data["root"], cache)
        row.photos = sum(train_place(root, name, cache).manifest().photos for name in names)
    except (LandmarkRetrievalError, OSError) as error:
        row.counted = False
        row.photos = sum(_PUBLISHED[name] for name in names) if all(name in _PUBLISHED for name in names) else None
        instead = "~ are images of GLDv2 as published" if row.photos else "the number of images is not known"
        row.notes.append(f"{instead}, since the data is not there ({error})")


def _look(row: Row, reason: str) -> None:
    """What there is in the run folder already. `reason`: why it will not do, if that is known."""
    folder = Path(row.config["run_dir"])
    page, record = folder / _PAGE, folder / _RECORD
    begun = record.exists() and any((folder / "checkpoints").glob("*.ckpt"))
    if not (page.exists() or begun):
        return
    if not row.config["resume"]:
        reason = reason or "resume is false"
    changed: list[str] = []
    if not reason:
        # imported where there is something to compare: it takes seconds
        from landmark_retrieval.files import read_json
        from landmark_retrieval.training.run_folder import changed_keys
        from landmark_retrieval.training.stage import comparable

        try:
            wanted = comparable(row.config)
            made = read_json(page, "hand-over", f"delete {page}")["config"] if page.exists() else None
            if made == wanted:
                row.state = FINISHED
                return
            had = read_json(record, "record of the run", f"delete {folder}") if begun else None
            now = processes(row.config)
            if had is not None and _decisive(had) == wanted:
                if now is None or had.get("processes") == now:
                    row.state = CARRIES_ON
                    return
                row.state = AGAIN
                row.notes.append(f"to do again, since it had {had.get('processes')} processes, not {now}")
                return
            changed = changed_keys(_decisive(had or {}) if made is None else made, wanted)
        except (LandmarkRetrievalError, KeyError, TypeError) as error:
            row.state = UNKNOWN
            row.notes.append(f"what is in {folder} cannot be compared: {error}")
            return
        names = [_WORDS.get(key, key) for key in changed]
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        reason = f"{', '.join(names[:6])}{more} changed"
    row.state = AGAIN
    row.notes.append(f"to do again, since {reason}")


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Of the record of a run, its config."""
    return {key: value for key, value in record.items() if key not in ("processes", "precision")}


def _set(train_set: Any) -> str:
    if isinstance(train_set, str):
        return train_set
    if isinstance(train_set, Mapping):
        return "+".join(f"{share:g}{name}" for name, share in train_set.items())
    return "+".join(train_set)


def _batch(config: dict[str, Any]) -> str:
    """Per process x processes x batches of a step; the last two where they are not 1."""
    count, accumulated = processes(config), config["trainer"]["accumulate_grad_batches"]
    parts = [str(config["data"]["batch_size"]), "auto" if count is None else str(count), str(accumulated)]
    if accumulated == 1:
        parts.pop()
        if count == 1:
            parts.pop()
    return " x ".join(parts)


def _patterns(entries: Any) -> str:
    if not entries:
        return ""
    texts = []
    for entry in [entries] if isinstance(entries, str | Mapping) else entries:
        if isinstance(entry, Mapping):
            texts += [f"{pattern} (epochs: {epochs})" for pattern, epochs in entry.items()]
        else:
            texts.append(str(entry))
    return ", ".join(texts)


def _parts(plan: list[Row], left: list[Row]) -> list[tuple[str, list[Row]]]:
    """Of a chain of which something is finished, the whole and the rest."""
    return [("all", plan)] if len(left) in (0, len(plan)) else [("all", plan), ("left", left)]


def _sum(part: Sequence[Row]) -> float | None:
    known = [row.images for row in part if row.images is not None]
    return sum(known) if len(known) == len(part) else None


def _counted(part: Sequence[Row]) -> bool:
    return all(row.counted for row in part)


def _images(images: float | None, counted: bool) -> str:
    return "?" if images is None else f"{'' if counted else '~'}{images:,.0f}"


def _hours(part: Sequence[Row], rate: float, size: int) -> str:
    hours = [row.hours(rate, size) for row in part]
    if any(value is None for value in hours):
        return "?"
    total = sum(value or 0.0 for value in hours)
    # two digits at least
    return ("" if _counted(part) else "~") + (f"{total:,.1f}" if total >= 1 or not total else f"{total:.2g}")
