// The highest of many values.
#pragma once

#include "abi.h"

namespace startsparse {

// taken[i] = 1 for the `count` highest of n values (1 .. n of them), else 0. Ties: those that are preferred first (`prefer`
// may be null), then those of lower index. False, and nothing in `taken` to rely on, where a value is NaN, where fewer
// than `count` are more than -inf, or without memory.
bool take_highest(const Kernels &kernels, const float *value, int64_t n, int64_t count, const uint8_t *prefer,
                  uint8_t *taken, int threads);

// Copies the items (of 4 or 8 bytes) whose `mask` is `wanted` (0 or 1), of which there must be `count`.
Status pick_items(const void *item, int64_t item_bytes, const uint8_t *mask, int64_t n, int32_t wanted, void *picked,
                  int64_t count, int threads);

} // namespace startsparse
