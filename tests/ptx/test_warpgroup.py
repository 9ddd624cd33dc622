"""Hopper's ``wgmma`` by handwritten kernels: layouts, arithmetic, and that a forgotten fence, wait or barrier is found.

Sections are those of NVIDIA's "Parallel Thread Execution ISA", version 9: 9.7.15.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest

from tests.ptx import findings, handwritten, machine, warpgroup

ORDERS = ("lockstep", "forward", "reverse", "random")
THREADS = 128
ROWS, DEPTH = 64, 8
# Swizzling modes of a descriptor, by the bytes of a pattern's row.
MODES = {16: 0, 128: 1, 64: 2, 32: 3}
UNFENCED, RACE, OUT_OF_BOUNDS, UNINITIALISED, OVERWRITTEN, IN_FLIGHT, NOT_UNIFORM, RESERVED = (
    findings.KINDS[kind]
    for kind in (
        findings.UNFENCED, findings.RACE, findings.OUT_OF_BOUNDS, findings.UNINITIALISED, findings.OVERWRITTEN,
        findings.IN_FLIGHT, findings.NOT_UNIFORM, findings.RESERVED,
    )
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A K-major matrix in shared memory: ``pitch`` bytes of a row lie together, the first pattern begins at ``start``.

    Eight rows are a pattern, and the patterns follow one another. Pieces of 16 bytes are placed by the figures of
    9.7.15.5.1.2, not by bits of addresses.
    """

    pitch: int
    start: int = 0

    def offset(self, row: int, column: int) -> int:
        """Bytes from the start."""
        piece = column // 4
        group, inside = divmod(row, 8)
        if self.pitch == 16:
            return (group * 2 + piece) * 128 + inside * 16 + column % 4 * 4
        pieces = self.pitch // 16
        moved = piece ^ (inside * self.pitch // 128)
        return group * 8 * self.pitch + (inside * pieces + moved) * 16 + column % 4 * 4

    @property
    def columns(self) -> int:
        return max(self.pitch // 4, DEPTH)

    def descriptor(self, column: int) -> int:
        """Of the eight columns that begin at ``column``."""
        leading, stride = (128, 256) if self.pitch == 16 else (16, 8 * self.pitch)
        base = 0 if self.pitch == 16 else self.start >> 7 & 7
        address = self.start + 4 * column
        return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | base << 49 | MODES[self.pitch] << 62

    def place(self, image: np.ndarray, matrix: np.ndarray) -> None:
        for row in range(matrix.shape[0]):
            for column in range(matrix.shape[1]):
                image[(self.start + self.offset(row, column)) // 4] = matrix[row, column]


def accumulator_place(thread: int, register: int) -> tuple[int, int]:
    """Row and column of what a thread holds of D (figure "m64nNk8, accumulator")."""
    warp, lane = divmod(thread, 32)
    return 16 * warp + lane // 4 + 8 * (register // 2 % 2), 8 * (register // 4) + 2 * (lane % 4) + register % 2


def left_place(thread: int, register: int) -> tuple[int, int]:
    """Row and column of what a thread holds of A (figure "m64nNk8, A")."""
    warp, lane = divmod(thread, 32)
    return 16 * warp + lane // 4 + 8 * (register % 2), lane % 4 + 4 * (register // 2)


@dataclass
class Kernel:
    """D = A B + C with all its fences, for one warpgroup: its PTX can be changed before it runs.

    A is in shared memory at ``left``, or in registers if that is None; B, transposed, at ``right``.
    """

    left: Layout | None
    right: Layout
    columns: int = 16
    accumulates: str = "1"
    signs: tuple[int, int] = (1, 1)
    size: int = 24576

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        # Small integers: products, sums and every order of them are exact, also in TF32.
        depth = min(self.right.columns, self.left.columns if self.left else DEPTH)
        self.a = generator.integers(-9, 10, (ROWS, depth)).astype(np.float32)
        self.b = generator.integers(-9, 10, (self.columns, depth)).astype(np.float32)
        self.c = generator.integers(-9, 10, (ROWS, self.columns)).astype(np.float32)
        self.text = self._text()

    def _text(self) -> str:
        """The words of the first buffer go to shared memory, 16 bytes of each thread at a time."""
        copies = "".join(
            f"ld.global.v4.b32 {{%r30, %r31, %r32, %r33}}, [%rd20+{16 * THREADS * k}];\n"
            f"st.shared.v4.b32 [%r20+{16 * THREADS * k}], {{%r30, %r31, %r32, %r33}};\n"
            for k in range(self.size // (16 * THREADS))
        )
        registers = range(self.columns // 2)
        d = "{" + ", ".join(f"%f{k}" for k in registers) + "}"
        products = []
        for column in range(0, self.a.shape[1], DEPTH):
            left = "{%r40, %r41, %r42, %r43}"
            if self.left:
                left = "%rd30"
                products.append(f"mov.b64 %rd30, {self.left.descriptor(column):#x};\n")
            accumulates = self.accumulates if column == 0 else "1"
            products.append(
                f"mov.b64 %rd31, {self.right.descriptor(column):#x};\n"
                f"wgmma.mma_async.sync.aligned.m64n{self.columns}k8.f32.tf32.tf32 {d}, {left}, %rd31, {accumulates}, "
                f"{self.signs[0]}, {self.signs[1]};\n"
            )
        loads = "".join(f"ld.global.f32 %f{k}, [%rd22+{4 * k}];\n" for k in registers)
        stores = "".join(f"st.global.f32 [%rd23+{4 * k}], %f{k};\n" for k in registers)
        body = f"""
        mul.wide.u32 %rd10, %r0, 16;
        add.u64 %rd20, %rd0, %rd10;
        add.u64 %rd21, %rd1, %rd10;
        ld.global.v4.b32 {{%r40, %r41, %r42, %r43}}, [%rd21];
        mul.wide.u32 %rd11, %r0, {2 * self.columns};
        add.u64 %rd22, %rd2, %rd11;
        add.u64 %rd23, %rd3, %rd11;
        {loads}
        mov.u32 %r20, buffer;
        mad.lo.u32 %r20, %r0, 16, %r20;
        mov.pred %p1, 0;
        {copies}
        fence.proxy.async.shared::cta;
        bar.sync 0;
        wgmma.fence.sync.aligned;
        {"".join(products)}
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        {stores}
        """
        return handwritten.text_of(body, 4, f".shared .align 1024 .b8 buffer[{self.size}];")

    def change(self, old: str, new: str, count: int = -1) -> Kernel:
        """The PTX with something else in a place, or in the first ``count`` places."""
        assert old in self.text
        self.text = self.text.replace(old, new, count)
        return self

    def run(self, **options: object) -> machine.Record:
        """What it computes is in ``self.d`` then."""
        image = np.zeros(self.size // 4, np.float32)
        self.right.place(image, self.b)
        if self.left:
            self.left.place(image, self.a)
        places = [[accumulator_place(t, k) for k in range(self.columns // 2)] for t in range(THREADS)]
        rows, columns = np.moveaxis(np.array(places), -1, 0)
        fragments = np.array([[self.a[left_place(t, k)] for k in range(4)] for t in range(THREADS)])
        out = handwritten.unwritten(self.c.size).view(np.float32)
        buffers = [image, fragments, np.ascontiguousarray(self.c[rows, columns]), out]
        kernel = handwritten.translated(self.text)
        record = handwritten.launch(kernel, buffers, threads=THREADS, **options)
        self.d = np.empty_like(self.c)
        self.d[rows, columns] = out.reshape(rows.shape)
        return record

    def expected(self) -> np.ndarray:
        return self.a @ self.b.T * (self.signs[0] * self.signs[1]) + (self.c if self.accumulates == "1" else 0)


def in_registers() -> Kernel:
    return Kernel(None, Layout(64))


def in_shared_memory() -> Kernel:
    return Kernel(Layout(64), Layout(64, 8192))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("right", [16, 32, 64, 128])
@pytest.mark.parametrize("left", [None, 16, 32, 64, 128])
def test_layouts(left: int | None, right: int, order: str) -> None:
    """Both places of A, each swizzling mode, all columns of a pattern's row."""
    kernel = Kernel(Layout(left) if left else None, Layout(right, 8192))
    record = kernel.run(order=order)
    assert not record.errors, record.examples
    np.testing.assert_array_equal(kernel.d, kernel.expected())


@pytest.mark.parametrize("columns", range(8, 65, 8))
def test_shapes(columns: int) -> None:
    kernel = Kernel(None, Layout(128), columns)
    assert not kernel.run().errors
    np.testing.assert_array_equal(kernel.d, kernel.expected())


@pytest.mark.parametrize(("pitch", "start"), [(128, 8192 + 256), (128, 8192 + 896), (64, 8192 + 128), (32, 8192 + 128)])
def test_the_base_offset_says_where_a_pattern_begins(pitch: int, start: int) -> None:
    kernel = Kernel(None, Layout(pitch, start))
    assert not kernel.run().errors
    np.testing.assert_array_equal(kernel.d, kernel.expected())


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)])
def test_operands_can_be_negated(signs: tuple[int, int]) -> None:
    kernel = Kernel(None, Layout(64), signs=signs)
    assert not kernel.run().errors
    np.testing.assert_array_equal(kernel.d, kernel.expected())


@pytest.mark.parametrize("accumulates", ["0", "%p1"])
def test_without_accumulation_the_accumulator_is_not_read(accumulates: str) -> None:
    kernel = Kernel(Layout(64), Layout(64, 8192), accumulates=accumulates)
    kernel.c[:] = np.nan
    assert not kernel.run().errors
    np.testing.assert_array_equal(kernel.d, kernel.expected())


def test_the_low_bits_of_operands_are_ignored() -> None:
    """A TF32 operand has 10 bits of fraction: 13 of a float32 are not read."""
    kernel = in_shared_memory()
    exact = kernel.expected()
    for operand in (kernel.a, kernel.b):
        operand.view(np.uint32)[:] |= np.where(operand == 0, 0, 0x1FFF).astype(np.uint32)
    assert not kernel.run().errors
    np.testing.assert_array_equal(kernel.d, exact)


def test_sums_are_truncated() -> None:
    """1 + 2^-24 and -1 - 2^-24 become 1 and -1 where a product tensor core truncates; to the nearest would do so, too.

    1 + 3 * 2^-24 shows the difference: to the nearest it is 1 + 2^-22, towards zero 1 + 2^-23.
    """
    kernel = in_registers()
    kernel.a[:], kernel.b[:], kernel.c[:] = 0, 0, 1
    kernel.a[:, 0], kernel.b[:, 0] = 3 * 2.0**-12, 2.0**-12
    kernel.run()
    np.testing.assert_array_equal(kernel.d, np.full_like(kernel.d, 1 + 2.0**-23))
    kernel.run(mma_truncates=False)
    np.testing.assert_array_equal(kernel.d, np.full_like(kernel.d, 1 + 2.0**-22))


def test_two_warpgroups_have_matrices_of_their_own() -> None:
    """The second group of four warps has another B: its descriptors are not compared with those of the first."""
    body = """
    mov.u32 %r20, buffer;
    shr.u32 %r21, %r0, 7;
    and.b32 %r22, %r0, 127;
    mul.lo.u32 %r23, %r21, 256;
    shl.b32 %r24, %r22, 2;
    add.u32 %r25, %r20, %r23;
    add.u32 %r26, %r25, %r24;
    cvt.rn.f32.u32 %f10, %r21;
    setp.lt.u32 %p1, %r22, 64;
    @%p1 st.shared.f32 [%r26], %f10;
    fence.proxy.async;
    bar.sync 0;
    shr.u32 %r27, %r25, 4;
    cvt.u64.u32 %rd10, %r27;
    or.b64 %rd10, %rd10, 0x1000080000;
    mov.b32 %r30, 0x3F800000;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0, %f1, %f2, %f3}, {%r30, %r30, %r30, %r30}, %rd10, 0, 1, 1;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mul.wide.u32 %rd11, %r0, 4;
    add.u64 %rd11, %rd0, %rd11;
    st.global.f32 [%rd11], %f3;
    """
    out = np.zeros(256, np.float32)
    record = handwritten.run(body, [out], declarations=".shared .align 1024 .b8 buffer[1024];", threads=256)
    assert not record.errors, record.examples
    assert (out == np.repeat([0, 8], 128)).all()


def test_counts() -> None:
    """Warp instructions by shape; 128 bytes of shared memory a pass, for the four warps together."""
    for kernel, passes in ((in_registers(), 16 * 8 * 4 // 128), (in_shared_memory(), 2 * (16 + 64) * 8 * 4 // 128)):
        record = kernel.run()
        products = 1 if kernel.left is None else 2
        assert record.classes()["wgmma tf32 m64n16k8"] == 4 * products
        assert record.memory()["wgmma tf32 m64n16k8 passes"] == passes


# Faults


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("left", [None, 64])
@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("fence.proxy.async.shared::cta;", "", UNFENCED),
        ("fence.proxy.async.shared::cta;", "fence.proxy.async.global;", UNFENCED),
        ("fence.proxy.async.shared::cta;", "setp.ge.u32 %p2, %r0, 32;\n@%p2 fence.proxy.async.shared::cta;", UNFENCED),
        ("wgmma.fence.sync.aligned;", "", warpgroup.NOT_FENCED),
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned;\nadd.f32 %f0, %f0, %f1;", warpgroup.NOT_FENCED),
        ("wgmma.wait_group.sync.aligned 0;", "", warpgroup.ACCESSED),
        ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;", warpgroup.ACCESSED),
        ("wgmma.commit_group.sync.aligned;", "", warpgroup.ACCESSED),
        ("wgmma.wait_group", "mov.f32 %f20, %f0;\nwgmma.wait_group", warpgroup.ACCESSED),
        ("bar.sync 0;", "", RACE),
        ("wgmma.wait_group", "st.shared.v4.b32 [%r20+8192], {%r30, %r31, %r32, %r33};\nwgmma.wait_group", OVERWRITTEN),
        ("wgmma.wait_group", "cp.async.cg.shared.global [%r20+8192], [%rd20], 16;\nwgmma.wait_group", OVERWRITTEN),
    ],
)
def test_what_is_forgotten_is_found(left: int | None, old: str, new: str, kind: str, order: str) -> None:
    kernel = Kernel(left and Layout(left), Layout(64, 8192)).change(old, new)
    assert kind in handwritten.found(kernel.run(order=order))


def test_registers_of_a_are_in_flight_too() -> None:
    kernel = in_registers().change("wgmma.wait_group", "mov.b32 %r40, 0;\nwgmma.wait_group")
    assert handwritten.found(kernel.run()) == {warpgroup.ACCESSED}


def test_registers_of_a_need_the_fence() -> None:
    kernel = in_registers().change("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned;\nmov.b32 %r41, 0;")
    assert handwritten.found(kernel.run()) == {warpgroup.NOT_FENCED}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("barrier", "found"), [("", {RACE}), ("bar.sync 0;\n", set())])
def test_after_the_wait_a_barrier_is_needed_before_the_operand_is_overwritten(
    barrier: str, found: set[str], order: str
) -> None:
    """A warp's own wait says nothing about the other three, which read the same matrix."""
    wait, store = "wgmma.wait_group.sync.aligned 0;\n", "st.shared.v4.b32 [%r20+8192], {%r0, %r0, %r0, %r0};\n"
    kernel = Kernel(None, Layout(64, 8192)).change(wait, wait + barrier + store)
    assert found <= handwritten.found(kernel.run(order=order))
    if barrier:
        assert not kernel.run(order=order).errors


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("predicate", "found"), [("", set()), ("setp.lt.u32 %p2, %r0, 64;\n@%p2 ", {UNFENCED})])
def test_the_readers_can_fence_after_the_barrier(predicate: str, found: set[str], order: str) -> None:
    """Each of them has to: the fence of one warp orders nothing for another that passed the barrier with it."""
    fence, barrier = "fence.proxy.async.shared::cta;", "bar.sync 0;"
    kernel = in_shared_memory().change(fence, "").change(barrier, f"{barrier}\n{predicate}{fence}")
    assert handwritten.found(kernel.run(order=order)) == found


@pytest.mark.parametrize(("fence", "wait", "found"), [
    ("fence.proxy.async.shared::cta;", "cp.async.wait_all;", set()),
    ("", "cp.async.wait_all;", {UNFENCED}),
    ("fence.proxy.async.shared::cta;", "", {IN_FLIGHT, UNINITIALISED}),
])  # fmt: skip
def test_asynchronous_copies_are_of_the_generic_proxy(fence: str, wait: str, found: set[str]) -> None:
    kernel = in_registers().change("fence.proxy.async.shared::cta;", f"{wait}\n{fence}")
    kernel.text, copies = re.subn(
        r"ld.global.v4.b32 {[^}]*}, (\[%rd20\+\d+\]);\s*st.shared.v4.b32 (\[%r20\+\d+\]), {[^}]*};",
        r"cp.async.cg.shared.global \2, \1, 16;",
        kernel.text,
    )
    assert copies == kernel.size // (16 * THREADS)
    assert handwritten.found(kernel.run()) == found


@pytest.mark.parametrize("pitch", [16, 32, 128])
def test_a_wrong_swizzle_gives_a_wrong_product(pitch: int) -> None:
    kernel = Kernel(None, Layout(64))
    mode = MODES[64] << 62
    right = f"{kernel.right.descriptor(0):#x}"
    kernel.change(right, f"{int(right, 16) ^ mode | MODES[pitch] << 62:#x}").run()
    assert (kernel.d != kernel.expected()).any()


def test_a_descriptor_that_points_outside_is_found() -> None:
    kernel = Kernel(None, Layout(64))
    right = f"{kernel.right.descriptor(0):#x}"
    kernel.change(right, f"{int(right, 16) + ((kernel.size - 512) >> 4):#x}")
    assert handwritten.found(kernel.run()) == {OUT_OF_BOUNDS}


def test_a_descriptor_of_bytes_never_written_is_found() -> None:
    kernel = Kernel(None, Layout(64))
    kernel.change(f"buffer[{kernel.size}]", f"buffer[{2 * kernel.size}]")
    right = f"{kernel.right.descriptor(0):#x}"
    kernel.change(right, f"{int(right, 16) + (kernel.size >> 4):#x}")
    assert handwritten.found(kernel.run()) == {UNINITIALISED}


@pytest.mark.parametrize("bit", [14, 30, 46, 52, 61])
def test_bits_without_a_meaning_are_found(bit: int) -> None:
    kernel = Kernel(None, Layout(64))
    right = f"{kernel.right.descriptor(0):#x}"
    assert handwritten.found(kernel.change(right, f"{int(right, 16) | 1 << bit:#x}").run()) == {RESERVED}


@pytest.mark.parametrize("order", ORDERS)
def test_all_warps_of_a_warpgroup_execute_the_same(order: str) -> None:
    """Another descriptor in one warp; a product less in one warp."""
    other = "shr.u32 %r50, %r0, 5;\nsetp.eq.u32 %p3, %r50, 2;\n"
    kernel = Kernel(None, Layout(64))
    right = f"mov.b64 %rd31, {kernel.right.descriptor(0):#x};"
    kernel.change(right, f"{right}\n{other}@%p3 mov.b64 %rd31, {kernel.right.descriptor(8):#x};")
    assert handwritten.found(kernel.run(order=order)) == {warpgroup.APART}
    kernel = Kernel(None, Layout(64))
    kernel.change("wgmma.mma_async", f"{other}@%p3 bra skipped;\nwgmma.mma_async")
    kernel.change("wgmma.commit_group", "skipped:\nwgmma.commit_group")
    assert handwritten.found(kernel.run(order=order)) == {warpgroup.APART}


def test_operands_are_the_same_in_all_lanes_of_a_warp() -> None:
    kernel = Kernel(None, Layout(64))
    right = f"mov.b64 %rd31, {kernel.right.descriptor(0):#x};"
    kernel.change(right, f"{right}\nsetp.eq.u32 %p3, %r0, 37;\n@%p3 mov.b64 %rd31, 0;")
    assert NOT_UNIFORM in handwritten.found(kernel.run())


def test_parts_of_warpgroups_are_refused() -> None:
    with pytest.raises(NotImplementedError):
        handwritten.launch(handwritten.translated(in_registers().text), [np.zeros(8192, np.float32)] * 4, threads=64)


# Registers along the control flow

PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {{{0}}}, %rd10, %rd11, 1, 1, 1;\n"
FIRST, SECOND = PRODUCT.format("%f0, %f1, %f2, %f3"), PRODUCT.format("%f4, %f5, %f6, %f7")
FENCE, COMMIT = "wgmma.fence.sync.aligned;\n", "wgmma.commit_group.sync.aligned;\n"
WAIT_ALL, WAIT_ONE = "wgmma.wait_group.sync.aligned 0;\n", "wgmma.wait_group.sync.aligned 1;\n"
READ_FIRST, READ_SECOND = "add.f32 %f20, %f0, %f1;\n", "add.f32 %f20, %f4, %f5;\n"
WRITE_FIRST = "mov.f32 %f0, 0f00000000;\n"
WIDER = (
    "wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32 "
    "{%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}, %rd10, %rd11, 1, 1, 1;\n"
)
LEFT = (
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0, %f1, %f2, %f3}, {%f4, %f5, %f6, %f7}, %rd11, 1, 1, 1;\n"
)
LOOP, AGAIN = "again:\n", "@%p1 bra again;\n"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (FENCE + FIRST + COMMIT + SECOND + COMMIT + WAIT_ONE + READ_FIRST + WAIT_ALL + READ_SECOND, set()),
        (FENCE + FIRST + COMMIT + SECOND + COMMIT + WAIT_ONE + READ_SECOND, {warpgroup.ACCESSED}),
        (FENCE + FIRST + FIRST + COMMIT + WAIT_ALL + READ_FIRST, set()),
        (FENCE + FIRST + WIDER + COMMIT + WAIT_ALL + READ_FIRST, {warpgroup.ACCESSED}),
        (FENCE + SECOND + LEFT + COMMIT + WAIT_ALL, {warpgroup.ACCESSED}),
        (FENCE + LEFT + SECOND + COMMIT + WAIT_ALL, {warpgroup.ACCESSED}),
        (FENCE + LEFT + LEFT + COMMIT + WAIT_ALL + READ_FIRST, set()),
        (FENCE + FIRST + COMMIT + WAIT_ALL + READ_FIRST + FIRST + COMMIT, {warpgroup.NOT_FENCED}),
        (FENCE + FIRST + COMMIT + WAIT_ALL + READ_FIRST + FENCE + FIRST + COMMIT, set()),
        # A loop: what is in flight at its end is so at its beginning.
        (FENCE + LOOP + FIRST + COMMIT + WAIT_ALL + AGAIN + READ_FIRST, set()),
        (FENCE + LOOP + FIRST + COMMIT + AGAIN + WAIT_ALL + READ_FIRST, set()),
        (FENCE + LOOP + READ_FIRST + FENCE + FIRST + COMMIT + AGAIN + WAIT_ALL, {warpgroup.ACCESSED}),
        (FENCE + LOOP + FIRST + COMMIT + WAIT_ALL + READ_FIRST + AGAIN, {warpgroup.NOT_FENCED}),
        (FENCE + LOOP + FIRST + COMMIT + SECOND + COMMIT + WAIT_ONE + READ_FIRST + FENCE + AGAIN + WAIT_ALL, set()),
        # A wait on one of two ways.
        (FENCE + FIRST + COMMIT + "@%p1 bra past;\n" + WAIT_ALL + "past:\n" + WRITE_FIRST, {warpgroup.ACCESSED}),
        ("@%p1 bra past;\n" + FENCE + "past:\n" + FIRST + COMMIT, {warpgroup.NOT_FENCED}),
    ],
)
def test_registers_along_the_control_flow(body: str, found: set[str]) -> None:
    kernel = handwritten.translated(handwritten.text_of(body, 0))
    assert {fault for fault, _ in kernel.register_faults} == found
