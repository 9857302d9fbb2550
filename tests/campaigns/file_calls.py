"""Interrupt a process at its n-th file-system call below a folder."""

from __future__ import annotations

import builtins
import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "shutil.rmtree")


class FileCalls:
    """Count the file-system calls of this process, and do something at one of them or from one on.

    A write is interrupted after the first half of its bytes. The process cannot stop watching, so it should be a child that
    does nothing else.

    Args:
        folder: Calls for files below this folder count.
        number: Number of the call, from 1; 0 only counts.
        act: What to do at it: kill the process or raise an error. It gets the path, or None if the call has a descriptor.
        only: Kinds of calls that count; None for all.
        onward: If True, do it at all later calls too.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        act: Callable[[str | None], Any],
        only: set[str] | None = None,
        *,
        onward: bool = False,
    ) -> None:
        self.count = 0
        self._folder = str(folder)
        self._number = number
        self._act = act
        self._only = only
        self._onward = onward
        self._steps = itertools.count(1)
        sys.addaudithook(self._see_event)
        self._open, self._fsync = builtins.open, os.fsync
        builtins.open = io.open = self._open_watched  # type: ignore[assignment]
        os.fsync = self._sync_watched

    def see(self, call: str, path: str | None = None) -> None:
        """Count a call, and act if it is the one."""
        if self._only is None or call in self._only:
            self.count = next(self._steps)
            if self.count == self._number or (self._onward and 0 < self._number < self.count):
                self._act(path)

    def _see_event(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and (event == "os.rmdir" or self._folder in str(args[0])):  # rmtree removes by bare names
            creates = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
            self.see("create" if creates else event, str(args[0]))
        elif event == "ctypes.dlsym" and args[1] == "renameat2":
            self.see("os.rename")

    def _open_watched(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = self._open(file, mode, *args, **options)
        return _WatchedFile(opened, self) if set(mode) & set("wax+") and self._folder in str(file) else opened

    def _sync_watched(self, descriptor: int) -> None:
        self.see("fsync")
        self._fsync(descriptor)


class _WatchedFile:
    def __init__(self, file: Any, calls: FileCalls) -> None:
        self._file, self._calls = file, calls

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._calls.see("write")
        self._file.write(data[half:])
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _WatchedFile:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def run_and_wait(function: Callable[[], Any]) -> int:
    """Run a function in a forked child, and return its exit status: 0, 1 after an error, or minus the number of a signal.

    The calling process must use one thread (:func:`use_one_thread`): a child has none of the other threads and would wait
    for them. A child that takes longer than a minute is killed, and this is an error.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return wait_for(child)


def wait_for(child: int, seconds: float = 60.0) -> int:
    """Return the exit status of a forked child; kill it after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the forked child has not ended within {seconds:.0f} seconds")


def use_one_thread() -> None:
    """Let nothing start threads, because a forked child does not have them."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def count_calls(function: Callable[[], Any], folder: Path, only: set[str] | None = None) -> int:
    """Return the number of file-system calls of a function, which runs in a forked child."""
    reader, writer = os.pipe()

    def count() -> None:
        calls = FileCalls(folder, 0, print, only)
        function()
        os.write(writer, str(calls.count).encode())

    status = run_and_wait(count)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    if status:
        raise RuntimeError(f"the function failed with {status}")
    return int(text)
