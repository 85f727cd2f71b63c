"""Work spread over processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from landmark_retrieval.errors import LandmarkRetrievalError

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, start: Callable[[], None] | None = None
) -> Iterator[Result]:
    """Results of `work` for each job, in the order in which they get done.

    Args:
        work: a function at the top of a module, so that other processes can find it.
        jobs: what it is called with.
        workers: processes; 1 works in this one, in the order of the jobs.
        start: called once in each process before its first job, also in this one.

    Raises:
        LandmarkRetrievalError: a process died.
    """
    if workers <= 1 or len(jobs) < 2:
        if start:
            start()
        yield from map(work, jobs)
        return
    # spawned, not forked: the caller may hold threads. The executor notices a dead process, where a Pool would wait
    # forever
    with ProcessPoolExecutor(min(workers, len(jobs)), multiprocessing.get_context("spawn"), start) as pool:
        try:
            for future in as_completed([pool.submit(work, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool:
            raise LandmarkRetrievalError(
                "A worker process died, for lack of memory or because the calling script has no `if __name__ == "
                "'__main__':` around its call: mend that, or use one worker."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
