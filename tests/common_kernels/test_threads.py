import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit

from common_kernels.threads import chunk_count, parallel_for

ROOT = Path(__file__).resolve().parents[2]


@njit(nogil=True, cache=True)
def double(values, out, begin, end):
    for i in range(begin, end):
        out[i] += 2 * values[i]


@njit(nogil=True, cache=True)
def refuse(limit, begin, end):
    if end > limit:
        raise ValueError("row beyond the limit")


@pytest.fixture(params=[1, 2, 5])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 7, 64, 1001])
@pytest.mark.parametrize("grain", [1, 10, 5000])
def test_every_row_runs_exactly_once(n, grain, n_threads):
    values = np.arange(n, dtype=np.int64)
    out = np.zeros(n, dtype=np.int64)
    parallel_for(double, n, grain, values, out)
    assert (out == 2 * values).all()


@pytest.mark.parametrize("n", [1, 9, 100, 12345])
@pytest.mark.parametrize("grain", [1, 7, 1000])
def test_chunks_are_contiguous_repeatable_and_hold_the_grain(n, grain, n_threads):
    def chunks():
        seen = []
        parallel_for(lambda begin, end: seen.append((begin, end)), n, grain)
        return sorted(seen)

    first = chunks()
    assert first == chunks()
    assert first[0][0] == 0 and first[-1][1] == n
    assert all(left[1] == right[0] for left, right in itertools.pairwise(first))
    assert len(first) == chunk_count(n, grain, n_threads)
    assert min(end - begin for begin, end in first) >= min(grain, n)


def test_one_thread_runs_inline(one_thread):
    calls = []
    parallel_for(lambda begin, end: calls.append((threading.get_ident(), begin, end)), 1000, 1)
    assert calls == [(threading.get_ident(), 0, 1000)]


def test_pool_threads_take_part(n_threads):
    idents = set()

    def kernel(begin, end):
        idents.add(threading.get_ident())
        time.sleep(0.02)

    parallel_for(kernel, 4 * n_threads, 1)
    assert 1 <= len(idents) <= n_threads
    assert len(idents) > 1 or n_threads == 1


def test_many_python_threads_at_once(n_threads):
    values = np.arange(20_000, dtype=np.int64)
    wrong = []

    def caller():
        torch.set_num_threads(n_threads)
        for _ in range(50):
            out = np.zeros_like(values)
            parallel_for(double, len(values), 100, values, out)
            if not (out == 2 * values).all():
                wrong.append(out)

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_nested_calls_finish(n_threads):
    out = np.zeros(4000, dtype=np.int64)
    ones = np.ones(4000, dtype=np.int64)

    def outer(begin, end):
        parallel_for(double, end - begin, 10, ones[begin:end], out[begin:end])

    parallel_for(outer, 4000, 100)
    assert (out == 2).all()


def test_exceptions_propagate_and_the_pool_survives(n_threads):
    with pytest.raises(ValueError, match="row beyond the limit"):
        parallel_for(refuse, 1000, 10, 400)
    parallel_for(refuse, 1000, 10, 1000)


def test_exception_in_one_chunk_waits_for_the_others(n_threads):
    running = []

    def kernel(begin, end):
        if begin == 0:
            raise KeyError("first chunk")
        running.append(begin)
        time.sleep(0.01)
        running.remove(begin)

    with pytest.raises(KeyError, match="first chunk"):
        parallel_for(kernel, 100, 1)
    assert not running


def test_chunks_not_begun_are_dropped_after_an_exception(n_threads):
    calls = []

    def kernel(begin, end):
        calls.append(begin)
        raise ValueError("every chunk fails")

    with pytest.raises(ValueError, match="every chunk fails"):
        parallel_for(kernel, 1000, 1)
    assert len(calls) <= n_threads


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no pthread_kill on this system")
def test_interrupt_waits_until_no_thread_writes():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    helper_began, helper_ended = threading.Event(), threading.Event()
    main = threading.get_ident()

    def kernel(begin, end):
        if threading.get_ident() == main:
            assert helper_began.wait(30)
        else:
            helper_began.set()
            time.sleep(0.1)  # the caller has run out of chunks and waits
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.2)
            helper_ended.set()

    try:
        with pytest.raises(KeyboardInterrupt):
            parallel_for(kernel, 2, 1)
        assert helper_ended.is_set()
    finally:
        torch.set_num_threads(before)


def test_arrays_are_released_after_the_call(n_threads):
    import gc
    import weakref

    class Payload:
        pass

    payload = Payload()
    alive = weakref.ref(payload)
    parallel_for(lambda payload, begin, end: None, 100, 1, payload)
    del payload
    for _ in range(100):
        gc.collect()
        if alive() is None:
            break
        time.sleep(0.01)
    assert alive() is None


def test_grain_is_checked():
    with pytest.raises(ValueError, match="grain must be at least 1, got 0"):
        parallel_for(double, 10, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_use(n_threads):
    values = np.arange(10_000, dtype=np.int64)
    parallel_for(double, len(values), 10, values, np.zeros_like(values))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            helpers = set()

            def kernel(begin, end):
                helpers.add(threading.get_ident())
                time.sleep(0.01)

            out = np.zeros_like(values)
            parallel_for(double, len(values), 10, values, out)
            parallel_for(kernel, 4 * n_threads, 1)
            alone = n_threads > 1 and len(helpers) < 2
            code = 0 if (out == 2 * values).all() and not alone else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


def test_beside_torch_openmp(n_threads):
    """Calls of ours between and during parallel torch operators."""
    a = torch.randn(300, 300)
    expected = a @ a
    values = np.arange(100_000, dtype=np.int64)
    stop = threading.Event()
    disagreements = []

    def torch_work():
        while not stop.is_set():
            if not torch.allclose(a @ a, expected):
                disagreements.append(1)

    thread = threading.Thread(target=torch_work)
    thread.start()
    try:
        for _ in range(50):
            out = np.zeros_like(values)
            parallel_for(double, len(values), 100, values, out)
            assert (out == 2 * values).all()
            assert torch.allclose(a @ a, expected)
    finally:
        stop.set()
        thread.join(30)
    assert not disagreements


def test_threads_end_before_the_interpreter():
    """Exit handlers run last in, first out: the one registered first sees what the pool's has left."""
    script = """
import atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate() if "common_kernels" in thread.name]))
import torch
from common_kernels.threads import parallel_for
torch.set_num_threads(3)
parallel_for(lambda begin, end: None, 100, 1)
print(sum("common_kernels" in thread.name for thread in threading.enumerate()))
atexit.register(lambda: parallel_for(lambda begin, end: None, 100, 1))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n[]\n", "")
