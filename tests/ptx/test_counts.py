"""Counts of small kernels against those made by hand, and the command that counts the product's kernels."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

pytest.importorskip("triton", reason="the counted kernels are Triton's")
pytest.importorskip("matplotlib", reason="pip install 'svdrd[dev]' brings what the benchmarks need")

from benchmarks import counted
from tests.ptx import counts, handwritten, machine_code
from tests.ptx.machine import Record
from tests.ptx.throughput import A100, H200

# The address of the thread's word of the first buffer: one IMAD; IADD3 and IMAD.
ADDRESS = "mul.wide.u32 %rd10, %r0, 4; add.u64 %rd11, %rd0, %rd10;\n"


def units(record: Record, capability: int = 90) -> dict[str, float]:
    """Warp instructions, passes and sectors by pipe: the cycles times what a pipe does in one."""
    device = {80: A100, 90: H200}[capability]
    cycles = counts.work(record, capability).cycles
    return {pipe: pytest.approx(n * device.pipes.get(pipe, 1.0)) for pipe, n in cycles.items()}


def test_a_loop_of_two_programs_of_two_warps():
    body = f"""{ADDRESS}
    ld.global.f32 %f0, [%rd11];
    mov.u32 %r5, 0;
    again:
    fma.rn.f32 %f0, %f0, %f0, %f0;
    rsqrt.approx.ftz.f32 %f1, %f0;
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p0, %r5, 10;
    @%p0 bra again;
    st.global.f32 [%rd11], %f0;"""
    record = handwritten.run(body, [np.ones(64, np.float32)], threads=64, grid=2, check=False)
    assert sum(warps for _, warps in counts.executed(record)) == 4 * (7 + 10 * 5 + 2)
    warp = {
        "issue": 3 + 1 + 10 * 5 + 1 + 1,
        "fma": 10 + 2,  # integer multiply-adds of the address take it, too
        "imad": 2,
        "alu": 1 + 10 * 2,
        "xu": 10,
        "lsu": 2,  # 128 bytes each
        "l2": 8,
    }
    assert units(record) == {pipe: 4 * n for pipe, n in warp.items()}


@pytest.mark.parametrize(
    ("stride", "width", "passes"),
    [(1, 1, 1), (2, 1, 2), (32, 1, 32), (33, 1, 1), (0, 1, 1), (2, 2, 2), (4, 4, 4)],
    ids=["words", "every other", "one bank", "padded", "one word", "pairs", "fours"],
)
def test_passes_through_the_banks(stride, width, passes):
    """32 banks of 4 bytes: as many words as lie in one bank, or 128 bytes, are a pass."""
    vector = f".v{width}" if width > 1 else ""
    names = ", ".join(f"%f{k}" for k in range(width))
    names = f"{{{names}}}" if width > 1 else names
    values = " ".join(f"mov.f32 %f{k}, 0f3F800000;" for k in range(width))
    body = f"""{values} mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, {4 * stride}, %r5;
    st.shared{vector}.f32 [%r6], {names};"""
    declarations = ".shared .align 16 .b8 buffer[8192];"
    record = handwritten.run(body, [np.zeros(1, np.float32)], declarations=declarations, check=False)
    assert units(record)["lsu"] == passes


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (16, 32), (0, 1)])
def test_sectors_of_global_memory(stride, sectors):
    """32 bytes each; a request is a cycle of the lsu pipe for each 128 bytes."""
    body = f"mul.wide.u32 %rd10, %r0, {4 * stride}; add.u64 %rd11, %rd0, %rd10; ld.global.f32 %f0, [%rd11];"
    record = handwritten.run(body, [np.ones(1024, np.float32)], check=False)
    assert units(record)["l2"] == sectors
    assert units(record)["lsu"] == max(1, sectors / 4)


def test_an_asynchronous_copy_takes_its_sectors_and_its_passes():
    """16 bytes a lane: 16 sectors, which are four cycles of requests, and four passes into shared memory."""
    body = """mul.wide.u32 %rd10, %r0, 16; add.u64 %rd11, %rd0, %rd10; mov.u32 %r5, buffer;
    mad.lo.u32 %r6, %r0, 16, %r5;
    cp.async.cg.shared.global [%r6], [%rd11], 16; cp.async.commit_group; cp.async.wait_group 0;"""
    declarations = ".shared .align 16 .b8 buffer[512];"
    record = handwritten.run(body, [np.ones(128, np.float32)], declarations=declarations, check=False)
    assert units(record)["l2"] == 16
    assert units(record)["lsu"] == 4 + 4


def cycles(body: str, declarations: str = "", capability: int = 90) -> list[int]:
    """Of the blocks of a kernel, one warp alone."""
    kernel = handwritten.translated(handwritten.text_of(body, 1, declarations))
    code, registers = kernel.kernel.instructions, set(kernel.kernel.registers)
    return [counts.block_cycles(code[block.first : block.last], registers, capability) for block in kernel.blocks]


def test_a_chain_of_dependencies():
    """Three dependent additions of 4 cycles; beside them 18 independent ones: one instruction a cycle."""
    chain = "add.f32 %f1, %f0, %f0; add.f32 %f2, %f1, %f1; add.f32 %f3, %f2, %f2;"
    assert cycles(chain) == [12]
    many = " ".join(f"add.f32 %f{k}, %f0, %f0;" for k in range(10, 28))
    assert cycles(chain + many) == [22]  # ret, too
    # 4 cycles, then a load that hits L2, then 4.
    load = f"{ADDRESS} ld.global.f32 %f0, [%rd11]; add.f32 %f1, %f0, %f0;"
    assert cycles(load) == [4 + 8 + 264 + 4]
    assert cycles(load, capability=80) == [4 + 8 + 202 + 4]


def test_shared_memory_waits_for_the_barrier():
    body = """add.f32 %f1, %f0, %f0; add.f32 %f2, %f1, %f1; mov.u32 %r5, buffer; st.shared.f32 [%r5], %f2;
    bar.sync 0; ld.shared.f32 %f3, [%r5]; add.f32 %f4, %f3, %f3;"""
    assert cycles(body, ".shared .align 16 .b8 buffer[512];") == [4 + 4 + 1 + 20, 29 + 4]


def test_programs_of_a_multiprocessor():
    assert counts.Residence.of(168, 32, 0, H200) == (168, 12, 12)  # 65536 / (168 * 32) = 12.2
    assert counts.Residence.of(161, 32, 0, H200) == (161, 12, 12)  # registers are given out in eights
    assert counts.Residence.of(32, 256, 0, H200) == (32, 8, 64)  # 64 warps
    assert counts.Residence.of(16, 32, 0, H200) == (16, 32, 32)  # 32 blocks
    # Each program takes 1 KB of shared memory besides its own.
    assert counts.Residence.of(32, 128, 64 * 1024, H200).programs == 3
    assert counts.Residence.of(32, 128, 64 * 1024, A100).programs == 2


def test_loops():
    body = "mov.u32 %r5, 0; outer: inner: add.u32 %r5, %r5, 1; @%p0 bra inner; @%p1 bra outer;"
    kernel = handwritten.translated(handwritten.text_of(body, 1)).kernel
    assert machine_code.estimated_loops(kernel, 90) == [2, 3]
    branches = {2: 16, 3: 16}
    code = [machine_code.Instruction(16 * k, "BRA" if k in branches else "IADD3", branches.get(k)) for k in range(5)]
    assert machine_code.loops(code) == [2, 3]
    with mock.patch.object(machine_code, "disassembled", return_value=code):
        assert machine_code.ratio(b"", kernel, 90) == 1
    with mock.patch.object(machine_code, "disassembled", return_value=code[:3]):
        assert machine_code.ratio(b"", kernel, 90) is None  # one loop of two


@pytest.mark.nightly
def test_launches_that_stand_for_others_do_the_same():
    """Of the products' launches only those that differ are emulated: all of them give the same counts."""
    case = counts.Case("basis_loss", "both", 4, 16, "products", (1, 1))
    few = counts.emulated(case, 80)
    with mock.patch.object(counts.Case, "data_decides", True):
        every = counts.emulated(case, 80)
    assert len({id(record) for _, record in few}) < len(few) / 3

    def total(launches: list[tuple[tuple, Record]]) -> counts.Work:
        done = counts.Work()
        for _, record in launches:
            done.add(counts.work(record, 80), 1)
        return done

    assert total(few) == total(every)
    # The whole batch is launched by the same kernels in the same order.
    whole = [launch for call in case.calls(2, 2, "meta") for launch in counts.launches(call)]
    assert [form for form, _ in few] == [form for form, _ in every] == [launch.form for launch in whole]


def test_the_command(tmp_path, capsys):
    page, csv = tmp_path / "page.md", tmp_path / "counted.csv"
    page.write_text(f"{counted.BEGIN}\n{counted.END}\n")
    only = ["--only", "jacobi svd forward 100000 x 8", "--processes", "1"]
    assert counts.main([*only, "--write", "--csv", str(csv), "--docs", str(page)]) == 0
    assert capsys.readouterr().out.startswith("jacobi svd forward 100000 x 8^2, sm_90")
    (row,) = counted.read(csv)
    assert row.chosen
    assert row.quantities["launches"] == 1
    assert row.bound == pytest.approx(max(row.quantities["pipes ms"], row.quantities["chain ms"]), rel=1e-3)
    assert row.quantities["issue ms"] == row.quantities["pipes ms"]
    # The machine code of its longest loop, against what pipes.py makes of the PTX: it lacks moves.
    assert 0.9 < row.quantities["machine code / estimate"] < 1.2
    assert "| `svd` forward, 100000 x 8² | **jacobi** |" in page.read_text()
