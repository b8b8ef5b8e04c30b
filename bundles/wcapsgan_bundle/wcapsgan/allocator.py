# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with the process, which makes training on a CPU about twice as fast.

glibc hands each tensor above 32 MB (often far less) back to the system when it is freed; the next tensor then faults in
every one of its pages again, which costs more than a convolution's arithmetic.
"""

import ctypes
import logging

__all__ = ["keep_freed_memory"]

_logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to reuse freed memory instead of returning it; False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        _logger.info("No glibc allocator here: memory is managed as the system does.")
        return False
    # No tensor in a mapping of its own, nothing given back, and 64 MiB at a time from the system.
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 2**26)])
