// Patterns: which weights live, sorted for both passes by counting, in time proportional to their number.
#include "pattern.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace startsparse {
namespace {

constexpr int64_t FEW = 1 << 14; // weights that are not worth waking a second thread for

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Walks row-major positions in order, and knows each one's row, column, block and global column without
// dividing.
struct Walk {
    int64_t rows, cols, block, rows_per_group;
    int64_t row = 0, row_start = 0, column = 0, global = 0, in_block = 0, block_end = 0, group_end = 0,
            group_start = 0;

    Walk(const Header &p)
        : rows(p.rows), cols(p.cols), block(p.block), rows_per_group(p.rows / p.groups), block_end(p.block),
          group_end(rows_per_group) {}

    void to(int64_t position) {
        if (position - row_start >= cols) {
            row = position / cols;
            row_start = row * cols;
            in_block = 0;
            block_end = block;
            while (row >= group_end)
                group_end += rows_per_group, group_start += cols;
        }
        column = position - row_start;
        while (column >= block_end)
            block_end += block, ++in_block;
        global = group_start + column;
    }
};

template <class Position> Status check(const Position *position, const Header &p) {
    const int64_t size = p.rows * p.cols;
    bool wrong = p.nnz && (int64_t(position[0]) < 0 || int64_t(position[p.nnz - 1]) >= size);
    for (int64_t i = 1; i < p.nnz; ++i) // without a branch: nearly always all is well
        wrong |= position[i] <= position[i - 1];
    if (!wrong) return OK;
    int64_t last = -1;
    for (int64_t i = 0; i < p.nnz; ++i) {
        const int64_t now = int64_t(position[i]);
        if (now < 0 || now >= size) return OUT_OF_RANGE;
        if (now <= last) return UNSORTED;
        last = now;
    }
    return OK;
}

void to_starts(int32_t *count, int64_t n) { // count[i + 1] items of kind i -> first of kind i, n + 1 entries
    for (int64_t i = 0; i < n; ++i)
        count[i + 1] += count[i];
}

void rewind(int32_t *cursor,
            int64_t n) { // undoes the advance of n cursors that each reached the next one's start
    std::memmove(cursor + 1, cursor, size_t(n) * sizeof(int32_t));
    cursor[0] = 0;
}

template <class T> T *at(Header &p, int64_t offset) { return const_cast<T *>(section<T>(p, offset)); }

// Threads divide the rows; each counts its weights of every column in `counts` [team, global columns], and from these
// knows where in each column its own begin.
template <class Position, class Row, class Column>
void fill(const Position *position, Header &p, int32_t *counts, int team) {
    int32_t *col_ptr = at<int32_t>(p, p.col_ptr), *row_ptr = at<int32_t>(p, p.row_ptr);
    int32_t *segment = at<int32_t>(p, p.segment_ptr), *value = at<int32_t>(p, p.forward_value);
    Row *row = at<Row>(p, p.row_index);
    Column *column = at<Column>(p, p.forward_col);
    const int64_t global_cols = p.groups * p.cols, segments = p.blocks * p.rows;
    std::memset(counts, 0, size_t(team * global_cols) * 4);
    std::memset(row_ptr, 0, size_t(p.rows + 1) * 4);
    std::memset(segment, 0, size_t(segments + 1) * 4);
    const auto first_of = [&](int part) { // at the start of a row, so that no row has two threads
        if (part == team) return p.nnz;
        const int64_t start = p.nnz ? int64_t(position[p.nnz * part / team]) / p.cols * p.cols : 0;
        return int64_t(std::lower_bound(position, position + p.nnz, start) - position);
    };

#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        Walk walk(p);
        int32_t *count = counts + part * global_cols;
        for (int64_t i = first_of(part), last = first_of(part + 1); i < last; ++i) {
            walk.to(int64_t(position[i]));
            ++count[walk.global], ++row_ptr[walk.row + 1], ++segment[walk.in_block * p.rows + walk.row + 1];
        }
    }
    int32_t start = 0;
    for (int64_t c = 0; c < global_cols; ++c) {
        col_ptr[c] = start;
        for (int part = 0; part < team; ++part) {
            const int32_t own = counts[part * global_cols + c];
            counts[part * global_cols + c] = start, start += own;
        }
    }
    col_ptr[global_cols] = start;
    to_starts(row_ptr, p.rows), to_starts(segment, segments);

#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        Walk walk(p);
        int32_t *next = counts + part * global_cols;
        for (int64_t i = first_of(part), last = first_of(part + 1); i < last; ++i) {
            walk.to(int64_t(position[i]));
            const int32_t k = next[walk.global]++, s = segment[walk.in_block * p.rows + walk.row]++;
            row[k] = Row(walk.row), column[s] = Column(walk.global), value[s] = k;
        }
    }
    rewind(segment, segments);
}

template <class Position> Status build(const Position *position, Header &p, int threads) {
    if (const Status status = check(position, p)) return status;
    const int team = p.nnz < FEW ? 1 : threads;
    int32_t *counts = static_cast<int32_t *>(std::malloc(size_t(team * p.groups * p.cols + 1) * 4));
    if (!counts) return NO_MEMORY;
    const bool wide_row = p.row_bytes == 4, wide_col = p.col_bytes == 4;
    if (wide_row && wide_col) fill<Position, uint32_t, uint32_t>(position, p, counts, team);
    else if (wide_row) fill<Position, uint32_t, uint16_t>(position, p, counts, team);
    else if (wide_col) fill<Position, uint16_t, uint32_t>(position, p, counts, team);
    else fill<Position, uint16_t, uint16_t>(position, p, counts, team);
    std::free(counts);
    return OK;
}

// For each weight of `now`, in value order: where `before` kept it, or -1. Both list a column's rows
// ascending.
template <class Before, class Now>
void source(const Header &before, const Header &now, int32_t *from, int threads) {
    const int32_t *old_ptr = section<int32_t>(before, before.col_ptr),
                  *new_ptr = section<int32_t>(now, now.col_ptr);
    const Before *old_row = section<Before>(before, before.row_index);
    const Now *new_row = section<Now>(now, now.row_index);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < now.groups * now.cols; ++c) {
        int32_t i = old_ptr[c];
        for (int32_t k = new_ptr[c]; k < new_ptr[c + 1]; ++k) {
            while (i < old_ptr[c + 1] && uint32_t(old_row[i]) < uint32_t(new_row[k]))
                ++i;
            from[k] = i < old_ptr[c + 1] && uint32_t(old_row[i]) == uint32_t(new_row[k]) ? i : -1;
        }
    }
}

template <class Item> void take(const Item *old, const int32_t *from, int64_t n, Item *now, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; ++i)
        now[i] = from[i] < 0 ? Item{} : old[from[i]];
}

} // namespace

int64_t lay_out(Header &p) {
    const int64_t global_cols = p.groups * p.cols;
    p.magic = MAGIC;
    p.blocks = p.cols ? (p.cols + p.block - 1) / p.block : 0;
    p.row_bytes = p.rows <= 65536 ? 2 : 4;
    p.col_bytes = global_cols <= 65536 ? 2 : 4;
    int64_t end = align(sizeof(Header));
    const auto next = [&end](int64_t bytes) { return end += align(bytes), end - align(bytes); };
    p.col_ptr = next(4 * (global_cols + 1));
    p.row_index = next(p.row_bytes * p.nnz);
    p.row_ptr = next(4 * (p.rows + 1));
    p.segment_ptr = next(4 * (p.blocks * p.rows + 1));
    p.forward_col = next(p.col_bytes * p.nnz);
    p.forward_value = next(4 * p.nnz);
    return p.bytes = end;
}

Status build_pattern(Header &p, const void *position, bool wide, int threads) {
    if (p.nnz > INT32_MAX) return TOO_LARGE;
    return wide ? build(static_cast<const int64_t *>(position), p, threads)
                : build(static_cast<const int32_t *>(position), p, threads);
}

void row_major(const Header &p, int64_t *position, int32_t *value, int threads) {
    const int32_t *segment = section<int32_t>(p, p.segment_ptr), *from = section<int32_t>(p, p.forward_value),
                  *before = section<int32_t>(p, p.row_ptr);
    const uint16_t *narrow = section<uint16_t>(p, p.forward_col);
    const uint32_t *wide = section<uint32_t>(p, p.forward_col);
    const int64_t rows_per_group = p.rows / p.groups;
#pragma omp parallel for num_threads(p.nnz < FEW ? 1 : threads) schedule(static)
    for (int64_t row = 0; row < p.rows; ++row) {
        const int64_t start = row * p.cols - row / rows_per_group * p.cols;
        int64_t i = before[row];
        for (int64_t block = 0; block < p.blocks; ++block) {
            const int32_t *ptr = segment + block * p.rows + row;
            for (int32_t s = ptr[0]; s < ptr[1]; ++s, ++i) {
                if (position) position[i] = start + (p.col_bytes == 2 ? narrow[s] : wide[s]);
                if (value) value[i] = from[s];
            }
        }
    }
}

void find_sources(const Header &before, const Header &now, int32_t *from, int threads) {
    const bool old_wide = before.row_bytes == 4, new_wide = now.row_bytes == 4;
    if (old_wide && new_wide) source<uint32_t, uint32_t>(before, now, from, threads);
    else source<uint16_t, uint16_t>(before, now, from, threads);
}

Status take_items(const void *old, const int32_t *from, int64_t n, int64_t item_bytes, void *now,
                  int threads) {
    switch (item_bytes) {
    case 1: take(static_cast<const uint8_t *>(old), from, n, static_cast<uint8_t *>(now), threads); return OK;
    case 2:
        take(static_cast<const uint16_t *>(old), from, n, static_cast<uint16_t *>(now), threads);
        return OK;
    case 4:
        take(static_cast<const uint32_t *>(old), from, n, static_cast<uint32_t *>(now), threads);
        return OK;
    case 8:
        take(static_cast<const uint64_t *>(old), from, n, static_cast<uint64_t *>(now), threads);
        return OK;
    default: return MISMATCH;
    }
}

} // namespace startsparse
