"""`python -m landmark_retrieval.submit track=TRACK models=[...] [--plan] [key=value ...]`: from models to the CSV of
the Google Landmark challenges."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from landmark_retrieval.commands import exit_on_error
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.memory import keep_freed_blocks

TRACKS = ("retrieval", "recognition")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m landmark_retrieval.submit",
        description="Describe the photos of a data set with several models, rank or recognise, put the models "
        "together, and write predictions.csv. Interrupted, the same call goes on; under torchrun all processes "
        "describe.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="track=..., models=[...], and other keys of conf/submit.yaml"
    )
    parser.add_argument("--plan", action="store_true", help="say what there is to do, and in how many hours, and stop")
    return parser


@exit_on_error
def main() -> None:
    """Compose the config, then plan or do."""
    arguments = _parser().parse_intermixed_args()
    keep_freed_blocks()

    from omegaconf import OmegaConf

    from landmark_retrieval.retrieval.members import open_sets
    from landmark_retrieval.training.configs import compose
    from landmark_retrieval.zoo import load_model

    config: Any = OmegaConf.to_container(compose(arguments.overrides, "submit"), resolve=True)
    wanted = _models(config)
    if config["track"] not in TRACKS:
        raise LandmarkRetrievalError(f"Choose a track with track={' or track='.join(TRACKS)}.")
    from landmark_retrieval.retrieval.submission import Ranking

    ranking = Ranking(**config["retrieval"])
    names = ["test", "train"]
    if config["track"] == "retrieval":
        ranking.check(len(wanted))
        names = ["test", "index", *(["train"] if ranking.needs_training_photos else [])]
    photos = open_sets(config["data"]["root"], names, config["data"]["train_set"])
    if config["track"] == "recognition" and config["recognition"]["non_landmark"]:
        from landmark_retrieval.data.sources import open_photos

        photos["non_landmark"] = open_photos(config["recognition"]["non_landmark"])
    out = Path(config["out"])
    if arguments.plan:
        from landmark_retrieval.retrieval.submission_plan import Machine, plan

        print(plan(wanted, load_model, photos, out, config["extraction"]["dtype"], Machine(**config["plan"])))
        return
    _submit(config, wanted, photos, ranking, out)


def _submit(config: dict[str, Any], wanted: list[Any], photos: dict[str, Any], ranking: Any, out: Path) -> None:
    from landmark_retrieval.data.solutions import write_recognition_predictions, write_retrieval_predictions
    from landmark_retrieval.files import write_json
    from landmark_retrieval.retrieval.extract import rank_and_world
    from landmark_retrieval.retrieval.inputs import present_devices
    from landmark_retrieval.retrieval.members import describe_sets, labels_of
    from landmark_retrieval.retrieval.submission import check_combine, ranked_lists, recognized
    from landmark_retrieval.zoo import load_model

    devices = config["devices"] or _all_gpus()
    # what could be wrong is found before hours are spent
    landmarks = _landmarks(photos["train"]) if config["track"] == "recognition" else []
    if "train" in photos:
        labels_of(photos["train"], [])
    if devices:
        present_devices(devices)
    check_combine(config["recognition"]["combine"])
    extraction = dict(config["extraction"])
    if devices and all(str(device) == "cpu" for device in devices):
        extraction["device"] = "cpu"
    members = describe_sets(wanted, load_model, photos, out, **extraction)
    if rank_and_world(None, None)[0]:
        return  # the first process does the rest
    test = members[0].stores["test"].ids
    labels = labels_of(photos["train"], members[0].stores["train"].ids) if "train" in photos else None
    file = out / "predictions.csv"
    found: dict[str, Any]
    if config["track"] == "retrieval":
        rows, _ = ranked_lists(members, labels, ranking, devices)
        index = members[0].stores["index"].ids
        lists = ([index[row] for row in ranked if row >= 0] for ranked in rows.tolist())
        found = dict(zip(test, lists, strict=True))
        # photos that cannot be decoded have empty cells
        write_retrieval_predictions(file, {query: found.get(query, []) for query in photos["test"].ids})
    else:
        options = {key: value for key, value in config["recognition"].items() if key != "non_landmark"}
        assert labels is not None
        classes, scores = recognized(members, labels, devices=devices, **options)
        pairs = zip(classes.tolist(), scores.tolist(), strict=True)
        found = dict(zip(test, ((landmarks[one], score) for one, score in pairs), strict=True))
        write_recognition_predictions(file, {query: found.get(query) for query in photos["test"].ids})
    about = [{**dataclasses.asdict(one.wanted), "card": one.card, "descriptors": one.folder.name} for one in members]
    write_json(out / "submission.json", {"config": config, "models": about})
    missing = len(photos["test"]) - len(found)
    left = (
        f"; {missing:,} could not be decoded and have empty cells, see broken.csv beside the descriptors"
        if missing
        else ""
    )
    print(f"{file}: {len(found):,} of {len(photos['test']):,} photos by {len(members)} model(s){left}")


def _models(config: dict[str, Any]) -> list[Any]:
    from landmark_retrieval.retrieval.members import Wanted

    keys = [field.name for field in dataclasses.fields(Wanted)]
    wanted = []
    for given in config["models"]:
        given = {"model": given} if isinstance(given, str) else given
        if not isinstance(given, dict) or "model" not in given or not set(given) <= set(keys):
            raise LandmarkRetrievalError(
                f"Each of models is a run folder or a name of the zoo, or {{model: ..., ...}} with keys among "
                f"{', '.join(keys)}; not {given!r}."
            )
        wanted.append(Wanted(**given))
    if not wanted:
        raise LandmarkRetrievalError("Name at least one model: 'models=[outputs/NAME/STAGE]'.")
    if config["track"] == "recognition" and any(one.weight != 1.0 for one in wanted):
        raise LandmarkRetrievalError("weight is for track=retrieval, where lists are added up: leave it out.")
    return wanted


def _landmarks(train: Any) -> list[int]:
    """The landmark_id of each class."""
    from landmark_retrieval.retrieval.members import classes_of

    try:
        return [int(name) for name in classes_of(train)]
    except ValueError:
        raise LandmarkRetrievalError(
            "The classes of the training photos are names, where the recognition track needs the landmark_id numbers "
            "of Google Landmarks: name data with those."
        ) from None


def _all_gpus() -> list[str] | None:
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or None


if __name__ == "__main__":
    main()
