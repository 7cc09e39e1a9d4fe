// Vectors of SS_WIDTH floats, with the true width of the instruction set: compilers lower wider ones badly.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if !defined(SS_WIDTH) || !defined(SS_ISA)
#error "compile with -DSS_WIDTH=4|8|16 and -DSS_ISA=<namespace>"
#endif

namespace startsparse::SS_ISA {

constexpr int W = SS_WIDTH;

typedef float vec __attribute__((vector_size(4 * W)));
typedef float loose __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16)));
typedef float loose4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W)));

static inline vec load(const float *p) { return *reinterpret_cast<const loose *>(p); }
static inline void store(float *p, vec v) { *reinterpret_cast<loose *>(p) = v; }

// What was loaded stays in a register: GCC would rather load it again as an operand of every use but the last.
static inline vec held(vec v) {
#if SS_WIDTH == 16 && defined(__AVX512F__)
    asm("" : "+v"(v));
#elif (SS_WIDTH == 8 && defined(__AVX__)) || (SS_WIDTH == 4 && defined(__SSE2__))
    asm("" : "+x"(v));
#endif
    return v;
}

// An address in one register: were it a sum of two in each use, each multiply-add would be two operations.
static inline const float *held(const float *p) {
#if defined(__FMA__)
    asm("" : "+r"(p));
#endif
    return p;
}

static inline vec4 load4(const float *p) { return *reinterpret_cast<const loose4 *>(p); }
static inline void store4(float *p, vec4 v) { *reinterpret_cast<loose4 *>(p) = v; }

// ---- two-source shuffles with constant indices, for GCC and clang alike
// ------------------------------------------

template <int N> struct Shape;
template <> struct Shape<4> {
    typedef float v __attribute__((vector_size(16)));
    typedef int32_t i __attribute__((vector_size(16)));
};
template <> struct Shape<8> {
    typedef float v __attribute__((vector_size(32)));
    typedef int32_t i __attribute__((vector_size(32)));
};
template <> struct Shape<16> {
    typedef float v __attribute__((vector_size(64)));
    typedef int32_t i __attribute__((vector_size(64)));
};

template <int... I, class V> static inline V shuffle(V a, V b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, typename Shape<sizeof...(I)>::i{I...});
#endif
}

template <int D, int... E> static inline void exchange(vec &a, vec &b, std::integer_sequence<int, E...>) {
    const vec low = shuffle<((E & D) ? W + E - D : E)...>(a, b);
    b = shuffle<((E & D) ? W + E : E + D)...>(a, b);
    a = low;
}

// Exchange step of a transpose: afterwards bit D of the lane and bit D of the row have changed places.
template <int D> static inline void exchange(vec &a, vec &b) { exchange<D>(a, b, std::make_integer_sequence<int, W>{}); }

// Four floats from each of W / 4 addresses, `from(0)`, `from(4)` and so on.
template <class From> static inline vec fours(From from) {
#if SS_WIDTH == 16 && defined(__AVX512F__)
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(from(0)));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(from(4)), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(from(8)), 2);
    return vec(_mm512_insertf32x4(v, _mm_loadu_ps(from(12)), 3));
#elif SS_WIDTH == 8 && defined(__AVX__)
    return vec(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from(0))), _mm_loadu_ps(from(4)), 1));
#else
    vec v;
    for (int i = 0; i < W; i += 4)
        __builtin_memcpy(reinterpret_cast<float *>(&v) + i, from(i), 16);
    return v;
#endif
}

// W rows of W floats -> the same transposed. `from` and `to` give the address of each row; null: not wanted.
//
// Fours are put where they belong as they are loaded, which leaves half of the shuffles.
template <class From, class To> static inline void transpose(From from, To to) {
#pragma GCC unroll 4
    for (int part = 0; part < W; part += 4) {
        vec row[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            row[i] = fours([&](int k) { return from(i + k) + part; });
        exchange<1>(row[0], row[1]), exchange<1>(row[2], row[3]);
        exchange<2>(row[0], row[2]), exchange<2>(row[1], row[3]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            if (float *p = to(part + i)) store(p, row[i]);
    }
}

// ---- sums across lanes
// ---------------------------------------------------------------------------------------------

template <int N> static inline vec4 fold(typename Shape<N>::v v) {
    if constexpr (N == 4) {
        return v;
    } else {
        typename Shape<N / 2>::v half[2];
        __builtin_memcpy(half, &v, sizeof v);
        return fold<N / 2>(half[0] + half[1]);
    }
}

// Merge step of several sums: where lane bit D is clear, a's two halves added; where it is set, b's.
template <int D, int... E> static inline vec merge(vec a, vec b, std::integer_sequence<int, E...>) {
    return shuffle<((E & D) ? W + E : E)...>(a, b) + shuffle<((E & D) ? W + E - D : E + D)...>(a, b);
}

// {sum a, sum b, sum c, sum d}
static inline vec4 sums(vec a, vec b, vec c, vec d) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    return fold<W>(merge<2>(merge<1>(a, b, lanes), merge<1>(c, d, lanes), lanes));
}

// ---- sharing work
// --------------------------------------------------------------------------------------------------

struct Range {
    int64_t first, last;
};

static inline Range even_share(int64_t n, int parts, int part) {
    return {n * part / parts, n * (part + 1) / parts};
}

// Shares of equal work, where item i costs `ptr[stride * (i+1)] - ptr[stride * i]` weights plus `fixed`.
static inline int64_t cut(const int32_t *ptr, int64_t stride, int64_t n, int64_t fixed, int parts, int part) {
    const int64_t goal = (ptr[stride * n] + fixed * n) * part / parts;
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (ptr[stride * middle] + fixed * middle < goal) low = middle + 1;
        else high = middle;
    }
    return low;
}

static inline Range fair_share(const int32_t *ptr, int64_t stride, int64_t n, int64_t fixed, int parts,
                               int part) {
    return {cut(ptr, stride, n, fixed, parts, part), cut(ptr, stride, n, fixed, parts, part + 1)};
}

} // namespace startsparse::SS_ISA
