// Vectors of SS_WIDTH floats, with the true width of the instruction set: compilers lower wider ones badly.
#pragma once

#include <cstdint>
#include <utility>

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

// Exchange step of a transpose: afterwards bit D of the lane and bit D of the row have changed places.
template <int D, int... E> static inline void exchange(vec &a, vec &b, std::integer_sequence<int, E...>) {
    vec low = shuffle<((E & D) ? W + E - D : E)...>(a, b);
    b = shuffle<((E & D) ? W + E : E + D)...>(a, b);
    a = low;
}

template <int D> static inline void exchange_all(vec (&row)[W]) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
        if (!(i & D)) exchange<D>(row[i], row[i + D], std::make_integer_sequence<int, W>{});
}

// Transpose W rows of W floats in registers.
static inline void transpose(vec (&row)[W]) {
    exchange_all<1>(row);
    exchange_all<2>(row);
    if constexpr (W > 4) exchange_all<4>(row);
    if constexpr (W > 8) exchange_all<8>(row);
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
