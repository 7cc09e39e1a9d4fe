// Weights column by column: positions sorted by column, and columns that change.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "abi.h"

namespace startsparse {

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

// Memory that is not filled; null where there is none.
template <class T> using Array = std::unique_ptr<T[], Free>;

template <class T> Array<T> array(int64_t n) {
    return Array<T>(static_cast<T *>(std::malloc(size_t(n + 1) * sizeof(T))));
}

// Ascending positions, sorted by column. Threads divide them, and keep the rows they have found apart: with one list for
// each column they would write to the same lines of cache.
template <class Row> class ByColumn {
  public:
    ByColumn(const Header &p, int64_t n, int team)
        : p_(p), n_(n), team_(team), stride_(p.groups * p.cols + 1), starts_(array<int32_t>(team * stride_)),
          rows_(array<Row>(n)) {}

    explicit operator bool() const { return starts_ && rows_; }

    template <class Position> void sort(const Position *position) {
#pragma omp parallel for num_threads(team_) schedule(static, 1)
        for (int part = 0; part < team_; ++part) {
            int32_t *const start = starts_.get() + part * stride_; // [column + 1]: at first where a column's next goes
            std::memset(start, 0, size_t(stride_) * 4);
            each(position, part, [start](int64_t c, int64_t) { ++start[c + 1]; });
            int32_t next = 0;
            for (int64_t c = 1; c < stride_; ++c) {
                const int32_t count = start[c];
                start[c] = next, next += count;
            }
            Row *const rows = rows_.get() + first_of(part);
            each(position, part, [start, rows](int64_t c, int64_t row) { rows[start[c + 1]++] = Row(row); });
        }
    }

    // Positions in columns before this one.
    int32_t before(int64_t column) const {
        int32_t count = 0;
        for (int part = 0; part < team_; ++part)
            count += starts_[part * stride_ + column];
        return count;
    }

    // Copies the rows of a column, ascending; returns where they end.
    Row *copy(int64_t column, Row *to) const {
        for (int part = 0; part < team_; ++part) {
            const int32_t *const start = starts_.get() + part * stride_ + column;
            to = std::copy(rows_.get() + first_of(part) + start[0], rows_.get() + first_of(part) + start[1], to);
        }
        return to;
    }

  private:
    int64_t first_of(int part) const { return n_ * part / team_; }

    template <class Position, class Found> void each(const Position *position, int part, Found found) {
        const int64_t cols = p_.cols, rows_per_group = p_.rows / p_.groups;
        const Position *i = position + first_of(part), *const last = position + first_of(part + 1);
        while (i < last) {
            const int64_t row = int64_t(*i) / cols, end = (row + 1) * cols,
                          start = row * cols - row / rows_per_group * cols; // what leads to the global column
            for (; i < last && int64_t(*i) < end; ++i)
                found(int64_t(*i) - start, row);
        }
    }

    const Header &p_;
    int64_t n_;
    int team_;
    int64_t stride_;
    Array<int32_t> starts_;
    Array<Row> rows_;
};

// The weights of one column, rows ascending, and where each was, or -1.
template <class Row> struct Column {
    Array<Row> row;
    Array<int32_t> from;

    explicit Column(int64_t n) : row(array<Row>(n)), from(array<int32_t>(n)) {}
    explicit operator bool() const { return row && from; }
};

// Changes columns one after the other, without a branch on what is chance: which rows drop, and between which others new
// ones come.
template <class Row> class Changer {
  public:
    explicit Changer(int64_t rows)
        : kept_(rows + AT_ONCE), now_(rows + AT_ONCE), changed_(array<Row>(rows)), gone_(array<uint8_t>(rows)), rows_(rows) {
        if (gone_) std::memset(gone_.get(), 0, size_t(rows));
    }

    explicit operator bool() const { return kept_ && now_ && changed_ && gone_; }

    // The rows `old`, whose first is weight `first` of all, less those dropped in this column and plus those grown.
    Status change(const Row *old, int64_t n, int32_t first, const ByColumn<Row> &dropped, const ByColumn<Row> &grown,
                  int64_t column, Row *row, int32_t *from) {
        const int64_t drops = dropped.copy(column, changed_.get()) - changed_.get(), size = n - drops;
        if (keep(old, n, first, drops) != size) return NOT_LIVE;
        const int64_t grows = grown.copy(column, changed_.get()) - changed_.get();
        if (size + grows > rows_ || !insert(size, grows)) return ALREADY_LIVE;
        std::copy_n(now_.row.get(), size + grows, row);
        std::copy_n(now_.from.get(), size + grows, from);
        return OK;
    }

  private:
    static constexpr int64_t AT_ONCE = 8;
    typedef Row Rows __attribute__((vector_size(AT_ONCE * sizeof(Row))));

    int64_t keep(const Row *old, int64_t n, int32_t first, int64_t drops) {
        Row *const row = kept_.row.get();
        int32_t *const from = kept_.from.get();
        uint8_t *const gone = gone_.get();
        const Row *const drop = changed_.get();
        for (int64_t i = 0; i < drops; ++i)
            gone[drop[i]] = 1;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; ++i) {
            row[kept] = old[i], from[kept] = int32_t(first + i);
            kept += 1 - gone[old[i]];
        }
        for (int64_t i = 0; i < drops; ++i)
            gone[drop[i]] = 0;
        return kept;
    }

    // Before each new row come those that are lower, several at a time: all are copied, and those that are lower count.
    bool insert(int64_t size, int64_t grows) {
        const Row *row = kept_.row.get(), *const last = row + size, *const grow = changed_.get();
        const int32_t *from = kept_.from.get();
        std::fill_n(kept_.row.get() + size, AT_ONCE, Row(-1)); // lower than none
        Row *to = now_.row.get();
        int32_t *to_from = now_.from.get();
        bool twice = false;
        for (int64_t g = 0; g < grows; ++g) {
            for (int64_t lower = AT_ONCE; lower == AT_ONCE; row += lower, from += lower, to += lower, to_from += lower) {
                Rows some;
                std::memcpy(&some, row, sizeof some);
                std::memcpy(to, &some, sizeof some), std::memcpy(to_from, from, AT_ONCE * 4);
                lower = lower_ones(some, grow[g]);
            }
            twice |= row < last && *row == grow[g];
            *to++ = grow[g], *to_from++ = -1;
        }
        std::copy(row, last, to);
        std::copy_n(from, last - row, to_from);
        return !twice;
    }

    static int64_t lower_ones(Rows some, Row bar) {
        Row count = 0;
        for (int j = 0; j < AT_ONCE; ++j)
            count += some[j] < bar;
        return count;
    }

    Column<Row> kept_, now_;
    Array<Row> changed_;
    Array<uint8_t> gone_;
    int64_t rows_;
};

} // namespace startsparse
