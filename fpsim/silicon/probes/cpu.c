// The CPU's own dot product instructions, one output at a time: c[i][j] runs over k with a (m, k) and bt (n, k).
// Built by fpsim/silicon/cpu.py at run time; each function is only called where the CPU has the instruction.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static int32_t word(const void *p) {
    int32_t w;
    memcpy(&w, p, 4);
    return w;
}

__attribute__((target("avx512bf16,avx512vl"))) void vdpbf16ps(const uint16_t *a, const uint16_t *bt, float *c,
                                                              int64_t m, int64_t n, int64_t k) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            __m128 sum = _mm_set_ss(c[i * n + j]);
            for (int64_t t = 0; t < k; t += 2)
                sum = _mm_dpbf16_ps(sum, (__m128bh)_mm_cvtsi32_si128(word(a + i * k + t)),
                                    (__m128bh)_mm_cvtsi32_si128(word(bt + j * k + t)));
            c[i * n + j] = _mm_cvtss_f32(sum);
        }
}

#define INTEGER(NAME, TARGET, TYPE_A, TYPE_B, STEP, EXPRESSION)                                              \
    __attribute__((target(TARGET))) void NAME(const TYPE_A *a, const TYPE_B *bt, int32_t *c, int64_t m,      \
                                              int64_t n, int64_t k) {                                        \
        for (int64_t i = 0; i < m; i++)                                                                      \
            for (int64_t j = 0; j < n; j++) {                                                                \
                __m128i sum = _mm_cvtsi32_si128(c[i * n + j]);                                               \
                for (int64_t t = 0; t < k; t += STEP) {                                                      \
                    __m128i x = _mm_cvtsi32_si128(word(a + i * k + t));                                      \
                    __m128i y = _mm_cvtsi32_si128(word(bt + j * k + t));                                     \
                    sum = EXPRESSION;                                                                        \
                }                                                                                            \
                c[i * n + j] = _mm_cvtsi128_si32(sum);                                                       \
            }                                                                                                \
    }

INTEGER(vpdpbusd, "avx512vnni,avx512vl", uint8_t, int8_t, 4, _mm_dpbusd_epi32(sum, x, y))
INTEGER(vpdpbusds, "avx512vnni,avx512vl", uint8_t, int8_t, 4, _mm_dpbusds_epi32(sum, x, y))
INTEGER(vpdpwssd, "avx512vnni,avx512vl", int16_t, int16_t, 2, _mm_dpwssd_epi32(sum, x, y))
INTEGER(vpdpwssds, "avx512vnni,avx512vl", int16_t, int16_t, 2, _mm_dpwssds_epi32(sum, x, y))
INTEGER(vpmaddubsw, "avx2", uint8_t, int8_t, 4,
        _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(x, y), _mm_set1_epi16(1))))
