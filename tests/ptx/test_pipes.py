"""The machine instructions of each PTX instruction, against those that ptxas makes."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

triton = pytest.importorskip("triton", reason="ptxas comes with Triton")

from tests.ptx import pipes  # noqa: E402
from tests.ptx.throughput import DEVICES, MACHINE  # noqa: E402

TOOLS = Path(triton.__file__).with_name("backends") / "nvidia" / "bin"
# Machine instructions by what prices them. Moves, and control that every kernel has, count nothing.
SAME = {
    "FADD": "FADD FMUL FFMA",
    "IMAD": "IMAD",
    "IADD3": "IADD3 VIADD LOP3 SHF SGXT ISETP FSETP FSEL SEL FMNMX IMNMX VIMNMX IABS PRMT LEA PLOP3 I2FP VOTE FLO POPC",
    "DADD": "DADD DMUL DFMA DSETP",
    "MUFU": "MUFU",
    "F2F": "F2F",
    "I2F": "I2F F2I",
    "REDUX": "REDUX",
    "SHFL": "SHFL",
    "HMMA": "HMMA",
    "DMMA": "DMMA",
    "LDS": "LDS",
    "LDSM": "LDSM",
    "STS": "STS",
    "BAR": "BAR",
}
PRICED_AS = {name: price for price, names in SAME.items() for name in names.split()}
# PTX with {0} for the result and {1}, {2} for what was loaded; their types, the result's first.
INSTRUCTIONS = [
    ("add.f32 {0}, {1}, {2};", "f32 f32 f32"),
    ("fma.rn.f32 {0}, {1}, {2}, {1};", "f32 f32 f32"),
    ("mul.f64 {0}, {1}, {2};", "f64 f64 f64"),
    ("max.f32 {0}, {1}, {2};", "f32 f32 f32"),
    ("max.f64 {0}, {1}, {2};", "f64 f64 f64"),
    ("rsqrt.approx.ftz.f32 {0}, {1};", "f32 f32"),
    ("sqrt.approx.ftz.f32 {0}, {1};", "f32 f32"),
    ("rsqrt.approx.f32 {0}, {1};", "f32 f32"),
    ("sqrt.approx.f32 {0}, {1};", "f32 f32"),
    ("ex2.approx.f32 {0}, {1};", "f32 f32"),
    ("rcp.approx.f32 {0}, {1};", "f32 f32"),
    ("div.full.f32 {0}, {1}, {2};", "f32 f32 f32"),
    ("cvt.rna.tf32.f32 {0}, {1};", "b32 f32"),
    ("cvt.f64.f32 {0}, {1};", "f64 f32"),
    ("cvt.rn.f32.f64 {0}, {1};", "f32 f64"),
    ("cvt.rn.f32.s32 {0}, {1};", "f32 s32"),
    ("cvt.rzi.s32.f32 {0}, {1};", "s32 f32"),
    ("cvt.rn.f64.s32 {0}, {1};", "f64 s32"),
    ("cvt.s64.s32 {0}, {1};", "s64 s32"),
    ("cvt.u64.u32 {0}, {1};", "u64 u32"),
    ("cvt.u32.u64 {0}, {1};", "u32 u64"),
    ("add.s32 {0}, {1}, {2};", "s32 s32 s32"),
    ("add.s64 {0}, {1}, {2};", "s64 s64 s64"),
    ("mul.lo.s32 {0}, {1}, {2};", "s32 s32 s32"),
    ("mad.lo.s32 {0}, {1}, {2}, {1};", "s32 s32 s32"),
    ("mul.hi.s32 {0}, {1}, {2};", "s32 s32 s32"),
    ("mul.wide.s32 {0}, {1}, {2};", "s64 s32 s32"),
    ("mul.lo.s64 {0}, {1}, {2};", "s64 s64 s64"),
    ("and.b32 {0}, {1}, {2};", "b32 b32 b32"),
    ("or.b64 {0}, {1}, {2};", "b64 b64 b64"),
    ("shr.s32 {0}, {1}, 3;", "s32 s32"),
    ("shl.b64 {0}, {1}, 3;", "b64 b64"),
    ("bfe.u32 {0}, {1}, 3, 5;", "u32 u32"),
    ("div.s32 {0}, {1}, {2};", "s32 s32 s32"),
    ("rem.s32 {0}, {1}, {2};", "s32 s32 s32"),
    ("mov.u32 %r9, %laneid; shfl.sync.idx.b32 {0}, %r9, {1}, 31, -1;", "b32 b32"),
    ("redux.sync.max.s32 {0}, {1}, -1;", "s32 s32"),
    ("not.b32 {0}, {1};", "b32 b32"),
    ("min.s32 {0}, {1}, {2};", "s32 s32 s32"),
    # Comparisons with the selection that shows their result.
    ("setp.lt.f32 %p1, {1}, {2}; selp.f32 {0}, {1}, {2}, %p1;", "f32 f32 f32"),
    ("setp.num.f32 %p1, {1}, {2}; selp.b32 {0}, 5, 7, %p1;", "b32 f32 f32"),
    ("setp.lt.s32 %p1, {1}, {2}; selp.b32 {0}, 5, 7, %p1;", "b32 s32 s32"),
    ("setp.lt.s64 %p1, {1}, {2}; selp.b32 {0}, 5, 7, %p1;", "b32 s64 s64"),
    ("setp.lt.f64 %p1, {1}, {2}; selp.b32 {0}, 5, 7, %p1;", "b32 f64 f64"),
    ("setp.lt.s32 %p1, {1}, 9; selp.f64 {0}, {2}, 0d3FF0000000000000, %p1;", "f64 s32 f64"),
    # What becomes a modifier or a name.
    ("abs.f32 %f9, {1}; add.f32 {0}, %f9, {2};", "f32 f32 f32"),
    ("neg.f32 %f9, {1}; fma.rn.f32 {0}, %f9, {2}, {1};", "f32 f32 f32"),
    ("mov.b32 %r9, {1}; add.s32 {0}, %r9, {2};", "s32 f32 s32"),
]


@cache
def compiled(capability: int) -> dict[int, list[str]]:
    """The machine instructions of a kernel for each of the above, without operands."""
    kernels = [f".version 8.5\n.target sm_{capability}\n.address_size 64"]
    for number, (form, types) in enumerate(INSTRUCTIONS):
        loads, body, store = of_types(types, form)
        kernels.append(f""".visible .entry kernel{number}(.param .u64 parameter) {{
.reg .f32 %f<10>; .reg .f64 %d<10>; .reg .b32 %r<10>; .reg .b64 %l<10>; .reg .pred %p<4>; .reg .b64 %a;
ld.param.u64 %a, [parameter];
{" ".join(loads)}
{body}
{store}
ret;
}}""")
    with TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernels.ptx"), Path(folder, "kernels.cubin")
        source.write_text("\n".join(kernels))
        subprocess.run([TOOLS / "ptxas", f"-arch=sm_{capability}", source, "-o", binary], check=True)
        command = [TOOLS / "cuobjdump", "-sass", binary]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    instruction = re.compile(r"/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+(?:\.[A-Z0-9_]+)*)")
    parts = re.split(r"Function : kernel(\d+)", shown)[1:]
    return {int(number): instruction.findall(text) for number, text in zip(parts[::2], parts[1::2], strict=True)}


def of_types(types: str, form: str) -> tuple[list[str], str, str]:
    """Loads of the operands, the instruction, the store of its result."""
    registers = {"f32": "f", "f64": "d"} | {f"{kind}32": "r" for kind in "bsu"} | {f"{kind}64": "l" for kind in "bsu"}
    result, *operands = types.split()
    names = [f"%{registers[kind]}{j + 1}" for j, kind in enumerate(operands)]
    loads = [
        f"ld.global.{kind} {name}, [%a+{8 * j}];" for j, (kind, name) in enumerate(zip(operands, names, strict=True))
    ]
    out = f"%{registers[result]}8"
    return loads, form.format(out, *names), f"st.global.{result} [%a+64], {out};"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("number", range(len(INSTRUCTIONS)), ids=[form.split(" {")[0] for form, _ in INSTRUCTIONS])
def test_recipes_are_what_ptxas_makes(number, capability):
    form, _ = INSTRUCTIONS[number]
    made = Counter()
    for name in compiled(capability)[number]:
        first = name.split(".")[0]
        if first in PRICED_AS and not name.startswith(("IMAD.MOV", "IMAD.U32")):  # moves
            made[PRICED_AS[first]] += 1
    expected = Counter()
    for statement in filter(None, (part.strip() for part in form.split(";"))):
        for step in pipes.recipe(statement.split()[0]):
            expected[step.name] += step.times
    if capability == 90 and form.startswith("cvt.rn.f32.s32"):  # I2FP, on the alu pipe
        expected = Counter(IADD3=1)
    if (
        "IMAD" in expected or "IMAD" in made
    ):  # ptxas gives additions and shifts to whichever of the two pipes waits less
        for count in (made, expected):
            count["IADD3"] += count.pop("IMAD", 0)
    if form.startswith(("div.s32", "rem.s32")):  # negations that may also be moves
        assert made.pop("IADD3") == pytest.approx(expected.pop("IADD3"), abs=2)
    assert made == expected


def instruction(op: str) -> SimpleNamespace:
    """As far as its price is concerned."""
    return SimpleNamespace(op=op, parts=op.split("."))


def test_tensor_cores():
    """16 x 8 x 8 multiply-adds at 512 a clock are two cycles."""
    tf32 = instruction("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
    assert pipes.cost(tf32, 80).pipes["tensor"] == pytest.approx(2, rel=0.01)
    double = instruction("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64")
    assert pipes.cost(double, 80).pipes["tensor"] == pytest.approx(4, rel=0.01)
    assert pipes.cost(double, 90).pipes["tensor"] == pytest.approx(2, rel=0.01)
    # 946 a clock: 1024 at the tensor cores' own. Each of the four warps has a quarter.
    group = instruction("wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32")
    assert 4 * pipes.cost(group, 90).pipes["tensor"] == pytest.approx(64 * 64 * 8 / 946, rel=0.01)


def test_the_data_sheets_peaks_come_back():
    for capability, float32, float64, tf32 in ((80, 19.5e12, 9.7e12, 156e12), (90, 66.9e12, 33.5e12, 494.7e12)):
        device = DEVICES[capability]
        operations = 2 * device.multiprocessors * device.clock
        assert operations * 32 * device.pipes["fma"] == pytest.approx(float32, rel=0.01)
        assert operations * 32 * device.pipes["fp64"] == pytest.approx(float64, rel=0.01)
        assert operations * max(device.tensor["mma tf32"], device.tensor.get("wgmma tf32", 0)) == pytest.approx(
            tf32, rel=1e-6
        )


def test_an_unknown_instruction_has_no_price():
    with pytest.raises(KeyError, match="dp4a"):
        pipes.recipe("dp4a.s32.s32")


def test_every_recipe_is_of_priced_instructions():
    for pattern, made in pipes.RECIPES:
        for part in made.split():
            assert re.split(r"[*/]", part)[0] in MACHINE, pattern
