// Both gradients at once, a column at a time: each load of dy feeds dx += w dy and dw = <x, dy>.
//
// Threads divide the tiles, and add up their sums for dw at the end; or the input channels, whose dx and dw
// they then own.
#pragma once

#include "forward.h"
#include "sweep.h"

namespace startsparse::SS_ISA {

constexpr int COLUMN_VECTORS = W == 16 ? 8 : 4; // of x and of dx, both held in registers

// M <= 4 weights of a column: their dw (added to, unless this is the first part of it), and their part of dx.
template <int M, int N, bool DX, bool DW, class Row>
static inline void weights_of(const Row *row, const float *w, const float *dy, int64_t stride,
                              const vec (&x)[N], vec (&dx)[N], float *dw, bool first) {
    vec dot[4] = {};
#pragma GCC unroll 4
    for (int j = 0; j < M; ++j) {
        const float *y = dy + int64_t(row[j]) * stride;
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
            const vec v = held(load(y + i * W));
            if constexpr (DX) dx[i] += w[j] * v;
            if constexpr (DW) dot[j] = i ? dot[j] + x[i] * v : x[i] * v;
        }
    }
    if constexpr (DW) {
        const vec4 total = sums(dot[0], dot[1], dot[2], dot[3]);
        if constexpr (M == 4) {
            store4(dw, first ? total : load4(dw) + total);
        } else {
            for (int j = 0; j < M; ++j)
                dw[j] = first ? total[j] : dw[j] + total[j];
        }
    }
}

// N vectors of one column and line, over all its weights.
template <int N, bool DX, bool DW, class Row>
static inline void column_chunk(const Row *row, const float *w, int32_t n, const float *dy, int64_t stride,
                                const float *x, float *dx, bool fresh, float *dw, bool first) {
    vec xs[N], ds[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
        if constexpr (DW) xs[i] = load(x + i * W);
        if constexpr (DX) ds[i] = fresh ? vec{} : load(dx + i * W);
    }
    int32_t k = 0;
    for (; k + 4 <= n; k += 4)
        weights_of<4, N, DX, DW>(row + k, w + k, dy, stride, xs, ds, dw + k, first);
    switch (n - k) {
    case 3: weights_of<3, N, DX, DW>(row + k, w + k, dy, stride, xs, ds, dw + k, first); break;
    case 2: weights_of<2, N, DX, DW>(row + k, w + k, dy, stride, xs, ds, dw + k, first); break;
    case 1: weights_of<1, N, DX, DW>(row + k, w + k, dy, stride, xs, ds, dw + k, first); break;
    default: break;
    }
    if constexpr (DX) {
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
            store(dx + i * W, ds[i]);
    }
}

template <bool DX, bool DW, class Row>
static inline void column_line(const Row *row, const float *w, int32_t n, const float *dy, int64_t stride,
                               const float *x, float *dx, int64_t length, bool fresh, float *dw,
                               bool first) {
    int64_t i = 0;
    if constexpr (COLUMN_VECTORS == 8)
        for (; i + 8 * W <= length; i += 8 * W)
            column_chunk<8, DX, DW>(row, w, n, dy + i, stride, x + i, dx + i, fresh, dw, first && i == 0);
    for (; i + 4 * W <= length; i += 4 * W)
        column_chunk<4, DX, DW>(row, w, n, dy + i, stride, x + i, dx + i, fresh, dw, first && i == 0);
    if (i + 2 * W <= length) {
        column_chunk<2, DX, DW>(row, w, n, dy + i, stride, x + i, dx + i, fresh, dw, first && i == 0);
        i += 2 * W;
    }
    if (i + W <= length)
        column_chunk<1, DX, DW>(row, w, n, dy + i, stride, x + i, dx + i, fresh, dw, first && i == 0);
}

// Some channels of one tile; `x` and `dx` are the first of the channels, `dy` is the tile. dw is added to,
// unless this is the first tile.
template <bool DX, bool DW, class Row>
static void backward_channels(const Geometry &g, const Header &p, Range channels, int64_t length,
                              const float *values, const float *x, const float *dy, float *dx, float *dw,
                              bool first) {
    const int32_t *ptr = section<int32_t>(p, p.col_ptr);
    const Row *row = section<Row>(p, p.row_index);
    const int64_t out_row = g.out_pixels * g.lanes, plane = g.plane * g.lanes;
    const bool fresh = g.kernel == 1; // every input pixel is met at most once
    if (DX && !(fresh && g.plane == g.out_pixels)) clear(dx, (channels.last - channels.first) * plane);
    for (int64_t line = 0; line < g.lines; ++line) {
        const float *dy_line = dy + line * g.line * g.lanes;
        for (int64_t channel = channels.first; channel < channels.last; ++channel) {
            for (int64_t tap = 0; tap < g.kernel; ++tap) {
                const int32_t k = ptr[channel * g.kernel + tap], n = ptr[channel * g.kernel + tap + 1] - k;
                if (!n && !(DX && fresh)) continue;
                const int64_t at =
                    (channel - channels.first) * plane + (g.shift[tap] + line * g.in_line) * g.lanes;
                column_line<DX, DW>(row + k, values + k, n, dy_line, out_row, DW ? x + at : nullptr,
                                    DX ? dx + at : nullptr, length, fresh, DW ? dw + k : nullptr,
                                    first && line == 0);
            }
        }
    }
}

// Adds to db the sums of some rows of `length` floats. Lanes without an item are zero.
static void add_rows(const float *dy, int64_t rows, int64_t stride, int64_t length, float *db) {
    for (int64_t row = 0; row < rows; row += 4) {
        const int64_t n = rows - row < 4 ? rows - row : 4;
        vec sum[4] = {};
        for (int64_t i = 0; i < length; i += W) {
#pragma GCC unroll 4
            for (int64_t j = 0; j < 4; ++j)
                sum[j] += load(dy + (row + (j < n ? j : 0)) * stride + i);
        }
        const vec4 total = sums(sum[0], sum[1], sum[2], sum[3]);
        for (int64_t j = 0; j < n; ++j)
            db[row + j] += total[j];
    }
}

// Gradient of the bias: dy summed over items and pixels.
static void add_bias(const Geometry &g, const float *dy, float *db, Range rows) {
    const int64_t out_row = g.out_pixels * g.lanes;
    add_rows(dy + rows.first * out_row, rows.last - rows.first, out_row, out_row, db + rows.first);
}

// One thread's share of adding up what the other threads found, one part after the other in `parts`; dw and db, which
// may be null, are what the first found.
static void add_parts(const Header &p, const float *parts, float *dw, float *db, int thread, int team) {
    const Range weights = even_share(p.nnz, team, thread), rows = even_share(p.rows, team, thread);
    for (int other = 1; other < team; ++other, parts += round16(p.nnz + p.rows)) {
        for (int64_t i = weights.first; dw && i < weights.last; ++i)
            dw[i] += parts[i];
        for (int64_t i = rows.first; db && i < rows.last; ++i)
            db[i] += parts[p.nnz + i];
    }
}

// How one call is divided, and where its scratch lies (floats from the start).
struct BackwardPlan {
    bool by_tile; // each thread its own tiles and its own sums for dw; else its own channels, and no sums to
                  // add up
    bool keep_x, keep_dy, keep_dx; // used where they lie
    int64_t strip;                 // channels packed, computed and unpacked together
    int64_t dy, x, dx, part, total;

    BackwardPlan(const Geometry &g, const Header &p, int threads) {
        const bool whole = g.batch == g.tiles * g.lanes;
        keep_x = in_place(g) && whole, keep_dy = g.blocked && whole, keep_dx = in_place(g);
        const int64_t out_tile = p.rows * g.out_pixels * g.lanes, plane = g.plane * g.lanes;
        // Sums for dw are added up in order, by all threads; activations that cross from core to core cost four times that.
        const bool affordable = (p.nnz + p.rows) * threads <= 4 * g.tiles * (out_tile + g.channels * plane);
        by_tile = threads == 1 || ((g.tiles % threads == 0 || g.tiles >= 4 * threads) && affordable);
        strip = g.kernel > 1 || g.lines > 1 || g.channels < STRIP ? g.channels : STRIP;
        dy = 0;
        x = dy + (keep_dy ? 0 : (by_tile ? threads : g.tiles) * out_tile);
        dx = x + (keep_x ? 0 : threads * strip * plane);
        part = dx + (keep_dx ? 0 : threads * strip * plane);
        total = part + (by_tile ? (threads - 1) * round16(p.nnz + p.rows) : 0);
    }
};

struct BackwardCall {
    const Geometry &g;
    const Header &p;
    const float *x, *dy, *values;
    float *dx, *dw, *db, *scratch;
    BackwardPlan plan;

    template <class Row>
    void compute(int thread, const float *out, int64_t tile, Range channels, float *own_dw, bool first) const {
        const int64_t plane = g.plane * g.lanes, length = live_length(g, tile);
        float *own_x = scratch + plan.x + thread * plan.strip * plane,
              *own_dx = scratch + plan.dx + thread * plan.strip * plane;
        for (int64_t c = channels.first; c < channels.last; c += plan.strip) {
            const Range strip = {c, c + plan.strip < channels.last ? c + plan.strip : channels.last};
            const int64_t at = (tile * g.channels + c) * plane;
            const float *in = plan.keep_x ? x + at : own_x;
            float *grad = plan.keep_dx ? dx + at : own_dx;
            if (dw && !plan.keep_x) pack_part(g, input_of(g), x, own_x, tile, strip);
            if (g.out_pixels > 1) {
                if (dw && dx) sweep_channels<true, true, Row>(g, p, strip, values, in, out, grad, own_dw);
                else if (dx) sweep_channels<true, false, Row>(g, p, strip, values, in, out, grad, own_dw);
                else sweep_channels<false, true, Row>(g, p, strip, values, in, out, grad, own_dw);
            } else if (dw && dx) {
                backward_channels<true, true, Row>(g, p, strip, length, values, in, out, grad, own_dw,
                                                    first);
            } else if (dx) {
                backward_channels<true, false, Row>(g, p, strip, length, values, in, out, grad, own_dw,
                                                    first);
            } else {
                backward_channels<false, true, Row>(g, p, strip, length, values, in, out, grad, own_dw,
                                                    first);
            }
            if (dx && !plan.keep_dx) unpack_part(g, input_of(g), own_dx, dx, tile, strip);
        }
    }

    template <class Row> void by_tile(int thread, int team) const {
        const int64_t out_tile = p.rows * g.out_pixels * g.lanes;
        float *part = scratch + plan.part + (thread - 1) * round16(p.nnz + p.rows);
        float *own_dw = thread ? part : dw, *own_db = thread ? part + p.nnz : db;
        const Range tiles = even_share(g.tiles, team, thread);
        if (dw && (g.out_pixels > 1 || tiles.first == tiles.last)) clear(own_dw, p.nnz);
        if (db) clear(own_db, p.rows);
        for (int64_t t = tiles.first; t < tiles.last; ++t) {
            float *own = scratch + plan.dy + thread * out_tile;
            if (!plan.keep_dy) pack_part(g, output_of(g, p.rows), dy, own, t, {0, p.rows});
            const float *out = plan.keep_dy ? dy + t * out_tile : own;
            if (db) add_bias(g, out, own_db, {0, p.rows});
            if (dw || dx) compute<Row>(thread, out, t, {0, g.channels}, own_dw, t == tiles.first);
        }
#pragma omp barrier
        add_parts(p, scratch + plan.part, dw, db, thread, team);
    }

    template <class Row> void by_channel(int thread, int team) const {
        const int32_t *ptr = section<int32_t>(p, p.col_ptr);
        const int64_t out_row = g.out_pixels * g.lanes;
        const Range rows = even_share(p.rows, team, thread),
                    channels = fair_share(ptr, g.kernel, g.channels, 2, team, thread);
        const int32_t first = ptr[channels.first * g.kernel], last = ptr[channels.last * g.kernel];
        if (dw && (g.out_pixels > 1 || !g.tiles)) clear(dw + first, last - first);
        if (db) clear(db + rows.first, rows.last - rows.first);
        for (int64_t t = 0; !plan.keep_dy && t < g.tiles; ++t)
            pack_part(g, output_of(g, p.rows), dy, scratch + plan.dy + (t * p.rows + rows.first) * out_row, t,
                      rows);
#pragma omp barrier
        for (int64_t t = 0; t < g.tiles; ++t) {
            const float *out = (plan.keep_dy ? dy : scratch + plan.dy) + t * p.rows * out_row;
            if (db) add_bias(g, out, db, rows);
            if (dw || dx) compute<Row>(thread, out, t, channels, dw, t == 0);
        }
    }

    template <class Row> void run(int thread, int team) const {
        if (plan.by_tile) by_tile<Row>(thread, team);
        else by_channel<Row>(thread, team);
    }
};

// dx, dw and db may each be null.
static void backward(const Geometry &g, const Header &p, const float *x, const float *dy, const float *values,
                     float *dx, float *dw, float *db, float *scratch, int threads) {
    const BackwardCall call{g, p, x, dy, values, dx, dw, db, scratch, {g, p, threads}};
#pragma omp parallel num_threads(threads)
    {
        if (p.row_bytes == 2) call.run<uint16_t>(omp_get_thread_num(), omp_get_num_threads());
        else call.run<uint32_t>(omp_get_thread_num(), omp_get_num_threads());
    }
}

} // namespace startsparse::SS_ISA
