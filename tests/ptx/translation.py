"""From PTX instructions to Python source: a function for each basic block, one numpy operation an instruction.

Of each block there are two versions, for all lanes of a group and for those of a mask ``m``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.ptx import numeric
from tests.ptx.parser import SIZES, Instruction, Kernel

SHARED_WINDOW, LOCAL_WINDOW = 1 << 45, 1 << 46
NUMPY = {"pred": "?", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2", "b32": "u4", "u32": "u4",
         "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8"}  # fmt: skip
SPECIAL = {"%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x",
           "%nctaid.y", "%nctaid.z", "%laneid", "%warpid", "%lanemask_lt", "%clock", "%smid"}  # fmt: skip
# Instructions that a warp executes together.
TOGETHER = ("shfl", "vote", "redux", "mma", "ldmatrix", "stmatrix", "activemask", "match", "elect", "wgmma")


@dataclass
class Block:
    number: int
    first: int
    last: int  # exclusive
    kind: str = "fall"  # fall, jump, branch, bar, warpbar, exit
    target: int = -1
    predicate: str = ""
    negated: bool = False
    together: bool = False


def classify(i: Instruction) -> str:
    """The pipe that an instruction takes."""
    parts = i.parts
    op, kind = parts[0], parts[-1]
    if op == "mma":
        return "mma " + ("f64 " if "f64" in parts else "tf32 ") + next(p for p in parts if re.match(r"m\d+n\d+k\d+", p))
    if op == "wgmma":
        return "wgmma"
    if op in ("shfl",):
        return "shfl"
    if op in ("redux", "vote", "match", "activemask"):
        return "vote"
    if op == "bar" and parts[1] == "warp":
        return "barrier warp"
    if op in ("bar", "barrier"):
        return "barrier"
    if op in ("ld", "st", "atom", "red"):
        for space in ("global", "param", "local"):
            if space in parts:
                return f"{op} {space}"
        return f"{op} shared" if any(p.startswith("shared") for p in parts) else f"{op} generic"
    if op in ("ldmatrix", "stmatrix"):
        return op
    if op == "cp":
        return "cp.async" if i.args and len(i.args) > 1 else "other"
    if op in ("bra", "ret", "exit"):
        return "branch"
    if op in ("rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh") or (op in ("sqrt",) and "approx" in parts):
        if kind == "f64" and "approx" not in parts:
            return "slow f64"
        return "slow f64" if kind == "f64" else "mufu"
    if op in ("div", "sqrt"):
        return f"slow {'f64' if kind == 'f64' else 'f32' if kind == 'f32' else 'int'}"
    if op == "rem":
        return "slow int"
    if op == "cvt":
        return "cvt f64" if "f64" in parts else ("cvt f32" if any(p in ("f32", "tf32") for p in parts) else "cvt int")
    if kind == "f64":
        return "fp64" if op in ("add", "sub", "mul", "fma", "mad") else ("setp f64" if op == "setp" else ("fp64" if op in ("min", "max") else "int"))
    if kind == "f32":
        return "fp32" if op in ("add", "sub", "mul", "fma", "mad") else "int"
    if op in ("mul", "mad"):
        return "imad"
    if op == "mov":
        return "mov"
    return "int"


class Translated:
    """A kernel as Python functions.

    Args:
        split_together: whether warp-wide instructions begin a block, so that lanes can wait for one another there.
    """

    def __init__(self, kernel: Kernel, split_together: bool = False) -> None:
        self.kernel = kernel
        self.constants: dict[str, Any] = {}
        self.rows: dict[str, tuple[str, int]] = {}  # register -> (class, index)
        counts: Counter[str] = Counter()
        for name, kind in kernel.registers.items():
            size = {0: "p", 1: "16", 2: "16", 4: "32", 8: "64"}[SIZES[kind]]
            self.rows[name] = (size, counts[size])
            counts[size] += 1
        self.counts = {size: counts[size] for size in ("p", "16", "32", "64")}
        self.symbols, self.shared_static, self.local_bytes = {}, 0, 0
        self.global_variables = []
        for v in kernel.variables.values():
            if v.space == "shared" and not v.extern:
                self.shared_static = -(-self.shared_static // v.align) * v.align
                self.symbols[v.name] = self.shared_static
                self.shared_static += v.size
            elif v.space == "local":
                self.local_bytes = -(-self.local_bytes // v.align) * v.align
                self.symbols[v.name] = self.local_bytes
                self.local_bytes += v.size
            elif v.space in ("global", "const"):
                self.global_variables.append(v)
        for v in kernel.variables.values():
            if v.space == "shared" and v.extern:
                self.symbols[v.name] = -(-self.shared_static // 16) * 16
        self.small_shared = any(
            i.parts[0] in ("ld", "st") and any(p.startswith("shared") for p in i.parts) and SIZES.get(i.parts[-1], 4) < 4
            for i in kernel.instructions
        ) or any(i.parts[0] in ("ld", "st") and not set(i.parts) & {"global", "param", "local"} and not any(p.startswith("shared") for p in i.parts) for i in kernel.instructions)  # fmt: skip
        self.warpbars = False
        self._blocks(split_together)
        self.full: list[Any] = [None] * len(self.blocks)
        self.masked: list[Any] = [None] * len(self.blocks)
        self.classes = [Counter(classify(i) for i in kernel.instructions[b.first : b.last]) for b in self.blocks]
        self.namespace: dict[str, Any] = {"np": np, "N": numeric, **_helpers()}

    def _blocks(self, split: bool) -> None:
        code = self.kernel.instructions
        leaders = {0, *self.kernel.labels.values()}
        for i in code:
            op = i.parts[0]
            if op in ("bra", "ret", "exit", "trap", "bar", "barrier", "brx"):
                leaders.add(i.number + 1)
            if op == "bar" and i.parts[1] == "red":
                pass
            if split and (op in TOGETHER or i.op.startswith("bar.warp")):
                leaders.add(i.number)
        ordered = sorted(x for x in leaders if x < len(code))
        self.at = {first: number for number, first in enumerate(ordered)}
        self.blocks = []
        for number, first in enumerate(ordered):
            last = ordered[number + 1] if number + 1 < len(ordered) else len(code)
            b = Block(number, first, last)
            end = code[last - 1]
            op = end.parts[0]
            if op == "bra":
                b.target = self.at[self.kernel.labels[end.args[0]]]
                b.kind = "branch" if end.predicate else "jump"
                b.predicate, b.negated = end.predicate or "", end.negated
            elif op in ("ret", "exit"):
                b.kind = "condexit" if end.predicate else "exit"
                b.predicate, b.negated = end.predicate or "", end.negated
            elif op in ("bar", "barrier"):
                b.kind = "warpbar" if end.parts[1] == "warp" else "bar"
            elif op in ("trap", "brx"):
                b.kind = "trap"
            b.together = split and (code[first].parts[0] in TOGETHER or code[first].op.startswith("bar.warp"))
            self.blocks.append(b)

    def function(self, number: int, masked: bool) -> Any:
        cache = self.masked if masked else self.full
        if cache[number] is None:
            cache[number] = self._compile(number, masked)
        return cache[number]

    def source(self, number: int, masked: bool) -> str:
        block = self.blocks[number]
        lines = []
        for i in self.kernel.instructions[block.first : block.last]:
            if i.parts[0] in ("bra", "ret", "exit"):
                continue
            try:
                lines += _Emit(self, i, masked).lines()
            except Exception as error:
                raise NotImplementedError(f"PTX line {i.line}: {i.text}: {error!r}") from error
        used = {m for line in lines for m in re.findall(r"\b([a-z]\d+|p)\[", line)}
        used &= {"u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8", "p"}
        head = "def f(X, m):\n" + "".join(f"    {u} = X.{u}\n" for u in sorted(used))
        return head + "".join(f"    {line}\n" for line in lines or ["pass"])

    def _compile(self, number: int, masked: bool) -> Any:
        text = self.source(number, masked)
        scope = self.namespace
        scope.update(self.constants)
        exec(compile(text, f"{self.kernel.name}:{number}:{'masked' if masked else 'full'}", "exec"), scope)
        return scope.pop("f")

    def constant(self, value: Any) -> str:
        name = f"K{len(self.constants)}"
        for known, other in self.constants.items():
            if type(other) is type(value) and other.tobytes() == value.tobytes():
                return known
        self.constants[name] = value
        return name


COMPARE = {"eq": "np.equal", "ne": "np.not_equal", "lt": "np.less", "le": "np.less_equal", "gt": "np.greater",
           "ge": "np.greater_equal", "lo": "np.less", "ls": "np.less_equal", "hi": "np.greater", "hs": "np.greater_equal"}  # fmt: skip
UFUNC = {"add": "np.add", "sub": "np.subtract", "mul": "np.multiply", "and": "np.bitwise_and", "or": "np.bitwise_or",
         "xor": "np.bitwise_xor"}  # fmt: skip


# Modifiers of PTX that are emulated; one that stands nowhere here is refused, and never ignored.
MODIFIERS = {"sync", "aligned", "global", "shared", "shared::cta", "local", "param", "const", "v2", "v4"}
KNOWN = {
    **{op: {"rn", "ftz"} for op in ("add", "sub")},
    "mul": {"rn", "ftz", "lo", "hi", "wide"}, "mad": {"rn", "ftz", "lo", "hi", "wide"}, "fma": {"rn", "ftz"},
    "div": {"rn", "ftz", "full", "approx"}, "neg": {"ftz"}, "abs": {"ftz"}, "min": {"ftz", "NaN"}, "max": {"ftz", "NaN"},
    **{op: {"rn", "ftz", "approx"} for op in ("sqrt", "rcp")}, **{op: {"ftz", "approx"} for op in ("rsqrt", "ex2", "lg2")},
    "testp": {"finite", "infinite", "notanumber"}, "shf": {"l", "r", "wrap", "clamp"},
    "setp": {"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num",
             "nan", "and", "or", "xor", "ftz"},
    "cvta": {"to"}, "cvt": {"rn", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "tf32"},
    # How a load is cached or ordered changes nothing here, where stores are seen at once.
    "ld": {"nc", "volatile", "relaxed", "acquire", "gpu", "cta", "sys", "ca", "cg", "cs", "lu", "cv",
           "L1::evict_last", "L1::evict_first", "L1::no_allocate", "L2::cache_hint"},
    "ldu": set(),
    "st": {"volatile", "relaxed", "release", "gpu", "cta", "sys", "wb", "cg", "cs", "wt", "L1::evict_last",
           "L1::evict_first", "L1::no_allocate", "L2::cache_hint"},
    "cp": {"async", "ca", "cg", "commit_group", "wait_group", "wait_all", "L2::128B", "L2::64B", "L2::256B"},
    "ldmatrix": {"m8n8", "x1", "x2", "x4", "trans"}, "stmatrix": {"m8n8", "x1", "x2", "x4", "trans"},
    "prefetch": {"L1", "L2"}, "membar": {"cta", "gl", "sys"},
    "fence": {"acq_rel", "sc", "cta", "gpu", "sys", "proxy", "async"},
    "shfl": {"idx", "bfly", "up", "down"}, "redux": {"add", "min", "max", "and", "or", "xor"},
    "vote": {"all", "any", "ballot"}, "bar": {"warp", "red", "and", "or"}, "barrier": {"red", "and", "or"},
    "mma": {"m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16", "row", "col", "tf32"},
    "griddepcontrol": {"launch_dependents", "wait"},
}  # fmt: skip


class _Emit:
    def __init__(self, owner: Translated, i: Instruction, masked: bool) -> None:
        self.t, self.i, self.k = owner, i, owner.kernel
        self.out: list[str] = []
        self.mask = "m" if masked else None
        if i.predicate:
            p = f"p[{owner.rows[i.predicate][1]}]"
            p = f"~{p}" if i.negated else p
            self.mask = f"(m & {p})" if masked else (f"({p})" if i.negated else p)

    # operands

    def is_register(self, a: str) -> bool:
        return a in self.t.rows

    def value(self, a: str, kind: str) -> str:
        """Operand a as type ``kind``."""
        n = NUMPY[kind]
        if kind == "pred":
            if self.is_register(a):
                return f"p[{self.t.rows[a][1]}]"
            if a.startswith("!"):
                return f"~p[{self.t.rows[a[1:]][1]}]"
            return self.t.constant(np.bool_(int(a, 0) != 0))
        if self.is_register(a):
            size, index = self.t.rows[a]
            have, want = int(size) // 8, SIZES[kind]
            if have == want:
                return f"{n}[{index}]"
            return f"u{have}[{index}].astype(np.dtype('{n}'))"
        if a in SPECIAL:
            return f"X.special[{a!r}]"
        if a in self.t.symbols:
            return self.t.constant(np.dtype(n).type(self.t.symbols[a]))
        if a in {v.name for v in self.t.global_variables}:
            return f"X.globals[{a!r}]"
        if a == "_":
            raise ValueError("sink read")
        return self.t.constant(self.immediate(a, kind))

    def immediate(self, a: str, kind: str) -> Any:
        n = np.dtype(NUMPY[kind])
        if m := re.match(r"0[fF]([0-9a-fA-F]{8})$", a):
            x = np.array(int(m.group(1), 16), "u4").view("f4")[()]
            return n.type(x) if kind == "f32" else (np.float64(x) if kind == "f64" else x.view(n) if n.itemsize == 4 else n.type(x))
        if m := re.match(r"0[dD]([0-9a-fA-F]{16})$", a):
            x = np.array(int(m.group(1), 16), "u8").view("f8")[()]
            return x if kind == "f64" else x.view(n)
        if kind in ("f32", "f64") and re.match(r"-?\d*\.\d+|-?\d+\.?$", a):
            return n.type(float(a))
        v = int(a.rstrip("U"), 0) & ((1 << 8 * n.itemsize) - 1)
        return np.array(v, f"u{n.itemsize}").view(n)[()]

    def target(self, a: str, kind: str) -> str:
        if kind == "pred":
            return f"p[{self.t.rows[a][1]}]"
        size, index = self.t.rows[a]
        if int(size) // 8 != SIZES[kind]:
            raise ValueError(f"{a} is not of {kind}")
        return f"{NUMPY[kind]}[{index}]"

    # statements

    def put(self, target: str, expression: str) -> None:
        self.out.append(f"np.copyto({target}, {expression}" + (f", where={self.mask})" if self.mask else ")"))

    def ufunc(self, function: str, target: str, *args: str, extra: str = "") -> None:
        if self.mask:
            self.out.append(f"{function}({', '.join(args)}, out={target}, where={self.mask}{extra})")
        else:
            self.out.append(f"{function}({', '.join(args)}, out={target}{extra})")

    def active(self) -> str:
        return self.mask or "X.ones"

    def lines(self) -> list[str]:
        op, *modifiers = self.i.parts
        method = getattr(self, "op_" + op, None)
        if method is None or not all(m in MODIFIERS or m in SIZES or m in KNOWN.get(op, ()) for m in modifiers):
            raise NotImplementedError(self.i.op)
        method()
        return self.out

    # arithmetic

    def _binary(self, op: str) -> None:
        parts, (d, a, b) = self.i.parts, self.i.args
        kind = parts[-1]
        if kind == "pred":
            f = {"and": "np.logical_and", "or": "np.logical_or", "xor": "np.logical_xor"}[op]
            return self.ufunc(f, self.target(d, kind), self.value(a, kind), self.value(b, kind))
        if op == "mul" and "wide" in parts:
            wide = kind[0] + str(2 * int(kind[1:]))
            n = NUMPY[wide]
            return self.ufunc("np.multiply", self.target(d, wide), self.value(a, kind), self.value(b, kind),
                              extra=f", dtype=np.dtype('{n}'), casting='unsafe'")  # fmt: skip
        if op == "mul" and "hi" in parts:
            return self.put(self.target(d, kind), f"mulhi({self.value(a, kind)}, {self.value(b, kind)}, '{kind}')")
        if kind in ("s32", "s64", "s16"):
            kind = "u" + kind[1:]
        x, y = self.value(a, kind), self.value(b, kind)
        if "ftz" in parts:
            return self.put(self.target(d, kind), f"flush({UFUNC[op]}(flush({x}), flush({y})))")
        if "sat" in parts:
            raise NotImplementedError("sat")
        self.ufunc(UFUNC[op], self.target(d, kind), x, y)

    def op_add(self) -> None:
        self._binary("add")

    def op_sub(self) -> None:
        self._binary("sub")

    def op_mul(self) -> None:
        self._binary("mul")

    def op_and(self) -> None:
        self._binary("and")

    def op_or(self) -> None:
        self._binary("or")

    def op_xor(self) -> None:
        self._binary("xor")

    def op_not(self) -> None:
        kind = self.i.parts[-1]
        d, a = self.i.args
        self.ufunc("np.logical_not" if kind == "pred" else "np.invert", self.target(d, kind), self.value(a, kind))

    def flushed(self, a: str, kind: str) -> str:
        """``value``, subnormal numbers as zeros if the instruction says so."""
        x = self.value(a, kind)
        return f"flush({x})" if "ftz" in self.i.parts else x

    def op_neg(self) -> None:
        kind = self.i.parts[-1]
        d, a = self.i.args
        self.ufunc("np.negative", self.target(d, kind), self.flushed(a, kind))

    def op_abs(self) -> None:
        kind = self.i.parts[-1]
        d, a = self.i.args
        self.ufunc("np.absolute", self.target(d, kind), self.flushed(a, kind))

    def _minmax(self, op: str) -> None:
        parts, kind = self.i.parts, self.i.parts[-1]
        d, *args = self.i.args
        if kind[0] != "f" or "NaN" in parts:
            # numpy's hand on a NaN; where none is, of zeros any.
            f = f"np.{op}imum"
        else:
            f = f"N.{op}imum"
        values = [self.flushed(a, kind) for a in args]
        text = values[0]
        for other in values[1:]:
            if "NaN" in parts:
                text = f"np.where(np.isnan({text}) | np.isnan({other}), {f}({text}, {other}), N.{op}imum({text}, {other}))"
            else:
                text = f"{f}({text}, {other})"
        self.put(self.target(d, kind), text)

    def op_min(self) -> None:
        self._minmax("min")

    def op_max(self) -> None:
        self._minmax("max")

    def op_fma(self) -> None:
        kind = self.i.parts[-1]
        d, *args = self.i.args
        values = ", ".join(self.value(a, kind) for a in args)
        if "rn" not in self.i.parts:
            raise NotImplementedError("rounding")
        if "ftz" in self.i.parts:
            return self.put(self.target(d, kind), f"N.fma_ftz({values})")
        if self.mask is None:
            self.out.append(f"N.fma({values}, {self.target(d, kind)})")
        else:
            self.put(self.target(d, kind), f"N.fma({values})")

    def op_mad(self) -> None:
        parts, kind = self.i.parts, self.i.parts[-1]
        d, a, b, c = self.i.args
        if kind[0] == "f":
            return self.op_fma()
        if "wide" in parts:
            wide = kind[0] + str(2 * int(kind[1:]))
            n = NUMPY[wide]
            product = f"np.multiply({self.value(a, kind)}, {self.value(b, kind)}, dtype=np.dtype('{n}'), casting='unsafe')"
            return self.put(self.target(d, wide), f"{product} + {self.value(c, wide)}")
        if "hi" in parts:
            return self.put(self.target(d, kind), f"mulhi({self.value(a, kind)}, {self.value(b, kind)}, '{kind}') + {self.value(c, kind)}")
        u = "u" + kind[1:]
        self.put(self.target(d, u), f"np.multiply({self.value(a, u)}, {self.value(b, u)}) + {self.value(c, u)}")

    def op_div(self) -> None:
        parts, kind = self.i.parts, self.i.parts[-1]
        d, a, b = self.i.args
        x, y = self.value(a, kind), self.value(b, kind)
        if kind[0] != "f":
            return self.put(self.target(d, kind), f"N.divide_{'signed' if kind[0] == 's' else 'unsigned'}({x}, {y})")
        if "rn" in parts and "ftz" not in parts:
            return self.ufunc("np.divide", self.target(d, kind), x, y)
        if "ftz" in parts:
            x, y = f"flush({x})", f"flush({y})"
        # div.full, div.approx: 2 ulp; the latter is a product with the reciprocal, which beyond 2^126 is 0.
        text = f"approximate(np.divide({x}, {y}), 2)"
        if "approx" in parts:
            text = f"np.where(np.abs({y}) > 2.0**126, {x} * np.copysign(np.float32(0), {y}), {text})"
        self.put(self.target(d, kind), f"flush({text})" if "ftz" in parts else text)

    def op_rem(self) -> None:
        kind = self.i.parts[-1]
        d, a, b = self.i.args
        self.put(self.target(d, kind), f"N.remainder_{'signed' if kind[0] == 's' else 'unsigned'}({self.value(a, kind)}, {self.value(b, kind)})")

    def _unary_float(self, text: str, ulps: int) -> None:
        parts, kind = self.i.parts, self.i.parts[-1]
        if kind == "f64" and "ftz" in parts:
            # rcp.approx.ftz.f64, rsqrt.approx.ftz.f64: about 20 bits.
            raise NotImplementedError("a coarse approximation")
        d, a = self.i.args
        x = self.value(a, kind)
        if "ftz" in parts:
            x = f"flush({x})"
        text = text.format(x)
        if "approx" in parts:
            text = f"approximate({text}, {ulps})"
        self.put(self.target(d, kind), f"flush({text})" if "ftz" in parts else text)

    def op_sqrt(self) -> None:
        self._unary_float("np.sqrt({})", 1)

    def op_rsqrt(self) -> None:
        self._unary_float("inverse_root({})", 2 if self.i.parts[-1] == "f32" else 1)

    def op_rcp(self) -> None:
        kind = self.i.parts[-1]
        self._unary_float(self.t.constant(np.dtype(NUMPY[kind]).type(1)) + " / {}", 1)

    def op_ex2(self) -> None:
        self._unary_float("wide(np.exp2, {})", 2)

    def op_lg2(self) -> None:
        self._unary_float("wide(np.log2, {})", 2)

    def op_copysign(self) -> None:
        kind = self.i.parts[-1]
        d, a, b = self.i.args
        self.ufunc("np.copysign", self.target(d, kind), self.value(b, kind), self.value(a, kind))

    def op_testp(self) -> None:
        kind = self.i.parts[-1]
        d, a = self.i.args
        f = {"finite": "np.isfinite", "infinite": "np.isinf", "notanumber": "np.isnan"}[self.i.parts[1]]
        self.put(self.target(d, "pred"), f"{f}({self.value(a, kind)})")

    # bits

    def op_shl(self) -> None:
        self._shift("np.left_shift")

    def op_shr(self) -> None:
        self._shift("np.right_shift")

    def _shift(self, f: str) -> None:
        kind = self.i.parts[-1]
        d, a, b = self.i.args
        bits = 8 * SIZES[kind]
        n = NUMPY[kind]
        x = self.value(a, kind)
        if not self.is_register(b):
            amount = int(b.rstrip("U"), 0)
            if amount >= bits:
                if kind[0] == "s":
                    amount = bits - 1
                else:
                    return self.put(self.target(d, kind), self.t.constant(np.dtype(n).type(0)))
            return self.ufunc(f, self.target(d, kind), x, self.t.constant(np.dtype(n).type(amount)))
        y = self.value(b, "u32")
        self.put(self.target(d, kind), f"shifted({f}, {x}, {y}, {bits}, '{n}')")

    def op_shf(self) -> None:
        d, a, b, c = self.i.args
        _, side, mode, _ = self.i.parts
        self.put(self.target(d, "b32"), f"funnel({self.value(a, 'b32')}, {self.value(b, 'b32')}, {self.value(c, 'u32')}, '{side}', '{mode}')")

    def op_bfe(self) -> None:
        kind = self.i.parts[-1]
        d, a, b, c = self.i.args
        field = f"{self.value(a, kind)}, {self.value(b, 'u32')}, {self.value(c, 'u32')}"
        if kind[0] == "s":
            text = f"N.bfe_s({field}, {self.t.constant(np.uint32(8 * SIZES[kind]))}).astype('{NUMPY[kind]}')"
        else:
            text = f"N.bfe_u({field})"
        self.put(self.target(d, kind), text)

    def op_bfi(self) -> None:
        kind = self.i.parts[-1]
        d, a, b, c, e = self.i.args
        values = [*(self.value(x, kind) for x in (a, b)), *(self.value(x, "u32") for x in (c, e))]
        self.put(self.target(d, kind), f"N.bfi({', '.join(values)}).astype('{NUMPY[kind]}')")

    def op_prmt(self) -> None:
        d, a, b, c = self.i.args
        self.put(self.target(d, "b32"), f"N.prmt({', '.join(self.value(x, 'u32') for x in (a, b, c))})")

    def op_lop3(self) -> None:
        d, a, b, c, table = self.i.args
        x, y, z = (self.value(v, "b32") for v in (a, b, c))
        table = int(table, 0)
        terms = []
        for k in range(8):
            if table >> k & 1:
                terms.append(" & ".join(v if k >> s & 1 else f"~{v}" for v, s in ((x, 2), (y, 1), (z, 0))))
        self.put(self.target(d, "b32"), " | ".join(f"({t})" for t in terms) or self.t.constant(np.uint32(0)))

    def op_clz(self) -> None:
        kind = self.i.parts[-1]
        d, a = self.i.args
        text = f"N.leading_zeros(np.asarray({self.value(a, kind)}).astype('u8'))"
        self.put(self.target(d, "b32"), text if kind == "b64" else f"{text} - {self.t.constant(np.uint32(32))}")

    def op_popc(self) -> None:
        d, a = self.i.args
        self.put(self.target(d, "b32"), f"N.popc({self.value(a, self.i.parts[-1])}.astype('u8'))")

    def op_brev(self) -> None:
        d, a = self.i.args
        self.put(self.target(d, "b32"), f"N.brev({self.value(a, 'b32')})")

    # choice and moves

    def op_setp(self) -> None:
        parts = self.i.parts
        kind, compare = parts[-1], parts[1]
        d, a, b, *c = self.i.args
        x, y = self.flushed(a, kind), self.flushed(b, kind)
        f = None
        if kind[0] == "f":
            if compare in ("eq", "lt", "le", "gt", "ge"):
                f = COMPARE[compare]
            text = {
                "ne": f"(np.less({x}, {y}) | np.greater({x}, {y}))",
                "equ": f"~(np.less({x}, {y}) | np.greater({x}, {y}))",
                "neu": f"np.not_equal({x}, {y})",
                "ltu": f"~np.greater_equal({x}, {y})",
                "leu": f"~np.greater({x}, {y})",
                "gtu": f"~np.less_equal({x}, {y})",
                "geu": f"~np.less({x}, {y})",
                "num": f"~(np.isnan({x}) | np.isnan({y}))",
                "nan": f"(np.isnan({x}) | np.isnan({y}))",
            }.get(compare, f"{f}({x}, {y})")
        else:
            f = COMPARE[compare]
            text = f"{f}({x}, {y})"
        d, _, q = d.partition("|")
        if c:
            g = {"and": "&", "or": "|", "xor": "^"}[parts[2]]
            other = self.value(c[0], "pred")
            self.out.append(f"t0 = {text}")
            self.out.append(f"t1 = t0 {g} {other}")
            if q and q != "_":
                self.out.append(f"t2 = ~t0 {g} {other}")
                self.put(self.target(q, "pred"), "t2")
            return self.put(self.target(d, "pred"), "t1")
        if q:
            self.out.append(f"t0 = {text}")
            self.put(self.target(d, "pred"), "t0")
            return self.put(self.target(q, "pred"), "~t0")
        if f and kind[0] != "f" or f:
            return self.ufunc(f, self.target(d, "pred"), x, y)
        self.put(self.target(d, "pred"), text)

    def op_selp(self) -> None:
        kind = self.i.parts[-1]
        d, a, b, c = self.i.args
        self.put(self.target(d, kind), f"np.where({self.value(c, 'pred')}, {self.value(a, kind)}, {self.value(b, kind)})")

    def op_mov(self) -> None:
        kind = self.i.parts[-1]
        d, a = self.i.args
        if kind[0] in "fs":
            kind = ("b" + kind[1:]) if not re.match(r"0[fFdD]|-?\d*\.\d", a) else kind
        if d.startswith("{"):
            pieces = [x.strip() for x in d.strip("{} ").split(",")]
            bits = 8 * SIZES[kind] // len(pieces)
            small = f"b{bits}"
            self.out.append(f"t0 = {self.value(a, 'u' + kind[1:])}.copy()")
            for n, piece in enumerate(pieces):
                if piece != "_":
                    have = int(self.t.rows[piece][0])
                    shift = self.t.constant(np.dtype(NUMPY[kind]).type(n * bits))
                    self.put(self.target(piece, f"b{have}"), f"(t0 >> {shift}).astype('{NUMPY[small]}').astype('u{have // 8}')")
            return
        if a.startswith("{"):
            pieces = [x.strip() for x in a.strip("{} ").split(",")]
            bits = 8 * SIZES[kind] // len(pieces)
            n = NUMPY[kind]
            text = " | ".join(
                f"(np.asarray({self.value(piece, f'u{bits}')}).astype('{n}') << {self.t.constant(np.dtype(n).type(j * bits))})"
                for j, piece in enumerate(pieces)
            )
            return self.put(self.target(d, kind), text)
        if a in self.k.params:
            return self.put(self.target(d, kind), self.t.constant(np.uint64((1 << 47) + self.k.params[a][0])))
        if m := re.match(r"([$\w]+)\+(\d+)$", a):
            return self.put(self.target(d, kind), f"{self.value(m.group(1), kind)} + {self.t.constant(np.dtype(NUMPY[kind]).type(int(m.group(2))))}")
        self.put(self.target(d, kind), self.value(a, kind))

    def op_cvta(self) -> None:
        parts = self.i.parts
        d, a = self.i.args
        x = self.value(a, "u64")
        space = next(p for p in parts if p in ("global", "shared", "local", "const", "param"))
        base = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
        c = self.t.constant(np.uint64(base))
        self.put(self.target(d, "u64"), f"{x} - {c}" if "to" in parts else f"{x} + {c}")

    def op_cvt(self) -> None:
        parts = self.i.parts
        to, source = parts[-2], parts[-1]
        d, a = self.i.args
        modes = set(parts[1:-2])
        if to == "tf32":
            return self.put(self.target(d, "b32"), f"to_tf32({self.value(a, 'u32')}, '{'rna' if 'rna' in modes else 'rn'}')")
        if modes & {"sat"}:
            raise NotImplementedError("sat")
        size = self.t.rows[d][0]
        if to[0] != "f" and source[0] != "f":
            x = f"np.asarray({self.value(a, source)}).astype('{NUMPY[to]}')"
            have = int(size) // 8
            if have != SIZES[to]:
                x = f"{x}.astype('{'i' if to[0] == 's' else 'u'}{have}').view('u{have}')"
                return self.put(f"u{have}[{self.t.rows[d][1]}]", x)
            return self.put(self.target(d, to), x)
        if to[0] == "f" and source[0] == "f":
            x = self.value(a, source)
            if modes & {"rni", "rzi", "rmi", "rpi"}:
                f = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}[(modes & {"rni", "rzi", "rmi", "rpi"}).pop()]
                x = f"{f}({x})"
            if to == "f32" and source == "f64" and modes & {"rz", "rm", "rp"}:
                raise NotImplementedError("rounding")
            if "ftz" in modes:
                x = f"flush({x})" if source == "f32" else x
            x = f"({x}).astype('{NUMPY[to]}')"
            if "ftz" in modes and to == "f32":
                x = f"flush({x})"
            return self.put(self.target(d, to), x)
        if to[0] == "f":
            if not modes <= {"rn"}:
                raise NotImplementedError(str(modes))
            return self.put(self.target(d, to), f"np.asarray({self.value(a, source)}).astype('{NUMPY[to]}')")
        f = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}[(modes & {"rni", "rzi", "rmi", "rpi"}).pop()]
        self.put(self.target(d, to), f"to_integer({f}({self.flushed(a, source)}), '{NUMPY[to]}')")

    # memory

    def address(self, a: str) -> tuple[str, int, bool]:
        """Row, offset, and whether the row is of 64 bits."""
        inner = a.strip().strip("[]").strip()
        m = re.match(r"^([%$\w~.]+)\s*(?:\+\s*(-?\w+))?$", inner)
        name, offset = m.group(1), int(m.group(2) or "0", 0)
        if self.is_register(name):
            size, index = self.t.rows[name]
            return f"{'u8' if size == '64' else 'u4'}[{index}]", offset, size == "64"
        if name in self.t.symbols:
            return "X.zero", offset + self.t.symbols[name], False
        if name in self.k.params:
            return "param", offset + self.k.params[name][0], False
        if name in {v.name for v in self.t.global_variables}:
            return f"X.globals_row({name!r})", offset, True
        return "X.zero", offset + int(name, 0), False

    def space(self) -> str:
        for p in self.i.parts:
            p = p.split("::")[0]
            if p in ("global", "shared", "local", "param", "const"):
                return p
        return "generic"

    def op_ld(self) -> None:
        parts, kind = self.i.parts, self.i.parts[-1]
        d, a, *_ = self.i.args
        pieces = [x.strip() for x in d.strip("{} ").split(",")]
        row, offset, _ = self.address(a)
        size = SIZES[kind]
        n = NUMPY[kind]
        if row == "param":
            for j, piece in enumerate(pieces):
                have = int(self.t.rows[piece][0]) // 8
                x = f"X.parameter({offset + j * size}, '{n}')"
                if have != size:
                    x += f".astype('{n[0]}{have}').view('u{have}')" if n[0] != "f" else ""
                    self.put(f"u{have}[{self.t.rows[piece][1]}]", x)
                else:
                    self.put(f"{n}[{self.t.rows[piece][1]}]", x)
            return
        if any(p in ("relaxed", "acquire", "volatile") for p in parts):
            pass
        space = self.space()
        self.out.append(f"b = X.load_{space}({self.i.number}, {row}, {offset}, {self.active()}, {size * len(pieces)})")
        for j, piece in enumerate(pieces):
            if piece == "_":
                continue
            have = int(self.t.rows[piece][0]) // 8
            x = f"b['{n}'][:, {j}]"
            if have != size:
                x += f".astype('{'i' if kind[0] == 's' else 'u'}{have}').view('u{have}')"
                self.put(f"u{have}[{self.t.rows[piece][1]}]", x)
            else:
                self.put(f"{n}[{self.t.rows[piece][1]}]", x)

    def op_ldu(self) -> None:
        self.op_ld()

    def op_st(self) -> None:
        kind = self.i.parts[-1]
        a, d, *_ = self.i.args
        pieces = [x.strip() for x in d.strip("{} ").split(",")]
        row, offset, _ = self.address(a)
        size = SIZES[kind]
        n = NUMPY[kind]
        self.out.append(f"b = X.buffers['{n}']")
        for j, piece in enumerate(pieces):
            self.out.append(f"b[:, {j}] = {self.value(piece, kind)}")
        self.out.append(f"X.store_{self.space()}({self.i.number}, {row}, {offset}, {self.active()}, {size * len(pieces)})")

    def op_cp(self) -> None:
        parts = self.i.parts
        if "commit_group" in parts:
            return self.out.append(f"X.async_commit({self.active()})")
        if "wait_group" in parts:
            return self.out.append(f"X.async_wait({self.active()}, {int(self.i.args[0])})")
        if "wait_all" in parts:
            return self.out.append(f"X.async_wait({self.active()}, 0)")
        if "bulk" in parts or "mbarrier" in parts:
            raise NotImplementedError(self.i.op)
        to, source, size, *rest = self.i.args
        row, offset, _ = self.address(to)
        row2, offset2, _ = self.address(source)
        number = int(size, 0)
        source_size = self.value(rest[0], "u32") if rest else "None"
        self.out.append(
            f"X.async_copy({self.i.number}, {row}, {offset}, {row2}, {offset2}, {self.active()}, {number}, {source_size})"
        )

    def op_ldmatrix(self) -> None:
        d, a = self.i.args
        pieces = [x.strip() for x in d.strip("{} ").split(",")]
        row, offset, _ = self.address(a)
        trans = "trans" in self.i.parts
        self.out.append(f"b = X.ldmatrix({self.i.number}, {row}, {offset}, {self.active()}, {len(pieces)}, {trans})")
        for j, piece in enumerate(pieces):
            self.put(self.target(piece, "b32"), f"b[{j}]")

    def op_stmatrix(self) -> None:
        a, d = self.i.args
        pieces = ", ".join(self.value(x.strip(), "b32") for x in d.strip("{} ").split(","))
        row, offset, _ = self.address(a)
        self.out.append(f"X.stmatrix({self.i.number}, {row}, {offset}, ({pieces},), {self.active()}, {'trans' in self.i.parts})")

    def op_prefetch(self) -> None:
        pass

    def op_membar(self) -> None:
        pass

    def op_fence(self) -> None:
        pass

    # warps

    def op_shfl(self) -> None:
        mode = {"idx": 0, "bfly": 1, "up": 2, "down": 3}[self.i.parts[2]]
        d, a, b, c, member = self.i.args
        d, _, p = d.partition("|")
        self.out.append(
            f"b, ok = X.shuffle({self.i.number}, {mode}, {self.value(a, 'b32')}, {self.value(b, 'b32')}, "
            f"{self.value(c, 'b32')}, {self.value(member, 'b32')}, {self.active()})"
        )
        self.put(self.target(d, "b32"), "b")
        if p and p != "_":
            self.put(self.target(p, "pred"), "ok")

    def op_redux(self) -> None:
        op, kind = self.i.parts[2], self.i.parts[-1]
        d, a, member = self.i.args
        code = {("max", "s32"): 0, ("min", "s32"): 1, ("add", "s32"): 2, ("add", "u32"): 2, ("max", "u32"): 3,
                ("min", "u32"): 4, ("and", "b32"): 5, ("or", "b32"): 6, ("xor", "b32"): 7}[op, kind]  # fmt: skip
        self.out.append(f"b = X.warp_reduce({self.i.number}, {code}, {self.value(a, 'u32')}, {self.value(member, 'b32')}, {self.active()})")
        self.put(self.target(d, "b32"), "b")

    def op_vote(self) -> None:
        mode = self.i.parts[2]
        d, a, member = self.i.args
        negated = a.startswith("!")
        x = self.value(a.lstrip("!"), "pred")
        x = f"~{x}" if negated else x
        self.out.append(f"b = X.warp_reduce({self.i.number}, 8, ({x}).astype('u4'), {self.value(member, 'b32')}, {self.active()})")
        if mode == "ballot":
            return self.put(self.target(d, "b32"), "b")
        if mode == "any":
            return self.put(self.target(d, "pred"), "b != 0")
        if mode == "all":
            return self.put(self.target(d, "pred"), f"X.all_of(b, {self.active()})")
        raise NotImplementedError(mode)

    def op_activemask(self) -> None:
        self.out.append(f"b = X.warp_reduce({self.i.number}, 8, X.ones.astype('u4'), {self.t.constant(np.uint32(0))}, {self.active()})")
        self.put(self.target(self.i.args[0], "b32"), "b")

    def op_bar(self) -> None:
        if self.i.parts[1] == "warp":
            return self.out.append(f"X.warp_barrier({self.i.number}, {self.active()}, {self.value(self.i.args[0], 'b32')})")
        if self.i.predicate:
            raise NotImplementedError("a predicated barrier")
        if self.i.parts[1] == "red":
            d, number, *_, a = self.i.args
            negated = a.startswith("!")
            x = self.value(a.lstrip("!"), "pred")
            self.out.append(f"X.reduce_at_barrier({'~' if negated else ''}{x}, {self.active()}, '{self.i.parts[2]}', {self.t.rows[d][1]})")

    def op_barrier(self) -> None:
        self.op_bar()

    def op_mma(self) -> None:
        d, a, b, c = ([x.strip() for x in v.strip("{} ").split(",")] for v in self.i.args)
        shape = re.match(r"m(\d+)n(\d+)k(\d+)", next(p for p in self.i.parts if re.match(r"m\d+n\d+k\d+", p)))
        m, _, k = (int(x) for x in shape.groups())
        kinds = self.i.parts[-4:]
        if kinds[1] == "f64":
            rows = [", ".join(self.value(x, "f64") for x in part) for part in (a, b, c)]
            self.out.append(f"b = X.mma_f64({self.i.number}, {m}, {k}, ({rows[0]},), ({rows[1]},), ({rows[2]},), {self.active()})")
            kind = "f64"
        elif kinds[1] == "tf32":
            rows = [", ".join(self.value(x, "u32") for x in part) for part in (a, b)] + [", ".join(self.value(x, "f32") for x in c)]
            self.out.append(f"b = X.mma_tf32({self.i.number}, {k}, ({rows[0]},), ({rows[1]},), ({rows[2]},), {self.active()})")
            kind = "f32"
        else:
            raise NotImplementedError(self.i.op)
        for j, piece in enumerate(d):
            self.put(self.target(piece, kind), f"b[{j}]")

    def op_trap(self) -> None:
        self.out.append("X.trap()")

    def op_griddepcontrol(self) -> None:
        pass


class _Settings:
    """perturb: how many of the documented units in the last place approximations err by, at random."""

    perturb = 0.0
    random = np.random.default_rng(0)


settings = _Settings()


def _helpers() -> dict[str, Any]:
    def flush(x):
        x = np.asarray(x)
        tiny = np.finfo(x.dtype).tiny
        return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)

    def approximate(x, ulps):
        if not settings.perturb:
            return x
        x = np.asarray(x)
        bits = np.ascontiguousarray(x).view(f"i{x.dtype.itemsize}")
        most = max(1, round(ulps * settings.perturb))
        moved = (bits + settings.random.integers(-most, most + 1, x.shape)).astype(bits.dtype).view(x.dtype)
        return np.where(np.isfinite(x) & (np.abs(x) > 1e-30) & np.isfinite(moved), moved, x)

    def inverse_root(x):
        x = np.asarray(x)
        if x.dtype == np.float32:
            return (1 / np.sqrt(x.astype("f8"))).astype("f4")
        return (1 / np.sqrt(x.astype(np.longdouble))).astype("f8")

    def wide(f, x):
        return f(np.asarray(x).astype("f8")).astype("f4")

    def mulhi(a, b, kind):
        a, b = np.asarray(a), np.asarray(b)
        bits = 8 * SIZES[kind]
        if bits < 64:
            w = "i8" if kind[0] == "s" else "u8"
            return ((a.astype(w) * b.astype(w)) >> np.array(bits, w)).astype(NUMPY[kind])
        x, y = np.broadcast_arrays(a.astype("u8"), b.astype("u8"))
        lo = np.uint64(0xFFFFFFFF)
        s = np.uint64(32)
        x0, x1, y0, y1 = x & lo, x >> s, y & lo, y >> s
        t = (x0 * y0) >> s
        m1 = x1 * y0 + t
        m2 = x0 * y1 + (m1 & lo)
        high = x1 * y1 + (m1 >> s) + (m2 >> s)
        if kind == "s64":
            high = high - np.where(a.astype("i8") < 0, y, np.uint64(0)) - np.where(b.astype("i8") < 0, x, np.uint64(0))
        return high.astype("u8").view(NUMPY[kind])

    def shifted(f, x, y, bits, n):
        big = y >= bits
        amount = np.where(big, bits - 1, y).astype(n)
        result = f(x, amount)
        if f is np.right_shift and n[0] == "i":
            return result
        return np.where(big, np.dtype(n).type(0), result)

    def funnel(a, b, c, side, mode):
        c = np.minimum(c, np.uint32(32)) if mode == "clamp" else c & np.uint32(31)
        both = np.asarray(a).astype("u8") | (np.asarray(b).astype("u8") << np.uint64(32))
        if side == "r":
            return (both >> c.astype("u8")).astype("u4")
        return ((both << c.astype("u8")) >> np.uint64(32)).astype("u4")

    def to_tf32(bits, mode):
        bits = np.asarray(bits)
        f = bits.view("f4")
        if mode == "rna":
            rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        else:
            rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
        return np.where(np.isfinite(f), rounded, np.where(np.isnan(f), np.uint32(0x7FFFFFFF), bits))

    def to_integer(x, n):
        x = np.asarray(x)
        info = np.iinfo(n)
        with np.errstate(all="ignore"):
            low, high = float(info.min), float(info.max)
            inside = (x >= low) & (x < high + 1)
            result = np.where(inside, x, 0).astype(n)
            result = np.where(x >= high + 1, info.max, np.where(x < low, info.min, result))
            # PTX ISA, cvt: NaN is 0 from float32 to at most 32 bits, and otherwise the highest bit alone.
            if x.dtype == np.float64 or info.bits == 64:
                nan = info.min if n[0] == "i" else 1 << (info.bits - 1)
                result = np.where(np.isnan(x), np.array(nan, n), result)
        return result.astype(n)

    return locals()
