"""The ablations: what is compared differs by one thing, sees as many photos, and is planned and built as written."""

import re

import numpy as np
import pytest
from omegaconf import OmegaConf

from landmark_retrieval.data.importers.gldv2 import read_clean
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.ablation_cleaning import shard_cleaned
from landmark_retrieval.training.ablation_plan import choose, describe_plan, plan_run, plan_runs
from landmark_retrieval.training.ablation_questions import BASE, FOLDER, MEASUREMENTS, QUESTIONS, VARIANTS, is_hybrid
from landmark_retrieval.training.configs import conf_folder
from landmark_retrieval.training.curriculum import plan_curriculum
from landmark_retrieval.training.module import LandmarkModule
from landmark_retrieval.training.starting_point import starting_point

# what each variant has otherwise than the one it is compared with; its name and folder apart
DIFFERENT = {
    ("pooling_dolg_released", BASE): {"model.fusion"},
    ("pooling_gem", BASE): {"model", "stage.freeze_batchnorm"},
    ("loss_softmax", "loss_arcface"): {"head.margins"},
    ("loss_arcface", "loss_sub_center"): {"head.sub_centers"},
    ("loss_sub_center", BASE): {"head.margins"},
    ("stages_one_large", BASE): {"data.image_size"},
    ("data_clean", BASE): {"data.train_set"},
    ("data_cleaned", BASE): set(),  # the shards that ablate makes take the place of the full set
    ("hybrid_mean", "hybrid_token"): {"model.aggregation"},
}


def flat(config, prefix=""):
    found = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def planned(name):
    return plan_curriculum(f"{FOLDER}/{name}")


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_compared_differs_by_one_thing(one, other):
    (first,), (second,) = planned(one), planned(other)
    ours, theirs = flat(first.config), flat(second.config)
    keys = {key for key in ours.keys() | theirs.keys() if ours.get(key, "none") != theirs.get(key, "none")}
    keys -= {"name", "run_dir"} | {key for key in keys if key.startswith("logger.")}
    expected = DIFFERENT[one, other]
    assert {
        key.partition(".")[0] if "model" in expected and key.startswith("model.") else key for key in keys
    } == expected


def test_the_base_is_the_recipe_of_the_packaged_weights_in_small():
    (base,) = planned(BASE)
    (first,) = (stage.config for stage in plan_curriculum("zoo_dolg_lite0"))
    for group in ("model", "head", "optimizer"):
        assert base.config[group] == first[group]
    for key in ("freeze", "freeze_batchnorm", "warmup_epochs"):
        assert base.config["stage"][key] == first["stage"][key]
    assert base.config["stage"]["epochs"] == 2
    data = base.config["data"]
    assert (data["train_set"], data["image_size"], data["batch_size"], data["validation_image_size"]) == (
        "full", 128, 32, 256,
    )  # fmt: skip


def test_every_file_belongs_to_a_question_and_says_so():
    files = {path.stem: path.read_text() for path in (conf_folder() / FOLDER).glob("*.yaml")}
    assert files.keys() == set(VARIANTS)
    words = {"pooling": "Pooling", "loss": "Loss", "stages": "Stages", "data": "Data", "hybrid": "Hybrid"}
    for name, text in files.items():
        assert text.startswith("# All questions: " if name == BASE else f"# {words[name.partition('_')[0]]}: ")
        assert max(map(len, text.splitlines())) <= 120
        assert text.count("\n") <= 50
        assert OmegaConf.to_container(OmegaConf.create(text)).keys() == {"overrides", "stages"}


def test_every_row_is_measured_and_compared_with_one_of_its_table():
    named = set()
    for question in QUESTIONS:
        rows = [row.measurement for row in question.rows]
        named |= {*rows}
        assert len(set(rows)) == len(rows) > 1
        assert all(row.against is None or row.against in rows for row in question.rows)
        assert any(row.against for row in question.rows)
    assert named == MEASUREMENTS.keys()
    assert {run for measured in MEASUREMENTS.values() for run in measured.runs} == set(VARIANTS)
    seen = [question.name for question in QUESTIONS]
    assert not set(seen) & set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_built(variant):
    for stage in planned(variant):
        config = {**stage.config, "model": {**stage.config["model"], "pretrained": False}}
        config["stage"] = {**config["stage"], "after": None}
        model, head, _ = starting_point(config, None, ["1", "2", "3"], (5, 20, 200))
        keys = ("epochs", "warmup_epochs", "freeze", "freeze_batchnorm")
        module = LandmarkModule(
            model, head, **config["optimizer"], **{key: config["stage"][key] for key in keys}, seed=config["seed"]
        )
        module.frozen(0)  # objects to patterns that match nothing
        centers = config["head"]["sub_centers"]
        assert head.weight.shape == (3 * centers, 512)
        margins = head.margins.tolist()
        if variant == "loss_softmax":
            assert (centers, margins) == (1, [0, 0, 0])
        elif variant in ("loss_arcface", "loss_sub_center"):
            assert margins == pytest.approx([0.3] * 3)
        else:
            assert centers == 3 and margins[0] > margins[1] > margins[2]


SMALL = ("data.batch_size=4", "trainer.devices=1", "trainer.accelerator=cpu")


def test_all_see_as_many_photos(shards, tmp_path):
    words = [*SMALL, f"data.root={shards}"]
    choice = choose(seeds=2)
    runs = plan_runs(choice, tmp_path, words)
    # 48 photos of the full set, 40 of the cleaned one
    assert {run.seen for run in runs} == {96}
    assert len(runs) == 2 * 10 + 2
    assert [run.name for run in runs[:2]] == ["base, seed 0", "pooling_gem, seed 0"]
    by_name = {run.name: run for run in runs}
    (clean,) = by_name["data_clean, seed 1"].stages
    assert (clean.config["stage"]["epochs"], clean.config["trainer"]["limit_train_batches"]) == (3, 8)
    assert clean.config["stage"]["warmup_epochs"] == 0.75  # as many steps as in base
    last = by_name["stages_three, seed 0"].stages[-1].config
    assert last["trainer"]["limit_train_batches"] == 2  # 24 batches less 10 and 12
    for run in runs:
        for stage in run.stages:
            assert stage.config["seed"] == run.seed
            # measured when it is done; validation by the way would take as long again
            assert stage.config["trainer"]["check_val_every_n_epoch"] > stage.config["stage"]["epochs"]
            assert stage.config["run_dir"] == f"{tmp_path}/runs/{run.variant}/seed{run.seed}/{stage.name}"
    text = describe_plan(runs, choice)
    assert re.search(r"data_clean, seed 1 +1 +128 +96  to do", text)
    assert f"all: 22 runs {' ' * 0}" in text and "2,112" in text


def test_where_there_is_no_data_the_plan_is_one_of_published_numbers(tmp_path):
    runs = plan_runs(choose(["loss"]), tmp_path, ["data.root=/nowhere"])
    assert {run.seen for run in runs} == {4_132_914 // 32 * 32 * 2}


def test_folders_may_be_called_anything(shards, tmp_path):
    out = tmp_path / "it's, a=b [x] #1"
    run = plan_run(BASE, 3, out, [*SMALL, f"data.root={shards}"])
    assert run.folder == out / "runs" / BASE / "seed3" / "train_from_imagenet"


def test_what_can_be_chosen():
    everything = choose()
    assert everything.variants == VARIANTS
    assert set(everything.measurements) == MEASUREMENTS.keys()
    assert {name: count for name, count in everything.seeds.items() if count != 3} == {
        "hybrid_mean": 1,
        "hybrid_token": 1,
    }
    assert all(is_hybrid(name) == name.startswith("hybrid") for name in VARIANTS)
    assert choose(["data_cleaned"]).variants == (BASE, "data_cleaned")
    assert choose(["ensemble"]).measurements == (BASE, "pooling_gem", "ensemble")
    assert choose(["features"]).measurements == ("imagenet", BASE)
    assert choose(["hybrid"], hybrid_seeds=2).runs == [
        ("hybrid_mean", 0), ("hybrid_token", 0), ("hybrid_mean", 1), ("hybrid_token", 1),
    ]  # fmt: skip
    without = choose(hybrid_seeds=0)
    assert not any(is_hybrid(name) for name in (*without.variants, *without.measurements))
    assert len(without.variants) == len(VARIANTS) - 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["poling"]}, "no question or variant 'poling': did you mean pooling"),
        ({"only": ["zzz"]}, "choose from features, pooling"),
        ({"seeds": 0}, "--seeds 0 is too few: take at least 1"),
        ({"hybrid_seeds": -1}, "--hybrid-seeds -1 is too few: take at least 0"),
        ({"only": ["hybrid"], "hybrid_seeds": 0}, "leaves nothing to run"),
    ],
)
def test_what_cannot_be_chosen(arguments, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        choose(**arguments)


@pytest.mark.parametrize("word", ["seed=4", "run_dir=x", "++resume=false"])
def test_what_the_ablations_set_themselves(word, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="themselves"):
        plan_runs(choose(["base"]), tmp_path, [word])


def test_photos_that_are_kept_are_sharded_as_they_were(shards, tmp_path):
    source = ShardedPhotos.open(shards / "train_full")
    by_landmark = {}
    for photo in source.photos():
        by_landmark.setdefault(source.manifest.classes[photo.label], []).append(photo)
    # one landmark loses all its photos, the others every third
    left, *names = sorted(by_landmark)
    kept = {name: [photo for row, photo in enumerate(by_landmark[name]) if row % 3] for name in names}
    listed = tmp_path / "train_clean.csv"
    rows = [f"{name},{' '.join(photo.id for photo in photos)}" for name, photos in kept.items()]
    listed.write_text("\n".join(["landmark_id,images", *rows, f"{left},not-here"]))
    assert len(list(read_clean(listed))) == len(by_landmark)

    shard_cleaned(source, listed, tmp_path / "out")
    written = ShardedPhotos.open(tmp_path / "out")
    found = {photo.id: (written.manifest.classes[photo.label], photo.data) for photo in written.photos()}
    assert found == {photo.id: (name, photo.data) for name, photos in kept.items() for photo in photos}
    assert set(written.manifest.classes) == set(names)
    assert np.array_equal(np.sort(written.manifest.class_counts), np.sort([len(photos) for photos in kept.values()]))
    # again: nothing to do
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    shard_cleaned(source, listed, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
