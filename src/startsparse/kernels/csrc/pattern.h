// Building patterns and moving what belongs to weights from one pattern to the next.
#pragma once

#include "abi.h"

namespace startsparse {

// Fills in every field that follows from rows, cols, groups, nnz and block; returns the bytes of the whole
// buffer.
int64_t lay_out(Header &pattern);

// Sorts strictly ascending row-major positions (int64 if `wide`, else int32) into a buffer whose header is
// laid out.
Status build_pattern(Header &pattern, const void *position, bool wide, int threads);

// For each live weight in row-major order: its position, and where its value lies. Either may be null.
void row_major(const Header &pattern, int64_t *position, int32_t *value);

// For each weight of `now`, in value order: its place in the value order of `before`, or -1. Same shape,
// both.
void find_sources(const Header &before, const Header &now, int32_t *from, int threads);

// now[i] = old[from[i]], or zero where from[i] is -1.
Status take_items(const void *old, const int32_t *from, int64_t n, int64_t item_bytes, void *now,
                  int threads);

// Sorted positions less `drop` and plus `grow`, both sorted; a position in both stays. There must be room for
// n + grows.
Status merge_positions(const int64_t *old, int64_t n, const int64_t *drop, int64_t drops, const int64_t *grow,
                       int64_t grows, int64_t *now);

// Where each of `m` wanted positions stands among `n` others, or -1; both ascending.
void find_positions(const int64_t *sorted, int64_t n, const int64_t *wanted, int64_t m, int64_t *at);

// `Kernels::above` of a block that threads divide; the order of what is found is that of one thread.
int64_t scores_above(decltype(Kernels::above) above, const float *gradient, int64_t n, int64_t start,
                     const int64_t *kept, int64_t kepts, float bar, int64_t *position, float *score, int threads);

} // namespace startsparse
