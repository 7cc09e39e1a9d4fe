// Sorted positions of weights, and bits that stand for them.
#pragma once

#include "abi.h"

namespace startsparse {

// Where each of `m` wanted positions stands among `n` others, or -1; both ascending.
void find_positions(const int64_t *sorted, int64_t n, const int64_t *wanted, int64_t m, int64_t *at,
                    int threads);

// Those of n ascending positions that are not among m others, and the other way round. There must be room for n and m;
// `counts` says how many of each there are.
void part_positions(const int64_t *a, int64_t n, const int64_t *b, int64_t m, int64_t *only_a, int64_t *only_b,
                    int64_t *counts, int threads);

// `Kernels::above` of a block that threads divide. Behind the bits, `passed` has room for 64 words that `list_scores` needs.
int64_t scores_above(const Kernels &kernels, const float *gradient, int64_t n, int64_t start, const int64_t *live,
                     int64_t lives, const int64_t *returning, int64_t returnings, float bar, uint64_t *passed,
                     int threads);

// Positions and absolute values of all that `scores_above` found in the block, with as many threads.
void list_scores(const Kernels &kernels, const float *gradient, int64_t n, int64_t start, const uint64_t *passed,
                 int64_t *position, float *score, int threads);

// Sets the bits of ascending positions, the first of each byte highest.
void mark_positions(uint8_t *bits, const int64_t *position, int64_t n, int threads);

// Whether the bit of each position is set: 0 or 1.
void find_marked(const uint8_t *bits, const int64_t *position, int64_t n, uint8_t *marked, int threads);

} // namespace startsparse
