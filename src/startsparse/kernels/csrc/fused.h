// A convolution between batch norms: the norm before it is applied as its input is padded, the moments for the
// norm after it are taken while its output is in cache; backward likewise.
//
// Threads divide the tiles, or else rows (forward) and channels (backward), as in `forward.h` and `backward.h`.
#pragma once

#include "backward.h"
#include "norm.h"

namespace startsparse::SS_ISA {

// Floats read past the last plane: an output row may go on beyond the image's last pixel.
static int64_t overrun(const Geometry &g) {
    int64_t most = 0;
    for (int64_t tap = 0; tap < g.kernel; ++tap)
        most = g.shift[tap] > most ? g.shift[tap] : most;
    const int64_t end = most + (g.lines - 1) * g.in_line + g.line;
    return round16((end > g.plane ? end - g.plane : 0) * g.lanes);
}

struct FusedForwardPlan {
    bool by_tile, keep_x;
    int64_t table, x, y, total;

    FusedForwardPlan(const Geometry &g, const Header &p, const Fusion &fusion, int threads) {
        by_tile = g.tiles % threads == 0 || g.tiles >= 4 * threads;
        keep_x = !g.place && !fusion.pre && !overrun(g) && g.batch == g.tiles * g.lanes;
        const int64_t in_tile = g.channels * g.plane * g.lanes;
        table = 0;
        x = table + round16(2 * p.nnz);
        y = x + (keep_x ? 0 : (by_tile ? threads : g.tiles) * in_tile + overrun(g));
        total = y + (g.out_place ? threads * p.rows * g.out_pixels * g.lanes : 0);
    }
};

struct FusedForward {
    const Geometry &g;
    const Header &p;
    const Fusion &fusion;
    const float *x, *values, *bias;
    float *y, *scratch;
    FusedForwardPlan plan;

    void compute(int thread, int64_t tile, const float *in, Range rows) const {
        const int64_t row = g.out_pixels * g.lanes, image = g.out_image * g.lanes;
        float *whole = y + (tile * p.rows + rows.first) * image;
        float *out = g.out_place ? scratch + plan.y + thread * p.rows * row : whole;
        forward_rows(g, p, rows, g.line * g.lanes, FromTable{reinterpret_cast<Entry *>(scratch + plan.table)},
                     bias, in, out);
        for (int64_t r = 0; r < rows.last - rows.first; ++r) {
            if (g.out_place)
                carry_out(out + r * row, g.out_image, g.lanes, g.out_place, nullptr, whole + r * image);
            if (fusion.moments)
                moments_of(whole + r * image, image, live_in(g.batch, g.lanes, tile),
                           fusion.moments + 2 * (tile * p.rows + rows.first + r));
        }
    }

    template <class Column> void run(int thread, int team) const {
        const int64_t in_tile = g.channels * g.plane * g.lanes;
        fill_table<Column>(g, p, values, reinterpret_cast<Entry *>(scratch + plan.table),
                           even_share(p.nnz, team, thread));
        const Range channels = even_share(g.channels, team, thread);
        for (int64_t t = 0; !plan.by_tile && !plan.keep_x && t < g.tiles; ++t)
            carry_input(g, fusion, x, t, channels,
                        scratch + plan.x + t * in_tile + channels.first * g.plane * g.lanes);
#pragma omp barrier
        const Range rows = fair_share(section<int32_t>(p, p.row_ptr), 1, p.rows, 4, team, thread);
        const Range tiles = plan.by_tile ? even_share(g.tiles, team, thread) : Range{0, g.tiles};
        for (int64_t t = tiles.first; t < tiles.last; ++t) {
            float *own = scratch + plan.x + (plan.by_tile ? thread : t) * in_tile;
            if (plan.by_tile && !plan.keep_x) carry_input(g, fusion, x, t, {0, g.channels}, own);
            compute(thread, t, plan.keep_x ? x + t * in_tile : own, plan.by_tile ? Range{0, p.rows} : rows);
        }
    }
};

static void fused_forward(const Geometry &g, const Header &p, const Fusion &fusion, const float *x,
                         const float *values, const float *bias, float *y, float *scratch, int threads) {
    const FusedForward call{g, p, fusion, x, values, bias, y, scratch, {g, p, fusion, threads}};
#pragma omp parallel num_threads(threads)
    {
        if (p.col_bytes == 2) call.run<uint16_t>(omp_get_thread_num(), omp_get_num_threads());
        else call.run<uint32_t>(omp_get_thread_num(), omp_get_num_threads());
    }
}

constexpr int64_t STRIP_FLOATS = 40 << 10;  // of x and dx together: they stay in the first levels of cache
constexpr int64_t CACHED_FLOATS = 256 << 10; // of dy: where it stays in the second level, strips may read it again

struct FusedBackwardPlan {
    bool by_tile, keep_dy;
    int64_t strip; // channels whose x and dx are in the second-level cache together
    int64_t dy, x, dx, part, total;

    FusedBackwardPlan(const Geometry &g, const Header &p, const Fusion &fusion, int threads) {
        by_tile = threads == 1 || g.tiles % threads == 0 || g.tiles >= 4 * threads;
        keep_dy = !fusion.post && g.batch == g.tiles * g.lanes;
        const int64_t out_tile = p.rows * g.out_pixels * g.lanes, plane = g.plane * g.lanes;
        const int64_t few = STRIP_FLOATS / (2 * plane) > 0 ? STRIP_FLOATS / (2 * plane) : 1;
        strip = out_tile <= CACHED_FLOATS && few < g.channels ? few : g.channels;
        dy = 0;
        x = dy + (keep_dy ? 0 : (by_tile ? threads : g.tiles) * out_tile);
        dx = x + threads * strip * plane;
        part = dx + threads * strip * plane;
        total = part + (by_tile ? (threads - 1) * round16(p.nnz + p.rows) : 0);
    }
};

struct FusedBackward {
    const Geometry &g;
    const Header &p;
    const Fusion &fusion;
    const float *x, *dy, *values;
    float *dx, *dw, *db, *scratch;
    FusedBackwardPlan plan;

    template <class Row>
    void compute(int thread, const float *out, int64_t tile, Range channels, float *own_dw) const {
        const int64_t plane = g.plane * g.lanes, image = g.pixels * g.lanes;
        float *in = scratch + plan.x + thread * plan.strip * plane,
              *grad = scratch + plan.dx + thread * plan.strip * plane;
        const Live live = live_in(g.batch, g.lanes, tile);
        for (int64_t first = channels.first; first < channels.last; first += plan.strip) {
            const Range strip = {first, first + plan.strip < channels.last ? first + plan.strip : channels.last};
            if (dw || fusion.pre) carry_input(g, fusion, x, tile, strip, in);
            if (dw && dx) sweep_channels<true, true, Row>(g, p, strip, values, in, out, grad, own_dw);
            else if (dx) sweep_channels<true, false, Row>(g, p, strip, values, in, out, grad, own_dw);
            else if (dw) sweep_channels<false, true, Row>(g, p, strip, values, in, out, grad, own_dw);
            for (int64_t c = strip.first; dx && c < strip.last; ++c) {
                const int64_t at = (tile * g.channels + c) * image, here = (c - strip.first) * plane;
                if (fusion.pre)
                    carry_out_gated(grad + here, in + here, g.pixels, live, g.place, x + at,
                                    fusion.pre[2 * g.channels + c], dx + at,
                                    fusion.sums + 2 * (tile * g.channels + c));
                else
                    carry_out(grad + here, g.pixels, g.lanes, g.place, fusion.add ? fusion.add + at : nullptr,
                              dx + at);
            }
        }
    }

    template <class Row> void by_tile(int thread, int team) const {
        const int64_t out_tile = p.rows * g.out_pixels * g.lanes;
        float *part = scratch + plan.part + (thread - 1) * round16(p.nnz + p.rows);
        float *own_dw = thread ? part : dw, *own_db = thread ? part + p.nnz : db;
        const Range tiles = even_share(g.tiles, team, thread);
        if (dw) clear(own_dw, p.nnz);
        if (db) clear(own_db, p.rows);
        for (int64_t t = tiles.first; t < tiles.last; ++t) {
            float *own = scratch + plan.dy + thread * out_tile;
            if (!plan.keep_dy) carry_gradient(g, fusion, p.rows, dy, t, {0, p.rows}, own);
            const float *out = plan.keep_dy ? dy + t * out_tile : own;
            if (db) add_bias(g, out, own_db, {0, p.rows});
            compute<Row>(thread, out, t, {0, g.channels}, own_dw);
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
        if (dw) clear(dw + first, last - first);
        if (db) clear(db + rows.first, rows.last - rows.first);
        for (int64_t t = 0; !plan.keep_dy && t < g.tiles; ++t)
            carry_gradient(g, fusion, p.rows, dy, t, rows,
                           scratch + plan.dy + (t * p.rows + rows.first) * out_row);
#pragma omp barrier
        for (int64_t t = 0; t < g.tiles; ++t) {
            const float *out = (plan.keep_dy ? dy : scratch + plan.dy) + t * p.rows * out_row;
            if (db) add_bias(g, out, db, rows);
            compute<Row>(thread, out, t, channels, dw);
        }
    }

    template <class Row> void run(int thread, int team) const {
        if (plan.by_tile) by_tile<Row>(thread, team);
        else by_channel<Row>(thread, team);
    }
};

// dx, dw and db may each be null.
static void fused_backward(const Geometry &g, const Header &p, const Fusion &fusion, const float *x, const float *dy,
                          const float *values, float *dx, float *dw, float *db, float *scratch, int threads) {
    const FusedBackward call{g, p, fusion, x, dy, values, dx, dw, db, scratch, {g, p, fusion, threads}};
#pragma omp parallel num_threads(threads)
    {
        if (p.row_bytes == 2) call.run<uint16_t>(omp_get_thread_num(), omp_get_num_threads());
        else call.run<uint32_t>(omp_get_thread_num(), omp_get_num_threads());
    }
}

static int64_t fused_forward_scratch(const Geometry &g, const Header &p, const Fusion &fusion, int threads) {
    return FusedForwardPlan(g, p, fusion, threads).total;
}

static int64_t fused_backward_scratch(const Geometry &g, const Header &p, const Fusion &fusion, int threads) {
    return FusedBackwardPlan(g, p, fusion, threads).total;
}

} // namespace startsparse::SS_ISA
