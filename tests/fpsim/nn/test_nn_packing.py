import pytest
import torch

from fpsim.nn.packing import pack, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 4), (0,)])
def test_packed_codes_come_back(bits: int, signed: bool, shape: tuple[int, ...]) -> None:
    low = -(1 << (bits - 1)) if signed else 0
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(low, low + (1 << bits), shape, generator=generator).to(torch.int8 if signed else torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    back = unpack(packed, bits, shape, signed)
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1001])
def test_packed_codes_are_one_stream_of_bits(bits: int, count: int) -> None:
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    stream = sum(code << (bits * place) for place, code in enumerate(codes.tolist()))
    assert bytes(pack(codes, bits).tolist()) == stream.to_bytes(-(-count * bits // 8), "little")


def test_layout() -> None:
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]
    assert pack(torch.tensor([-1, -8], dtype=torch.int8), 4).tolist() == [0x8F]
    assert pack(torch.tensor([1, 2, 3, 63], dtype=torch.uint8), 6).tolist() == [0x81, 0x30, 0xFC]


def test_a_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 bytes of packed codes \(torch.uint8\), but 8 codes of 4 bits take 4"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, (2, 4), False)
