// tcgen05.mma of sm_100a: one tile of 128 x 16 per block of four warps. Operands in shared memory without swizzle (core
// matrices as in wgmma), the accumulator and the scales in tensor memory, completion through an mbarrier. Layouts and
// descriptors: PTX ISA 9.0, "Tensor core 5th generation". Written from the manual: it compiles, and has not been run.

// Codes -> the 32 bytes of K an instruction reads. FP4 and FP6 of kind::f8f6f4 lie 16 to a group of 16 bytes, packed from
// its low end, the rest padding.
enum Shared { WHOLE, PACKED_4, PADDED_4, PADDED_6 };

template <Shared S> __device__ void fill(u8 *to, const u8 *codes, int row, int half) {
    u8 group[16] = {};
    if constexpr (S == WHOLE)
        for (int i = 0; i < 16; i++) group[i] = codes[row * 32 + half * 16 + i];
    else {
        constexpr int BITS = S == PADDED_6 ? 6 : 4, COUNT = S == PACKED_4 ? 32 : 16;
        for (int i = 0; i < COUNT; i++) {
            u32 code = (u32)codes[(row * 2 + half) * COUNT + i] << (i * BITS % 8);
            group[i * BITS / 8] |= code;
            if (i * BITS % 8 + BITS > 8) group[i * BITS / 8 + 1] |= code >> 8;
        }
    }
    u8 *at = to + (row / 8) * 256 + half * 128 + (row % 8) * 16;
    for (int i = 0; i < 16; i++) at[i] = group[i];
}

__device__ u64 descriptor(const void *p) {
    u64 address = __cvta_generic_to_shared(p), leading = 128 >> 4, stride = 256 >> 4;
    return ((address & 0x3FFFF) >> 4) | leading << 16 | stride << 32 | (u64)1 << 46;
}

template <class I, int C_BYTES, Shared SA, Shared SB, int SCALES>
__device__ void tcgen05(const u8 *a, const u8 *bt, const u8 *c, u8 *d, const u8 *sa, const u8 *sb) {
    __shared__ alignas(128) u8 left[128 * 32], right[16 * 32];
    __shared__ alignas(8) u64 barrier;
    __shared__ u32 base;
    constexpr int ROW_A = SA == WHOLE ? 32 : SA == PACKED_4 ? 64 : 32, ROW_B = SB == PACKED_4 ? 64 : 32;
    int row = threadIdx.x, warp = row / 32;
    u64 tile = blockIdx.x;
    a += tile * 128 * ROW_A, bt += tile * 16 * ROW_B, c += tile * 2048 * C_BYTES, d += tile * 2048 * C_BYTES;
    for (int half = 0; half < 2; half++) {
        fill<SA>(left, a, row, half);
        if (row < 16) fill<SB>(right, bt, row, half);
    }
    u32 on_barrier = __cvta_generic_to_shared(&barrier), on_base = __cvta_generic_to_shared(&base);
    if (warp == 0) {
        asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 64;" ::"r"(on_base) : "memory");
        asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;");
    }
    if (row == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(on_barrier) : "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");

    // Accumulator: lane = row, one 32-bit column per column (16-bit values in its low half).
    u32 tensor = base, mine = tensor + ((u32)(warp * 32) << 16), v[16];
    for (int j = 0; j < 16; j++)
        v[j] = C_BYTES == 2 ? reinterpret_cast<const unsigned short *>(c)[row * 16 + j]
                            : reinterpret_cast<const u32 *>(c)[row * 16 + j];
    asm volatile("tcgen05.st.sync.aligned.32x32b.x16.b32 [%0], "
                 "{%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16};" ::"r"(mine),
                 "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "r"(v[4]), "r"(v[5]), "r"(v[6]), "r"(v[7]), "r"(v[8]),
                 "r"(v[9]), "r"(v[10]), "r"(v[11]), "r"(v[12]), "r"(v[13]), "r"(v[14]), "r"(v[15])
                 : "memory");
    u32 scales_a = tensor + 32, scales_b = tensor + 48;
    if constexpr (SCALES > 0) {
        // Every warp's 32 lanes hold the same: lane l of column j the scales of row 32 j + l.
        int lane = row % 32;
        u32 s[4], column = lane < 16 ? scales<SCALES>(sb + (tile * 16 + lane) * SCALES) : 0;
        for (int j = 0; j < 4; j++) s[j] = scales<SCALES>(sa + (tile * 128 + 32 * j + lane) * SCALES);
        u32 lanes = (u32)(warp * 32) << 16;
        asm volatile("tcgen05.st.sync.aligned.32x32b.x4.b32 [%0], {%1,%2,%3,%4};" ::"r"(scales_a + lanes), "r"(s[0]),
                     "r"(s[1]), "r"(s[2]), "r"(s[3])
                     : "memory");
        asm volatile("tcgen05.st.sync.aligned.32x32b.x1.b32 [%0], {%1};" ::"r"(scales_b + lanes), "r"(column)
                     : "memory");
    }
    asm volatile("tcgen05.wait::st.sync.aligned;\n\ttcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    if (row == 0) {
        I::run(tensor, descriptor(left), descriptor(right), scales_a, scales_b);
        asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(on_barrier)
                     : "memory");
    }
    asm volatile("{\n\t.reg .pred done;\n"
                 "wait:\n\tmbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n\t@!done bra wait;\n\t}" ::"r"(on_barrier)
                 : "memory");
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    asm volatile("tcgen05.ld.sync.aligned.32x32b.x16.b32 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, [%16];\n\ttcgen05.wait::ld.sync.aligned;"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]), "=r"(v[4]), "=r"(v[5]), "=r"(v[6]), "=r"(v[7]),
                   "=r"(v[8]), "=r"(v[9]), "=r"(v[10]), "=r"(v[11]), "=r"(v[12]), "=r"(v[13]), "=r"(v[14]), "=r"(v[15])
                 : "r"(mine)
                 : "memory");
    for (int j = 0; j < 16; j++)
        if (C_BYTES == 2)
            reinterpret_cast<unsigned short *>(d)[row * 16 + j] = v[j];
        else
            reinterpret_cast<u32 *>(d)[row * 16 + j] = v[j];
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    if (warp == 0) asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 64;" ::"r"(tensor));
}
