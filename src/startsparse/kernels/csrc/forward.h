// y = W x + b: a row's sums stay in registers, one load from the tile feeds each multiply-add.
#pragma once

#include <omp.h>

#include "layout.h"

namespace startsparse::SS_ISA {

// Where a row's weights come from: a table made for this call, or straight from the pattern where each is
// used but once.
struct FromTable {
    const Entry *table;
    int64_t offset(int32_t i) const { return table[i].offset; }
    float value(int32_t i) const { return table[i].value; }
};

template <class Column> struct FromPattern { // of a layer with one tap per channel
    const Column *column;
    const int32_t *from;
    const float *values;
    int64_t channel_bytes;
    int64_t offset(int32_t i) const { return column[i] * channel_bytes; }
    float value(int32_t i) const { return values[from[i]]; }
};

// N vectors of a line, for some rows of one block: start from the bias or from what earlier blocks left, add
// the block's weights.
//
// Never inlined: among the loops around it, the compiler would keep what the innermost one needs on the stack.
template <int N, class Source>
__attribute__((noinline)) static void rows_chunk(Source w, const int32_t *ptr, int64_t rows, const float *input,
                                                 float *out, int64_t out_row, bool start, const float *bias) {
    const char *in = reinterpret_cast<const char *>(input);
    for (int64_t row = 0; row < rows; ++row, out += out_row) {
        int32_t i = ptr[row];
        const int32_t end = ptr[row + 1];
        vec sum[N];
        if (start) {
            const vec from = vec{} + (bias ? bias[row] : 0.0f);
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v)
                sum[v] = from;
        } else {
            if (i == end) continue;
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v)
                sum[v] = load(out + v * W);
        }
        for (; i < end; ++i) {
            const float *x = held(reinterpret_cast<const float *>(in + w.offset(i)));
            const float value = w.value(i);
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v)
                sum[v] += value * load(x + v * W);
        }
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v)
            store(out + v * W, sum[v]);
    }
}

template <class Source>
static inline void rows_line(Source w, const int32_t *ptr, int64_t rows, const float *in, float *out,
                             int64_t out_row, int64_t length, bool start, const float *bias) {
    int64_t f = 0;
    for (; f + 8 * W <= length; f += 8 * W)
        rows_chunk<8>(w, ptr, rows, in + f, out + f, out_row, start, bias);
    if (f + 4 * W <= length) rows_chunk<4>(w, ptr, rows, in + f, out + f, out_row, start, bias), f += 4 * W;
    if (f + 2 * W <= length) rows_chunk<2>(w, ptr, rows, in + f, out + f, out_row, start, bias), f += 2 * W;
    if (f + W <= length) rows_chunk<1>(w, ptr, rows, in + f, out + f, out_row, start, bias);
}

// Floats of a line that must be computed: a linear layer's last tile may be shorter.
static inline int64_t live_length(const Geometry &g, int64_t tile) {
    if (g.blocked || g.out_pixels > 1) return g.line * g.lanes;
    return (items_in(g, tile) + W - 1) / W * W;
}

// Some rows of one tile; `in` is the tile, `out` the first of the rows.
template <class Source>
static void forward_rows(const Geometry &g, const Header &p, Range rows, int64_t length, Source w,
                         const float *bias, const float *in, float *out) {
    const int32_t *segment = section<int32_t>(p, p.segment_ptr);
    const int64_t out_row = g.out_pixels * g.lanes;
    for (int64_t line = 0; line < g.lines; ++line) {
        const float *in_line = in + line * g.in_line * g.lanes;
        float *out_line = out + line * g.line * g.lanes;
        for (int64_t block = 0; block < p.blocks; ++block)
            rows_line(w, segment + block * p.rows + rows.first, rows.last - rows.first, in_line, out_line,
                      out_row, length, block == 0, bias ? bias + rows.first : nullptr);
    }
}

// Weights i of the table: input offset and value, in forward order.
template <class Column>
static void fill_table(const Geometry &g, const Header &p, const float *values, Entry *table, Range share) {
    const Column *column = section<Column>(p, p.forward_col);
    const int32_t *from = section<int32_t>(p, p.forward_value);
    const uint32_t kernel = uint32_t(g.kernel), pixel_bytes = uint32_t(g.lanes * 4),
                   channel_bytes = uint32_t(g.plane) * pixel_bytes;
    for (int64_t i = share.first; i < share.last; ++i) {
        const uint32_t c = column[i], channel = kernel == 1 ? c : c / kernel;
        table[i] = {channel * channel_bytes + uint32_t(g.shift[c - channel * kernel]) * pixel_bytes,
                    values[from[i]]};
    }
}

// How one call is divided, and where its scratch lies (floats from the start). Python asks for `total`
// beforehand.
struct ForwardPlan {
    bool by_tile; // each thread its own tiles, so that no activation crosses from core to core; else its own
                  // rows
    bool tabled;
    int64_t strip; // rows computed before they are unpacked, while they are in cache
    int64_t table, x, y, total;

    ForwardPlan(const Geometry &g, const Header &p, int threads) {
        by_tile = g.tiles % threads == 0 || g.tiles >= 4 * threads;
        const int64_t uses = (by_tile ? (g.tiles + threads - 1) / threads : g.tiles) * g.lines;
        tabled = g.kernel > 1 || g.place || uses > 2;
        strip = g.blocked || g.out_pixels > 1 || p.rows < FORWARD_STRIP ? p.rows : FORWARD_STRIP;
        const int64_t in_tile = g.channels * g.plane * g.lanes;
        table = 0;
        x = table + (tabled ? round16(2 * p.nnz) : 0);
        y = x + (in_place(g) ? 0 : (by_tile ? threads : g.tiles) * in_tile);
        total = y + (g.blocked ? 0 : threads * strip * g.out_pixels * g.lanes);
    }
};

struct ForwardCall {
    const Geometry &g;
    const Header &p;
    const float *x, *values, *bias;
    float *y, *scratch;
    ForwardPlan plan;

    template <class Source>
    void compute(Source w, int thread, const float *in, int64_t tile, Range rows) const {
        const int64_t out_row = g.out_pixels * g.lanes;
        for (int64_t r = rows.first; r < rows.last; r += plan.strip) {
            const Range strip = {r, r + plan.strip < rows.last ? r + plan.strip : rows.last};
            float *out = g.blocked ? y + (tile * p.rows + r) * out_row
                                   : scratch + plan.y + thread * plan.strip * out_row;
            forward_rows(g, p, strip, live_length(g, tile), w, bias, in, out);
            if (!g.blocked) unpack_part(g, output_of(g, p.rows), out, y, tile, strip);
        }
    }

    template <class Source> void share(Source w, int thread, int team) const {
        const int64_t in_tile = g.channels * g.plane * g.lanes;
        const Range rows = fair_share(section<int32_t>(p, p.row_ptr), 1, p.rows, 4, team, thread);
        const Range tiles = plan.by_tile ? even_share(g.tiles, team, thread) : Range{0, g.tiles};
        for (int64_t t = tiles.first; t < tiles.last; ++t) {
            float *own = scratch + plan.x + (plan.by_tile ? thread : t) * in_tile;
            if (plan.by_tile && !in_place(g)) pack_part(g, input_of(g), x, own, t, {0, g.channels});
            compute(w, thread, in_place(g) ? x + t * in_tile : own, t,
                    plan.by_tile ? Range{0, p.rows} : rows);
        }
    }

    template <class Column> void run(int thread, int team) const {
        Entry *table = reinterpret_cast<Entry *>(scratch + plan.table);
        const bool shared_x = !plan.by_tile && !in_place(g);
        if (plan.tabled) fill_table<Column>(g, p, values, table, even_share(p.nnz, team, thread));
        const Range channels = even_share(g.channels, team, thread);
        for (int64_t t = 0; shared_x && t < g.tiles; ++t)
            pack_part(g, input_of(g), x,
                      scratch + plan.x + (t * g.channels + channels.first) * g.plane * g.lanes, t, channels);
        if (plan.tabled || shared_x) {
#pragma omp barrier
        }
        if (plan.tabled) share(FromTable{table}, thread, team);
        else
            share(FromPattern<Column>{section<Column>(p, p.forward_col), section<int32_t>(p, p.forward_value),
                                      values, g.plane * g.lanes * 4},
                  thread, team);
    }
};

static void forward(const Geometry &g, const Header &p, const float *x, const float *values,
                    const float *bias, float *y, float *scratch, int threads) {
    const ForwardCall call{g, p, x, values, bias, y, scratch, {g, p, threads}};
#pragma omp parallel num_threads(threads)
    {
        if (p.col_bytes == 2) call.run<uint16_t>(omp_get_thread_num(), omp_get_num_threads());
        else call.run<uint32_t>(omp_get_thread_num(), omp_get_num_threads());
    }
}

} // namespace startsparse::SS_ISA
