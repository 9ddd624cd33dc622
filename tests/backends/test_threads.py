"""The threads of the C++ kernels: after fork, and in several Python threads.

Everything runs in processes of its own, because threads that were started stay started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svdrd.backends import availability

pytestmark = [
    pytest.mark.skipif(availability.native is None, reason="no native module"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]

PRELUDE = """
import functools, os, signal, threading, time, traceback
import torch

print = functools.partial(print, flush=True)  # or a child prints again what its parent has not yet written
torch.set_num_threads(2)
a = torch.linspace(0, 1, 512 * 64).sin().reshape(512, 8, 8)


def forked(work):
    '''How work() goes in a forked child.'''
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "right" if status == 0 else "fails"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def in_a_thread(work):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join(60)
    assert answers, "the thread hangs or failed"
    return answers[0]


def linalg():
    torch.linalg.svd(a)


def elementwise():
    torch.ones(1000, 1000).exp().sum()


large = torch.linspace(0, 1e4, 224 * 208).sin().reshape(1, 224, 208)


def ours():
    '''Two threads, the bits of one: many matrices side by side, and one by both.'''
    from svdrd.ops import svd

    factors = [*svd(a), *svd(large)]
    torch.set_num_threads(1)
    assert all(map(torch.equal, factors, [*svd(a), *svd(large)]))
    torch.set_num_threads(2)


def threads_of():
    from svdrd.backends import availability

    return availability.native.threads_of()


def both(whose):
    for _ in range(3):
        ours()
        elementwise()
    assert threads_of() == whose, threads_of()
    assert in_a_thread(threads_of) == in_a_thread(threads_of) == "OpenMP"
    in_a_thread(ours)
"""


def answers(program: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", PRELUDE + program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_what_the_parent_has_started_does_not_hang_a_child() -> None:
    """Of ours and of torch: a child starts anew, and so does the parent."""
    program = """
ours()
print(threads_of(), [forked(work) for work in (ours, elementwise, linalg, lambda: both("OpenMP"))])
elementwise()
print([forked(work) for work in (ours, elementwise, linalg, lambda: both("OpenMP"))])
both("OpenMP")
print(forked(lambda: (both("OpenMP"), print("grandchild", forked(lambda: both("OpenMP"))))))
print("from a thread", in_a_thread(lambda: (ours(), forked(lambda: both("OpenMP")))[1]))
"""
    assert answers(program) == [
        "OpenMP ['right', 'right', 'right', 'right']",
        "['right', 'right', 'right', 'right']",
        "grandchild right",
        "right",
        "from a thread right",
    ]


def test_a_child_that_imports_svdrd_itself_does_not_hang() -> None:
    """Torch may have started OpenMP threads in its parent. They are lost: even torch's own operators hang there."""
    program = """
def child():
    ours()
    assert threads_of() == "own"
    assert in_a_thread(lambda: (ours(), elementwise(), threads_of()))[2] == "OpenMP"
    ours()
    print("grandchild", forked(ours), "of a thread", in_a_thread(lambda: forked(lambda: both("OpenMP"))))

linalg()
elementwise()
print([forked(work) for work in (linalg, ours, child)])
"""
    assert answers(program) == ["grandchild right of a thread right", "['right', 'right', 'right']"]


def test_forks_while_other_threads_compute() -> None:
    program = """
from svdrd.ops import svd

ended = threading.Event()
counts = []

def compute():
    expected = svd(a)
    count = 0
    while not ended.is_set():
        assert all(map(torch.equal, expected, svd(a)))
        elementwise()
        count += 1
    counts.append(count)

threads = [threading.Thread(target=compute) for _ in range(2)]
for thread in threads:
    thread.start()
outcomes = {forked(ours) for _ in range(10)}
ended.set()
for thread in threads:
    thread.join()
ours()
print(outcomes, len(counts), all(counts))
"""
    assert answers(program) == ["{'right'} 2 True"]


def test_workers_of_loaders_and_pools() -> None:
    """Linux' default start method before Python 3.14, and threads that the workers ask for."""
    program = """
import multiprocessing
from torch.utils.data import DataLoader, Dataset
from svdrd.ops import polar_factor

class Factors(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        elementwise()
        return polar_factor(a + index)

def four_threads(worker):
    torch.set_num_threads(4)

def of_one(index):
    return torch.equal(polar_factor(a + index), expected[index])

expected = torch.stack([polar_factor(a + index) for index in range(4)])
elementwise()
for _ in range(2):
    loader = DataLoader(Factors(), batch_size=4, num_workers=2, worker_init_fn=four_threads, timeout=60,
                        multiprocessing_context="fork")
    print([torch.equal(batch, expected) for batch in loader])
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map_async(of_one, range(4)).get(60))
"""
    assert answers(program) == ["[True]", "[True]", "[True, True, True, True]"]


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP's threads are used on Linux alone")
def test_the_openmp_is_the_one_that_torch_brings() -> None:
    """One copy in the process, and no link to another that a system may lack."""
    assert availability.native is not None
    assert b"libgomp" not in Path(availability.native.__file__).read_bytes()
    program = """
ours()
elementwise()
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
print(threads_of(), len(libraries))
"""
    assert answers(program) == ["OpenMP 1"]


RESULTS = """
from svdrd.ops import basis_loss, polar_factor, svd

def results(x_hat, x):
    x_hat = x_hat.clone().requires_grad_()
    x = x.clone().requires_grad_()
    losses = basis_loss(x_hat, x, reduction="none")
    losses.sum().backward()
    factor = polar_factor(x_hat, smooth=0.1)
    (gradient,) = torch.autograd.grad((factor * x).sum(), x_hat)
    return [*svd(x), factor, gradient, losses, x_hat.grad, x.grad]
"""


def test_a_large_matrix_has_the_same_bits_with_any_number_of_threads() -> None:
    """Also where some are left over beside others, and where there are more threads than cores."""
    program = """
for dtype, *shape in [
    (torch.float32, 224, 208), (torch.float32, 104, 120), (torch.float64, 201, 230),
    (torch.float32, 9000, 13), (torch.float64, 70, 2000),
]:
    x = torch.randn(3, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x_hat = x + 0.1 * x.flip(0)
    torch.set_num_threads(1)
    expected = results(x_hat, x)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for count in (1, 2, 3):
            for result, right in zip(results(x_hat[:count], x[:count]), expected):
                assert torch.equal(result, right[:count]), (dtype, shape, threads, count)
    print("right")
"""
    assert answers(RESULTS + program) == ["right"] * 5


def test_many_matrices_have_the_same_bits_with_any_number_of_threads() -> None:
    """Side by side in the SIMD lanes, and one after another; as many as a batch of a training has, and a few more."""
    program = """
for dtype, *shape in [(torch.float32, 8, 8), (torch.float64, 5, 4), (torch.float32, 16, 16), (torch.float32, 40, 64)]:
    x = torch.randn(203, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x_hat = x + 0.1 * x.flip(0)
    torch.set_num_threads(1)
    expected = results(x_hat, x)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for result, right in zip(results(x_hat, x), expected):
            assert torch.equal(result, right), (dtype, shape, threads)
    print("right")
"""
    assert answers(RESULTS + program) == ["right"] * 4
