"""Memory that was freed is kept for the next call, unless the environment or the machine says otherwise."""

import ctypes
import os
import subprocess
import sys

import pytest

from landmark_retrieval import memory

SCRIPT = """
import ctypes
from landmark_retrieval.memory import keep_freed_blocks

glibc = ctypes.CDLL("libc.so.6")
glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
glibc.free.argtypes = [ctypes.c_void_p]


def mapped(size):  # whether the system is asked for a block of its own
    fields = (ctypes.c_size_t * 10)
    glibc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [("fields", fields)]})
    before = glibc.mallinfo2().fields[3]
    block = glibc.malloc(size)
    after = glibc.mallinfo2().fields[3]
    glibc.free(block)
    return after > before


keep_freed_blocks(ARGUMENTS)
print(mapped(100 << 20), mapped(600 << 20))
"""


def mapped(arguments="", **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT.replace("ARGUMENTS", arguments)]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.split()


def has_glibc():
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2")
    except OSError:
        return False


@pytest.mark.skipif(not has_glibc(), reason="no glibc of 2.33 or later")
@pytest.mark.skipif(any(map(os.path.exists, memory._GPUS)), reason="nothing is set beside a GPU")
def test_large_blocks_are_kept_and_huge_ones_are_not():
    assert mapped() == ["False", "True"]
    assert mapped(MALLOC_MMAP_THRESHOLD_="1000000") == ["True", "True"]


@pytest.mark.skipif(not has_glibc(), reason="no glibc of 2.33 or later")
@pytest.mark.skipif(any(map(os.path.exists, memory._GPUS)), reason="nothing is set beside a GPU")
def test_training_keeps_more():
    assert mapped("training=True") == ["False", "False"]
    assert mapped("training=True", GLIBC_TUNABLES="glibc.malloc.check=0") == ["True", "True"]


def test_nothing_is_set_beside_a_gpu(monkeypatch):
    def refused(name):
        raise AssertionError(name)

    monkeypatch.setattr(memory, "_GPUS", (os.devnull,))
    monkeypatch.setattr(ctypes, "CDLL", refused)
    memory.keep_freed_blocks()
