// Inputs made where they are used: the same words as fpsim.codec.random_words, a function of the key and the index
// (Philox4x32-10; Salmon et al., SC 2011). Element i is an entry of a table of 65,536 picked by the high bits of word
// i, or without a table the word itself; a 64-bit element without a table is two words, the low one first.

__device__ void philox(u64 block, u64 key, u32 (&out)[4]) {
    u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = 0, c3 = 0, k0 = (u32)key, k1 = (u32)(key >> 32);
    for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        u64 p0 = (u64)0xD2511F53u * c0, p1 = (u64)0xCD9E8D57u * c2;
        u32 next = (u32)(p1 >> 32) ^ c1 ^ k0, other = (u32)(p0 >> 32) ^ c3 ^ k1;
        c0 = next, c1 = (u32)p1, c2 = other, c3 = (u32)p0;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// count is a multiple of 4.
template <class T> __device__ void draw(u64 key, u64 count, const T *table, T *out) {
    constexpr int WORDS = sizeof(T) == 8 ? 2 : 1;
    u64 step = (u64)gridDim.x * blockDim.x * 4;
    for (u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < count; i += step) {
        u32 w[4];
        if (table || WORDS == 1) {
            philox(i >> 2, key, w);
            for (int j = 0; j < 4; j++) out[i + j] = table ? table[w[j] >> 16] : (T)w[j];
        } else {
            for (int half = 0; half < 2; half++) {
                philox(i / 2 + half, key, w);
                for (int j = 0; j < 2; j++) out[i + 2 * half + j] = (T)((u64)w[2 * j + 1] << 32 | w[2 * j]);
            }
        }
    }
}

extern "C" __global__ void draw_1(u64 key, u64 count, const u8 *table, u8 *out) {
    draw(key, count, table, out);
}
extern "C" __global__ void draw_2(u64 key, u64 count, const unsigned short *table, unsigned short *out) {
    draw(key, count, table, out);
}
extern "C" __global__ void draw_4(u64 key, u64 count, const u32 *table, u32 *out) {
    draw(key, count, table, out);
}
extern "C" __global__ void draw_8(u64 key, u64 count, const u64 *table, u64 *out) {
    draw(key, count, table, out);
}
