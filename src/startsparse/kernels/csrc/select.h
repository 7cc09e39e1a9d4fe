// Scores above a bar: one pass over a block of gradient, nearly all of which is left behind.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>

#include "abi.h"
#include "vector.h"

namespace startsparse::SS_ISA {

// Bit j: |p[j]| > bar. Not for NaN.
static inline uint32_t above_16(const float *p, float bar) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(p)), _mm512_set1_ps(bar), _CMP_GT_OQ);
#elif defined(__AVX2__)
    const __m256 sign = _mm256_set1_ps(-0.0f), least = _mm256_set1_ps(bar);
    const __m256 low = _mm256_andnot_ps(sign, _mm256_loadu_ps(p)),
                 high = _mm256_andnot_ps(sign, _mm256_loadu_ps(p + 8));
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(low, least, _CMP_GT_OQ))) |
           uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(high, least, _CMP_GT_OQ))) << 8;
#else
    uint32_t bits = 0;
    for (int j = 0; j < 16; ++j)
        bits |= uint32_t(__builtin_fabsf(p[j]) > bar) << j;
    return bits;
#endif
}

static int64_t above(const float *gradient, int64_t n, int64_t start, const int64_t *kept, int64_t kepts,
                     float bar, int64_t *position, float *score) {
    int64_t k = std::lower_bound(kept, kept + kepts, start) - kept, found = 0;
    for (int64_t i = 0; i < n; i += 16) {
        uint32_t bits = 0;
        if (n - i >= 16) bits = above_16(gradient + i, bar);
        for (int64_t j = i; n - i < 16 && j < n; ++j)
            bits |= uint32_t(__builtin_fabsf(gradient[j]) > bar) << (j - i);
        for (; bits; bits &= bits - 1) {
            const int64_t at = i + __builtin_ctz(bits);
            while (k < kepts && kept[k] < start + at)
                ++k;
            if (k < kepts && kept[k] == start + at) continue;
            position[found] = start + at, score[found++] = __builtin_fabsf(gradient[at]);
        }
    }
    return found;
}

} // namespace startsparse::SS_ISA
