// Tensor core instructions of NVIDIA GPUs, one instruction per warp (mma.sync) or warpgroup (wgmma), built with NVRTC by
// fpsim/silicon/nvidia.py. a: (16, K) or (64, K) row-major codes, bt: (8, K) codes of the transposed b, c and d: 8 columns.
// One launch runs many independent tiles, one per block. Fragment layouts: PTX ISA 8.7, "Matrix fragments for mma" and
// "Matrix-multiply-accumulate with wgmma". K_BYTES is K times the element size: 32 for every instruction here.

typedef unsigned int u32;
typedef unsigned long long u64;

__device__ u32 word(const unsigned char *p) { return *reinterpret_cast<const u32 *>(p); }

// D = A B + C with 16 x 8 tiles: group = lane / 4 owns rows group and group + 8, columns 2 * (lane % 4) + {0, 1}.
#define MMA(NAME, QUALIFIER)                                                                                        \
    extern "C" __global__ void NAME(const unsigned char *a, const unsigned char *bt, const float *c, float *d) {    \
        int lane = threadIdx.x, group = lane >> 2, part = lane & 3;                                                 \
        a += blockIdx.x * 16 * 32, bt += blockIdx.x * 8 * 32, c += blockIdx.x * 128, d += blockIdx.x * 128;         \
        u32 a0 = word(a + group * 32 + part * 4), a1 = word(a + (group + 8) * 32 + part * 4);                       \
        u32 a2 = word(a + group * 32 + 16 + part * 4), a3 = word(a + (group + 8) * 32 + 16 + part * 4);             \
        u32 b0 = word(bt + group * 32 + part * 4), b1 = word(bt + group * 32 + 16 + part * 4);                      \
        int top = group * 8 + part * 2, low = (group + 8) * 8 + part * 2;                                           \
        float d0, d1, d2, d3;                                                                                       \
        asm volatile("mma.sync.aligned." QUALIFIER                                                                  \
                     " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                                   \
                     : "=f"(d0), "=f"(d1), "=f"(d2), "=f"(d3)                                                       \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[top]), "f"(c[top + 1]),          \
                       "f"(c[low]), "f"(c[low + 1]));                                                               \
        d[top] = d0, d[top + 1] = d1, d[low] = d2, d[low + 1] = d3;                                                 \
    }

#if __CUDA_ARCH__ >= 800
MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#endif
#if __CUDA_ARCH__ >= 890
MMA(mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32")
MMA(mma_e5m2, "m16n8k32.row.col.f32.e5m2.e5m2.f32")
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Both operands in shared memory without swizzle: core matrices of 8 rows x 16 bytes, stored one after the other; the
// two along K are LEADING bytes apart, those along M or N are STRIDE bytes apart.
__device__ u64 descriptor(const void *p, u32 leading, u32 stride) {
    u64 address = __cvta_generic_to_shared(p);
    return ((address & 0x3FFFF) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32;
}

#define WGMMA(NAME, SHAPE, EXTRA)                                                                                   \
    extern "C" __global__ void NAME(const unsigned char *a, const unsigned char *bt, const float *c, float *d) {    \
        __shared__ alignas(128) unsigned char sa[64 * 32], sb[8 * 32];                                              \
        int t = threadIdx.x;                                                                                        \
        a += blockIdx.x * 64 * 32, bt += blockIdx.x * 8 * 32, c += blockIdx.x * 512, d += blockIdx.x * 512;         \
        for (int i = t; i < 64 * 32; i += 128) {                                                                    \
            int row = i / 32, byte = i % 32;                                                                        \
            sa[(row / 8) * 256 + (byte / 16) * 128 + (row % 8) * 16 + byte % 16] = a[i];                            \
            if (row < 8) sb[(byte / 16) * 128 + row * 16 + byte % 16] = bt[i];                                      \
        }                                                                                                           \
        __syncthreads();                                                                                            \
        int row = (t / 32) * 16 + (t % 32) / 4, column = (t % 4) * 2;                                               \
        float d0 = c[row * 8 + column], d1 = c[row * 8 + column + 1];                                               \
        float d2 = c[(row + 8) * 8 + column], d3 = c[(row + 8) * 8 + column + 1];                                   \
        u64 da = descriptor(sa, 128, 256), db = descriptor(sb, 128, 256);                                           \
        asm volatile("fence.proxy.async;\n\twgmma.fence.sync.aligned;" ::: "memory");                               \
        asm volatile("wgmma.mma_async.sync.aligned." SHAPE " {%0,%1,%2,%3}, %4, %5, 1, 1, 1" EXTRA ";"              \
                     : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                                       \
                     : "l"(da), "l"(db));                                                                           \
        asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");          \
        d[row * 8 + column] = d0, d[row * 8 + column + 1] = d1;                                                     \
        d[(row + 8) * 8 + column] = d2, d[(row + 8) * 8 + column + 1] = d3;                                         \
    }

WGMMA(wgmma_f16, "m64n8k16.f32.f16.f16", ", 0, 0")
WGMMA(wgmma_bf16, "m64n8k16.f32.bf16.bf16", ", 0, 0")
WGMMA(wgmma_tf32, "m64n8k8.f32.tf32.tf32", "")
WGMMA(wgmma_e4m3, "m64n8k32.f32.e4m3.e4m3", "")
WGMMA(wgmma_e5m2, "m64n8k32.f32.e5m2.e5m2", "")
#endif
