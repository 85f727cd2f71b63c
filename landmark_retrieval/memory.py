"""What becomes of memory that is freed, on machines without a GPU.

glibc gives blocks of 32 MB and more back to the system at once, and gets them again, zeroed page by page, for the next
feature map: a quarter of a training step, and two fifths of a forward pass of DOLG on a batch of 32 photos.
"""

import ctypes
import os

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_SAID = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _NEVER = -1, -3, -1  # of malloc.h


def keep_freed_blocks(*, training: bool = False) -> None:
    """From now on this process keeps up to 1 GB that it has freed, in blocks of at most 512 MB, for the next call.

    For entry points, since it concerns the whole process. Nothing changes beside a GPU, without glibc, or where the
    environment says what malloc shall do.

    Args:
        training: keep all that a step frees, in blocks of up to 2 GB: the next step has as many activations.
    """
    if any(map(os.path.exists, _GPUS)) or os.environ.keys() & _SAID:
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, (2 << 30) - 1 if training else 512 << 20)
    mallopt(_M_TRIM_THRESHOLD, _NEVER if training else 1 << 30)
