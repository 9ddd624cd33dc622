"""Writes the Python source of each instruction: one method an operation.

In the source ``X`` is the group of lanes, ``A`` is :mod:`tests.ptx.arithmetic`, ``u4[7]`` row 7 of the 32-bit registers
seen as unsigned integers, ``p[7]`` a row of predicates, ``m`` the mask of lanes in a masked block.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.ptx.arithmetic import NUMPY
from tests.ptx.classes import memory_space
from tests.ptx.memory import LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW
from tests.ptx.parser import SIZES, Instruction, matched, split_list

if TYPE_CHECKING:
    from tests.ptx.translation import Translated

SPECIAL = {
    "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x",
    "%nctaid.y", "%nctaid.z", "%laneid", "%warpid", "%lanemask_lt",
}  # fmt: skip
COMPARISONS = {
    "eq": "np.equal", "ne": "np.not_equal", "lt": "np.less", "le": "np.less_equal", "gt": "np.greater",
    "ge": "np.greater_equal", "lo": "np.less", "ls": "np.less_equal", "hi": "np.greater", "hs": "np.greater_equal",
}  # fmt: skip
# Of floating point: those that numpy has no function for. NaN compares as false, but as true where the name ends in u.
FLOAT_COMPARISONS = {
    "ne": "(np.less({0}, {1}) | np.greater({0}, {1}))",
    "equ": "~(np.less({0}, {1}) | np.greater({0}, {1}))",
    "neu": "np.not_equal({0}, {1})",
    "ltu": "~np.greater_equal({0}, {1})",
    "leu": "~np.greater({0}, {1})",
    "gtu": "~np.less_equal({0}, {1})",
    "geu": "~np.less({0}, {1})",
    "num": "~(np.isnan({0}) | np.isnan({1}))",
    "nan": "(np.isnan({0}) | np.isnan({1}))",
}
FUNCTIONS = {
    "add": "np.add", "sub": "np.subtract", "mul": "np.multiply", "and": "np.bitwise_and", "or": "np.bitwise_or",
    "xor": "np.bitwise_xor",
}  # fmt: skip
LOGIC = {"and": "np.logical_and", "or": "np.logical_or", "xor": "np.logical_xor"}
ROUNDINGS = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}
SHUFFLES = {"idx": 0, "bfly": 1, "up": 2, "down": 3}
REDUCTIONS = {
    ("max", "s32"): 0, ("min", "s32"): 1, ("add", "s32"): 2, ("add", "u32"): 2, ("max", "u32"): 3, ("min", "u32"): 4,
    ("and", "b32"): 5, ("or", "b32"): 6, ("xor", "b32"): 7,
}  # fmt: skip
BALLOT = 8
# Modifiers that are emulated; one that stands nowhere here is refused, and never ignored.
MODIFIERS = {"sync", "aligned", "global", "shared", "shared::cta", "local", "param", "const", "v2", "v4"}
KNOWN = {
    "add": {"rn", "ftz"},
    "sub": {"rn", "ftz"},
    "mul": {"rn", "ftz", "lo", "hi", "wide"},
    "mad": {"rn", "ftz", "lo", "hi", "wide"},
    "fma": {"rn", "ftz"},
    "div": {"rn", "ftz", "full", "approx"},
    "neg": {"ftz"},
    "abs": {"ftz"},
    "min": {"ftz", "NaN"},
    "max": {"ftz", "NaN"},
    "sqrt": {"rn", "ftz", "approx"},
    "rcp": {"rn", "ftz", "approx"},
    "rsqrt": {"ftz", "approx"},
    "ex2": {"ftz", "approx"},
    "lg2": {"ftz", "approx"},
    "testp": {"finite", "infinite", "notanumber"},
    "shf": {"l", "r", "wrap", "clamp"},
    "setp": {*COMPARISONS, *FLOAT_COMPARISONS, "and", "or", "xor", "ftz"},
    "cvta": {"to"},
    "cvt": {"rn", "rna", *ROUNDINGS, "ftz", "tf32"},
    # How a load is cached or ordered changes nothing here, where stores are seen at once.
    "ld": {
        "nc", "volatile", "relaxed", "acquire", "gpu", "cta", "sys", "ca", "cg", "cs", "lu", "cv", "L1::evict_last",
        "L1::evict_first", "L1::no_allocate", "L2::cache_hint",
    },
    "st": {
        "volatile", "relaxed", "release", "gpu", "cta", "sys", "wb", "cg", "cs", "wt", "L1::evict_last",
        "L1::evict_first", "L1::no_allocate", "L2::cache_hint",
    },
    "cp": {"async", "ca", "cg", "commit_group", "wait_group", "wait_all", "L2::128B", "L2::64B", "L2::256B"},
    "ldmatrix": {"m8n8", "x1", "x2", "x4", "trans"},
    "stmatrix": {"m8n8", "x1", "x2", "x4", "trans"},
    "prefetch": {"L1", "L2"},
    "membar": {"cta", "gl", "sys"},
    "fence": {"acq_rel", "sc", "cta", "gpu", "sys", "proxy", "async"},
    "wgmma": {"fence", "commit_group", "wait_group", "mma_async", "tf32", *(f"m64n{n}k8" for n in range(8, 257, 8))},
    "shfl": {*SHUFFLES},
    "redux": {"add", "min", "max", "and", "or", "xor"},
    "vote": {"all", "any", "ballot"},
    "bar": {"warp", "red", "and", "or"},
    "barrier": {"red", "and", "or"},
    "mma": {"m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16", "row", "col", "tf32"},
    "griddepcontrol": {"launch_dependents", "wait"},
}  # fmt: skip


class Emission:
    """The source of one instruction.

    Args:
        translated: the kernel.
        instruction: one of its instructions.
        masked: whether for the lanes of a mask only.
    """

    def __init__(self, translated: Translated, instruction: Instruction, masked: bool) -> None:
        self.translated, self.instruction = translated, instruction
        self.number, self.parts, self.args = instruction.number, instruction.parts, instruction.args
        self.kind = self.parts[-1]
        self.out: list[str] = []
        self.mask = "m" if masked else ""
        if instruction.predicate:
            condition = f"{'~' if instruction.negated else ''}p[{translated.rows[instruction.predicate][1]}]"
            self.mask = f"(m & {condition})" if masked else f"({condition})"

    def lines(self) -> list[str]:
        """The statements."""
        op, *modifiers = self.parts
        method = getattr(self, "op_" + op, None)
        if method is None or not set(modifiers) <= MODIFIERS | SIZES.keys() | KNOWN.get(op, set()):
            raise NotImplementedError(self.instruction.op)
        method()
        return self.out

    # Operands

    def is_register(self, name: str) -> bool:
        return name in self.translated.rows

    def width(self, register: str) -> int:
        """Bytes of a register that is not a predicate."""
        return int(self.translated.rows[register][0]) // 8

    def constant(self, value: Any, dtype: str = "") -> str:
        """The name of a constant, of numpy's type ``dtype`` if given."""
        return self.translated.constant(np.dtype(dtype).type(value) if dtype else value)

    def value(self, name: str, kind: str) -> str:
        """An operand as type ``kind``."""
        if kind == "pred":
            if name.startswith("!"):
                return f"~{self.value(name[1:], kind)}"
            if self.is_register(name):
                return f"p[{self.translated.rows[name][1]}]"
            return self.constant(np.bool_(int(name, 0) != 0))
        dtype = NUMPY[kind]
        if self.is_register(name):
            index, width = self.translated.rows[name][1], self.width(name)
            return f"{dtype}[{index}]" if width == SIZES[kind] else f"u{width}[{index}].astype('{dtype}')"
        if name in SPECIAL:
            return f"X.special[{name!r}]"
        if name in self.translated.symbols:
            return self.constant(self.translated.symbols[name], dtype)
        if name in {v.name for v in self.translated.global_variables}:
            return f"X.globals[{name!r}]"
        return self.constant(self.immediate(name, kind))

    def flushed(self, name: str, kind: str) -> str:
        """An operand, subnormal numbers as zeros if the instruction says so."""
        x = self.value(name, kind)
        return f"A.flush({x})" if "ftz" in self.parts else x

    def immediate(self, text: str, kind: str) -> Any:
        """A literal as type ``kind``."""
        dtype = np.dtype(NUMPY[kind])
        if m := re.match(r"0[fF]([0-9a-fA-F]{8})$", text):
            single = np.array(int(m.group(1), 16), "u4").view("f4")[()]
            return (
                np.float64(single)
                if kind == "f64"
                else single.view(dtype)
                if dtype.itemsize == 4
                else dtype.type(single)
            )
        if m := re.match(r"0[dD]([0-9a-fA-F]{16})$", text):
            return np.array(int(m.group(1), 16), "u8").view(dtype)[()]
        if kind in ("f32", "f64") and re.match(r"-?\d*\.\d+|-?\d+\.?$", text):
            return dtype.type(float(text))
        bits = int(text.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
        return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]

    def target(self, register: str, kind: str) -> str:
        """The row that is written."""
        index = self.translated.rows[register][1]
        if kind == "pred":
            return f"p[{index}]"
        if self.width(register) != SIZES[kind]:
            raise ValueError(f"{register} is not of {kind}")
        return f"{NUMPY[kind]}[{index}]"

    def address(self, operand: str) -> tuple[str, int]:
        """Row of addresses and offset of ``[register + offset]``; "param" where a parameter is named."""
        name, text = matched(r"([%$\w~.]+)\s*(?:\+\s*(-?\w+))?$", operand.strip("[] ")).groups()
        offset = int(text or "0", 0)
        if self.is_register(name):
            return self.value(name, f"u{8 * self.width(name)}"), offset
        if name in self.translated.symbols:
            return "X.zero", offset + self.translated.symbols[name]
        if name in self.translated.kernel.params:
            return "param", offset + self.translated.kernel.params[name][0]
        if name in {v.name for v in self.translated.global_variables}:
            return f"X.globals_row({name!r})", offset
        return "X.zero", offset + int(name, 0)

    @staticmethod
    def pieces(operand: str) -> list[str]:
        """The registers of ``{a, b, c}``."""
        return split_list(operand.strip("{} "))

    def rows(self, operand: str, kind: str) -> str:
        """The registers of ``{a, b, c}`` as a tuple."""
        return f"({', '.join(self.value(x, kind) for x in self.pieces(operand))},)"

    # Statements

    @property
    def active(self) -> str:
        return self.mask or "X.ones"

    def put(self, target: str, expression: str) -> None:
        self.out.append(f"np.copyto({target}, {expression}" + (f", where={self.mask})" if self.mask else ")"))

    def put_extended(self, register: str, expression: str, kind: str) -> None:
        """Writes a value of type ``kind`` into a register that may be wider."""
        width = self.width(register)
        if width != SIZES[kind]:
            expression += f".astype('{'i' if kind[0] == 's' else 'u'}{width}').view('u{width}')"
            kind = f"u{8 * width}"
        self.put(self.target(register, kind), expression)

    def apply(self, function: str, target: str, *args: str, extra: str = "") -> None:
        """A function of numpy that writes where it should."""
        where = f", where={self.mask}" if self.mask else ""
        self.out.append(f"{function}({', '.join(args)}, out={target}{where}{extra})")

    def call(self, name: str, *args: Any) -> str:
        """The call of one of the group's methods, which are told the instruction and the lanes."""
        return f"X.{name}({', '.join(str(x) for x in (self.number, self.active, *args))})"

    # Arithmetic

    def _binary(self) -> None:
        op, kind, (d, a, b) = self.parts[0], self.kind, self.args
        if kind == "pred":
            return self.apply(LOGIC[op], self.target(d, kind), self.value(a, kind), self.value(b, kind))
        if "wide" in self.parts:
            wide = kind[0] + str(2 * int(kind[1:]))
            return self.put(self.target(d, wide), self._wide_product(a, b))
        if "hi" in self.parts:
            return self.put(self.target(d, kind), self._high_product(a, b))
        if kind == "f32x2":
            return self._paired(FUNCTIONS[op])
        if kind in ("u16x2", "s16x2"):
            if op != "add":
                raise NotImplementedError(self.instruction.op)
            return self.put(self.target(d, kind), f"A.add_halves({self.value(a, kind)}, {self.value(b, kind)})")
        if kind[0] == "s":
            kind = "u" + kind[1:]  # the same bits, and an overflow is none
        x, y = self.flushed(a, kind), self.flushed(b, kind)
        if "ftz" in self.parts:
            return self.put(self.target(d, kind), f"A.flush({FUNCTIONS[op]}({x}, {y}))")
        return self.apply(FUNCTIONS[op], self.target(d, kind), x, y)

    def _paired(self, function: str) -> None:
        d, *args = self.args
        if "ftz" in self.parts:
            raise NotImplementedError(self.instruction.op)
        values = ", ".join(self.value(a, self.kind) for a in args)
        self.put(self.target(d, self.kind), f"A.paired({function}, {values})")

    op_add = op_sub = op_mul = op_and = op_or = op_xor = _binary

    def _wide_product(self, a: str, b: str) -> str:
        dtype = NUMPY[self.kind[0] + str(2 * int(self.kind[1:]))]
        x, y = self.value(a, self.kind), self.value(b, self.kind)
        return f"np.multiply({x}, {y}, dtype='{dtype}', casting='unsafe')"

    def _high_product(self, a: str, b: str) -> str:
        return f"A.multiply_high({self.value(a, self.kind)}, {self.value(b, self.kind)}, '{self.kind}')"

    def _unary(self) -> None:
        function = {"not": "np.invert", "neg": "np.negative", "abs": "np.absolute"}[self.parts[0]]
        if self.kind == "pred":
            function = "np.logical_not"
        d, a = self.args
        self.apply(function, self.target(d, self.kind), self.flushed(a, self.kind))

    op_not = op_neg = op_abs = _unary

    def _extreme(self) -> None:
        op, kind, (d, *args) = self.parts[0], self.kind, self.args
        if kind in ("u16x2", "s16x2"):
            raise NotImplementedError(self.instruction.op)
        function = f"np.{op}imum" if kind[0] != "f" else f"A.{op}imum{'_nan' if 'NaN' in self.parts else ''}"
        text, *others = (self.flushed(a, kind) for a in args)
        for other in others:
            text = f"{function}({text}, {other})"
        self.put(self.target(d, kind), text)

    op_min = op_max = _extreme

    def op_fma(self) -> None:
        d, *args = self.args
        values = ", ".join(self.value(a, self.kind) for a in args)
        if "rn" not in self.parts:
            raise NotImplementedError(self.instruction.op)
        if self.kind == "f32x2":
            self._paired("A.fma")
        elif "ftz" in self.parts:
            self.put(self.target(d, self.kind), f"A.fma_ftz({values})")
        elif self.mask:
            self.put(self.target(d, self.kind), f"A.fma({values})")
        else:
            self.out.append(f"A.fma({values}, {self.target(d, self.kind)})")

    def op_mad(self) -> None:
        kind, (d, a, b, c) = self.kind, self.args
        if kind[0] == "f":
            return self.op_fma()
        if "wide" in self.parts:
            wide = kind[0] + str(2 * int(kind[1:]))
            return self.put(self.target(d, wide), f"{self._wide_product(a, b)} + {self.value(c, wide)}")
        if "hi" in self.parts:
            return self.put(self.target(d, kind), f"{self._high_product(a, b)} + {self.value(c, kind)}")
        u = "u" + kind[1:]
        return self.put(self.target(d, u), f"np.multiply({self.value(a, u)}, {self.value(b, u)}) + {self.value(c, u)}")

    def op_div(self) -> None:
        kind, (d, a, b) = self.kind, self.args
        x, y = self.flushed(a, kind), self.flushed(b, kind)
        if kind[0] != "f":
            return self.put(self.target(d, kind), f"A.divide_{'signed' if kind[0] == 's' else 'unsigned'}({x}, {y})")
        if "rn" in self.parts and "ftz" not in self.parts:
            return self.apply("np.divide", self.target(d, kind), x, y)
        quotient = f"np.divide({x}, {y})"
        if "rn" not in self.parts:
            quotient = f"X.approximate({quotient}, 2)"
        if "approx" in self.parts:
            # The product with the reciprocal, which is 0 of what is larger.
            quotient = f"np.where(np.abs({y}) > 2.0**126, {x} * np.copysign(np.float32(0), {y}), {quotient})"
        return self.put(self.target(d, kind), f"A.flush({quotient})" if "ftz" in self.parts else quotient)

    def op_rem(self) -> None:
        d, a, b = self.args
        function = f"A.remainder_{'signed' if self.kind[0] == 's' else 'unsigned'}"
        self.put(self.target(d, self.kind), f"{function}({self.value(a, self.kind)}, {self.value(b, self.kind)})")

    def _function(self, text: str, units: int) -> None:
        """A function of floating point; ``units`` in the last place are what its approximation errs by."""
        if self.kind == "f64" and "ftz" in self.parts:
            # Of about 20 bits; how they are rounded is not documented.
            raise NotImplementedError(self.instruction.op)
        d, a = self.args
        text = text.format(self.flushed(a, self.kind))
        if "approx" in self.parts:
            text = f"X.approximate({text}, {units})"
        self.put(self.target(d, self.kind), f"A.flush({text})" if "ftz" in self.parts else text)

    # The errors of PTX ISA, "Floating-Point Instructions": 2^-23 relative, 2^-22.9, 1 unit, 2^-22, 2^-22.

    def op_sqrt(self) -> None:
        self._function("np.sqrt({})", 1)

    def op_rsqrt(self) -> None:
        self._function("A.inverse_root({})", 2 if self.kind == "f32" else 1)

    def op_rcp(self) -> None:
        self._function(f"{self.constant(1, NUMPY[self.kind])} / {{}}", 1)

    def op_ex2(self) -> None:
        self._function("A.in_double(np.exp2, {})", 2)

    def op_lg2(self) -> None:
        self._function("A.in_double(np.log2, {})", 2)

    def op_copysign(self) -> None:
        d, a, b = self.args
        self.apply("np.copysign", self.target(d, self.kind), self.value(b, self.kind), self.value(a, self.kind))

    def op_testp(self) -> None:
        d, a = self.args
        function = {"finite": "np.isfinite", "infinite": "np.isinf", "notanumber": "np.isnan"}[self.parts[1]]
        self.put(self.target(d, "pred"), f"{function}({self.value(a, self.kind)})")

    # Bits

    def _shift(self) -> None:
        kind, (d, a, b) = self.kind, self.args
        function = "np.left_shift" if self.parts[0] == "shl" else "np.right_shift"
        if not self.is_register(b) and (amount := int(b.rstrip("U"), 0)) < 8 * SIZES[kind]:
            constant = self.constant(amount, NUMPY[kind])
            return self.apply(function, self.target(d, kind), self.value(a, kind), constant)
        shifted = f"A.shifted({function}, {self.value(a, kind)}, {self.value(b, 'u32')}, '{kind}')"
        return self.put(self.target(d, kind), shifted)

    op_shl = op_shr = _shift

    def op_shf(self) -> None:
        d, *args = self.args
        values = ", ".join(self.value(x, "b32") for x in args)
        self.put(self.target(d, "b32"), f"A.funnel({values}, '{self.parts[1]}', '{self.parts[2]}')")

    def op_bfe(self) -> None:
        kind, (d, a, b, c) = self.kind, self.args
        field = f"{self.value(a, kind)}, {self.value(b, 'u32')}, {self.value(c, 'u32')}"
        if kind[0] == "s":
            bits = self.constant(8 * SIZES[kind], "u4")
            return self.put(self.target(d, kind), f"A.bfe_s({field}, {bits}).astype('{NUMPY[kind]}')")
        return self.put(self.target(d, kind), f"A.bfe_u({field})")

    def op_bfi(self) -> None:
        kind, (d, a, b, *field) = self.kind, self.args
        values = [*(self.value(x, kind) for x in (a, b)), *(self.value(x, "u32") for x in field)]
        self.put(self.target(d, kind), f"A.bfi({', '.join(values)}).astype('{NUMPY[kind]}')")

    def op_prmt(self) -> None:
        d, *args = self.args
        self.put(self.target(d, "b32"), f"A.prmt({', '.join(self.value(x, 'u32') for x in args)})")

    def op_brev(self) -> None:
        d, a = self.args
        self.put(self.target(d, "b32"), f"A.brev({self.value(a, 'u32')})")

    def op_lop3(self) -> None:
        d, *args, table = self.args
        x, y, z = (self.value(a, "b32") for a in args)
        terms = [
            " & ".join(v if k >> bit & 1 else f"~{v}" for v, bit in ((x, 2), (y, 1), (z, 0)))
            for k in range(8)
            if int(table, 0) >> k & 1
        ]
        self.put(self.target(d, "b32"), " | ".join(f"({t})" for t in terms) or self.constant(0, "u4"))

    def op_clz(self) -> None:
        kind, (d, a) = self.kind, self.args
        unused = self.constant(64 - 8 * SIZES[kind], "u4")
        self.put(self.target(d, "b32"), f"A.leading_zeros(np.asarray({self.value(a, kind)}).astype('u8')) - {unused}")

    def op_popc(self) -> None:
        d, a = self.args
        self.put(self.target(d, "b32"), f"A.popc({self.value(a, self.kind)}.astype('u8'))")

    # Choices and moves

    def op_setp(self) -> None:
        kind, compare, (d, a, b, *third) = self.kind, self.parts[1], self.args
        x, y = self.flushed(a, kind), self.flushed(b, kind)
        d, _, complement = d.partition("|")
        special = FLOAT_COMPARISONS.get(compare) if kind[0] == "f" else None
        if not special and not third and not complement:
            return self.apply(COMPARISONS[compare], self.target(d, "pred"), x, y)
        self.out.append("t0 = " + (special or COMPARISONS[compare] + "({0}, {1})").format(x, y))
        combined = (
            f" {({'and': '&', 'or': '|', 'xor': '^'})[self.parts[2]]} {self.value(third[0], 'pred')}" if third else ""
        )
        self.out.append(f"t1, t2 = t0{combined}, ~t0{combined}")
        self.put(self.target(d, "pred"), "t1")
        if complement not in ("", "_"):
            self.put(self.target(complement, "pred"), "t2")
        return None

    def op_selp(self) -> None:
        d, a, b, c = self.args
        values = ", ".join((self.value(c, "pred"), self.value(a, self.kind), self.value(b, self.kind)))
        self.put(self.target(d, self.kind), f"np.where({values})")

    def op_mov(self) -> None:
        kind, (d, a) = self.kind, self.args
        if kind[0] in "fs" and not re.match(r"0[fFdD]|-?\d*\.\d", a):
            kind = "b" + kind[1:]
        if d.startswith("{"):
            self._unpack(d, a, kind)
        elif a.startswith("{"):
            pieces = self.pieces(a)
            bits = 8 * SIZES[kind] // len(pieces)
            shifted = [
                f"(np.asarray({self.value(piece, f'u{bits}')}).astype('{NUMPY[kind]}')"
                f" << {self.constant(number * bits, NUMPY[kind])})"
                for number, piece in enumerate(pieces)
            ]
            self.put(self.target(d, kind), " | ".join(shifted))
        elif a in self.translated.kernel.params:
            offset = self.translated.kernel.params[a][0]
            self.put(self.target(d, kind), self.constant(PARAMETER_WINDOW + offset, "u8"))
        elif m := re.match(r"([$\w]+)\+(\d+)$", a):
            self.put(
                self.target(d, kind), f"{self.value(m.group(1), kind)} + {self.constant(int(m.group(2)), NUMPY[kind])}"
            )
        else:
            self.put(self.target(d, kind), self.value(a, kind))

    def _unpack(self, d: str, a: str, kind: str) -> None:
        pieces = self.pieces(d)
        bits = 8 * SIZES[kind] // len(pieces)
        # A copy, because the register may be one of those that are written.
        self.out.append(f"t0 = {self.value(a, 'u' + kind[1:])}.copy()")
        for number, piece in enumerate(pieces):
            if piece != "_":
                part = f"(t0 >> {self.constant(number * bits, NUMPY[kind])}).astype('u{bits // 8}')"
                self.put_extended(piece, part, f"u{bits}")

    def op_cvta(self) -> None:
        d, a = self.args
        space = next(p for p in self.parts if p in ("global", "shared", "local", "const", "param"))
        window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
        sign = "-" if "to" in self.parts else "+"
        self.put(self.target(d, "u64"), f"{self.value(a, 'u64')} {sign} {self.constant(window, 'u8')}")

    def op_cvt(self) -> None:
        modes, to, source = set(self.parts[1:-2]), self.parts[-2], self.parts[-1]
        d, a = self.args
        rounding = ROUNDINGS.get(next(iter(modes & ROUNDINGS.keys()), ""))
        if to == "tf32":
            mode = "rna" if "rna" in modes else "rn"
            self.put(self.target(d, "b32"), f"A.to_tf32({self.value(a, 'u32')}, '{mode}')")
        elif source[0] != "f":
            self.put_extended(d, f"np.asarray({self.value(a, source)}).astype('{NUMPY[to]}')", to)
        elif to[0] == "f":
            x = self.flushed(a, source) if source == "f32" else self.value(a, source)
            x = f"({f'{rounding}({x})' if rounding else x}).astype('{NUMPY[to]}')"
            self.put(self.target(d, to), f"A.flush({x})" if "ftz" in modes and to == "f32" else x)
        else:
            x = self.flushed(a, source)
            self.put(self.target(d, to), f"A.to_integer({rounding}({x}), '{NUMPY[to]}')")

    # Memory

    def op_ld(self) -> None:
        kind, (d, a, *_) = self.kind, self.args
        pieces = self.pieces(d)
        row, offset = self.address(a)
        if row == "param":
            for number, piece in enumerate(pieces):
                x = f"X.parameter({offset + number * SIZES[kind]}, '{NUMPY[kind]}')"
                self.put_extended(piece, x, kind)
            return
        self.out.append(
            "b = " + self.call("load_" + memory_space(self.instruction), row, offset, SIZES[kind] * len(pieces))
        )
        for number, piece in enumerate(pieces):
            if piece != "_":
                self.put_extended(piece, f"b['{NUMPY[kind]}'][:, {number}]", kind)

    def op_st(self) -> None:
        kind, (a, d, *_) = self.kind, self.args
        row, offset = self.address(a)
        pieces = self.pieces(d)
        self.out.append(f"b = X.buffers['{NUMPY[kind]}']")
        self.out += [f"b[:, {number}] = {self.value(piece, kind)}" for number, piece in enumerate(pieces)]
        self.out.append(self.call("store_" + memory_space(self.instruction), row, offset, SIZES[kind] * len(pieces)))

    def op_cp(self) -> None:
        if "commit_group" in self.parts:
            self.out.append(f"X.async_commit({self.active})")
        elif "wait_group" in self.parts or "wait_all" in self.parts:
            pending = int(self.args[0]) if self.args else 0
            self.out.append(f"X.async_wait({self.active}, {pending}, {'wait_all' in self.parts})")
        else:
            to, source, size, *given = self.args
            source_size = self.value(given[0], "u32") if given else "None"
            self.out.append(
                self.call("async_copy", *self.address(to), *self.address(source), int(size, 0), source_size)
            )

    def op_ldmatrix(self) -> None:
        d, a = self.args
        pieces = self.pieces(d)
        self.out.append("b = " + self.call("ldmatrix", *self.address(a), len(pieces), "trans" in self.parts))
        for number, piece in enumerate(pieces):
            self.put(self.target(piece, "b32"), f"b[{number}]")

    def op_stmatrix(self) -> None:
        a, d = self.args
        self.out.append(self.call("stmatrix", *self.address(a), self.rows(d, "b32"), "trans" in self.parts))

    def _nothing(self) -> None:
        """Of no effect here: memory is one and is written at once."""

    op_prefetch = op_membar = op_griddepcontrol = _nothing

    def op_fence(self) -> None:
        if "async" in self.parts and "global" not in self.parts:
            self.out.append(self.call("wgmma.fence_proxy"))

    # Warps and programs

    def op_shfl(self) -> None:
        d, a, b, c, members = self.args
        d, _, p = d.partition("|")
        values = [self.value(x, "b32") for x in (a, b, c, members)]
        self.out.append("b, t0 = " + self.call("shuffle", SHUFFLES[self.parts[2]], *values))
        self.put(self.target(d, "b32"), "b")
        if p not in ("", "_"):
            self.put(self.target(p, "pred"), "t0")

    def op_redux(self) -> None:
        d, a, members = self.args
        if self.kind == "f32":
            x = f"A.ordered({self.value(a, 'f32')}, {self.parts[2]!r})"
            operation = REDUCTIONS[self.parts[2], "s32"]
            self.out.append("b = " + self.call("warp_reduce", operation, x, self.value(members, "b32")))
            self.put(self.target(d, "f32"), "A.unordered(b)")
            return
        operation = REDUCTIONS[self.parts[2], self.kind]
        self.out.append("b = " + self.call("warp_reduce", operation, self.value(a, "u32"), self.value(members, "b32")))
        self.put(self.target(d, "b32"), "b")

    def op_vote(self) -> None:
        mode, (d, a, members) = self.parts[2], self.args
        x = f"np.asarray({self.value(a, 'pred')}).astype('u4')"
        self.out.append("b = " + self.call("warp_reduce", BALLOT, x, self.value(members, "b32")))
        if mode == "ballot":
            return self.put(self.target(d, "b32"), "b")
        if mode == "any":
            return self.put(self.target(d, "pred"), "b != 0")
        if mode == "all":
            return self.put(self.target(d, "pred"), f"b == {self.value(members, 'b32')}")
        raise NotImplementedError(mode)

    def op_activemask(self) -> None:
        self.put(self.target(self.args[0], "b32"), f"X.active_lanes({self.active})")

    def op_bar(self) -> None:
        if self.parts[1] == "warp":
            return self.out.append(self.call("warp_barrier", self.value(self.args[0], "b32")))
        if self.instruction.predicate or (self.parts[1] == "sync" and len(self.args) > 1):
            raise NotImplementedError("a barrier of some of the threads")
        if self.parts[1] == "red":
            d, *_, a = self.args
            row = self.translated.rows[d][1]
            return self.out.append(
                f"X.reduce_at_barrier({self.value(a, 'pred')}, {self.active}, '{self.parts[2]}', {row})"
            )
        return None

    op_barrier = op_bar

    def op_mma(self) -> None:
        d, a, b, c = self.args
        shape = next(p for p in self.parts if re.match(r"m\d+n\d+k\d+$", p))
        m, _, k = (int(x) for x in matched(r"m(\d+)n(\d+)k(\d+)", shape).groups())
        operands = self.parts[-3]
        if operands == "f64":
            self.out.append("b = " + self.call("mma_f64", m, k, *(self.rows(x, "f64") for x in (a, b, c))))
        elif operands == "tf32":
            rows = (self.rows(a, "u32"), self.rows(b, "u32"), self.rows(c, "f32"))
            self.out.append("b = " + self.call("mma_tf32", k, *rows))
        else:
            raise NotImplementedError(self.instruction.op)
        for number, piece in enumerate(self.pieces(d)):
            self.put(self.target(piece, "f64" if operands == "f64" else "f32"), f"b[{number}]")

    def op_wgmma(self) -> None:
        if self.parts[1] == "commit_group":
            self.out.append(self.call("wgmma.commit"))
        elif self.parts[1] == "wait_group":
            self.out.append(self.call("wgmma.wait", int(self.args[0])))
        elif self.parts[1] == "mma_async":
            d, a, b, accumulates, *signs = self.args
            pieces = self.pieces(d)
            if self.parts[4:] != [f"m64n{2 * len(pieces)}k8", "f32", "tf32", "tf32"]:
                raise NotImplementedError(self.instruction.op)
            left = self.rows(a, "u32") if a.startswith("{") else self.value(a, "u64")
            rows = (self.rows(d, "f32"), left, self.value(b, "u64"), self.value(accumulates, "pred"))
            self.out.append("b = " + self.call("wgmma.multiply", *rows, float(signs[0]) * float(signs[1])))
            for number, piece in enumerate(pieces):
                self.put(self.target(piece, "f32"), f"b[{number}]")

    def op_trap(self) -> None:
        self.out.append("X.trap()")
