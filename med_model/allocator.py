"""Change the settings of this process's memory allocator."""

import ctypes
import sys

# The numbers of three options of mallopt(3), from malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1  # the largest value of a C int, the type of the options: 2 GB


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory instead of returning it to the system.

    Return True if glibc accepted all settings, and False on a system without glibc.

    A training step frees hundreds of megabytes of temporary tensors and allocates them again. By default glibc maps
    each tensor anew, and the kernel then supplies its pages one by one. Measured on two cores: a training step of
    8 x 512 tokens takes 1.4 s with these settings, and 1.7 to 3.0 s without them.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    options = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 64 * 2**20))
    accepted = [mallopt(option, value) for option, value in options]  # all three, even if an old glibc refuses one
    return all(accepted)
