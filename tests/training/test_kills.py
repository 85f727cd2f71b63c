"""A chain that is killed ten times, in and between its stages, ends as if nothing had happened."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

STAGES = ("pretrain_small", "train_medium", "finetune_large")
INTERVAL = 2
# of 40 photos of set c and 48 of set full in batches of 8
STEPS = {"pretrain_small": 2 * 5, "train_medium": 2 * 6, "finetune_large": 2 * 6}


@pytest.fixture
def chain(tiny, tmp_path):
    """name -> the command of a chain in a folder of that name, which logs its steps; and where."""

    def make(name):
        log = tmp_path / f"{name}.steps"
        overrides = [
            f"run_dir='{tmp_path / name}/${{stage.name}}'",
            "+logger.steps._target_=step_log.StepLog",
            f"+logger.steps.path={log}",
            "+logger.steps.stage=${stage.name}",
            f"checkpoint_steps={INTERVAL}",
            "optimizer.lr=1e-3",
            "stage.ema=0.9",
            "stage.freeze=[{attention:1}]",
        ]
        return [sys.executable, "-m", "landmark_retrieval.curriculum", "curriculum=dolg_lite0", *tiny, *overrides], log

    return make


def environment():
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent)}


def computed(log):
    """Steps in the order in which they were computed, also twice."""
    return [(stage, int(step)) for stage, step in map(str.split, log.read_text().splitlines())] if log.exists() else []


def kill(chain, victim):
    """The chain alone, the stage alone, or all of it as when the machine loses power."""
    family = chain.children(recursive=True)
    stages = [process for process in family if "+stage" in " ".join(_words(process))]
    hit = 0
    # between two stages there is none
    for process in {"chain": [chain], "stage": stages or [chain], "all": [chain, *family]}[victim]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            hit += 1
    return hit


def _words(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.mark.slow
def test_ten_kills_leave_no_trace(chain, tmp_path):
    command, log = chain("whole")
    whole = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert computed(log) == [(stage, step) for stage in STAGES for step in range(STEPS[stage])]

    luck = random.Random(7)
    total = sum(STEPS.values())
    # after which computed step, and how long after it: validation, hand-over and the start of the next stage among it
    moments = [(step, luck.uniform(0, 2.5)) for step in sorted(luck.sample(range(total), 10))]
    kills = 0
    for attempt in range(5):
        name = f"cut{attempt}"
        done, moments = cut(*chain(name), moments, luck)
        kills += done
        assert_no_trace(tmp_path / "whole", tmp_path / name, computed(chain(name)[1]), done)
        # a chain that had ended before its last moments came: they are made up for in another one, sooner
        moments = [(step, wait / 3) for step, wait in moments]
        if not moments:
            break
    assert kills == 10


def cut(command, log, moments, luck):
    """Runs the chain to its end through all these kills: how many were made, and the moments it was too late for."""
    late = []
    for step, wait in moments:
        process = psutil.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and len({*computed(log)}) <= step:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is not None or not kill(process, luck.choice(["chain", "stage", "all"])):
            late.append((step, wait))
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()
    last = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    return len(moments) - len(late), late


def assert_no_trace(whole, cut, steps, kills):
    for stage in STAGES:
        for file in ("model.safetensors", "head.safetensors"):
            expected, found = (load_file(folder / stage / file) for folder in (whole, cut))
            assert all(torch.equal(expected[key], found[key]) for key in expected), (stage, file)
    # no step was computed twice but those since the checkpoint before a kill
    every = {(stage, step) for stage in STAGES for step in range(STEPS[stage])}
    assert {*steps} <= every
    # a step is logged after its checkpoint is written: killed between the two, it is computed, and never logged
    assert len(every - {*steps}) <= kills
    assert len(steps) - len({*steps}) <= kills * INTERVAL
    for (stage, step), (next_stage, following) in itertools.pairwise(steps):
        assert stage != next_stage or following > step - INTERVAL
