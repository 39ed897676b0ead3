"""Settings of the memory allocator of this process."""

import ctypes
import sys

# Option numbers of mallopt(3), from malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory instead of returning it to the system. Return True if glibc accepted.

    A training step frees hundreds of megabytes of temporary tensors and allocates them again. By default glibc maps
    each one anew, and the kernel then supplies its pages one by one. Measured on two cores: 8 x 512 tokens take
    1.4 s with these settings, 1.7 to 3.0 s without.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    options = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 64 * 2**20))
    accepted = [mallopt(option, value) for option, value in options]  # set all three: an old glibc refuses the first
    return all(accepted)
