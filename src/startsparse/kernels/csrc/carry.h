// Blocked pixels in and out of padded images, edited on the way: a whole run of neighbours at a time.
#pragma once

#include "layout.h"

namespace startsparse::SS_ISA {

static inline vec relu(vec v) { return v < vec{} ? vec{} : v; } // NaN stays

// Sources of a pixel's values; `f` counts floats from the start of one channel.
struct AsIs {
    const float *x;
    vec operator()(int64_t f) const { return load(x + f); }
    float one(int64_t f) const { return x[f]; }
};

struct Normed { // relu of a batch norm
    const float *x;
    float scale, shift;
    vec operator()(int64_t f) const { return relu(load(x + f) * scale + shift); }
    float one(int64_t f) const {
        const float v = x[f] * scale + shift;
        return v < 0.0f ? 0.0f : v;
    }
};

struct Unnormed { // gradient of a batch norm's input
    const float *dy, *y;
    float a, b, mean, c;
    vec operator()(int64_t f) const { return load(dy + f) * a + ((load(y + f) - mean) * b + c); }
    float one(int64_t f) const { return dy[f] * a + ((y[f] - mean) * b + c); }
};

// Which lanes of a tile hold an item.
struct Live {
    int64_t lanes, items;
    bool all() const { return items >= lanes; }
    // v, but zero in the lanes without an item; `f` is its first float (a multiple of W, as lanes are).
    vec only(vec v, int64_t f) const {
        const int64_t left = items - f % lanes;
        if (left >= W) return v;
        ivec lane;
        for (int i = 0; i < W; ++i)
            lane[i] = i;
        return lane < int32_t(left < 0 ? 0 : left) ? v : vec{};
    }
};

static inline Live live_in(int64_t batch, int64_t lanes, int64_t tile) {
    const int64_t left = batch - tile * lanes;
    return {lanes, left < lanes ? left : lanes};
}

// Pixels from i on that lie one after the other, padded too; `at` becomes where, -1 for nowhere.
static inline int64_t run_at(const int32_t *place, int64_t i, int64_t pixels, int64_t &at) {
    at = place ? place[i] : i;
    if (!place || at < 0) return place ? 1 : pixels - i;
    int64_t n = 1;
    while (i + n < pixels && place[i + n] == at + n)
        ++n;
    return n;
}

// One channel into its padded plane; lanes without an item become zero.
template <class Source>
static void carry_in(const Source &source, const Live &live, int64_t pixels, const int32_t *place, float *out) {
    const int64_t lanes = live.lanes;
    for (int64_t i = 0, at; i < pixels;) {
        const int64_t n = run_at(place, i, pixels, at), from = i * lanes, floats = at < 0 ? 0 : n * lanes;
        float *to = out + at * lanes;
        int64_t f = 0;
        if (live.all()) {
            for (; f + W <= floats; f += W)
                store(to + f, source(from + f));
            for (; f < floats; ++f)
                to[f] = source.one(from + f);
        } else {
            for (; f < floats; f += W)
                store(to + f, live.only(source(from + f), f));
        }
        i += n;
    }
}

// Some channels of a tile into padded planes; `make` gives the source of each.
template <class Make>
static void carry_channels(const Image &m, const Live &live, Range channels, Make make, float *out) {
    for (int64_t c = channels.first; c < channels.last; ++c, out += m.plane * live.lanes) {
        if (m.place) clear(out, m.plane * live.lanes);
        carry_in(make(c), live, m.pixels, m.place, out);
    }
}

// What a convolution of a chain reads, for some channels of one tile: x, or relu of the norm before it.
static void carry_input(const Geometry &g, const Fusion &fusion, const float *x, int64_t tile, Range channels,
                        float *out) {
    const Live live = live_in(g.batch, g.lanes, tile);
    const int64_t size = g.pixels * g.lanes;
    const float *from = x + tile * g.channels * size, *scale = fusion.pre, *shift = fusion.pre + g.channels;
    if (fusion.pre) {
        const auto make = [=](int64_t c) { return Normed{from + c * size, scale[c], shift[c]}; };
        carry_channels(input_of(g), live, channels, make, out);
    } else {
        carry_channels(input_of(g), live, channels, [=](int64_t c) { return AsIs{from + c * size}; }, out);
    }
}

// The gradient of what a convolution of a chain computes, for some rows of one tile.
static void carry_gradient(const Geometry &g, const Fusion &fusion, int64_t all, const float *dy, int64_t tile,
                           Range rows, float *out) {
    const Live live = live_in(g.batch, g.lanes, tile);
    const int64_t size = g.out_pixels * g.lanes, start = tile * all * size;
    const float *a = fusion.post, *b = a + all, *mean = b + all, *c = mean + all;
    if (fusion.post) {
        const auto make = [=](int64_t r) {
            const int64_t at = start + r * size;
            return Unnormed{dy + at, fusion.y + at, a[r], b[r], mean[r], c[r]};
        };
        carry_channels(output_of(g, all), live, rows, make, out);
    } else {
        carry_channels(output_of(g, all), live, rows, [=](int64_t r) { return AsIs{dy + start + r * size}; },
                       out);
    }
}

// One channel out of its padded plane: dx (+ add).
static void carry_out(const float *plane, int64_t pixels, int64_t lanes, const int32_t *place, const float *add,
                      float *out) {
    for (int64_t i = 0, at; i < pixels;) {
        const int64_t n = run_at(place, i, pixels, at), from = i * lanes;
        const float *in = at < 0 ? nullptr : plane + at * lanes;
        int64_t f = 0;
        for (; f + W <= n * lanes; f += W) {
            const vec v = in ? load(in + f) : vec{};
            store(out + from + f, add ? v + load(add + from + f) : v);
        }
        for (; f < n * lanes; ++f)
            out[from + f] = (in ? in[f] : 0.0f) + (add ? add[from + f] : 0.0f);
        i += n;
    }
}

// One channel's gradient out of its padded plane, through the relu: zero where what it gave is not above zero.
// Adds up the gradient, and its product with x - mean.
static void carry_out_gated(const float *plane, const float *gave, int64_t pixels, const Live &live,
                            const int32_t *place, const float *x, float mean, float *out, float *sums) {
    vec sum[2] = {}, product[2] = {};
    for (int64_t i = 0, at; i < pixels;) {
        const int64_t n = run_at(place, i, pixels, at), from = i * live.lanes;
        for (int64_t f = 0; f < n * live.lanes; f += W) {
            if (at < 0) {
                store(out + from + f, vec{});
                continue;
            }
            const int64_t there = at * live.lanes + f;
            vec v = load(gave + there) <= vec{} ? vec{} : load(plane + there), d = load(x + from + f) - mean;
            if (!live.all()) v = live.only(v, f), d = live.only(d, f);
            store(out + from + f, v);
            const int odd = f / W & 1;
            sum[odd] += v, product[odd] += v * d;
        }
        i += n;
    }
    const vec4 total = SS_ISA::sums(sum[0] + sum[1], product[0] + product[1], vec{}, vec{});
    sums[0] = total[0], sums[1] = total[1];
}

} // namespace startsparse::SS_ISA
