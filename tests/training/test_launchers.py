"""Stages as processes and as jobs: how they end, and what is left when they do."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.curriculum import plan_curriculum, run_curriculum
from landmark_retrieval.training.jobs import SubmititLauncher, parse_parameters
from landmark_retrieval.training.ranks import Ranks

GUARD = Path(__file__).parents[2] / "landmark_retrieval" / "training" / "guard.py"


def test_values_of_parameters():
    pairs = ["timeout_min=60", "slurm_partition=gpu", "mem_gb=1.5", 'slurm_additional_parameters={"account": "a"}']
    assert parse_parameters([*pairs, "slurm_time=4:00:00", "stderr_to_stdout=true"]) == {
        "timeout_min": 60,
        "slurm_partition": "gpu",
        "mem_gb": 1.5,
        "slurm_additional_parameters": {"account": "a"},
        "slurm_time": "4:00:00",
        "stderr_to_stdout": True,
    }
    with pytest.raises(LandmarkRetrievalError, match="--slurm =3: write KEY=VALUE"):
        parse_parameters(["=3"])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        ({"RANK": "1", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"}, Ranks(1, 4, "torchrun")),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, Ranks(3, 8, "slurm")),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Ranks()),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, Ranks()),
        ({"SLURM_NTASKS": "8"}, Ranks()),
    ],
)
def test_the_place_among_the_processes(environment, expected):
    assert Ranks.here(environment) == expected


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_guard_ends_a_group_when_its_pipe_ends(stubborn, running, wait_for):
    # a leader with a child, in a group of its own
    handler = "signal.SIG_IGN" if stubborn else "lambda *_: sys.exit(0)"
    code = "import signal, subprocess, sys, time; child = subprocess.Popen(['sleep', '100']); "
    code += f"signal.signal(signal.SIGTERM, {handler}); print(child.pid, flush=True); time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0) as leader:
        child = int(leader.stdout.readline())
        command = [sys.executable, "-I", "-S", str(GUARD), str(leader.pid), "1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:
            time.sleep(0.3)
            assert leader.poll() is None
            guard.stdin.close()
            assert leader.wait(10) == (-signal.SIGKILL if stubborn else 0)
            guard.wait(10)
        wait_for(lambda: not running(child), 5)


def test_the_guard_lets_go_of_a_stage_that_has_ended():
    with subprocess.Popen(["sleep", "100"], process_group=0) as other:
        command = [sys.executable, "-I", "-S", str(GUARD), str(other.pid), "1"]
        subprocess.run(command, input=b".", check=True, timeout=10)
        assert other.poll() is None
        other.kill()


@pytest.fixture
def plan(tiny, tmp_path):
    small = [*tiny, "stage.epochs=1", "stage.freeze=[]", f"run_dir='{tmp_path}/${{stage.name}}'"]
    return lambda *more: plan_curriculum("dolg_lite0", [*small, *more])


def test_what_a_job_needs(plan):
    pytest.importorskip("submitit", reason="needs the package of the `slurm` extra")
    with pytest.raises(LandmarkRetrievalError, match=r"cannot be submitted .*slurm_partitoin"):
        run_curriculum(plan()[:1], launcher=SubmititLauncher("local", {"slurm_partitoin": "gpu"}))


def test_jobs_need_their_package():
    code = "import sys; sys.modules['submitit'] = None; from landmark_retrieval.curriculum import main; main()"
    words = ["curriculum=dolg_lite0", "--launcher", "submitit"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "pip install 'landmark-retrieval[slurm]'" in ended.stderr


@pytest.mark.slow
def test_a_job_that_is_preempted_is_run_again_and_carries_on(plan, tmp_path, wait_for):
    """On this machine, with the signal that submitit has Slurm send; and then the chain is stopped."""
    pytest.importorskip("submitit", reason="needs the package of the `slurm` extra")
    stage = plan("stage.epochs=100000", "checkpoint_steps=1")[:1]
    command = [sys.executable, "-m", "landmark_retrieval.curriculum", "curriculum=dolg_lite0"]
    command += [*stage[0].overrides[1:], "--launcher", "submitit", "--cluster", "local", "--slurm", "timeout_min=10"]
    folder = tmp_path / "pretrain_small"
    # as of what a script starts in the background
    deaf = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=deaf) as chain:
        try:
            task = wait_for(lambda: job_task(folder / "jobs") if within(folder).exists() else None)
            os.kill(task, signal.SIGUSR2)
            log = wait_for(lambda: next((folder / "jobs").glob("*_log.out")))
            wait_for(lambda: "Carrying on from" in log.read_text())
            before = within(folder).stat().st_mtime_ns
            wait_for(lambda: within(folder).stat().st_mtime_ns > before)
        finally:
            chain.send_signal(signal.SIGTERM)
            out = chain.communicate()[0]
    assert job_task(folder / "jobs") is None
    assert chain.returncode == 143
    assert f"its logs: {log}" in out
    assert "is cancelled" in out
    # within an epoch or at its end
    assert len(re.findall(r"stopped by SIGTERM after (step \d+|\d+ epochs)", log.with_suffix(".err").read_text())) == 2


@pytest.mark.slow
def test_a_stage_runs_as_a_job(plan, tmp_path):
    pytest.importorskip("submitit", reason="needs the package of the `slurm` extra")
    said = []
    stages = plan()[:1]
    (handoff,) = run_curriculum(stages, said.append, launcher=SubmititLauncher("local", {"timeout_min": 10}))
    assert handoff.folder == tmp_path / "pretrain_small"
    assert any("its logs: " in sentence for sentence in said)
    (log,) = (handoff.folder / "jobs").glob("*_log.out")
    assert "Handed over to" in log.read_text()


def within(folder):
    return folder / "checkpoints" / "within.ckpt"


def job_task(jobs):
    """Id of the process that submitit runs a job of a folder in."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitit.core._submit" in words and str(jobs).encode() in words:
            return int(path.parent.name)
    return None
