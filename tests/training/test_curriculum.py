"""Chains of stages: what is planned, run, skipped, done again, stopped and shared between processes."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.configs import conf_folder
from landmark_retrieval.training.curriculum import curricula, listed, plan_curriculum, run_curriculum
from landmark_retrieval.training.curriculum_table import table_of_curricula
from landmark_retrieval.training.plan_table import rows, table
from landmark_retrieval.zoo.registry import ARCHITECTURES

CHAIN = [sys.executable, "-m", "landmark_retrieval.curriculum"]
STAGES = ["pretrain_small", "train_medium", "finetune_large"]


@pytest.fixture(scope="session")
def small(tiny):
    """Overrides for a chain of tiny stages in a folder."""

    def overrides(folder, *more):
        return [*tiny, "stage.epochs=1", "stage.freeze=[]", f"run_dir='{folder}/${{stage.name}}'", *more]

    return overrides


@pytest.fixture
def plan(small, tmp_path):
    return lambda *more: plan_curriculum("dolg_lite0", small(tmp_path, *more))


def configs(stages):
    return [stage.config for stage in stages]


def states(stages):
    return [row.state for row in rows(configs(stages))]


def stage_processes(folder):
    """Ids of the running processes that have a run folder in their command line, chains left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has just ended
            continue
        if str(folder).encode() in words and b"landmark_retrieval.curriculum" not in words and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_chain_runs_to_its_end_and_only_what_has_changed_is_run_again(plan, capfd):
    assert states(plan()) == ["to do"] * 3
    handoffs = run_curriculum(plan())
    assert [handoff.stage for handoff in handoffs] == STAGES
    assert handoffs[1].config["parent_weights_sha256"] == handoffs[0].card["weights_sha256"]
    assert "Carried over from pretrain_small" in capfd.readouterr().out
    assert states(plan()) == ["finished"] * 3

    said = []
    assert [h.card for h in run_curriculum(plan(), said.append)] == [h.card for h in handoffs]
    assert all("is finished" in sentence for sentence in said)

    # another rate in the second stage alone, as an edited config file has it
    first, _, third = plan()
    _, changed, _ = plan("optimizer.lr=7e-4")
    chain = [first, changed, third]
    assert states(chain) == ["finished", "to do again", "to do again"]
    text = table(configs(chain))
    assert re.search(r"2: to do again, since optimizer\.lr changed", text)
    assert re.search(r"3: to do again, since it comes after stage 2", text)
    assert re.search(r"left .* 96\b", text)
    again = run_curriculum(chain)
    out = capfd.readouterr().out
    assert "[1/3] pretrain_small is finished" in out
    assert "[2/3] train_medium: 1 epochs" in out
    assert "[3/3] finetune_large: 1 epochs" in out
    assert [a.card == h.card for a, h in zip(again, handoffs, strict=True)] == [True, False, False]
    assert states(chain) == ["finished"] * 3


def test_what_is_to_be_done_again_is(small, tmp_path, capfd):
    own = tmp_path / "own"
    (own / "curriculum").mkdir(parents=True)
    (own / "curriculum" / "one.yaml").write_text("stages: [{stage: pretrain_small}]")
    stages = plan_curriculum("one", small(tmp_path, "resume=false"), own)
    for _ in range(2):
        assert [handoff.stage for handoff in run_curriculum(stages)] == ["pretrain_small"]
    assert capfd.readouterr().out.count("Handed over to") == 2
    assert "to do again, since resume is false" in table(configs(stages))


def test_a_stage_that_fails_stops_the_chain_and_says_so(plan, tmp_path, capfd):
    with pytest.raises(LandmarkRetrievalError, match="Stage pretrain_small ended with exit code 2"):
        run_curriculum(plan("data.batch_size=500"))
    assert "smaller data.batch_size" in capfd.readouterr().err
    assert not stage_processes(tmp_path)  # nor does the one that waited for its turn stay


@pytest.fixture
def started(small, tmp_path, wait_for):
    """A chain whose first stage is within a long epoch: its process, and the stage's process id."""
    more = ["stage.epochs=100000", "checkpoint_steps=1"]
    command = [*CHAIN, "curriculum=dolg_lite0", *small(tmp_path, *more)]
    # where the tests run in the background Ctrl-C is ignored, which a chain inherits and respects
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    chain = subprocess.Popen(command, **pipes, preexec_fn=heard)
    checkpoints = tmp_path / "pretrain_small" / "checkpoints"
    wait_for(lambda: (checkpoints / "within.ckpt").exists())
    yield chain, checkpoints
    chain.kill()
    chain.wait()
    wait_for(lambda: not stage_processes(tmp_path))


def test_a_killed_chain_leaves_no_stage_behind(started, tmp_path, wait_for):
    chain, checkpoints = started
    assert stage_processes(tmp_path)
    chain.kill()
    chain.wait()
    wait_for(lambda: not stage_processes(tmp_path), 30)
    assert (checkpoints / "within.ckpt").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_chain_lets_its_stage_save(started, small, tmp_path, number, code):
    chain, checkpoints = started
    before = time.time_ns()
    chain.send_signal(number)
    out, _ = chain.communicate(timeout=60)
    assert chain.returncode == code, out
    assert "the same command carries on" in out
    assert not stage_processes(tmp_path)
    assert (checkpoints / "within.ckpt").stat().st_mtime_ns > before
    stages = plan_curriculum("dolg_lite0", small(tmp_path, "stage.epochs=100000", "checkpoint_steps=1"))
    assert states(stages) == ["carries on", "to do", "to do"]


def test_the_plan_in_numbers(plan):
    text = table(configs(plan("stage.stop=3", "stage.epochs=7", "trainer.accumulate_grad_batches=2")), rate=10)
    header, *lines = text.splitlines()
    assert header.split() == ["#", "stage", "epochs", "set", "px", "batch", "lr", "from", "images", "state", "hours"]
    assert re.fullmatch(r"1  pretrain_small +3 of 7  c +48  8 x 1 x 2  0.0003  scratch +120  to do +\S+", lines[0])
    assert re.match(r"2  train_medium +3 of 7  full +48 .* pretrain_small +144  to do", lines[1])
    assert re.match(r" +all +408 ", lines[3])
    # 40 photos, 3 epochs, 10 images per second at 448 px
    row = rows(configs(plan("stage.stop=3", "stage.epochs=7")))[0]
    assert row.hours(10) == pytest.approx(120 * (48 / 448) ** 2 / 10 / 3600)
    assert row.hours(10, 48) == pytest.approx(12 / 3600)
    # what is left out is not counted
    assert rows(configs(plan("trainer.limit_train_batches=2")))[0].images == 16
    assert rows(configs(plan("trainer.limit_train_batches=0.5")))[0].images == 20
    both = plan("data.train_set={c: 4, full: 1}")
    assert rows(configs(both))[0].images == 88
    assert "4c+1full" in table(configs(both))
    frozen = plan("stage.freeze=[backbone.conv_stem,{backbone.bn1: 1}]")
    assert "1, 2, 3: frozen: backbone.conv_stem, backbone.bn1 (epochs: 1)" in table(configs(frozen))


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path):
    command = [*CHAIN, "curriculum=dolg_b7", "trainer=ddp8", "--dry-run", "--rate", "1000"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(
        r"2  train_medium +29 of 40  x +448  \S+ x 8 .*pretrain_small +~92,800,000  to do  ~25\.8", ended.stdout
    )
    assert "~ are images of GLDv2 as published, since the data is not there (There is no data at shards" in ended.stdout
    assert list(tmp_path.iterdir()) == []
    code = "import sys, landmark_retrieval.curriculum as c; c.main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *command[3:]], cwd=tmp_path, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Choose a curriculum with curriculum=NAME, one of demo, dolg_b5"),
        (["curriculum=dolg_b55"], "There is no curriculum 'dolg_b55'"),
        (["curriculum=dolg_b5", "--dry-run", "--rate", "0"], "above 0"),
        (["curriculum=dolg_b5", "--launcher", "submitit", "--slurm", "x"], "--slurm x: write KEY=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(words, message, tmp_path):
    ended = subprocess.run([*CHAIN, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_table_of_the_paper(tmp_path):
    names = listed("table1")
    assert names
    assert set(names) <= set(curricula())
    text = table_of_curricula("table1")
    for name in names:
        model = plan_curriculum(name)[0].config["name"]
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert model in line
        figures = re.findall(
            r"\d+\.\d+(?:/\d+\.\d+)?", ARCHITECTURES[model].published.partition(": ")[2].partition(" (")[0]
        )
        assert figures and all(figure in line for figure in figures)
    assert "arXiv 2110.03786), Table 1" in text
    assert f"curriculum={names[0]} " in text
    ended = subprocess.run([*CHAIN, "curriculum=table1"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == text
    assert list(tmp_path.iterdir()) == []
    assert "table1" not in curricula()
    assert (conf_folder() / "curriculum" / "table1.yaml").read_text().startswith("#")
    with pytest.raises(LandmarkRetrievalError, match="table1 is a list of curricula and has no stages: choose one of"):
        plan_curriculum("table1")


@pytest.fixture(scope="module")
def under_torchrun(small, tmp_path_factory):
    """A chain of two processes: its command line without Python, what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("torchrun")
    more = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4"]
    chain = ["-m", "landmark_retrieval.curriculum", "curriculum=dolg_lite0", *small(folder, *more)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", *chain]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return chain, ended.stdout, folder


@pytest.mark.slow
def test_under_torchrun(under_torchrun):
    _, out, folder = under_torchrun
    for once in ("Curriculum dolg_lite0", "[1/3] pretrain_small", "[3/3] finetune_large", "finetune_large: gap"):
        assert out.count(once) == 1
    for stage in STAGES:
        assert (folder / stage / "handoff.json").exists()
        assert '"processes": 2' in (folder / stage / "config.json").read_text()


@pytest.mark.slow
def test_under_slurm(under_torchrun):
    """Two tasks with the variables that srun sets; the first two stages are finished, the last one is not quite."""
    chain, _, folder = under_torchrun
    (folder / "finetune_large" / "handoff.json").unlink()
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = str(listener.getsockname()[1])
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "chain", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "MASTER_PORT": port}
    tasks = [
        subprocess.Popen(
            [sys.executable, *chain],
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outs = [task.communicate()[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], "\n".join(outs)
    assert outs[0].count("is finished") == 2
    assert "Carrying on from" in outs[0]
    assert (folder / "finetune_large" / "handoff.json").exists()
    assert not any(word in outs[1] for word in ("Curriculum", "/3]", "Handed over"))
