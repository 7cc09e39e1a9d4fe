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

// A pattern less the ascending positions `drop`, and plus `grow`, in a buffer whose header is laid out for as many weights
// and with the same shape; a position in both stays. For each weight, in value order, `from` says where `old` kept it: -1
// of those that have grown.
Status change_pattern(const Header &old, const int64_t *drop, int64_t drops, const int64_t *grow, int64_t grows, Header &now,
                      int32_t *from, int threads);

// For each live weight in row-major order: its position, and where its value lies. Either may be null.
void row_major(const Header &pattern, int64_t *position, int32_t *value, int threads);

// For each weight of `now`, in value order: its place in the value order of `before`, or -1. Same shape,
// both.
Status find_sources(const Header &before, const Header &now, int32_t *from, int threads);

// now[t][i] = old[t][from[i]], or zero where from[i] is -1. An `old` without items may be null.
Status take_items(int64_t tensors, const void *const *old, void *const *now, const int32_t *from, int64_t n,
                  int64_t item_bytes, int threads);

} // namespace startsparse
