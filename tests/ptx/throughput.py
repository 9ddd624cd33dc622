"""What a multiprocessor of NVIDIA's GPUs does in a clock, and how long a result takes: what instructions cost.

Sources, by the letters beside the numbers:

- [B] NVIDIA, CUDA C++ Best Practices Guide 13.0, table "Throughput of Native Arithmetic Instructions" (before version
  13 in the CUDA C++ Programming Guide): results a clock and multiprocessor, 32 of which are one warp instruction.
- [P] NVIDIA, CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
- [N] NVIDIA, Nsight Compute Profiling Guide, "Pipelines": which instructions share a pipe.
- [H] NVIDIA H100 Tensor Core GPU Architecture, v1.04, and the H200 data sheet. [A] The same for A100.
- [L] W. Luo et al., arXiv 2501.12084 and its forerunner 2402.13499: measured on an H800 and an A100.
- [D] H. Abdelkhalik et al., arXiv 2208.11174: measured on an A100.
- [J] Z. Jia et al., arXiv 1903.07486, table 4.1: measured on a T4.
- [?] No source found: assumed.

The vendor's site and arXiv could not be reached. So [B] was read in three quotations that agree where they overlap, and
the papers in tables and notes that others took from them. Of the pipes here no quotation has, for 8.0 and 9.0, the
conversions from and to 64 bits (16 stands for 7.x), the warp reduction, and votes (64 stands for 8.9).
"""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """A GPU. ``pipes`` has warp instructions a clock and multiprocessor; ``l2`` sectors of 32 bytes.

    ``tensor`` has multiply-adds a clock and multiprocessor by the instruction's kind, in clocks of ``clock``.
    """

    name: str
    multiprocessors: int
    clock: float
    memory: float  # bytes a second
    shared_memory: int  # bytes of a multiprocessor
    pipes: dict[str, float]
    tensor: dict[str, float]


REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor [P]
RESERVED = 1024  # bytes of shared memory that every block takes besides its own [P]

A100 = Device(
    name="A100",
    multiprocessors=108,  # [A]
    clock=1.41e9,  # [A]
    memory=2.039e12,  # [A], 80 GB
    shared_memory=164 * 1024,  # [P]
    pipes={
        "issue": 4,  # four schedulers [A]
        "fma": 64 / 32,  # float32 add, multiply, multiply-add [B]; integer multiply-adds share it [N]
        "imad": 64 / 32,  # [B]
        "alu": 64 / 32,  # integer add, shift, logic, compare, minimum, selection, vote [B] [N]
        "fp64": 32 / 32,  # [B]
        "xu": 16 / 32,  # reciprocal, roots, exponential; conversions from and to 64 bits and of integers [B] [N]
        "redux": 16 / 32,  # warp reduce [?]
        "lsu": 1,  # 32 lanes [A]: 128 bytes of shared memory, 32 results of a shuffle [B]
        "l2": 5120 / 108 / 32,  # [A]
    },
    tensor={"mma tf32": 156e12 / (2 * 108 * 1.41e9), "mma f64": 19.5e12 / (2 * 108 * 1.41e9)},  # [A]: 512 and 64
)
# The TF32 rate of the white paper holds at 1.83 GHz, all else at 1.98 GHz.
_H200_TF32 = 494.7e12 / (2 * 132 * 1.98e9)  # [H]: 1024 at 1.83 GHz
H200 = Device(
    name="H200",
    multiprocessors=132,  # [H], SXM
    clock=1.98e9,  # [H]
    memory=4.8e12,  # [H]
    shared_memory=228 * 1024,  # [P]
    pipes={
        "issue": 4,  # [H]
        "fma": 128 / 32,  # [B]
        "imad": 64 / 32,  # [B], on half of the fma pipe [N]
        "alu": 64 / 32,  # [B]
        "fp64": 64 / 32,  # [B]
        "xu": 16 / 32,  # [B]
        "redux": 16 / 32,  # [?]
        "lsu": 1,  # [H] [B]
        "l2": 4472.3 / 114 / 32,  # [L], measured: the vendor gives no number
    },
    # mma.sync reaches 62.9 % of the peak there, on the average of all types; wgmma all of it [L].
    tensor={"mma tf32": 0.629 * _H200_TF32, "mma f64": 66.9e12 / (2 * 132 * 1.98e9), "wgmma tf32": _H200_TF32},
)
DEVICES = {80: A100, 90: H200}

# Of each machine instruction, the pipes that it takes, and the cycles until its result can be used. What needs several
# cycles of a pipe is counted by what it moves: memory accesses, tensor cores.
MACHINE: dict[str, tuple[tuple[str, ...], int]] = {
    "FADD": (("fma",), 4),  # [D] [J]; FMUL and FFMA are the same
    "IMAD": (("imad", "fma"), 4),  # [D]
    "IADD3": (("alu",), 4),  # [D] [J]; all that the alu pipe computes: LOP3, SHF, FSETP, FMNMX, SEL, VOTE, ...
    "DADD": (("fp64",), 5),  # [D], dependent; DMUL, DFMA and DSETP are the same
    "MUFU": (("xu",), 18),  # [D]: rsqrt.approx.f32 takes 2 to 18; [J]: 15
    "F2F": (("xu",), 12),  # [?]
    "I2F": (("xu",), 6),  # [D]: F2I
    "REDUX": (("redux",), 18),  # [?]
    "SHFL": (("lsu",), 24),  # [?]
    "BAR": (("lsu",), 20),  # [N]; [?]
    "BRA": ((), 8),  # [?]
    "NOP": ((), 1),
    "LDS": ((), 29),  # [L]
    "LDSM": ((), 32),  # [?]: a load, and three more passes
    "LDG": ((), 0),  # by the device, below
    "LDC": ((), 29),  # [?]
    "STS": ((), 1),
    "HMMA": ((), 24),  # [L]: mma.m16n8k16 of float16, 24.6 on an A100 and 24.1 on an H800
    "DMMA": ((), 16),  # [D], at least
    "HGMMA": ((), 32),  # [L]: 128 for 256 columns, so at least a quarter for 64
}
# A hit in L2: less no load from global memory can take that misses L1. [L]
GLOBAL = {80: 202, 90: 264}
