// From the moments of tiles to what a batch norm does to each channel, and back. A few numbers a channel.
#pragma once

#include "abi.h"

namespace startsparse {

// Moments of every tile -> `pre` [3][channels]: scale, shift, mean; and `more` [2][channels]: 1 / deviation, and
// the variance that running statistics take (over one less). Weight and bias may each be null.
void batch_statistics(const Blocked &, const float *moments, float eps, const float *weight, const float *bias,
                      float *pre, float *more);

// `pre` of a norm that uses running statistics.
void running_statistics(int64_t channels, const float *mean, const float *variance, float eps,
                        const float *weight, const float *bias, float *pre);

// Sums of every tile (see Fusion) -> `post` [4][channels], and the gradients of weight and bias.
void batch_gradient(const Blocked &, const float *sums, const float *pre, const float *more, float *post, float *dweight,
                    float *dbias);

} // namespace startsparse
