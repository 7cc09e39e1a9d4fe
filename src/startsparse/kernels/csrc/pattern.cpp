// Patterns: which weights live, sorted for both passes by counting, in time proportional to their number.
#include "pattern.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "columns.h"

namespace startsparse {
namespace {

constexpr int64_t FEW = 1 << 14; // weights that are not worth waking a second thread for

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class Position> Status check(const Position *position, int64_t n, int64_t size, int team) {
    bool wrong = n && (int64_t(position[0]) < 0 || int64_t(position[n - 1]) >= size);
#pragma omp parallel for num_threads(team) schedule(static) reduction(| : wrong)
    for (int64_t i = 1; i < n; ++i) // without a branch: nearly always all is well
        wrong |= position[i] <= position[i - 1];
    if (!wrong) return OK;
    int64_t last = -1;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t now = int64_t(position[i]);
        if (now < 0 || now >= size) return OUT_OF_RANGE;
        if (now <= last) return UNSORTED;
        last = now;
    }
    return OK;
}

template <class T> T *at(Header &p, int64_t offset) { return const_cast<T *>(section<T>(p, offset)); }

// All that follows from col_ptr and row_index. A thread takes the columns of one group in one block, whose weights are
// neighbours in both orders.
template <class Row, class ColumnIndex> Status fill_forward(Header &p, int team) {
    constexpr int64_t TILE = 512; // rows, whose weights in a block stay in the first level of cache
    const int32_t *const col_ptr = section<int32_t>(p, p.col_ptr);
    const Row *const row_of = section<Row>(p, p.row_index);
    int32_t *const row_ptr = at<int32_t>(p, p.row_ptr), *const segment = at<int32_t>(p, p.segment_ptr),
                  *const value = at<int32_t>(p, p.forward_value);
    ColumnIndex *const column = at<ColumnIndex>(p, p.forward_col);
    const int64_t tasks = p.blocks * p.groups, rows = p.rows / p.groups;
    const Array<int32_t> starts = array<int32_t>(tasks), tables = array<int32_t>(team * rows),
                         cursors = array<int32_t>(team * p.block);
    if (!starts || !tables || !cursors) return NO_MEMORY;
    const auto columns_of = [&p](int64_t block, int64_t group) {
        return std::pair(group * p.cols + block * p.block, group * p.cols + std::min((block + 1) * p.block, p.cols));
    };
    int32_t start = 0;
    for (int64_t task = 0; task < tasks; ++task) {
        const auto [first, last] = columns_of(task / p.groups, task % p.groups);
        starts[task] = start, start += col_ptr[last] - col_ptr[first];
    }
    segment[p.blocks * p.rows] = start;
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t block = task / p.groups, group = task % p.groups;
        const auto [first, last] = columns_of(block, group);
        int32_t *const own = tables.get() + omp_get_thread_num() * rows - group * rows; // [row]
        std::memset(own + group * rows, 0, size_t(rows) * 4);
        for (int32_t k = col_ptr[first], end = col_ptr[last]; k < end; ++k)
            ++own[row_of[k]];
        int32_t next = starts[task];
        for (int64_t row = group * rows; row < (group + 1) * rows; ++row) {
            const int32_t count = own[row];
            segment[block * p.rows + row] = own[row] = next, next += count;
        }
        int32_t *const upcoming = cursors.get() + omp_get_thread_num() * p.block - first; // [column]
        std::copy(col_ptr + first, col_ptr + last, upcoming + first);
        for (int64_t row = group * rows; row < (group + 1) * rows; row += TILE)
            for (int64_t c = first; c < last; ++c) {
                int32_t k = upcoming[c];
                for (const int32_t end = col_ptr[c + 1]; k < end && row_of[k] < row + TILE; ++k) {
                    const int32_t s = own[row_of[k]]++;
                    column[s] = ColumnIndex(c), value[s] = k;
                }
                upcoming[c] = k;
            }
    }
    std::memset(row_ptr, 0, size_t(p.rows + 1) * 4);
    for (int64_t block = 0; block < p.blocks; ++block)
        for (int64_t row = 0; row < p.rows; ++row)
            row_ptr[row + 1] += segment[block * p.rows + row + 1] - segment[block * p.rows + row];
    for (int64_t row = 0; row < p.rows; ++row)
        row_ptr[row + 1] += row_ptr[row];
    return OK;
}

template <class Row> Status fill_forward(Header &p, int team) {
    return p.col_bytes == 4 ? fill_forward<Row, uint32_t>(p, team) : fill_forward<Row, uint16_t>(p, team);
}

template <class Position, class Row> Status fill(const Position *position, Header &p, int team) {
    ByColumn<Row> sorted(p, p.nnz, team);
    if (!sorted) return NO_MEMORY;
    sorted.sort(position);
    int32_t *const col_ptr = at<int32_t>(p, p.col_ptr);
    Row *const row = at<Row>(p, p.row_index);
    const int64_t columns = p.groups * p.cols;
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t c = 0; c < columns; ++c) {
        col_ptr[c] = sorted.before(c);
        sorted.copy(c, row + col_ptr[c]);
    }
    col_ptr[columns] = int32_t(p.nnz);
    return fill_forward<Row>(p, team);
}

template <class Position> Status build(const Position *position, Header &p, int threads) {
    const int team = p.nnz < FEW ? 1 : threads;
    if (const Status status = check(position, p.nnz, p.rows * p.cols, team)) return status;
    return p.row_bytes == 4 ? fill<Position, uint32_t>(position, p, team) : fill<Position, uint16_t>(position, p, team);
}

template <class Row>
Status change(const Header &old, const int64_t *drop, int64_t drops, const int64_t *grow, int64_t grows, Header &now,
              int32_t *from, int team) {
    const int64_t columns = old.groups * old.cols;
    ByColumn<Row> dropped(old, drops, team), grown(old, grows, team);
    if (!dropped || !grown) return NO_MEMORY;
    dropped.sort(drop), grown.sort(grow);
    const int32_t *const old_ptr = section<int32_t>(old, old.col_ptr);
    const Row *const old_row = section<Row>(old, old.row_index);
    int32_t *const ptr = at<int32_t>(now, now.col_ptr);
    Row *const row = at<Row>(now, now.row_index);
    int32_t wrong = OK;
#pragma omp parallel for num_threads(team) schedule(static, 1) reduction(max : wrong)
    for (int part = 0; part < team; ++part) {
        Changer<Row> changer(old.rows);
        Status status = changer ? OK : NO_MEMORY;
        for (int64_t c = columns * part / team; c < columns * (part + 1) / team && !status; ++c) {
            const int32_t first = old_ptr[c], to = ptr[c] = first - dropped.before(c) + grown.before(c);
            status = changer.change(old_row + first, old_ptr[c + 1] - first, first, dropped, grown, c, row + to, from + to);
        }
        wrong = std::max(wrong, int32_t(status));
    }
    ptr[columns] = int32_t(now.nnz);
    return wrong ? Status(wrong) : fill_forward<Row>(now, team);
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

Status change_pattern(const Header &old, const int64_t *drop, int64_t drops, const int64_t *grow, int64_t grows, Header &now,
                      int32_t *from, int threads) {
    const int team = old.nnz + grows < FEW ? 1 : threads;
    const int64_t size = old.rows * old.cols;
    if (const Status status = check(drop, drops, size, team)) return status == OUT_OF_RANGE ? NOT_LIVE : status;
    if (const Status status = check(grow, grows, size, team)) return status;
    if (now.nnz != old.nnz - drops + grows) return NOT_LIVE;
    if (now.nnz > INT32_MAX || grows > INT32_MAX) return TOO_LARGE;
    return old.row_bytes == 4 ? change<uint32_t>(old, drop, drops, grow, grows, now, from, team)
                              : change<uint16_t>(old, drop, drops, grow, grows, now, from, team);
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
