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
void row_major(const Header &pattern, int64_t *position, int32_t *value, int threads);

// For each weight of `now`, in value order: its place in the value order of `before`, or -1. Same shape,
// both.
void find_sources(const Header &before, const Header &now, int32_t *from, int threads);

// now[i] = old[from[i]], or zero where from[i] is -1.
Status take_items(const void *old, const int32_t *from, int64_t n, int64_t item_bytes, void *now,
                  int threads);

} // namespace startsparse
