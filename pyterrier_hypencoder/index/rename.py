"""Put a directory in the place of another one, without a moment in which there is none."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

from .files import fsync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def put_in_place(new: Path, path: Path, old: Path) -> None:
    """Give a directory its final name.

    If there is a directory at the path, Linux exchanges both in one step. Elsewhere the old one is moved away first, and
    readers wait for the short time until the new one has the name.

    Args:
        new: The new directory.
        path: Its final path.
        old: Path of the replaced directory afterwards.
    """
    if not path.exists():
        os.rename(new, path)
    elif exchange(new, path):
        os.rename(new, old)
    else:
        os.rename(path, old)
        os.rename(new, path)
    fsync(path.parent)


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or directories in one step; return False if the system cannot do that.

    Raises:
        OSError: If the system can, but the exchange fails, for example because of missing permissions.
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # a C library without it
        return False
    if not rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system or kernel without it
        return False
    raise OSError(number, os.strerror(number), str(second))
