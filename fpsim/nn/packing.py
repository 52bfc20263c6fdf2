"""Codes of 4 and 6 bits, packed: what is written to disk.

In memory a code has a byte of its own. Packed, two 4-bit codes share a byte (the first in the low half) and four 6-bit
codes share three (ascending from the low bits, little-endian). Codes of 7 and 8 bits stay as they are, narrower ones
are kept as 4-bit codes, 5-bit ones as 6-bit codes. Signed integers are stored by their low bits.
"""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8, one axis: the codes of a tensor (uint8 or int8) in row-major order."""
    flat = codes.flatten().view(torch.uint8)
    if bits > 6:
        return flat.clone()
    if bits > 4:
        parts = _filled(flat & 63, 4).int()
        word = parts[:, 0] | parts[:, 1] << 6 | parts[:, 2] << 12 | parts[:, 3] << 18
        return torch.stack([word >> shift & 255 for shift in (0, 8, 16)], 1).to(torch.uint8).flatten()
    parts = _filled(flat & 15, 2)
    return parts[:, 0] | parts[:, 1] << 4


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """Undo `pack` for codes of `bits` bits: uint8, or int8 if `signed` (two's complement).

    Raises ValueError when the number of bytes does not fit the shape.
    """
    count = torch.Size(shape).numel()
    wanted = count if bits > 6 else -(-count // 4) * 3 if bits > 4 else -(-count // 2)
    if packed.numel() != wanted:
        raise ValueError(f"{packed.numel()} bytes of packed codes, but {count} codes of {bits} bits take {wanted}")
    if bits > 6:
        flat = packed.clone()
    elif bits > 4:
        parts = packed.view(-1, 3).int()
        word = parts[:, 0] | parts[:, 1] << 8 | parts[:, 2] << 16
        flat = torch.stack([word >> shift & 63 for shift in (0, 6, 12, 18)], 1).to(torch.uint8).flatten()[:count]
    else:
        flat = torch.stack([packed & 15, packed >> 4], 1).flatten()[:count]
    if signed:
        width = 8 if bits > 6 else 6 if bits > 4 else 4
        flat = ((flat << (8 - width)).view(torch.int8) >> (8 - width)).contiguous()
    return flat.view(shape)


def _filled(flat: Tensor, per: int) -> Tensor:
    """(words, per), filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % per)).view(-1, per)
