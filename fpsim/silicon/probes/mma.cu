// mma.sync: one tile per warp. Fragment layouts: PTX ISA 9.0, "Matrix fragments for mma". In bytes they are the same for
// every type: with group = lane / 4 and part = lane % 4, register r of a holds row group + 8 (r % 2) when there are 16
// rows, and the words part + 4 (r / 2) of it; b has column group, words part + 4 r; d has columns 2 part and 2 part + 1.

template <class I, int ROWS, class Word, int NA, int NB, int ND, int C_BYTES, Packing PA, Packing PB, int SCALES>
__device__ void mma(const u8 *a, const u8 *bt, const u8 *c, u8 *d, const u8 *sa, const u8 *sb, u64 tiles) {
    u64 tile = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (tile >= tiles) return;
    constexpr int W = sizeof(Word), ROW = 4 * W * NB, HALVES = ROWS / 8;
    int lane = threadIdx.x & 31, group = lane >> 2, part = lane & 3;
    a += tile * ROWS * stored<PA>(ROW), bt += tile * 8 * stored<PB>(ROW);
    c += tile * ROWS * 8 * C_BYTES, d += tile * ROWS * 8 * C_BYTES;
    Word ra[NA], rb[NB], rc[ND], rd[ND];
    for (int r = 0; r < NA; r++)
        ra[r] = operand<PA, Word>(a + (group + 8 * (r % HALVES)) * stored<PA>(ROW), (part + 4 * (r / HALVES)) * W);
    for (int r = 0; r < NB; r++) rb[r] = operand<PB, Word>(bt + group * stored<PB>(ROW), (part + 4 * r) * W);
    int at[ND];  // in bytes; a 16-bit accumulator has both columns in one register
    for (int r = 0; r < ND; r++)
        at[r] = C_BYTES == 2 ? ((group + 8 * r) * 8 + 2 * part) * 2
                             : ((group + 8 * (r / 2)) * 8 + 2 * part + r % 2) * C_BYTES;
    for (int r = 0; r < ND; r++) rc[r] = *reinterpret_cast<const Word *>(c + at[r]);
    if constexpr (SCALES > 0)
        // Lane 0 of a group gives the scales of row group, lane 1 of row group + 8; of b's, lane 0 those of its column.
        I::run(rd, ra, rb, rc, scales<SCALES>(sa + (tile * ROWS + group + 8 * (lane & 1)) * SCALES),
               scales<SCALES>(sb + (tile * 8 + group) * SCALES));
    else
        I::run(rd, ra, rb, rc);
    for (int r = 0; r < ND; r++) *reinterpret_cast<Word *>(d + at[r]) = rd[r];
}

// Volta's m8n8k4: four tiles per warp, one per quad pair (lanes 4q .. 4q + 3 and 16 more). Each lane has one row of a
// and one column of b, four f16 each.
template <class I, int ND, int C_BYTES>
__device__ void quad_pairs(const u8 *a, const u8 *bt, const u8 *c, u8 *d, u64 tiles) {
    int lane = threadIdx.x & 31, upper = 4 * (lane >> 4), row = (lane & 3) + upper;
    u64 tile = ((u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * 4 + ((lane >> 2) & 3);
    bool here = tile < tiles;
    if (!here) tile = tiles - 1;  // every lane takes part in the instruction
    a += tile * 64 + row * 8, bt += tile * 64 + row * 8, c += tile * 64 * C_BYTES, d += tile * 64 * C_BYTES;
    u32 ra[2], rb[2], rc[ND], rd[ND];
    for (int r = 0; r < 2; r++) ra[r] = operand<PLAIN, u32>(a, 4 * r), rb[r] = operand<PLAIN, u32>(bt, 4 * r);
    int at[ND];
    for (int r = 0; r < ND; r++)
        at[r] = C_BYTES == 2 ? row * 16 + 4 * r
                             : (((lane & 1) + (r & 2) + upper) * 8 + (r & 4) + (lane & 2) + (r & 1)) * 4;
    for (int r = 0; r < ND; r++) rc[r] = *reinterpret_cast<const u32 *>(c + at[r]);
    I::run(rd, ra, rb, rc);
    if (here)
        for (int r = 0; r < ND; r++) *reinterpret_cast<u32 *>(d + at[r]) = rd[r];
}
