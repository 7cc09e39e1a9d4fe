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
static inline uint64_t above_16(const float *p, float bar) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(p)), _mm512_set1_ps(bar), _CMP_GT_OQ);
#elif defined(__AVX2__)
    const __m256 sign = _mm256_set1_ps(-0.0f), least = _mm256_set1_ps(bar);
    const __m256 low = _mm256_andnot_ps(sign, _mm256_loadu_ps(p)),
                 high = _mm256_andnot_ps(sign, _mm256_loadu_ps(p + 8));
    return uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(low, least, _CMP_GT_OQ))) |
           uint64_t(_mm256_movemask_ps(_mm256_cmp_ps(high, least, _CMP_GT_OQ))) << 8;
#else
    uint64_t bits = 0;
    for (int j = 0; j < 16; ++j)
        bits |= uint64_t(__builtin_fabsf(p[j]) > bar) << j;
    return bits;
#endif
}

// The entries of a gradient above the bar: positions, and absolute values. Returns how many.
static int64_t pass(const float *gradient, int64_t n, int64_t start, float bar, int64_t *position, float *score) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; i += 64) {
        uint64_t bits = 0;
        if (n - i >= 64)
            for (int j = 0; j < 64; j += 16)
                bits |= above_16(gradient + i + j, bar) << j;
        for (int64_t j = i; n - i < 64 && j < n; ++j)
            bits |= uint64_t(__builtin_fabsf(gradient[j]) > bar) << (j - i);
        for (; bits; bits &= bits - 1) {
            const int64_t at = i + __builtin_ctzll(bits);
            position[found] = start + at, score[found++] = __builtin_fabsf(gradient[at]);
        }
    }
    return found;
}

static int64_t above(float *gradient, int64_t n, int64_t start, const int64_t *live, int64_t lives,
                     const int64_t *returning, int64_t returnings, float bar, int64_t *position, float *score) {
    constexpr int64_t PIECE = 1 << 13;
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
        found += pass(piece, size, begin, bar, position + found, score + found);
    }
    return found;
}

} // namespace startsparse::SS_ISA
