"""What becomes of memory that is freed, on machines without a GPU.

glibc gives blocks of 32 MB and more back to the system at once, and gets them again, zeroed page by page, for the next
feature map: a quarter of a training step, and two fifths of a forward pass of DOLG on a batch of 32 photos.
"""

import ctypes
import os

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_THRESHOLDS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_blocks() -> None:
    """From now on this process keeps up to 1 GB that it has freed, in blocks of at most 512 MB, for the next call.

    For entry points, since it concerns the whole process. Nothing changes beside a GPU, without glibc, or where the
    environment says what malloc shall do.
    """
    if any(map(os.path.exists, _GPUS)) or os.environ.keys() & {*_THRESHOLDS, "GLIBC_TUNABLES"}:
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 512 << 20)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def training_environment() -> dict[str, str]:
    """Variables for a process that trains, and whose activations are larger than what `keep_freed_blocks` keeps."""
    if any(map(os.path.exists, _GPUS)):
        return dict(os.environ)
    return {**dict(zip(_THRESHOLDS, (str(4 << 30), str(8 << 30)), strict=True)), **os.environ}
