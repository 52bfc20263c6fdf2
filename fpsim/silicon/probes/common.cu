// Shared by the probes: raw words in and out, so that no conversion touches a NaN. instructions.py puts this file first
// and appends one struct with the instruction and one kernel per row of its table.
//
// A tile is one instruction's product: a (rows, k) codes, bt (columns, k) codes of the transposed b, c and d (rows,
// columns) in the accumulator's type. One launch runs `tiles` independent ones.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// How codes, one per element, become the operand registers of an instruction.
enum Packing {
    PLAIN,    // as they are: 1, 2, 4 or 8 bytes each
    NIBBLES,  // one byte each -> 4 bits each, low bits first
    MIDDLE,   // E2M1 in a byte of kind::f8f6f4: bits 2 to 5
};

// A register of `Word` bytes that starts `byte` bytes into the instruction's packed row.
template <Packing P, class Word> __device__ Word operand(const u8 *row, int byte) {
    if constexpr (P == NIBBLES) {
        Word packed = 0;
        for (int i = 0; i < 2 * (int)sizeof(Word); i++) packed |= (Word)(row[2 * byte + i] & 15) << (4 * i);
        return packed;
    } else {
        Word word = *reinterpret_cast<const Word *>(row + byte);
        return P == MIDDLE ? word << 2 : word;
    }
}

// Bytes a row of codes takes where `packed` bytes reach the instruction.
template <Packing P> __device__ constexpr int stored(int packed) { return P == NIBBLES ? 2 * packed : packed; }

// Up to four scale codes of one row, as one register.
template <int COUNT> __device__ u32 scales(const u8 *p) {
    u32 word = 0;
    for (int i = 0; i < COUNT; i++) word |= (u32)p[i] << (8 * i);
    return word;
}
