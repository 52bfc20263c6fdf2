"""Codes below 8 bits, packed: what is written to disk.

In memory a code has a byte of its own. Packed, the codes are one stream of bits: code i takes the `bits` bits from bit
i * bits on, the lowest first, and bit j of the stream is bit j % 8 of byte j // 8. Two 4-bit codes so share a byte, the
first in the low half, four 6-bit codes share three, eight 3-bit codes share three. Signed integers are stored by their
low bits.
"""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8, one axis, ceil(count * bits / 8) bytes: the codes of a tensor (uint8 or int8) in row-major order."""
    flat = codes.flatten().view(torch.uint8)
    if bits == 8:
        return flat.clone()
    eights = torch.nn.functional.pad(flat & ((1 << bits) - 1), (0, -len(flat) % 8)).view(-1, 8)
    word = torch.zeros(len(eights), dtype=torch.int64, device=flat.device)  # eight codes are `bits` bytes, at most 7
    for place in range(8):
        word |= eights[:, place].long() << (bits * place)
    made = torch.stack([word >> (8 * byte) & 255 for byte in range(bits)], 1).to(torch.uint8).flatten()
    return made[: packed_bytes(len(flat), bits)].clone()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """Undo `pack` for codes of `bits` bits: uint8, or int8 if `signed` (two's complement).

    Raises ValueError when the number of bytes does not fit the shape.
    """
    count = torch.Size(shape).numel()
    wanted = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or packed.numel() != wanted:
        raise ValueError(
            f"{packed.numel()} bytes of packed codes ({packed.dtype}), but {count} codes of {bits} bits take {wanted}"
        )
    if bits == 8:
        flat = packed.clone()
    else:
        groups = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits)
        word = torch.zeros(len(groups), dtype=torch.int64, device=packed.device)
        for byte in range(bits):
            word |= groups[:, byte].long() << (8 * byte)
        parts = [word >> (bits * place) & ((1 << bits) - 1) for place in range(8)]
        flat = torch.stack(parts, 1).to(torch.uint8).flatten()[:count]
    if signed:
        flat = ((flat << (8 - bits)).view(torch.int8) >> (8 - bits)).contiguous()
    return flat.view(shape)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)
