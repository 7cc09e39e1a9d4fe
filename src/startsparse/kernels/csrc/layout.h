// From row-major [batch, channels, pixels] to blocked [tile][channel][plane pixel][lane] and back.
#pragma once

#include "abi.h"
#include "vector.h"

namespace startsparse::SS_ISA {

// True where the blocked input can be read where it lies: nothing to pad, to reorder or to clear.
static inline bool in_place(const Geometry &g) { return g.blocked && !g.place; }

static inline int64_t items_in(const Geometry &g, int64_t tile) {
    const int64_t left = g.batch - tile * g.lanes;
    return left < g.lanes ? left : g.lanes;
}

constexpr int64_t AHEAD = 64; // floats: how far rows are fetched before they are written

static inline void clear(float *p, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        p[i] = 0.0f;
}

// Starts of the steps of W features that cover `width` of them; the last step may overlap the one before.
static inline int64_t step_at(int64_t f, int64_t width) { return width - f < W ? width - W : f; }

// `width` row-major features of `items` items -> `width` blocked features; lanes without an item become zero.
// `place` tells where each feature goes (in features); null: one after the other.
static void pack_run(const float *x, int64_t stride, int64_t items, int64_t width, int64_t lanes,
                     const int32_t *place, float *out) {
    const int64_t whole = width >= W ? items / W * W : 0;
    for (int64_t b = 0; b < whole; b += W) {
        for (int64_t step = 0; step < width; step += W) {
            const int64_t f = step_at(step, width);
            const auto item = [=](int i) { return x + (b + i) * stride + f; };
            transpose(item, [=](int i) -> float * {
                const int64_t at = place ? place[f + i] : f + i;
                return at >= 0 ? out + at * lanes + b : nullptr;
            });
        }
    }
    for (int64_t i = 0; i < width && whole < lanes; ++i) {
        const int64_t at = place ? place[i] : i;
        for (int64_t b = whole; b < lanes && at >= 0; ++b)
            out[at * lanes + b] = b < items ? x[b * stride + i] : 0.0f;
    }
}

static void unpack_run(const float *in, int64_t stride, int64_t items, int64_t width, int64_t lanes,
                       const int32_t *place, float *x) {
    static const float zeros[W] = {};
    const int64_t whole = width >= W ? items / W * W : 0;
    for (int64_t b = 0; b < whole; b += W) {
        for (int64_t step = 0; step < width; step += W) {
            const int64_t f = step_at(step, width);
            const auto item = [=](int i) { return x + (b + i) * stride + f; };
            for (int i = 0; i < W; ++i)
                __builtin_prefetch(item(i) + AHEAD, 1);
            if (place) {
                const float *feature[W];
                for (int i = 0; i < W; ++i)
                    feature[i] = place[f + i] >= 0 ? in + place[f + i] * lanes + b : zeros;
                transpose([&](int i) { return feature[i]; }, item);
            } else {
                transpose([=](int i) { return in + (f + i) * lanes + b; }, item);
            }
        }
    }
    for (int64_t i = 0; i < width && whole < items; ++i) {
        const int64_t at = place ? place[i] : i;
        for (int64_t b = whole; b < items; ++b)
            x[b * stride + i] = at >= 0 ? in[at * lanes + b] : 0.0f;
    }
}

// Blocked pixels -> padded blocked pixels (or back), lanes without an item cleared.
static void copy_in(const float *x, int64_t items, int64_t pixels, int64_t lanes, const int32_t *place,
                    float *out) {
    for (int64_t i = 0; i < pixels; ++i) {
        const int64_t at = place ? place[i] : i;
        if (at < 0) continue;
        for (int64_t b = 0; b < lanes; ++b)
            out[at * lanes + b] = b < items ? x[i * lanes + b] : 0.0f;
    }
}

static void copy_out(const float *in, int64_t pixels, int64_t lanes, const int32_t *place, float *x) {
    for (int64_t i = 0; i < pixels; ++i) {
        const int64_t at = place[i];
        for (int64_t b = 0; b < lanes; ++b)
            x[i * lanes + b] = at >= 0 ? in[at * lanes + b] : 0.0f;
    }
}

// Features that one step packs where pixels are not moved about; a whole channel where they are.
constexpr int64_t RUN = 64;

// Features of a linear layer that are computed together before they are unpacked: in the backward pass, their part of a
// tile is in the first-level cache; the forward pass reads all of its input for each strip, so has longer ones.
constexpr int64_t STRIP = 128, FORWARD_STRIP = 512;

static inline int64_t round16(int64_t floats) { return (floats + 15) / 16 * 16; }

// One operand's layout: the input image, padded and in phases, or the output, pixel after pixel.
struct Image {
    int64_t channels, pixels, plane;
    const int32_t *place;
};

static inline Image input_of(const Geometry &g) { return {g.channels, g.pixels, g.plane, g.place}; }
static inline Image output_of(const Geometry &g, int64_t rows) {
    return {rows, g.out_pixels, g.out_pixels, nullptr};
}

// Row-major (or blocked) x -> blocked, for some channels of one tile; `out` is where the first channel goes.
static void pack_part(const Geometry &g, const Image &m, const float *x, float *out, int64_t tile,
                      Range channels) {
    const int64_t features = m.channels * m.pixels, run = m.place ? m.pixels : RUN, items = items_in(g, tile);
    const int64_t begin = channels.first * m.pixels, end = channels.last * m.pixels;
    for (int64_t f = begin; f < end; f += run, out += (m.place ? m.plane : run) * g.lanes) {
        const int64_t width = f + run < end ? run : end - f;
        if (m.place) clear(out, m.plane * g.lanes);
        if (g.blocked) copy_in(x + (tile * features + f) * g.lanes, items, width, g.lanes, m.place, out);
        else pack_run(x + tile * g.lanes * features + f, features, items, width, g.lanes, m.place, out);
    }
}

// The way back; `in` is where the first channel lies.
static void unpack_part(const Geometry &g, const Image &m, const float *in, float *x, int64_t tile,
                        Range channels) {
    const int64_t features = m.channels * m.pixels, run = m.place ? m.pixels : RUN, items = items_in(g, tile);
    const int64_t begin = channels.first * m.pixels, end = channels.last * m.pixels;
    for (int64_t f = begin; f < end; f += run, in += (m.place ? m.plane : run) * g.lanes) {
        const int64_t width = f + run < end ? run : end - f;
        if (g.blocked) copy_out(in, width, g.lanes, m.place, x + (tile * features + f) * g.lanes);
        else unpack_run(in, features, items, width, g.lanes, m.place, x + tile * g.lanes * features + f);
    }
}

} // namespace startsparse::SS_ISA
