// Batch norm on blocked activations: what its neighbours cannot do on the way.
#pragma once

#include <omp.h>

#include "carry.h"

namespace startsparse::SS_ISA {

// Mean and sum of squared distances from it, of the n floats of one tile's channel; dead lanes not counted.
static void moments_of(const float *y, int64_t n, const Live &live, float *moments) {
    const float count = float(n / live.lanes * live.items);
    vec sum[4] = {};
    for (int64_t f = 0; f < n; f += W)
        sum[f / W & 3] += live.all() ? load(y + f) : live.only(load(y + f), f);
    const float mean = sums(sum[0] + sum[1] + (sum[2] + sum[3]), vec{}, vec{}, vec{})[0] / count;
    vec square[4] = {};
    for (int64_t f = 0; f < n; f += W) {
        vec d = load(y + f) - mean;
        if (!live.all()) d = live.only(d, f);
        square[f / W & 3] += d * d;
    }
    moments[0] = mean, moments[1] = sums(square[0] + square[1] + (square[2] + square[3]), vec{}, vec{}, vec{})[0];
}

static void norm_apply(const Blocked &b, const float *y, const float *pre, const float *add, bool rectify,
                       float *out, int threads) {
    const int64_t n = b.pixels * b.lanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < b.tiles * b.channels; ++i) {
        const float scale = pre[i % b.channels], shift = pre[b.channels + i % b.channels];
        const float *from = y + i * n, *more = add ? add + i * n : nullptr;
        float *to = out + i * n;
        int64_t f = 0;
        for (; f + W <= n; f += W) {
            vec v = load(from + f) * scale + shift;
            if (more) v += load(more + f);
            store(to + f, rectify ? relu(v) : v);
        }
        for (; f < n; ++f) {
            const float v = from[f] * scale + shift + (more ? more[f] : 0.0f);
            to[f] = rectify && v < 0.0f ? 0.0f : v;
        }
    }
}

static void norm_gate(const Blocked &b, const float *dy, const float *out, const float *y, const float *mean,
                      float *dz, float *sums, int threads) {
    const int64_t n = b.pixels * b.lanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < b.tiles * b.channels; ++i) {
        const Live live = live_in(b.batch, b.lanes, i / b.channels);
        const float middle = mean[i % b.channels];
        const int64_t at = i * n;
        vec sum[2] = {}, product[2] = {};
        for (int64_t f = 0; f < n; f += W) {
            vec v = load(dy + at + f), d = load(y + at + f) - middle;
            if (out) v = load(out + at + f) <= vec{} ? vec{} : v;
            if (!live.all()) v = live.only(v, f), d = live.only(d, f);
            if (out) store(dz + at + f, v);
            const int odd = f / W & 1;
            sum[odd] += v, product[odd] += v * d;
        }
        const vec4 total = SS_ISA::sums(sum[0] + sum[1], product[0] + product[1], vec{}, vec{});
        sums[2 * i] = total[0], sums[2 * i + 1] = total[1];
    }
}

} // namespace startsparse::SS_ISA
