// Both gradients of a convolution: a few weights of one column swept over a band of the image.
//
// Where a column meets many pixels, its sums for dw stay in registers over all of them, and are added across
// lanes once; x and dx of one channel are in the first-level cache, and each dy row is read in order.
#pragma once

#include "layout.h"

namespace startsparse::SS_ISA {

constexpr int SWEEP = W == 16 ? 8 : 4;     // weights of a column swept together
constexpr int64_t BAND_BYTES = 512 * 1024; // of dy, all rows, at most: stays in the second-level cache
constexpr int64_t BAND_FLOATS = 64 * W; // of one row, no more: enough to pay for the start and end of a sweep

// Some lines of a tile, and the part [first, last) of each, in floats.
struct Band {
    int64_t line, lines, first, last;
};

struct Strides {
    int64_t out_row, in_line, out_line; // floats from one row or line to the next
};

template <int M, bool DX, bool DW, class Row>
static inline void sweep(const Row *row, const float *w, const float *dy, const float *x, float *dx,
                         const Strides &s, const Band &band, float *dw) {
    vec weight[M], dot[SWEEP] = {};
    const float *y[M];
#pragma GCC unroll 8
    for (int j = 0; j < M; ++j)
        weight[j] = vec{} + w[j], y[j] = dy + int64_t(row[j]) * s.out_row;
    for (int64_t line = band.line; line < band.line + band.lines; ++line) {
        const int64_t in = line * s.in_line, out = line * s.out_line;
        for (int64_t f = band.first; f < band.last; f += W) {
            vec xs = {}, ds = {};
            if constexpr (DW) xs = load(x + in + f);
            if constexpr (DX) ds = load(dx + in + f);
#pragma GCC unroll 8
            for (int j = 0; j < M; ++j) {
                const vec v = held(load(y[j] + out + f));
                if constexpr (DX) ds += weight[j] * v;
                if constexpr (DW) dot[j] += xs * v;
            }
            if constexpr (DX) store(dx + in + f, ds);
        }
    }
    if constexpr (DW) {
#pragma GCC unroll 2
        for (int j = 0; j < M; j += 4) {
            const vec4 total = sums(dot[j], dot[j + 1], dot[j + 2], dot[j + 3]);
            for (int i = j; i < j + 4 && i < M; ++i)
                dw[i] += total[i - j];
        }
    }
}

template <int M, bool DX, bool DW, class Row>
static inline void sweep_rest(int32_t n, const Row *row, const float *w, const float *dy, const float *x,
                              float *dx, const Strides &s, const Band &band, float *dw) {
    if constexpr (M > 0) {
        if (n == M) sweep<M, DX, DW>(row, w, dy, x, dx, s, band, dw);
        else sweep_rest<M - 1, DX, DW>(n, row, w, dy, x, dx, s, band, dw);
    }
}

// Some channels of one tile; `x` and `dx` are the first of the channels, `dy` is the tile. Adds to dw.
template <bool DX, bool DW, class Row>
static void sweep_channels(const Geometry &g, const Header &p, Range channels, const float *values,
                           const float *x, const float *dy, float *dx, float *dw) {
    const int32_t *ptr = section<int32_t>(p, p.col_ptr);
    const Row *row = section<Row>(p, p.row_index);
    const Strides s = {g.out_pixels * g.lanes, g.in_line * g.lanes, g.line * g.lanes};
    const int64_t plane = g.plane * g.lanes, line = g.line * g.lanes;
    if (DX) clear(dx, (channels.last - channels.first) * plane);

    const int64_t cached = BAND_BYTES / 4 / (p.rows ? p.rows : 1);
    const int64_t budget = cached < BAND_FLOATS ? cached : BAND_FLOATS;
    const int64_t lines = budget > line ? budget / line : 1;
    const int64_t part = g.lines > 1 || budget >= line ? line : (budget < 8 * W ? 8 * W : budget / W * W);
    for (int64_t first_line = 0; first_line < g.lines; first_line += lines) {
        for (int64_t f = 0; f < line; f += part) {
            const Band band = {first_line, first_line + lines < g.lines ? lines : g.lines - first_line, f,
                               f + part < line ? f + part : line};
            for (int64_t channel = channels.first; channel < channels.last; ++channel) {
                for (int64_t tap = 0; tap < g.kernel; ++tap) {
                    int32_t k = ptr[channel * g.kernel + tap];
                    const int32_t end = ptr[channel * g.kernel + tap + 1];
                    const int64_t at = (channel - channels.first) * plane + g.shift[tap] * g.lanes;
                    const float *in = DW ? x + at : nullptr;
                    float *grad = DX ? dx + at : nullptr;
                    for (; k + SWEEP <= end; k += SWEEP)
                        sweep<SWEEP, DX, DW>(row + k, values + k, dy, in, grad, s, band,
                                             DW ? dw + k : nullptr);
                    sweep_rest<SWEEP - 1, DX, DW>(end - k, row + k, values + k, dy, in, grad, s, band,
                                                  DW ? dw + k : nullptr);
                }
            }
        }
    }
}

} // namespace startsparse::SS_ISA
