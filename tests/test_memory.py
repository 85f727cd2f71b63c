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


keep_freed_blocks()
print(mapped(100 << 20), mapped(600 << 20))
"""


def mapped(**environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=kept | environment, capture_output=True, text=True)
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


def test_training_keeps_more_and_leaves_what_is_set(monkeypatch):
    monkeypatch.setattr(memory, "_GPUS", ())
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    found = memory.training_environment()
    assert found["MALLOC_TRIM_THRESHOLD_"] == "5"
    assert int(found["MALLOC_MMAP_THRESHOLD_"]) == 4 << 30
    monkeypatch.setattr(memory, "_GPUS", (os.devnull,))
    assert "MALLOC_MMAP_THRESHOLD_" not in memory.training_environment()
