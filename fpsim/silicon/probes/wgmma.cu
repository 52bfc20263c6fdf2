// wgmma.mma_async of sm_90a: one tile of 64 x 8 per warpgroup, both operands in shared memory without swizzle: core
// matrices of 8 rows x 16 bytes, stored one after the other; the two along K are LEADING bytes apart, those along M or N
// STRIDE bytes apart. Layouts: PTX ISA 9.0, "Matrix-multiply-accumulate with wgmma". Every instruction takes 32 bytes of K.

__device__ u64 descriptor(const void *p, u32 leading, u32 stride) {
    u64 address = __cvta_generic_to_shared(p);
    return ((address & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32;
}

template <class I, int ND, int C_BYTES>
__device__ void wgmma(const u8 *a, const u8 *bt, const u8 *c, u8 *d) {
    __shared__ alignas(128) u8 sa[64 * 32], sb[8 * 32];
    int t = threadIdx.x;
    u64 tile = blockIdx.x;
    a += tile * sizeof sa, bt += tile * sizeof sb, c += tile * 512 * C_BYTES, d += tile * 512 * C_BYTES;
    for (int i = 4 * t; i < 64 * 32; i += 4 * 128) {
        int row = i / 32, byte = i % 32, at = (row / 8) * 256 + (byte / 16) * 128 + (row % 8) * 16 + byte % 16;
        *reinterpret_cast<u32 *>(sa + at) = *reinterpret_cast<const u32 *>(a + i);
        if (row < 8) *reinterpret_cast<u32 *>(sb + at) = *reinterpret_cast<const u32 *>(bt + i);
    }
    int row = (t / 32) * 16 + (t % 32) / 4, column = (t % 4) * 2, at[ND];
    for (int r = 0; r < ND; r++)
        at[r] = C_BYTES == 2 ? ((row + 8 * r) * 8 + column) * 2 : ((row + 8 * (r / 2)) * 8 + column + r % 2) * 4;
    u32 rd[ND];
    for (int r = 0; r < ND; r++) rd[r] = *reinterpret_cast<const u32 *>(c + at[r]);
    asm volatile("fence.proxy.async;" ::: "memory");  // what ordinary stores wrote, seen by the tensor core
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    I::run(rd, descriptor(sa, 128, 256), descriptor(sb, 128, 256));
    asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int r = 0; r < ND; r++) *reinterpret_cast<u32 *>(d + at[r]) = rd[r];
}
