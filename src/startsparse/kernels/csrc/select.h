// Values beyond a bar: one pass, in which nearly all are left behind.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>

#include "abi.h"
#include "vector.h"

namespace startsparse::SS_ISA {

enum class Test { ABOVE, LEAST, ABSOLUTE_ABOVE }; // p > bar, p >= bar, |p| > bar: none of them for NaN

static inline bool passes(Test test, float p, float bar) {
    return test == Test::LEAST ? p >= bar : (test == Test::ABOVE ? p : __builtin_fabsf(p)) > bar;
}

// Bit j: p[j] passes.
template <Test TEST> static inline uint64_t passing_16(const float *p, float bar) {
#if defined(__AVX512F__)
    const __m512 x = _mm512_loadu_ps(p), least = _mm512_set1_ps(bar);
    if (TEST == Test::LEAST) return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ);
    return _mm512_cmp_ps_mask(TEST == Test::ABOVE ? x : _mm512_abs_ps(x), least, _CMP_GT_OQ);
#elif defined(__AVX2__)
    const __m256 sign = _mm256_set1_ps(-0.0f), least = _mm256_set1_ps(bar);
    uint64_t bits = 0;
    for (int j = 0; j < 16; j += 8) {
        const __m256 x = _mm256_loadu_ps(p + j);
        const __m256 passed = TEST == Test::LEAST ? _mm256_cmp_ps(x, least, _CMP_GE_OQ)
                              : TEST == Test::ABOVE
                                  ? _mm256_cmp_ps(x, least, _CMP_GT_OQ)
                                  : _mm256_cmp_ps(_mm256_andnot_ps(sign, x), least, _CMP_GT_OQ);
        bits |= uint64_t(_mm256_movemask_ps(passed)) << j;
    }
    return bits;
#else
    uint64_t bits = 0;
    for (int j = 0; j < 16; ++j)
        bits |= uint64_t(passes(TEST, p[j], bar)) << j;
    return bits;
#endif
}

// Bit j: the j-th of the next 64 passes, or of those that are left.
template <Test TEST> static inline uint64_t passing_64(const float *p, int64_t left, float bar) {
    uint64_t bits = 0;
    if (left >= 64)
        for (int j = 0; j < 64; j += 16)
            bits |= passing_16<TEST>(p + j, bar) << j;
    else
        for (int64_t j = 0; j < left; ++j)
            bits |= uint64_t(passes(TEST, p[j], bar)) << j;
    return bits;
}

// Sets the bits of those positions that lie in [begin, end), and moves on behind them. Which share a word is chance: no
// branch on it, and nothing is read that was written just before.
static inline void set_bits(const int64_t *&next, const int64_t *last, int64_t begin, int64_t end, uint64_t *bits) {
    uint64_t word = 0;
    for (uint64_t set = 0; next < last && *next < end; ++next) {
        const uint64_t at = uint64_t(*next - begin);
        set = (set & -uint64_t(at / 64 == word)) | uint64_t(1) << at % 64;
        word = at / 64, bits[word] = set;
    }
}

static int64_t above(const float *gradient, int64_t n, int64_t start, const int64_t *live, int64_t lives,
                     const int64_t *returning, int64_t returnings, float bar, uint64_t *passed) {
    constexpr int64_t PIECE = 1 << 13, AHEAD = 1 << 10;
    int64_t found = 0;
    const int64_t *l = std::lower_bound(live, live + lives, start),
                  *r = std::lower_bound(returning, returning + returnings, start);
    for (int64_t first = 0; first < n; first += PIECE) {
        const int64_t size = std::min(PIECE, n - first), begin = start + first, end = begin + size;
        uint64_t lives_here[PIECE / 64] = {}, returns_here[PIECE / 64] = {};
        set_bits(l, live + lives, begin, end, lives_here);
        set_bits(r, returning + returnings, begin, end, returns_here);
        for (int64_t w = 0; w * 64 < size; ++w) {
            for (int64_t line = 0; line < 64; line += 16)
                __builtin_prefetch(gradient + first + w * 64 + AHEAD + line);
            const uint64_t bits = passing_64<Test::ABSOLUTE_ABOVE>(gradient + first + w * 64, size - w * 64, bar);
            *passed = bits & ~(lives_here[w] & ~returns_here[w]);
            found += __builtin_popcountll(*passed++);
        }
    }
    return found;
}

// Writes `of(j)` of each bit j that is set; returns how many. How many is chance, so there is no branch on it as long as
// they are few and there is room for a few more.
template <class Item, class Of> static inline int64_t write(uint64_t bits, Item *out, int64_t room, Of of) {
    constexpr int64_t FEW = 4;
    const int64_t set = __builtin_popcountll(bits);
    int64_t done = 0;
    if (room >= FEW)
        for (; done < FEW; ++done, bits &= bits - 1)
            out[done] = of(__builtin_ctzll(bits | uint64_t(1) << 63));
    for (; done < set; ++done, bits &= bits - 1)
        out[done] = of(__builtin_ctzll(bits));
    return set;
}

static void listed(const uint64_t *passed, int64_t n, int64_t start, int64_t *position, int64_t room) {
    for (int64_t i = 0; i < n; i += 64) {
        const int64_t found = write(*passed++, position, room, [&](int64_t j) { return start + i + j; });
        position += found, room -= found;
    }
}

static int64_t within(const float *value, int64_t n, float low, float high, float *found, int64_t *higher) {
    int64_t count = 0, above = 0;
    bool numbers = true;
    for (int64_t i = 0; i < n; i += 64) {
        const float *const p = value + i;
        const int64_t left = n - i;
        const uint64_t over = passing_64<Test::ABOVE>(p, left, high),
                       least = passing_64<Test::LEAST>(p, left, low),
                       all = passing_64<Test::LEAST>(p, left, -__builtin_inff());
        numbers &= __builtin_popcountll(all) == std::min<int64_t>(left, 64);
        above += __builtin_popcountll(over);
        count += write(least & ~over, found + count, left < 64 ? 0 : n - count, [&](int64_t j) { return p[j]; });
    }
    *higher = above;
    return numbers ? count : -1;
}

static void from(const float *value, int64_t n, float bar, bool itself, uint8_t *taken) {
    if (itself)
        for (int64_t i = 0; i < n; ++i)
            taken[i] = value[i] >= bar;
    else
        for (int64_t i = 0; i < n; ++i)
            taken[i] = value[i] > bar;
}

} // namespace startsparse::SS_ISA
