// Linear layers one after the other, with or without max(0, .) between them. Each thread takes its own tiles through all
// of the layers: no activation crosses from core to core, and nothing is unpacked and packed again on the way.
//
// The loops over weights are those of single layers, so results are theirs: bit for bit where the tiles are the same.
#pragma once

#include <algorithm>

#include "backward.h"

namespace startsparse::SS_ISA {

static const int32_t no_shift = 0;

static inline const Header &pattern_of(const Link &link) { return *static_cast<const Header *>(link.pattern); }

static inline Geometry layer_of(const Chain &c, const Link &link) {
    const int64_t tiles = (c.batch + c.lanes - 1) / c.lanes;
    return {c.batch, c.lanes, tiles, pattern_of(link).cols, 1, 1, 1, 1, 1, 1, 1, 0, &no_shift, nullptr};
}

// Keeps the lanes without an item at zero: their sums for dw must add nothing, whatever the weights.
static inline void clear_beyond(float *row, int64_t items, int64_t length) {
    for (int64_t b = items; b < length; ++b)
        row[b] = 0.0f;
}

// max(0, .) of finished rows, if asked for; NaN stays.
static void finish(float *out, int64_t rows, int64_t lanes, int64_t items, int64_t length, bool relu) {
    for (int64_t row = 0; row < rows; ++row, out += lanes) {
        for (int64_t b = 0; relu && b < length; b += W) {
            const vec v = load(out + b);
            store(out + b, v < vec{} ? vec{} : v);
        }
        clear_beyond(out, items, length);
    }
}

// The gradient before max(0, .): that behind it where its result `y` is above zero, or NaN.
static void undo(float *grad, const float *y, int64_t rows, int64_t lanes, int64_t items, int64_t length, bool relu) {
    for (int64_t row = 0; row < rows; ++row, grad += lanes, y += lanes) {
        for (int64_t b = 0; relu && b < length; b += W)
            store(grad + b, load(y + b) <= vec{} ? vec{} : load(grad + b));
        clear_beyond(grad, items, length);
    }
}

// Where a pass has its scratch (floats from the start), and where each layer's output lies among the kept ones.
struct ChainPlan {
    int64_t lanes, tiles, widest = 0, weights = 0, table = 0, own = 0, total = 0;
    bool tabled;

    ChainPlan(const Chain &c, int threads, bool backward) : lanes(c.lanes), tiles((c.batch + lanes - 1) / lanes) {
        tabled = !backward && (tiles + threads - 1) / threads > 2;
        for (int64_t i = 0; i < c.links_count; ++i) {
            const Header &p = pattern_of(c.links[i]);
            widest = std::max({widest, p.rows, p.cols});
            weights += backward ? round16(p.nnz) + round16(p.rows) : round16(2 * p.nnz);
        }
        own = (backward ? 2 * widest + 2 * STRIP : pattern_of(c.links[0]).cols + FORWARD_STRIP) * lanes;
        total = threads * own + (backward ? (threads - 1) * weights : tabled ? weights : 0);
    }

    // Floats before a layer's table, or before its sums for dw.
    static int64_t tables_before(const Chain &c, int64_t i) {
        return i ? tables_before(c, i - 1) + round16(2 * pattern_of(c.links[i - 1]).nnz) : 0;
    }
    static int64_t sums_before(const Chain &c, int64_t i) {
        if (!i) return 0;
        const Header &p = pattern_of(c.links[i - 1]);
        return sums_before(c, i - 1) + round16(p.nnz) + round16(p.rows);
    }

    // Floats before the output that is kept of a layer, in the first tile.
    int64_t kept_before(const Chain &c, int64_t i) const {
        return i ? kept_before(c, i - 1) + tiles * pattern_of(c.links[i - 1]).rows * lanes : 0;
    }
};

struct ChainForward {
    const Chain &c;
    const float *x;
    float *kept, *y, *scratch;
    ChainPlan plan;
    int threads;

    Entry *table(int64_t link) const {
        return reinterpret_cast<Entry *>(scratch + threads * plan.own + ChainPlan::tables_before(c, link));
    }

    template <class Source>
    void layer(Source w, const Geometry &g, const Link &link, int64_t tile, const float *in, float *out,
               float *strip) const {
        const Header &p = pattern_of(link);
        const int64_t length = live_length(g, tile), items = items_in(g, tile);
        for (int64_t r = 0; r < p.rows; r += FORWARD_STRIP) {
            const Range rows = {r, std::min(r + FORWARD_STRIP, p.rows)};
            float *to = out ? out + r * g.lanes : strip;
            forward_rows(g, p, rows, length, w, link.bias, in, to);
            finish(to, rows.last - r, g.lanes, items, length, link.relu);
            if (!out) unpack_part(g, output_of(g, p.rows), to, y, tile, rows);
        }
    }

    template <class Column>
    void choose(int64_t i, int64_t tile, const float *in, float *out, float *strip) const {
        const Link &link = c.links[i];
        const Header &p = pattern_of(link);
        const Geometry g = layer_of(c, link);
        if (plan.tabled) layer(FromTable{table(i)}, g, link, tile, in, out, strip);
        else
            layer(FromPattern<Column>{section<Column>(p, p.forward_col), section<int32_t>(p, p.forward_value),
                                      link.values, g.lanes * 4},
                  g, link, tile, in, out, strip);
    }

    void prepare(int thread, int team) const {
        for (int64_t i = 0; i < c.links_count; ++i) {
            const Link &link = c.links[i];
            const Header &p = pattern_of(link);
            const Range share = even_share(p.nnz, team, thread);
            if (p.col_bytes == 2) fill_table<uint16_t>(layer_of(c, link), p, link.values, table(i), share);
            else fill_table<uint32_t>(layer_of(c, link), p, link.values, table(i), share);
        }
    }

    void run(int thread, int team) const {
        const Geometry first = layer_of(c, c.links[0]);
        const Range tiles = even_share(plan.tiles, team, thread);
        for (int64_t t = tiles.first; t < tiles.last; ++t) {
            float *own = scratch + thread * plan.own, *strip = own + first.channels * plan.lanes;
            pack_part(first, input_of(first), x, own, t, {0, first.channels});
            const float *in = own;
            for (int64_t i = 0; i < c.links_count; ++i) {
                const Header &p = pattern_of(c.links[i]);
                float *to = i + 1 < c.links_count ? kept + plan.kept_before(c, i) + t * p.rows * plan.lanes : nullptr;
                if (p.col_bytes == 2) choose<uint16_t>(i, t, in, to, strip);
                else choose<uint32_t>(i, t, in, to, strip);
                in = to;
            }
        }
    }
};

static int64_t chain_forward(const Chain &c, const float *x, float *kept, float *y, float *scratch, int64_t capacity,
                             int threads) {
    const ChainForward call{c, x, kept, y, scratch, {c, threads, false}, threads};
    if (call.plan.total > capacity) return -call.plan.total;
#pragma omp parallel num_threads(threads)
    {
        if (call.plan.tabled) {
            call.prepare(omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
        }
        call.run(omp_get_thread_num(), omp_get_num_threads());
    }
    return OK;
}

struct ChainBackward {
    const Chain &c;
    const float *x, *dy, *kept;
    float *dx, *scratch;
    ChainPlan plan;
    int threads;
    int64_t lowest; // no layer before this one has a gradient that is wanted

    // A thread's sums for dw and db of the first layer; those of the others follow.
    float *part(int thread) const { return scratch + threads * plan.own + (thread - 1) * plan.weights; }

    template <bool DX, bool DW, class Row>
    void strips(const Link &link, int64_t tile, const float *in, const float *out, float *grad, float *strip, float *dw,
                bool first, bool relu) const {
        const Header &p = pattern_of(link);
        const Geometry g = layer_of(c, link);
        const int64_t length = live_length(g, tile), items = items_in(g, tile);
        float *own_dx = strip + STRIP * g.lanes;
        for (int64_t f = 0; f < p.cols; f += STRIP) {
            const Range channels = {f, std::min(f + STRIP, p.cols)};
            if (DW && !in) pack_part(g, input_of(g), x, strip, tile, channels);
            const float *from = in ? in + f * g.lanes : strip;
            float *to = in ? grad + f * g.lanes : own_dx;
            backward_channels<DX, DW, Row>(g, p, channels, length, link.values, from, out, to, dw, first);
            if (DX && in) undo(to, from, channels.last - f, g.lanes, items, length, relu);
            if (DX && !in) unpack_part(g, input_of(g), to, dx, tile, channels);
        }
    }

    // One layer of one tile. `in` is null for the first layer, whose x and dx are row-major.
    template <class Row>
    void layer(int64_t i, int64_t tile, const float *in, const float *out, float *grad, float *strip, float *dw,
               bool first) const {
        const Link &link = c.links[i];
        const bool want_dx = i ? i > lowest : dx != nullptr, relu = i && c.links[i - 1].relu;
        if (dw && want_dx) strips<true, true, Row>(link, tile, in, out, grad, strip, dw, first, relu);
        else if (want_dx) strips<true, false, Row>(link, tile, in, out, grad, strip, dw, first, relu);
        else if (dw) strips<false, true, Row>(link, tile, in, out, grad, strip, dw, first, relu);
    }

    void tile(int thread, int64_t t, bool first) const {
        const Link &last = c.links[c.links_count - 1];
        const Geometry end = layer_of(c, last);
        float *out = scratch + thread * plan.own, *grad = out + plan.widest * plan.lanes,
              *strip = grad + plan.widest * plan.lanes;
        const int64_t rows = pattern_of(last).rows, length = live_length(end, t);
        pack_part(end, output_of(end, rows), dy, out, t, {0, rows});
        for (int64_t i = c.links_count - 1; i >= lowest; --i, std::swap(out, grad)) {
            const Link &link = c.links[i];
            const Header &p = pattern_of(link);
            const float *in = i ? kept + plan.kept_before(c, i - 1) + t * p.cols * plan.lanes : nullptr;
            float *own = thread ? part(thread) + ChainPlan::sums_before(c, i) : nullptr;
            float *dw = own && link.dw ? own : link.dw, *db = own && link.db ? own + round16(p.nnz) : link.db;
            if (db && first) clear(db, p.rows);
            if (db) add_rows(out, p.rows, plan.lanes, length, db);
            if (p.row_bytes == 2) layer<uint16_t>(i, t, in, out, grad, strip, dw, first);
            else layer<uint32_t>(i, t, in, out, grad, strip, dw, first);
        }
    }

    // Adds up what other threads than the first have summed.
    void reduce(int thread, int team) const {
        for (int other = 1; other < team; ++other) {
            const float *add = part(other);
            for (int64_t i = 0; i < c.links_count; ++i) {
                const Link &link = c.links[i];
                const Header &p = pattern_of(link);
                const Range weights = even_share(p.nnz, team, thread), rows = even_share(p.rows, team, thread);
                for (int64_t k = weights.first; link.dw && k < weights.last; ++k)
                    link.dw[k] += add[k];
                add += round16(p.nnz);
                for (int64_t k = rows.first; link.db && k < rows.last; ++k)
                    link.db[k] += add[k];
                add += round16(p.rows);
            }
        }
    }
};

// The gradients that are wanted: dx, and each layer's dw and db, may be null. Tiles are at least as many as threads.
static int64_t chain_backward(const Chain &c, const float *x, const float *dy, const float *kept, float *dx,
                              float *scratch, int64_t capacity, int threads) {
    int64_t lowest = 0;
    while (!dx && lowest + 1 < c.links_count && !c.links[lowest].dw && !c.links[lowest].db)
        ++lowest;
    const ChainBackward call{c, x, dy, kept, dx, scratch, {c, threads, true}, threads, lowest};
    if (call.plan.total > capacity) return -call.plan.total;
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        const Range tiles = even_share(call.plan.tiles, team, thread);
        for (int64_t t = tiles.first; t < tiles.last; ++t)
            call.tile(thread, t, t == tiles.first);
#pragma omp barrier
        call.reduce(thread, team);
    }
    return OK;
}

} // namespace startsparse::SS_ISA
