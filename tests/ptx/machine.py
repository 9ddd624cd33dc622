"""Runs a translated kernel: programs side by side on one axis of lanes, control flow, barriers, memory and its checks."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.ptx import numeric
from tests.ptx.numeric import KINDS
from tests.ptx.translation import LOCAL_WINDOW, SHARED_WINDOW, Translated

ORIGIN = 1 << 32
# What memory holds that nobody has written; as float32 and as float64 a NaN.
POISON = np.frombuffer(bytes((0xAD, 0xDE, 0xC5, 0x7F)), np.uint8)
POISON_WORD = int(POISON.view("u4")[0])
VIEWS = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8")


class Fault(Exception):
    """What no GPU would survive."""


class Memory:
    """Copies of host buffers with guard space between them."""

    GAP = 1024

    def __init__(self, buffers: list[tuple[int, int]], constants: list[Any] = ()) -> None:
        self.buffers = []
        offset = self.GAP
        for pointer, size in dict(sorted(buffers)).items():
            if size:
                self.buffers.append((pointer, size, offset))
                offset += -(-size // 256) * 256 + self.GAP
        self.constants = {}
        for v in constants:
            self.constants[v.name] = (offset, v)
            offset += -(-v.size // 256) * 256 + self.GAP
        self.bytes = np.empty(offset + self.GAP, np.uint8)
        starts, ends = [], []
        for pointer, size, at in self.buffers:
            ctypes.memmove(self.bytes.ctypes.data + at, pointer, size)
            starts.append(ORIGIN + at)
            ends.append(ORIGIN + at + size)
        for at, v in self.constants.values():
            if v.data:
                self.bytes[at : at + v.size] = np.frombuffer(v.data, np.uint8)[: v.size]
            starts.append(ORIGIN + at)
            ends.append(ORIGIN + at + v.size)
        self.starts, self.ends = np.array(starts, np.int64), np.array(ends, np.int64)
        self.shadow = np.zeros((len(self.bytes) // 4 + 1, 2), np.int32)

    def address(self, pointer: int) -> int:
        for base, size, at in self.buffers:
            if base <= pointer < base + size:
                return ORIGIN + at + pointer - base
        return 0

    def copy_back(self) -> None:
        for pointer, size, at in self.buffers:
            ctypes.memmove(pointer, self.bytes.ctypes.data + at, size)


@dataclass
class Options:
    """How to run: ``order`` of the warps between barriers is lockstep, forward, reverse or random."""

    order: str = "lockstep"
    seed: int = 0
    check: bool = True
    count: bool = True
    lanes: int = 2048
    mma_group: int = 4
    mma_mode: int = 1  # towards zero, as tensor cores do
    limit: float = 600.0  # seconds a launch


@dataclass
class Record:
    """What a launch did."""

    name: str
    grid: int
    threads: int
    shared: int
    translated: Translated
    warps: np.ndarray  # by block, how many warps have run it
    stats: np.ndarray  # by instruction: accesses, wavefronts or sectors
    errors: Counter = field(default_factory=Counter)
    examples: dict[Any, str] = field(default_factory=dict)
    seconds: float = 0.0
    asynchronous: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))  # what cp.async writes
    same_value: int = 0  # writes that would be races if they changed anything
    partial: int = 0  # block executions with a mask within a warp

    def classes(self) -> Counter:
        """Warp instructions of the whole grid by class."""
        total: Counter = Counter()
        for n, c in zip(self.warps, self.translated.classes, strict=True):
            for k, v in c.items():
                total[k] += int(n) * v
        return total

    def memory(self) -> Counter:
        total: Counter = Counter()
        from tests.ptx.translation import classify

        for i in self.translated.kernel.instructions:
            if self.stats[i.number, 0]:
                c = classify(i)
                total[c + " accesses"] += int(self.stats[i.number, 0])
                total[c + " passes"] += int(self.stats[i.number, 1])
        if self.asynchronous[0]:
            total["cp.async to shared accesses"] += int(self.asynchronous[0])
            total["cp.async to shared passes"] += int(self.asynchronous[1])
        return total


class Group:
    """Lanes that are run together: all of the machine, or one warp of each program."""

    def __init__(self, machine: Machine, part: slice) -> None:
        self.machine, self.part = machine, part
        self.n = part.stop - part.start
        t = machine.translated
        for size, kinds in (("16", ("u2", "i2")), ("32", ("u4", "i4", "f4")), ("64", ("u8", "i8", "f8"))):
            file = machine.files[size][:, part]
            for kind in kinds:
                setattr(self, kind, list(file.view(kind)) if len(file) else [])
        self.p = list(machine.files["p"][:, part])
        self.tid, self.cta = machine.tid[part], machine.cta[part]
        self.special = {name: row[part] for name, row in machine.special.items()}
        self.globals = {k: np.uint64(ORIGIN + at) for k, (at, _) in machine.memory.constants.items()}
        self.zero = np.zeros(self.n, np.uint32)
        self.ones = np.ones(self.n, bool)
        self.data = np.zeros((self.n, 16), np.uint8)
        self.buffers = {v: self.data.view(v) for v in VIEWS}
        self.local = machine.local[part]
        self.status, self.pcs = machine.status[part], machine.pcs[part]
        self.red, self.commits = machine.red[part], machine.commits[part]
        self.in_flight: list[Any] = []
        self.uniform, self.pc = True, 0
        self.warps = self.n // 32
        self.rows4 = np.zeros((4, self.n), np.uint32)
        self.translated = t

    # memory

    def globals_row(self, name: str) -> np.ndarray:
        return np.full(self.n, self.globals[name], np.uint64)

    def parameter(self, offset: int, kind: str) -> Any:
        return np.frombuffer(self.machine.parameters, kind, 1, offset)[0]

    def _shared(self, iid, row, offset, mask, size, write, asynchronous=False):
        m = self.machine
        stats = m.record.asynchronous if asynchronous else m.stats[iid]
        numeric.shared_access(m.smem, m.shadow, m.gran, m.pending, row, offset, mask, size, self.data, write, self.tid,
                              self.cta, m.epoch, m.wepoch, m.options.check, m.options.count, stats, m.err, iid, POISON)  # fmt: skip
        return self.buffers

    def load_shared(self, iid, row, offset, mask, size):
        return self._shared(iid, row, offset, mask, size, False)

    def store_shared(self, iid, row, offset, mask, size):
        self._shared(iid, row, offset, mask, size, True)

    def _global(self, iid, row, offset, mask, size, write):
        m = self.machine
        mem = m.memory
        numeric.global_access(mem.bytes, ORIGIN, mem.starts, mem.ends, mem.shadow, row, offset, mask, size, self.data,
                              write, self.tid, self.cta, m.first, m.options.check, m.options.count, m.stats[iid], m.err, iid, POISON)  # fmt: skip
        return self.buffers

    def load_global(self, iid, row, offset, mask, size):
        return self._global(iid, row, offset, mask, size, False)

    load_const = load_global

    def store_global(self, iid, row, offset, mask, size):
        self._global(iid, row, offset, mask, size, True)

    def load_local(self, iid, row, offset, mask, size):
        numeric.local_access(self.local, row, offset, mask, size, self.data, False, self.machine.err, iid, self.tid, self.cta)
        return self.buffers

    def store_local(self, iid, row, offset, mask, size):
        numeric.local_access(self.local, row, offset, mask, size, self.data, True, self.machine.err, iid, self.tid, self.cta)

    def _generic(self, iid, row, offset, mask, size, write):
        kind = (row >> np.uint64(45)) & np.uint64(7)
        for value, window, f in ((1, SHARED_WINDOW, self._shared), (2, LOCAL_WINDOW, None), (0, 0, self._global), (4, 1 << 47, None)):
            some = mask & (kind == value)
            if some.any():
                if value == 2:
                    numeric.local_access(self.local, row - np.uint64(window), offset, some, size, self.data, write, self.machine.err, iid, self.tid, self.cta)
                elif f is None:
                    raise Fault("generic address of a parameter")
                else:
                    f(iid, row - np.uint64(window), offset, some, size, write)
        return self.buffers

    def load_generic(self, iid, row, offset, mask, size):
        return self._generic(iid, row, offset, mask, size, False)

    def store_generic(self, iid, row, offset, mask, size):
        self._generic(iid, row, offset, mask, size, True)

    def load_param(self, iid, row, offset, mask, size):
        at = int(row[np.argmax(mask)]) - (1 << 47) + offset
        if not (row[mask] == row[np.argmax(mask)]).all():
            raise Fault("parameters at addresses that differ")
        self.data[:, :size] = np.frombuffer(self.machine.parameters, np.uint8, size, at)
        return self.buffers

    def ldmatrix(self, iid, row, offset, mask, count, trans):
        m = self.machine
        numeric.ldmatrix(m.smem, m.shadow, m.gran, m.pending, row, offset, mask, count, trans, self.rows4, self.tid,
                         self.cta, m.epoch, m.wepoch, m.options.check, m.options.count, m.stats[iid], m.err, iid, POISON)  # fmt: skip
        return self.rows4

    def stmatrix(self, iid, row, offset, values, mask, trans):
        m = self.machine
        values = np.stack([np.broadcast_to(v, (self.n,)) for v in values])
        numeric.stmatrix(m.smem, m.shadow, m.gran, m.pending, row, offset, mask, values, trans, self.tid, self.cta, m.epoch,
                         m.wepoch, m.options.check, m.options.count, m.stats[iid], m.err, iid)  # fmt: skip

    def async_copy(self, iid, row, offset, source, offset2, mask, size, source_size):
        m = self.machine
        if source_size is None:
            reading = mask
        else:
            source_size = np.broadcast_to(source_size, (self.n,))
            if not np.isin(source_size[mask], (0, size)).all():
                raise Fault("cp.async of part of its bytes")
            reading = mask & (source_size > 0)
        self.data[:] = 0
        self._global(iid, source, offset2, reading, size, False)
        numeric.mark_pending(m.pending, m.shadow, m.gran, self.cta, self.tid, m.epoch, row, offset, mask, size, 1, m.err, iid)
        self.in_flight.append([iid, row.copy(), offset, mask.copy(), size, self.data.copy(), np.full(self.n, -1, np.int32)])

    def async_commit(self, mask):
        for e in self.in_flight:
            e[6] = np.where(mask & (e[6] < 0), self.commits, e[6])
        self.commits[mask] += 1

    def async_wait(self, mask, n):
        m = self.machine
        left = []
        for e in self.in_flight:
            iid, row, offset, lanes, size, data, group = e
            ready = mask & lanes & (group >= 0) & (group < self.commits - n)
            if ready.any():
                numeric.mark_pending(m.pending, m.shadow, m.gran, self.cta, self.tid, m.epoch, row, offset, ready, size, -1, m.err, iid)
                self.data[:] = data
                self._shared(iid, row, offset, ready, size, True, True)
                e[3] = lanes & ~ready
            if e[3].any():
                left.append(e)
        self.in_flight = left

    # warps

    def shuffle(self, iid, mode, a, b, c, member, mask):
        a, b, c, member = (np.broadcast_to(np.asarray(x), (self.n,)) for x in (a, b, c, member))
        out, ok = np.empty(self.n, np.uint32), np.empty(self.n, bool)
        numeric.shuffle(mode, a, b, c, member, mask, out, ok, self.machine.err, iid, self.tid, self.cta, False)
        return out, ok

    def warp_reduce(self, iid, op, a, member, mask):
        a, member = (np.broadcast_to(np.asarray(x), (self.n,)) for x in (a, member))
        out = np.zeros(self.n, np.uint32)
        numeric.warp_reduce(op, a, member, mask, out, self.machine.err, iid, self.tid, self.cta)
        return out

    def all_of(self, ballot, mask):
        weights = np.uint32(1) << (np.arange(32, dtype=np.uint32))
        active = (mask.reshape(-1, 32) * weights).sum(1).astype(np.uint32).repeat(32)
        return ballot == active

    def warp_barrier(self, iid, mask, member):
        warps = mask.reshape(-1, 32)
        if not (warps.any(1) == warps.all(1)).all() and not self.machine.translated.warpbars:
            pass
        some = warps.any(1)
        np.add.at(self.machine.wepoch, (self.cta[::32][some], (self.tid[::32] >> 5)[some]), 1)

    def reduce_at_barrier(self, value, mask, op, row):
        np.copyto(self.red, value, where=mask)
        self.machine.red_row, self.machine.red_op = row, op

    def mma_tf32(self, iid, k, a, b, c, mask):
        o = self.machine.options
        wide = [np.stack([x & np.uint32(0xFFFFE000) for x in part]).view("f4") for part in (a, b)]
        rows = np.stack(np.broadcast_arrays(*c)) if any(np.ndim(x) == 0 for x in c) else np.stack(c)
        if rows.ndim == 1:
            rows = np.repeat(rows[:, None], self.n, 1)
        out = np.empty((4, self.n), np.float32)
        numeric.mma_tf32(k, min(o.mma_group, k), o.mma_mode, mask, *wide, rows, out, self.n, self.machine.err, iid)
        return out

    def mma_f64(self, iid, m, k, a, b, c, mask):
        a, b, c = (np.stack([np.broadcast_to(x, (self.n,)) for x in part]) for part in (a, b, c))
        out = np.empty((len(c), self.n), np.float64)
        numeric.mma_f64(m, k, mask, a, b, c, out, self.n, self.machine.err, iid)
        return out

    def trap(self):
        raise Fault("trap")

    # control flow

    def run(self) -> None:
        """Until no lane can go on."""
        t, machine = self.translated, self.machine
        blocks = t.blocks
        alone = self.n == machine.lanes
        if not self.uniform and (self.status == 0).all() and (self.pcs == self.pcs[0]).all():
            self.uniform, self.pc = True, int(self.pcs[0])
        while True:
            if self.uniform:
                b = blocks[self.pc]
                machine.block_warps[b.number] += self.warps
                (t.full[b.number] or t.function(b.number, False))(self, None)
                kind = b.kind
                if kind == "fall" or kind == "warpbar":
                    self.pc = b.number + 1
                elif kind == "jump":
                    self.pc = b.target
                elif kind == "branch":
                    p = self.p[t.rows[b.predicate][1]]
                    taken = int(np.count_nonzero(p))
                    if b.negated:
                        taken = self.n - taken
                    if taken == self.n:
                        self.pc = b.target
                    elif taken == 0:
                        self.pc = b.number + 1
                    else:
                        self.pcs[:] = np.where(p != b.negated, b.target, b.number + 1)
                        self.status[:] = 0
                        self.uniform = False
                elif kind == "bar":
                    if alone:
                        machine.pcs[:] = b.number + 1
                        machine.status[:] = 1
                        machine.release()
                        self.pc = b.number + 1
                    else:
                        self.pcs[:] = b.number + 1
                        self.status[:] = 1
                        self.uniform = False
                        return
                elif kind == "exit":
                    self.status[:] = 2
                    self.uniform = False
                    return
                elif kind == "condexit":
                    p = self.p[t.rows[b.predicate][1]] != b.negated
                    self.status[:] = np.where(p, 2, 0)
                    self.pcs[:] = b.number + 1
                    self.uniform = False
                else:
                    raise Fault(kind)
                machine.tick()
                continue
            ready = self.status == 0
            if not ready.any():
                return
            number = int(self.pcs[ready].min())
            b = blocks[number]
            m = ready & (self.pcs == number)
            if b.together:
                here = ((self.status == 0) | (self.status == 3)) & (self.pcs == number)
                complete = (here | (self.status == 2)).reshape(-1, 32).all(1)
                wait = here & ~complete.repeat(32)
                self.status[wait] = 3
                m = here & complete.repeat(32)
                self.status[m] = 0
                if not m.any():
                    continue
            if m.all():
                self.uniform, self.pc = True, number
                continue
            warps = m.reshape(-1, 32)
            some = warps.any(1)
            machine.block_warps[number] += int(some.sum())
            machine.partial += int((some & ~warps.all(1)).sum())
            (t.masked[number] or t.function(number, True))(self, m)
            kind = b.kind
            if kind == "fall" or kind == "warpbar":
                self.pcs[m] = number + 1
            elif kind == "jump":
                self.pcs[m] = b.target
            elif kind == "branch":
                p = self.p[t.rows[b.predicate][1]] != b.negated
                self.pcs[m & p] = b.target
                self.pcs[m & ~p] = number + 1
            elif kind == "bar":
                self.pcs[m] = number + 1
                self.status[m] = 1
            elif kind == "exit":
                self.status[m] = 2
            elif kind == "condexit":
                p = self.p[t.rows[b.predicate][1]] != b.negated
                self.status[m & p] = 2
                self.pcs[m & ~p] = number + 1
            else:
                raise Fault(kind)
            machine.tick()


class Machine:
    """Programs ``first`` to ``first + programs`` of a grid."""

    def __init__(self, translated, memory, parameters, grid, first, programs, threads, shared, options, record) -> None:
        self.translated, self.memory, self.options = translated, memory, options
        self.parameters = parameters
        self.first, self.programs, self.threads = first, programs, threads
        if threads % 32:
            raise NotImplementedError("parts of warps")
        self.lanes = programs * threads
        warps = threads // 32
        # lane = (warp * programs + program) * 32 + l: a warp of all programs lies together
        w, c, l = np.meshgrid(np.arange(warps), np.arange(programs), np.arange(32), indexing="ij")
        self.tid = (w * 32 + l).reshape(-1).astype(np.int32)
        self.cta = c.reshape(-1).astype(np.int32)
        n = self.lanes
        one, none = np.ones(n, np.uint32), np.zeros(n, np.uint32)
        self.special = {"%tid.x": self.tid.astype("u4"), "%tid.y": none, "%tid.z": none, "%ntid.x": one * np.uint32(threads),
                        "%ntid.y": one, "%ntid.z": one, "%ctaid.x": (self.cta + first).astype("u4"), "%ctaid.y": none,
                        "%ctaid.z": none, "%nctaid.x": one * np.uint32(grid), "%nctaid.y": one, "%nctaid.z": one,
                        "%laneid": (self.tid & 31).astype("u4"), "%warpid": (self.tid >> 5).astype("u4"),
                        "%lanemask_lt": ((np.uint64(1) << (self.tid & 31).astype("u8")) - np.uint64(1)).astype("u4")}  # fmt: skip
        self.files = {
            size: np.full((translated.counts[size], n), fill, kind)
            for size, kind, fill in (("p", "?", False), ("16", "u2", 0xDEAD), ("32", "u4", 0x7FC0DEAD), ("64", "u8", 0x7FF8DEAD7FC0DEAD))
        }
        size = max(16, shared)
        self.gran = 1 if translated.small_shared else 4
        self.smem = np.tile(POISON, (programs, -(-size // 4)))
        self.smem = np.ascontiguousarray(self.smem[:, :size] if size % 4 == 0 else self.smem)
        self.shadow = np.full((programs, self.smem.shape[1] // self.gran + 1, 7), -1, np.int32)
        self.pending = np.zeros((programs, self.smem.shape[1] // self.gran + 1), np.int32)
        self.epoch = np.zeros(programs, np.int32)
        self.wepoch = np.zeros((programs, warps), np.int32)
        self.local = np.zeros((n, max(1, translated.local_bytes)), np.uint8)
        self.status, self.pcs = np.zeros(n, np.int8), np.zeros(n, np.int32)
        self.red, self.commits = np.zeros(n, bool), np.zeros(n, np.int32)
        self.red_row, self.red_op = None, "or"
        self.err = np.zeros((4096, 6), np.int64)
        self.stats = record.stats
        self.block_warps = record.warps
        self.record = record
        self.partial = 0
        self.steps = 0
        self.deadline = time.time() + options.limit
        if options.order == "lockstep":
            parts = [slice(0, n)]
        else:
            parts = [slice(k * programs * 32, (k + 1) * programs * 32) for k in range(warps)]
        self.groups = [Group(self, part) for part in parts]
        self.random = np.random.default_rng(options.seed)

    def tick(self) -> None:
        self.steps += 1
        if self.steps & 4095 == 0 and time.time() > self.deadline:
            raise Fault("takes too long")

    def release(self) -> bool:
        """Lets those programs go on whose lanes all wait."""
        waiting = self.status == 1
        if not waiting.any():
            return False
        n = self.programs
        waits = np.bincount(self.cta[waiting], minlength=n)
        alive = np.bincount(self.cta[self.status != 2], minlength=n)
        go = (waits == alive) & (waits > 0)
        if not go.any():
            return False
        lanes = go[self.cta] & waiting
        low, high = np.full(n, 1 << 30), np.zeros(n, np.int64)
        np.minimum.at(low, self.cta[lanes], self.pcs[lanes])
        np.maximum.at(high, self.cta[lanes], self.pcs[lanes])
        if (low[go] != high[go]).any():
            self.record.errors["barriers of different places meet"] += 1
        if self.red_row is not None:
            result = np.zeros(n, bool) if self.red_op == "or" else np.ones(n, bool)
            f = np.logical_or if self.red_op == "or" else np.logical_and
            f.at(result, self.cta[lanes], self.red[lanes])
            np.copyto(self.files["p"][self.red_row], result[self.cta], where=lanes)
            self.red_row = None
        self.status[lanes] = 0
        self.epoch[go] += 1
        self.wepoch[go] += 1
        return True

    def run(self) -> None:
        with np.errstate(all="ignore"):
            while True:
                order = list(range(len(self.groups)))
                if self.options.order == "reverse":
                    order.reverse()
                elif self.options.order == "random":
                    self.random.shuffle(order)
                for k in order:
                    self.groups[k].run()
                if (self.status == 2).all():
                    break
                if not self.release():
                    self.collect()
                    raise Fault(f"deadlock: {Counter(zip(self.status.tolist(), self.pcs.tolist())).most_common(5)}")
        self.collect()

    def collect(self) -> None:
        r = self.record
        r.partial += self.partial
        n = int(self.err[0, 0])
        r.same_value += int(self.err[0, 2])
        for row in self.err[1 : min(n, len(self.err) - 1) + 1]:
            kind, iid, cta, thread, address, other = (int(x) for x in row)
            i = self.translated.kernel.instructions[iid]
            key = (KINDS[kind], iid)
            r.errors[key] += 1
            r.examples.setdefault(
                key, f"{KINDS[kind]}: {i.text} (PTX line {i.line}, {i.loc}), program {cta + (0 if kind in (1, 2, 3, 9) else self.first)}, "
                f"thread {thread}, address {address:#x}, other {other}"
            )
        if n >= len(self.err) - 1:
            r.errors["more errors than are kept"] += n
        self.err[:] = 0


def launch(translated: Translated, grid: int, threads: int, shared: int, parameters: bytes, memory: Memory, options: Options) -> Record:
    """Runs the grid, as many programs at a time as ``options.lanes`` allow."""
    k = translated.kernel
    record = Record(k.name, grid, threads, shared, translated, np.zeros(len(translated.blocks), np.int64),
                    np.zeros((len(k.instructions), 2), np.int64))  # fmt: skip
    start = time.time()
    step = max(1, options.lanes // threads)
    for first in range(0, grid, step):
        machine = Machine(translated, memory, parameters, grid, first, min(step, grid - first), threads,
                          max(shared, translated.shared_static), options, record)  # fmt: skip
        machine.run()
    record.seconds = time.time() - start
    return record
