"""Stages as jobs of a cluster, by way of submitit."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.launchers import GRACE, LocalLauncher, StopSignals, send_signal

_MINUTES = 24 * 60
# a job that came to its time limit is queued again, as often as a training may take
_TIMEOUTS = 1000
# seconds for a job on this machine to end after its stage
_ENDING = 10.0


class SubmititLauncher:
    """Runs each stage as a job, waits for it, and says where its logs are: in `jobs` in the stage's run folder.

    A job that is preempted or comes to its time limit saves a checkpoint, is queued again and carries on. SIGTERM or
    Ctrl-C cancels the job, which saves a checkpoint too; the end of one on this machine is waited for.

    Args:
        cluster: of submitit: "slurm", or "local" for jobs on this machine; None: what there is.
        parameters: of submitit's executor; nodes, tasks_per_node and gpus_per_node follow from the config's trainer
            and timeout_min is a day, where nothing else is said.

    Raises:
        LandmarkRetrievalError: submitit is not installed.
    """

    def __init__(self, cluster: str | None = None, parameters: Mapping[str, Any] | None = None) -> None:
        try:
            import submitit
        except ImportError:
            raise LandmarkRetrievalError(
                "Stages as jobs need the package submitit: pip install 'landmark-retrieval[slurm]'."
            ) from None
        self._submitit, self._cluster, self._parameters = submitit, cluster, dict(parameters or {})

    def run(  # noqa: D102
        self,
        overrides: Sequence[str],
        config: dict[str, Any],
        environment: Mapping[str, str],
        say: Callable[[str], None],
        following: Sequence[str] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> int:
        folder = (Path(config["run_dir"]) / "jobs").resolve()
        while True:
            code, asked = self._job(folder, overrides, config, environment, say, meanwhile)
            if code != 143 or asked:
                return code
            # of Slurm, before it takes the machine: submitit leaves it at that, where the stage has saved and ended
            say("The job was stopped by SIGTERM, and is queued again.")

    def _job(
        self,
        folder: Path,
        overrides: Sequence[str],
        config: dict[str, Any],
        environment: Mapping[str, str],
        say: Callable[[str], None],
        meanwhile: Callable[[], None] | None,
    ) -> tuple[int, bool]:
        """The exit code of a job, and whether it was this process that was asked to stop."""
        try:
            executor = self._submitit.AutoExecutor(
                folder, self._cluster, slurm_max_num_timeout=_TIMEOUTS, local_max_num_timeout=_TIMEOUTS
            )
            defaults = _resources(config["trainer"], executor.cluster == "local")
            defaults["name"] = "".join(c if c.isalnum() else "_" for c in f"{config['name']}_{config['stage']['name']}")
            executor.update_parameters(**{**defaults, **self._parameters})
            job = executor.submit(StageJob(overrides, environment))
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
            text = " ".join(str(error).split())
            raise LandmarkRetrievalError(
                f"The job of stage {config['stage']['name']} cannot be submitted ({text}): mend --cluster or --slurm."
            ) from error
        say(f"Job {job.job_id}; its logs: {job.paths.stdout} and {job.paths.stderr}")
        with StopSignals() as signals:
            if meanwhile:
                meanwhile()
            while not job.done():
                if signals.code:
                    _cancel(job, executor.cluster == "local")
                    say(f"Job {job.job_id} is cancelled.")
                    return signals.code, True
                time.sleep(0.5)
        try:
            return max(job.results()), bool(signals.code)
        except (self._submitit.core.utils.UncompletedJobError, self._submitit.core.utils.FailedJobError) as error:
            raise LandmarkRetrievalError(
                f"Job {job.job_id} of stage {config['stage']['name']} came to no end of its own ({job.state}): see "
                f"{job.paths.stderr} and run the curriculum again, which carries on."
            ) from error

    def close(self) -> None:
        """Nothing to do."""


class StageJob:
    """What a job does in each of its tasks: the stage, in a process of its own.

    Args:
        overrides: that compose the stage's config.
        environment: variables for its process.
    """

    def __init__(self, overrides: Sequence[str], environment: Mapping[str, str]) -> None:
        self.overrides, self.environment = tuple(overrides), dict(environment)
        self._launcher: LocalLauncher | None = None

    def __call__(self) -> int:
        """Run the stage; its exit code."""
        import submitit

        task = submitit.JobEnvironment()
        if task.global_rank:  # the first task alone is asked to save and to queue again, but all have to stop
            signal.signal(task._usr_sig(), lambda number, frame: self._stop_and_wait())
        self._launcher = LocalLauncher()
        return self._launcher.run(self.overrides, {}, self.environment, print)

    def checkpoint(self) -> Any:
        """Called by submitit before it queues the job again: let the stage save, and run it once more."""
        import submitit

        if self._launcher:
            self._launcher.stop()
        return submitit.helpers.DelayedSubmission(StageJob(self.overrides, self.environment))

    def _stop_and_wait(self) -> None:
        if self._launcher:
            self._launcher.stop()
        time.sleep(GRACE)  # a task that ends before the job is queued again may take the first one with it

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_launcher": None}


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """`["timeout_min=60", "slurm_partition=gpu"]` as a dict; values are JSON where they can be, else text.

    Raises:
        LandmarkRetrievalError: something without `=`.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise LandmarkRetrievalError(f"--slurm {pair}: write KEY=VALUE, with a parameter of submitit's executor.")
        try:
            parameters[key] = json.loads(value)
        except ValueError:
            parameters[key] = value
    return parameters


def _cancel(job: Any, local: bool) -> None:
    if not local:
        job.cancel(check=False)
        return
    # submitit would send SIGINT, which is ignored by what was started in the background, and SIGKILL a second later;
    # SIGTERM reaches the stage, and is sent again since a job that is just starting may miss it
    deadline = time.monotonic() + GRACE + _ENDING
    while not job.done() and time.monotonic() < deadline:
        send_signal(int(job.job_id), signal.SIGTERM)
        time.sleep(0.5)


def _resources(trainer: Mapping[str, Any], local: bool) -> dict[str, Any]:
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else None
    wanted: dict[str, Any] = {"nodes": trainer["num_nodes"], "timeout_min": _MINUTES}
    # on one machine the trainer starts its processes by itself
    wanted["tasks_per_node"] = 1 if local else count or 1
    if trainer["accelerator"] != "cpu" and not (local and not os.path.exists("/dev/nvidiactl")):
        if count is None:
            raise LandmarkRetrievalError(
                f"trainer.devices={devices} does not say how many GPUs a job needs: set a number."
            )
        wanted["gpus_per_node"] = count
    return wanted
