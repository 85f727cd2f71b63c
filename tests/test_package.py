"""The package as a whole: what an import costs, which rooms know which, and what the wheel holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import landmark_retrieval

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "landmark_retrieval"
HEAVY = {"wandb", "hydra", "faiss", "webdataset", "albumentations", "pytorch_lightning"}


def modules_after(statement):
    code = f"{statement}; import sys; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_an_import_pulls_in_nothing_heavy():
    assert not modules_after("import landmark_retrieval") & (HEAVY | {"torch", "timm"})
    listing = modules_after("import landmark_retrieval; landmark_retrieval.list_models(pretrained=True)")
    assert not listing & (HEAVY | {"torch", "timm", "huggingface_hub"})
    # timm imports wandb by itself where it is installed
    theirs = modules_after("import torch, timm")
    assert not (modules_after("from landmark_retrieval import DOLGNet, SubCenterArcFace") - theirs) & HEAVY
    # the rooms behind the commands load what they need when they need it
    loaded = modules_after(
        "import landmark_retrieval.retrieval.evaluate, landmark_retrieval.data.batches, landmark_retrieval.cli"
    )
    assert not (loaded - theirs) & HEAVY


def test_public_names():
    for name in landmark_retrieval.__all__:
        assert getattr(landmark_retrieval, name)
    with pytest.raises(AttributeError, match="NoNet"):
        landmark_retrieval.NoNet  # noqa: B018


def imports(path):
    """Names of modules that a file imports, at its top or inside functions, but not for type checking alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_used_by(room):
    used = set()
    for path in (PACKAGE / room).rglob("*.py"):
        used |= {name.split(".")[1] for name in imports(path) if name.startswith("landmark_retrieval.")}
    return used - {room}


COMMON = {"columns", "errors", "files", "lazy", "memory", "processes"}


@pytest.mark.parametrize(
    ("room", "may_use"),
    [
        ("models", set()),
        ("heads", set()),
        ("metrics", {"errors", "lazy"}),
        ("zoo", {"models", *COMMON}),
        ("data", COMMON),
        ("retrieval", {"models", "data", "metrics", "zoo", *COMMON}),
        ("training", {"models", "heads", "metrics", "zoo", "data", "retrieval", *COMMON}),
    ],
)
def test_doors(room, may_use):
    assert rooms_used_by(room) <= may_use


def test_only_training_and_the_entry_points_know_hydra_and_lightning():
    knowing = {"hydra": set(), "omegaconf": set(), "pytorch_lightning": set()}
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] in knowing:
                knowing[name.split(".")[0]].add(path.relative_to(PACKAGE).as_posix())
    for library in ("hydra", "omegaconf"):
        entries = {"train.py", "submit.py"}
        assert all(path.startswith("training/") or path in entries for path in knowing[library]), knowing[library]
    assert all(path.startswith("training/") or path == "data/datamodule.py" for path in knowing["pytorch_lightning"])


def test_no_module_outgrows_a_few_screens():
    longest = max(PACKAGE.rglob("*.py"), key=lambda path: path.read_text().count("\n"))
    assert longest.read_text().count("\n") <= 450, longest


def test_the_code_in_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        # the same model without a download, and smaller images
        exec(block.replace('"tf_efficientnet_b5.ns_jft_in1k", pretrained=True', '"resnet18"').replace("448", "64"), {})


def test_the_figures_in_the_docs_are_those_of_the_code(tmp_path):
    for script in ("draw_models.py", "draw_curriculum.py", "draw_retrieval.py"):
        subprocess.run([sys.executable, str(ROOT / "docs" / script), str(tmp_path)], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in (ROOT / "docs" / "figures").iterdir()}
    text = "".join((ROOT / "docs" / page).read_text() for page in ("models.md", "curriculum.md", "retrieval.md"))
    assert all(f"figures/{name}" in text for name in drawn)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not (ROOT / "pyproject.toml").exists() or shutil.which("git") is None:
        pytest.skip("the wheel is built from a checkout")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_package_and_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"landmark_retrieval"}
    configs = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert configs == {name.removeprefix("landmark_retrieval/conf/") for name in held if name.endswith(".yaml")}


def test_a_stage_runs_from_the_wheel_in_an_empty_folder(wheel, shards, tiny, tmp_path):
    """As after `pip install`: the package comes from the unpacked wheel, not from the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "shards").symlink_to(shards)
    small = [override for override in tiny if not override.startswith("data.root")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = "import landmark_retrieval as l; print(l.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "site") in found.stdout
    command = [sys.executable, "-m", "landmark_retrieval.train", "+stage=pretrain_small", *small]
    ended = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "map_at_100: " in ended.stdout
    assert (empty / "outputs" / "dolg_efficientnet_lite0" / "pretrain_small" / "handoff.json").exists()
