"""Every shipped config composes, and mistakes in overrides are told in a sentence."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.configs import checked, choices, compose, conf_folder
from landmark_retrieval.training.curriculum import curricula, plan_curriculum


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (path.parent.name, path.stem)
        for path in sorted(conf_folder().glob("*/*.yaml"))
        if path.parent.name not in ("curriculum", "stage")
    ],
)
def test_each_choice_composes(group, name):
    assert compose(["+stage=pretrain_small", f"{group}={name}"])[group]


@pytest.mark.parametrize("stage", choices("stage"))
def test_each_stage_composes(stage):
    config = compose([f"+stage={stage}"])
    assert config.stage.name == stage
    assert config.run_dir == f"outputs/dolg_efficientnet_lite0/{stage}"
    assert set(config.stage) == {
        "name",
        "after",
        "weights",
        "epochs",
        "stop",
        "warmup_epochs",
        "freeze",
        "freeze_batchnorm",
        "surgery",
        "head",
        "ema",
    }


@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_each_optimizer_says_its_kind(optimizer):
    config = compose(["+stage=pretrain_small", f"optimizer={optimizer}"]).optimizer
    assert config.kind == optimizer
    # Adam has none to set
    assert set(config) - {"momentum"} == {"kind", "lr", "weight_decay", "backbone_lr_scale"}
    assert ("momentum" in config) == (optimizer == "sgd")


@pytest.mark.parametrize("curriculum", curricula())
def test_each_curriculum_is_planned(curriculum):
    stages = plan_curriculum(curriculum)
    assert [stage.config["stage"]["after"] for stage in stages] == [None, *(stage.name for stage in stages[:-1])]


def test_gldv2_on_8_gpus_needs_no_more_words():
    command = [sys.executable, "-m", "landmark_retrieval.train", "trainer=ddp8", "data=gldv2x", "data.root=/nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    # this far without a stage on the command line: to the GPUs, or where there are some, to the photos
    assert "No supported gpu backend found" in ended.stderr or "no data at /nowhere" in ended.stderr
    config = compose(["trainer=ddp8", "data=gldv2x", "+stage=train_from_imagenet"])
    assert (config.trainer.devices, config.trainer.strategy, config.trainer.sync_batchnorm) == (8, "ddp", True)
    assert (config.data.root, config.data.train_set, config.stage.after) == ("gldv2", "x", None)
    assert compose(["data=gldv2c"]).default_stage == "pretrain_small"


def test_recipes_of_the_paper():
    medium, large = (compose([f"+stage={name}"]) for name in ("train_medium", "finetune_large"))
    assert (medium.optimizer.lr, medium.stage.epochs, medium.stage.stop, medium.data.batch_size) == (1e-4, 40, 29, 20)
    assert (large.optimizer.lr, large.optimizer.weight_decay, large.data.image_size) == (5e-5, 0, 768)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.image_sise=3", r"no config key 'data.image_sise': did you mean data.image_size"),
        ("model=dolg_efficientnet_b55", r"no model 'dolg_efficientnet_b55': choose one of dolg_efficientnet_b5"),
        ("+stage=pretrain_smal", r"no stage 'pretrain_smal': choose one of dolg_resnet, finetune_large"),
        ("modle=x", r"modle.*did you mean model|no config group 'modle'"),
        ("data.image_size=[", "does not compose"),
    ],
)
def test_mistakes(override, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        compose(["+stage=pretrain_small", override] if "stage" not in override else [override])


def test_stages_and_curricula_of_ones_own(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "curriculum").mkdir()
    shipped = (conf_folder() / "stage" / "train_medium.yaml").read_text()
    (tmp_path / "stage" / "mine.yaml").write_text(shipped.replace("name: train_medium", "name: mine"))
    own = "stages: [{stage: pretrain_small}, {stage: mine, overrides: [optimizer.lr=7]}, {stage: finetune_large}]"
    (tmp_path / "curriculum" / "chain.yaml").write_text(own)
    stages = plan_curriculum("chain", ["stage.after=null"], tmp_path)
    assert [stage.name for stage in stages] == ["pretrain_small", "mine", "finetune_large"]
    assert stages[1].config["optimizer"]["lr"] == 7
    # the package's own are still there
    assert plan_curriculum("dolg_b5", [], tmp_path)
    for text, message in (
        ("stages: [{stage: [}", "chain.yaml is not a curriculum"),
        ("stage: mine", "names no stages"),
        ("stages: []", "names no stages"),
        ("stages: [mine]", "'mine' is no stage; write `- stage: NAME`"),
        ("stages: [{stage: mine, overides: []}]", "is no stage"),
        ("overides: []\nstages: [{stage: mine}]", "has overides; it holds"),
        ("overrides: model=x\nstages: [{stage: mine}]", "overrides are a list of key=value, not 'model=x'"),
        ("stages: [{stage: mine, overrides: [{optimizer.lr: 3}]}]", "overrides are a list of key=value"),
        (
            "stages: [{stage: pretrain_small}, {stage: pretrain_small}]",
            "writes into the folder of stage pretrain_small",
        ),
    ):
        (tmp_path / "curriculum" / "chain.yaml").write_text(text)
        with pytest.raises(LandmarkRetrievalError, match=message):
            plan_curriculum("chain", [], tmp_path)


@pytest.mark.parametrize("name", ["with space", "a=b", "it's", "[x]", "ümläut", "a,b", "#1"])
def test_a_folder_of_ones_own_may_be_called_anything(tmp_path, name):
    folder = tmp_path / name / "stage"
    folder.mkdir(parents=True)
    shipped = (conf_folder() / "stage" / "pretrain_small.yaml").read_text()
    (folder / "pretrain_small.yaml").write_text(shipped)
    (folder.parent / "curriculum").mkdir()
    (folder / "mine.yaml").write_text(shipped.replace("name: pretrain_small", "name: mine"))
    (folder.parent / "curriculum" / "one.yaml").write_text("stages: [{stage: mine}]")
    assert plan_curriculum("one", [], folder.parent)[0].name == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run_dir=runs/one"], "writes into the folder of stage pretrain_small, runs/one: keep"),
        (
            ["run_dir='runs/${stage.name}/x'"],
            r"looks for what pretrain_small hands over in runs/train_medium/pretrain_sm",
        ),
        (["optimizer.lr=1e-4x"], "optimizer.lr is a number, not '1e-4x'"),
        (["stage.epochs=ten"], "stage.epochs is a number, not 'ten'"),
        (["data.batch_size=null"], "data.batch_size is a number, not None"),
        (["run_dir=${nope}"], "does not compose.*nope"),
        (["+stage.frezze=[]"], "A stage has no key 'frezze': did you mean freeze"),
    ],
)
def test_what_would_fail_later_fails_in_the_plan(overrides, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        plan_curriculum("dolg_b5", overrides)


def test_no_folder_of_ones_own(tmp_path):
    with pytest.raises(
        LandmarkRetrievalError, match=r"There is no folder .*nowhere: name one that holds config groups"
    ):
        plan_curriculum("dolg_b5", [], tmp_path / "nowhere")


def test_a_stage_file_may_leave_out_what_is_usual():
    config = compose(["+stage=pretrain_small"])
    short = {"name": "short", "epochs": 3}
    whole = checked({**OmegaConf.to_container(config, resolve=True), "stage": short})["stage"]
    assert whole.keys() == config.stage.keys()
    assert (whole["after"], whole["freeze"], whole["head"], whole["epochs"]) == (None, [], "same", 3)


def test_a_curriculum_that_does_not_exist_or_breaks_its_chain():
    with pytest.raises(LandmarkRetrievalError, match=r"no curriculum 'dolg_b55': choose one of demo, dolg_b5"):
        plan_curriculum("dolg_b55")
    with pytest.raises(LandmarkRetrievalError, match="follows nothing_before"):
        plan_curriculum("dolg_b5", ["stage.after=nothing_before"])
