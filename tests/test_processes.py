import os

import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.processes import in_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_once(workers):
    assert sorted(in_processes(abs, [-3, -1, -2], workers)) == [1, 2, 3]


def test_a_dead_process_is_an_error_and_no_wait():
    with pytest.raises(LandmarkRetrievalError, match="worker process died"):
        list(in_processes(os._exit, [1, 1, 1], 2))
