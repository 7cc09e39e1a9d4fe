// Scores above a bar: one pass over a block of gradient, nearly all of which is left behind.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>

#include "abi.h"
#include "vector.h"

namespace startsparse::SS_ISA {

#if !defined(__AVX512F__)
// Bit j: |p[j]| > bar. Not for NaN.
static inline uint32_t above_16(const float *p, float bar) {
#if defined(__AVX2__)
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
#endif

// The entries of `gradient` above the bar: offsets, and absolute values. Returns how many.
static int64_t pass(const float *gradient, int32_t n, float bar, int32_t *offset, float *score) {
    int64_t found = 0;
    int32_t i = 0;
#if defined(__AVX512F__)
    const __m512 least = _mm512_set1_ps(bar);
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
        const __m512 scores = _mm512_abs_ps(_mm512_loadu_ps(gradient + i));
        const __mmask16 high = _mm512_cmp_ps_mask(scores, least, _CMP_GT_OQ);
        _mm512_storeu_ps(score + found, _mm512_maskz_compress_ps(high, scores)); // no branch: it would be chance
        _mm512_storeu_si512(offset + found, _mm512_maskz_compress_epi32(high, at));
        found += __builtin_popcount(high);
    }
#else
    for (; i + 16 <= n; i += 16)
        for (uint32_t bits = above_16(gradient + i, bar); bits; bits &= bits - 1) {
            const int32_t at = i + __builtin_ctz(bits);
            offset[found] = at, score[found++] = __builtin_fabsf(gradient[at]);
        }
#endif
    for (; i < n; ++i)
        if (__builtin_fabsf(gradient[i]) > bar) offset[found] = i, score[found++] = __builtin_fabsf(gradient[i]);
    return found;
}

static int64_t above(float *gradient, int64_t n, int64_t start, const int64_t *live, int64_t lives,
                     const int64_t *returning, int64_t returnings, float bar, int64_t *position, float *score) {
    constexpr int64_t PIECE = 1 << 13;
    int32_t offset[PIECE];
    float aside[PIECE];
    int64_t found = 0;
    const int64_t *l = std::lower_bound(live, live + lives, start),
                  *r = std::lower_bound(returning, returning + returnings, start);
    for (int64_t first = 0; first < n; first += PIECE) {
        const int64_t size = std::min(PIECE, n - first), begin = start + first, end = begin + size;
        float *const piece = gradient + first;
        const int64_t *const back = r;
        for (; r < returning + returnings && *r < end; ++r)
            aside[r - back] = piece[*r - begin];
        for (; l < live + lives && *l < end; ++l)
            piece[*l - begin] = __builtin_nanf(""); // passes no bar
        for (const int64_t *again = back; again < r; ++again)
            piece[*again - begin] = aside[again - back];
        const int64_t passed = pass(piece, int32_t(size), bar, offset, score + found);
        for (int64_t j = 0; j < passed; ++j)
            position[found + j] = begin + offset[j];
        found += passed;
    }
    return found;
}

} // namespace startsparse::SS_ISA
