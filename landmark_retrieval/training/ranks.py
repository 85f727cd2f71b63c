"""The processes that run the same chain side by side, under torchrun or srun, and how they agree."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from landmark_retrieval.errors import LandmarkRetrievalError

# seconds: for all processes to be there, and for the first one to decide
_PATIENCE = 1800.0
_FAILED = "failed"


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that run the chain.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        kind: "torchrun", "slurm", or "" for a chain in a single process, whose stages start others by themselves.
    """

    rank: int = 0
    size: int = 1
    kind: str = ""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """From the environment, with nothing imported."""
        if "TORCHELASTIC_RUN_ID" in environment and "WORLD_SIZE" in environment:
            return cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), "torchrun")
        # inside `srun --pty bash` the variables are those of the shell
        interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment and not interactive:
            return cls(int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"]), "slurm")
        return cls()

    @contextlib.contextmanager
    def meeting(self) -> Iterator["Meeting"]:
        """A store that all processes see; at the end its host waits until the others have read what it says."""
        if not self.kind:
            yield Meeting(self)
            return
        from torch.distributed import TCPStore

        address, port, host = _torchrun_store() if self.kind == "torchrun" else _slurm_store()
        store = TCPStore(
            address,
            port,
            is_master=host and self.rank == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=_PATIENCE),
        )
        meeting = Meeting(self, store, address)
        yield meeting
        # an error ends the whole job and needs no such politeness
        store.add(meeting.key("left"), 1)
        deadline = time.monotonic() + 60
        while host and self.rank == 0 and store.add(meeting.key("left"), 0) < self.size and time.monotonic() < deadline:
            time.sleep(0.1)


class Meeting:
    """Where the processes of a chain agree.

    Args:
        ranks: the place of this process.
        store: seen by all; None for one process.
        address: of the host of the first process.
    """

    def __init__(self, ranks: Ranks, store: Any = None, address: str = "") -> None:
        self.ranks, self._store, self._address = ranks, store, address

    def agree(self, what: str, decide: Callable[[], str]) -> str:
        """What the first process decides, in all of them.

        Args:
            what: name of the question, asked once.
            decide: called in the first process alone.

        Raises:
            LandmarkRetrievalError: the first process could not decide, or did not within half an hour.
        """
        if self.ranks.rank == 0:
            answer = _FAILED
            try:
                answer = decide()
            finally:
                if self._store is not None:
                    self._store.set(self.key(what), answer)
            return answer
        deadline = time.monotonic() + _PATIENCE
        # asked again and again: inside the store's own waiting no signal would be heard
        while not self._store.check([self.key(what)]):
            if time.monotonic() > deadline:
                raise LandmarkRetrievalError(
                    f"Process {self.ranks.rank} of the chain heard nothing of process 0 for {_PATIENCE / 60:.0f} "
                    "minutes: see what that one says, and start all of them again."
                )
            time.sleep(0.05)
        answer = self._store.get(self.key(what)).decode()
        if answer == _FAILED:
            raise LandmarkRetrievalError("The chain was ended by its process 0, which says why.")
        return answer

    def environment(self, port: str) -> dict[str, str]:
        """Variables for a stage whose processes meet at a port of their own.

        They leave the store of torchrun's agent alone: there they would read what the stage before has written.
        """
        if self._store is None:
            return {}
        return {"MASTER_ADDR": self._address, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "False"}

    def key(self, what: str) -> str:
        """The name of a question in the store, in which those from before a restart may still be."""
        return f"landmark_retrieval/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{what}"


def free_port() -> str:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return str(listener.getsockname()[1])


def _torchrun_store() -> tuple[str, int, bool]:
    """Address and port of the agent's store, and whether the first process has to be its host."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), not agent


def _slurm_store() -> tuple[str, int, bool]:
    """The trainer's own choice for a job: its first node, and a port by the number of the job."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1")
    address = os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
    port = os.environ.get("MASTER_PORT") or 15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])
    return address, int(port), True
