#include "statistics.h"

#include <cmath>

namespace startsparse {

namespace {

double items_of(const Blocked &b, int64_t tile) {
    const int64_t left = b.batch - tile * b.lanes;
    return double((left < b.lanes ? left : b.lanes) * b.pixels);
}

void put(int64_t channels, int64_t c, double mean, double inverse, const float *weight, const float *bias,
         float *pre) {
    const double scale = inverse * (weight ? weight[c] : 1.0f);
    pre[c] = float(scale);
    pre[channels + c] = float((bias ? bias[c] : 0.0f) - mean * scale);
    pre[2 * channels + c] = float(mean);
}

} // namespace

void batch_statistics(const Blocked &b, const float *moments, float eps, const float *weight, const float *bias,
                      float *pre, float *more) {
    const double count = double(b.batch * b.pixels);
    for (int64_t c = 0; c < b.channels; ++c) {
        double mean = 0, squares = 0;
        for (int64_t t = 0; t < b.tiles; ++t)
            mean += items_of(b, t) * moments[2 * (t * b.channels + c)];
        mean /= count;
        for (int64_t t = 0; t < b.tiles; ++t) {
            const float *m = moments + 2 * (t * b.channels + c);
            squares += m[1] + items_of(b, t) * (m[0] - mean) * (m[0] - mean);
        }
        const double inverse = 1 / std::sqrt(squares / count + eps);
        put(b.channels, c, mean, inverse, weight, bias, pre);
        more[c] = float(inverse), more[b.channels + c] = float(squares / (count - 1));
    }
}

void running_statistics(int64_t channels, const float *mean, const float *variance, float eps,
                        const float *weight, const float *bias, float *pre) {
    for (int64_t c = 0; c < channels; ++c)
        put(channels, c, mean[c], 1 / std::sqrt(double(variance[c]) + eps), weight, bias, pre);
}

void batch_gradient(const Blocked &b, const float *sums, const float *pre, const float *more, float *post,
                    float *dweight, float *dbias) {
    const double count = double(b.batch * b.pixels);
    const int64_t n = b.channels;
    for (int64_t c = 0; c < n; ++c) {
        double sum = 0, product = 0;
        for (int64_t t = 0; t < b.tiles; ++t)
            sum += sums[2 * (t * n + c)], product += sums[2 * (t * n + c) + 1];
        const double scale = pre[c], inverse = more[c];
        post[c] = pre[c];
        post[n + c] = float(-scale * inverse * inverse * product / count);
        post[2 * n + c] = pre[2 * n + c];
        post[3 * n + c] = float(-scale * sum / count);
        dweight[c] = float(product * inverse), dbias[c] = float(sum);
    }
}

} // namespace startsparse
