"""CUDA source of the probes: the templates of `probes/*.cu`, then one struct and one kernel per instruction."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fpsim.formats import container
from fpsim.silicon.instructions import Instruction

_FOLDER = Path(__file__).with_name("probes")
_FILES = {"mma": "mma.cu", "quad-pairs": "mma.cu", "wgmma": "wgmma.cu", "tcgen05": "tcgen05.cu"}

#: parameters of every kernel
_PARAMETERS = "const u8 *a, const u8 *bt, const u8 *c, u8 *d, const u8 *sa, const u8 *sb, u64 tiles"


def source(rows: Iterable[Instruction]) -> str:
    """One compilation unit with a kernel for each instruction; all must be of one family of templates."""
    listed = list(rows)
    files = dict.fromkeys(["common.cu", *(_FILES[row.family] for row in listed)])
    return "\n".join([*(template(name) for name in files), *(_EMIT[row.family](row) for row in listed)])


def template(name: str) -> str:
    """The text of one file of `probes`."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def _mma(row: Instruction) -> str:
    word, width = ("u64", 8) if row.a == "f64" else ("u32", 4)
    b_words = row.k * _packed_bits(row, row.a) // 8 // (4 * width)
    a_words, d_words = b_words * row.rows // 8, row.rows * row.columns * _bytes(row.out) // (32 * width)
    packing = f"{_packing(row, row.a)}, {_packing(row, row.b)}"
    call = (
        f"mma<{row.symbol}_op, {row.rows}, {word}, {a_words}, {b_words}, {d_words}, {_bytes(row.out)}, {packing}, "
        f"{row.scales}>(a, bt, c, d, sa, sb, tiles);"
    )
    return _warp_instruction(row, word, (d_words, a_words, b_words, d_words)) + _kernel(row, call)


def _quad_pairs(row: Instruction) -> str:
    words = 8 * _bytes(row.out) // 4
    call = f"quad_pairs<{row.symbol}_op, {words}, {_bytes(row.out)}>(a, bt, c, d, tiles);"
    return _warp_instruction(row, "u32", (words, 2, 2, words)) + _kernel(row, call)


def _warp_instruction(row: Instruction, word: str, counts: tuple[int, int, int, int]) -> str:
    """The struct around an mma.sync: registers as raw words, operands numbered d, a, b, c and then the scales."""
    constraint = "l" if word == "u64" else "r"
    listed, number = [], 0
    for count in counts:
        listed.append("{" + ", ".join(f"%{number + i}" for i in range(count)) + "}")
        number += count
    text = ", ".join(listed)
    inputs = [
        f'"{constraint}"({name}[{i}])' for name, count in zip("abc", counts[1:], strict=True) for i in range(count)
    ]
    parameters = f"{word} *d, const {word} *a, const {word} *b, const {word} *c"
    if row.scales:
        text += f", {{%{number}}}, {{0, 0}}, {{%{number + 1}}}, {{0, 0}}"
        inputs += ['"r"(sa)', '"r"(sb)']
        parameters += ", u32 sa, u32 sb"
    outputs = ", ".join(f'"={constraint}"(d[{i}])' for i in range(counts[0]))
    body = f'asm volatile("{row.ptx} {text};" : {outputs} : {", ".join(inputs)});'
    return f"struct {row.symbol}_op {{ static __device__ void run({parameters}) {{ {body} }} }};\n"


def _wgmma(row: Instruction) -> str:
    words = 4 * _bytes(row.out) // 4
    registers = ", ".join(f"%{i}" for i in range(words))
    flags = "1"  # d = a b + d; floats have a sign for each operand, 16-bit ones a transposition
    if row.out != "int32":
        flags += ", 1, 1" + (", 0, 0" if _bytes(row.a) == 2 else "")
    outputs = ", ".join(f'"+r"(d[{i}])' for i in range(words))
    body = f'asm volatile("{row.ptx} {{{registers}}}, %{words}, %{words + 1}, {flags};" : {outputs} : "l"(a), "l"(b));'
    struct = f"struct {row.symbol}_op {{ static __device__ void run(u32 *d, u64 a, u64 b) {{ {body} }} }};\n"
    return struct + _kernel(row, f"wgmma<{row.symbol}_op, {words}, {_bytes(row.out)}>(a, bt, c, d);")


def _tcgen05(row: Instruction) -> str:
    scales = ", [%4], [%5]" if row.scales else ""
    body = (
        f'asm volatile("{{ .reg .pred add; setp.ne.b32 add, 1, 0; {row.ptx} [%0], %1, %2, %3{scales}, add; }}" '
        f':: "r"(d), "l"(a), "l"(b), "r"({row.descriptor}u), "r"(sa), "r"(sb) : "memory");'
    )
    parameters = "u32 d, u64 a, u64 b, u32 sa, u32 sb"
    struct = f"struct {row.symbol}_op {{ static __device__ void run({parameters}) {{ {body} }} }};\n"
    layouts = f"{_shared(row, row.a)}, {_shared(row, row.b)}"
    call = f"tcgen05<{row.symbol}_op, {_bytes(row.out)}, {layouts}, {row.scales}>(a, bt, c, d, sa, sb);"
    return struct + _kernel(row, call)


_EMIT = {"mma": _mma, "quad-pairs": _quad_pairs, "wgmma": _wgmma, "tcgen05": _tcgen05}


def _kernel(row: Instruction, call: str) -> str:
    return f'extern "C" __global__ void {row.symbol}({_PARAMETERS}) {{ {call} }}\n'


def _bytes(name: str) -> int:
    """Bytes of one stored code of a format, or of the array type an accumulator is kept in."""
    return np.dtype(container(name).code_dtype).itemsize


def _packed_bits(row: Instruction, name: str) -> int:
    """Bits an element takes in the operand registers."""
    return 4 if _packing(row, name) == "NIBBLES" else 8 * _bytes(name)


def _packing(row: Instruction, name: str) -> str:
    if name in ("int4", "uint4") or "kind::mxf4" in row.ptx:
        return "NIBBLES"
    return "MIDDLE" if name == "e2m1" else "PLAIN"


def _shared(row: Instruction, name: str) -> str:
    if "kind::mxf4" in row.ptx:
        return "PACKED_4"
    return {"e2m1": "PADDED_4", "e2m3": "PADDED_6", "e3m2": "PADDED_6"}.get(name, "WHOLE")
