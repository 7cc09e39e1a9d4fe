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

template <class Position> Status check(const Position *position, const Header &p, int team) {
    const int64_t size = p.rows * p.cols;
    bool wrong = p.nnz && (int64_t(position[0]) < 0 || int64_t(position[p.nnz - 1]) >= size);
#pragma omp parallel for num_threads(team) schedule(static) reduction(| : wrong)
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

template <class T> T *at(Header &p, int64_t offset) { return const_cast<T *>(section<T>(p, offset)); }

// Threads divide the rows; each counts its weights of every column in `counts` [team, global columns], and from these
// knows where in each column its own begin.
template <class Position, class Row, class Column>
void fill(const Position *position, Header &p, int32_t *counts, int team) {
    int32_t *col_ptr = at<int32_t>(p, p.col_ptr), *row_ptr = at<int32_t>(p, p.row_ptr);
    int32_t *segment = at<int32_t>(p, p.segment_ptr), *value = at<int32_t>(p, p.forward_value);
    Row *row_of = at<Row>(p, p.row_index);
    Column *column = at<Column>(p, p.forward_col);
    const int64_t global_cols = p.groups * p.cols, segments = p.blocks * p.rows, rows_per_group = p.rows / p.groups;
    std::memset(counts, 0, size_t(team * global_cols) * 4);
    std::memset(row_ptr, 0, size_t(p.rows + 1) * 4);
    std::memset(segment, 0, size_t(segments + 1) * 4);
    const auto first_row = [&](int part) {
        if (part == 0 || part == team) return part ? p.rows : 0;
        return int64_t(position[p.nnz * part / team]) / p.cols;
    };
    const auto start_of = [&](int64_t row) { // what leads from a position to its global column
        return row * p.cols - row / rows_per_group * p.cols;
    };

#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        int32_t *count = counts + part * global_cols;
        const Position *const end_of_all = position + p.nnz;
        const auto begin_of = [&](int of) {
            return of == team ? end_of_all : std::lower_bound(position, end_of_all, Position(first_row(of) * p.cols));
        };
        const Position *i = begin_of(part), *const last = begin_of(part + 1);
        while (i < last) {
            const int64_t row = int64_t(*i) / p.cols, start = start_of(row), end = (row + 1) * p.cols;
            const Position *const begin = i;
            for (int64_t s = row + 1, stop = row * p.cols + p.block; i < last && int64_t(*i) < end;
                 s += p.rows, stop += p.block) {
                const Position *const run = i;
                for (const int64_t limit = std::min(stop, end); i < last && int64_t(*i) < limit;)
                    ++i;
                segment[s] = int32_t(i - run);
            }
            row_ptr[row + 1] = int32_t(i - begin);
            for (const Position *j = begin; j < i; ++j)
                ++count[int64_t(*j) - start];
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
        int32_t *next = counts + part * global_cols;
        for (int64_t row = first_row(part), last = first_row(part + 1); row < last; ++row) {
            const int64_t first = start_of(row);
            const Position *i = position + row_ptr[row];
            for (int64_t b = row; b < segments && i < position + row_ptr[row + 1]; b += p.rows)
                for (int64_t s = segment[b]; s < segment[b + 1]; ++s, ++i) {
                    const int64_t c = int64_t(*i) - first;
                    const int32_t k = next[c]++;
                    row_of[k] = Row(row), column[s] = Column(c), value[s] = k;
                }
        }
    }
}

template <class Position> Status build(const Position *position, Header &p, int threads) {
    const int team = p.nnz < FEW ? 1 : threads;
    if (const Status status = check(position, p, team)) return status;
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

// For each weight of `now`, in value order: where `before` kept it, or -1. `tables` [team, rows] holds where a column's
// rows are: what is left there of earlier columns is lower than all of this one.
template <class Before, class Now>
void source(const Header &before, const Header &now, int32_t *from, int32_t *tables, int team) {
    const int32_t *old_ptr = section<int32_t>(before, before.col_ptr),
                  *new_ptr = section<int32_t>(now, now.col_ptr);
    const Before *old_row = section<Before>(before, before.row_index);
    const Now *new_row = section<Now>(now, now.row_index);
    const int64_t columns = now.groups * now.cols;
    std::memset(tables, -1, size_t(team * now.rows) * 4);
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        int32_t *table = tables + part * now.rows;
        for (int64_t c = columns * part / team; c < columns * (part + 1) / team; ++c) {
            const int32_t first = old_ptr[c];
            for (int32_t i = first; i < old_ptr[c + 1]; ++i)
                table[old_row[i]] = i;
            for (int32_t k = new_ptr[c]; k < new_ptr[c + 1]; ++k) {
                const int32_t i = table[new_row[k]];
                from[k] = i | (i - first) >> 31; // -1 where it is lower; without a branch: which are new is chance
            }
        }
    }
}

template <class Item> void take(const Item *old, const int32_t *from, int64_t n, Item *now) {
    if (!old) { // it has no items, so each is to be zero
        std::fill(now, now + n, Item{});
        return;
    }
    for (int64_t i = 0; i < n; ++i) { // without a branch, as above
        const int32_t there = ~(from[i] >> 31);
        now[i] = Item(old[from[i] & there] & Item(there));
    }
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

Status find_sources(const Header &before, const Header &now, int32_t *from, int threads) {
    const int team = now.nnz < FEW ? 1 : threads;
    int32_t *tables = static_cast<int32_t *>(std::malloc(size_t(team * now.rows + 1) * 4));
    if (!tables) return NO_MEMORY;
    if (now.row_bytes == 4) source<uint32_t, uint32_t>(before, now, from, tables, team);
    else source<uint16_t, uint16_t>(before, now, from, tables, team);
    std::free(tables);
    return OK;
}

Status take_items(int64_t tensors, const void *const *old, void *const *now, const int32_t *from, int64_t n,
                  int64_t item_bytes, int threads) {
    if (item_bytes != 1 && item_bytes != 2 && item_bytes != 4 && item_bytes != 8) return MISMATCH;
    constexpr int64_t PIECE = 1 << 12; // of `from`, which stays in cache for all tensors
#pragma omp parallel for num_threads(n < FEW ? 1 : threads) schedule(static)
    for (int64_t first = 0; first < n; first += PIECE)
        for (int64_t t = 0; t < tensors; ++t) {
            const int64_t size = std::min(PIECE, n - first);
            const auto part = [&](auto item) {
                using Item = decltype(item);
                take(static_cast<const Item *>(old[t]), from + first, size, static_cast<Item *>(now[t]) + first);
            };
            switch (item_bytes) {
            case 1: part(uint8_t{}); break;
            case 2: part(uint16_t{}); break;
            case 4: part(uint32_t{}); break;
            default: part(uint64_t{});
            }
        }
    return OK;
}

} // namespace startsparse
