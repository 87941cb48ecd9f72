"""One small pool of threads that hands ranges of rows to compiled kernels.

Numba's own ``parallel=True`` layers are not safe here: the OpenMP layer kills forked children (data-loader workers),
the work-queue layer aborts the process when two Python threads call at once. This pool survives both.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

# More chunks than threads: a thread that loses its core to another process holds up one chunk, not half of the rows.
_CHUNKS_PER_THREAD = 4


class _Job:
    """The chunks of one call. Any number of threads may `work` on it at the same time."""

    __slots__ = ("args", "claimed", "error", "finished", "kernel", "lock", "n", "n_chunks", "unfinished")

    def __init__(self, kernel: Callable[..., Any], n: int, n_chunks: int, args: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.args = args
        self.n = n
        self.n_chunks = n_chunks
        self.claimed = 0
        self.unfinished = n_chunks
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.finished = threading.Lock()
        self.finished.acquire()

    def work(self) -> None:
        """Run chunks until none is left to claim."""
        while True:
            with self.lock:
                if self.claimed == self.n_chunks:
                    return
                chunk = self.claimed
                self.claimed += 1
            error = None
            try:
                begin = self.n * chunk // self.n_chunks
                end = self.n * (chunk + 1) // self.n_chunks
                self.kernel(*self.args, begin, end)
            except BaseException as caught:  # also KeyboardInterrupt: the caller re-raises it once all threads are out
                error = caught
            with self.lock:
                self.unfinished -= 1
                if error is not None:
                    self._drop_unclaimed()
                    if self.error is None:
                        self.error = error
                if self.unfinished == 0:
                    self.finished.release()

    def cancel(self) -> None:
        """Hand out no further chunk."""
        with self.lock:
            if self.unfinished > 0:
                self._drop_unclaimed()
                if self.unfinished == 0:
                    self.finished.release()

    def _drop_unclaimed(self) -> None:
        self.unfinished -= self.n_chunks - self.claimed
        self.claimed = self.n_chunks

    def wait(self) -> None:
        """Return when no thread touches the arguments any more, then raise the first error of any chunk."""
        try:
            self.finished.acquire()
        except BaseException:  # interrupted while waiting: the arrays must outlive the threads that still write to them
            self.cancel()
            self.finished.acquire()
            raise
        if self.error is not None:
            raise self.error


class _Pool:
    """Daemon threads that wait for jobs; grows to the largest number of threads ever asked for."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._workers: list[threading.Thread] = []

    def offer(self, job: _Job, n_helpers: int) -> None:
        """Let up to `n_helpers` pool threads join the job, whenever they become free."""
        if len(self._workers) < n_helpers:
            with self._lock:
                while len(self._workers) < n_helpers:
                    name = f"common_kernels-{len(self._workers)}"
                    worker = threading.Thread(target=self._run, name=name, daemon=True)
                    worker.start()
                    self._workers.append(worker)
        for _ in range(n_helpers):
            self._jobs.put(job)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            job.work()
            del job  # an idle thread must not keep the arrays of the last job alive

    def stop(self) -> None:
        """End the threads; jobs that come later are done by their callers alone."""
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.join()


_pool = _Pool()


@atexit.register
def _stop_pool() -> None:
    # A thread that wakes while the interpreter is torn down is killed where it stands, which C++ answers with abort().
    _pool.stop()


def _renew_pool() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    # The threads of the parent, and whatever lock one of them held, do not exist in the child.
    os.register_at_fork(after_in_child=_renew_pool)


def chunk_count(n: int, grain: int, n_threads: int) -> int:
    """Number of contiguous chunks that `parallel_for` cuts range(n) into; 0 for an empty range."""
    if n <= 0:
        return 0
    if n_threads == 1:
        return 1
    n_chunks = max(1, min(_CHUNKS_PER_THREAD * n_threads, n // grain))
    if n_chunks > n_threads:
        n_chunks -= n_chunks % n_threads  # an odd chunk would leave one thread alone at the end
    return n_chunks


def parallel_for(kernel: Callable[..., Any], n: int, grain: int, *args: Any) -> None:
    """Run ``kernel(*args, begin, end)`` over contiguous chunks of range(n), on torch.get_num_threads() threads.

    The kernel must release the GIL to gain anything: ``numba.njit(nogil=True, cache=True)``. Chunks hold at least
    `grain` rows (the whole range, if it is shorter), are the same for the same n, grain and number of threads, and run
    in any order: a kernel writes only what belongs to its own rows. The calling thread takes part. Calls from several
    Python threads at once are safe: pool threads join them in turn, and a call that gets none does its work alone.

    Raises ValueError for a grain below 1, and whatever the kernel raises: the first error; chunks not begun are
    dropped.
    """
    if grain < 1:
        raise ValueError(f"grain must be at least 1, got {grain}")
    n_threads = torch.get_num_threads()
    n_chunks = chunk_count(n, grain, n_threads)
    if n_chunks == 0:
        return
    if n_chunks == 1:
        kernel(*args, 0, n)
        return
    job = _Job(kernel, n, n_chunks, args)
    _pool.offer(job, min(n_threads, n_chunks) - 1)
    job.work()
    job.wait()
