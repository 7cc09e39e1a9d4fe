// Sorted positions of weights: found, told apart, marked; and those of a gradient that are worth a look.
#include "positions.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace startsparse {
namespace {

constexpr int64_t FEW = 1 << 14; // positions that are not worth waking a second thread for
constexpr int MOST = 64;         // threads

void find(const int64_t *sorted, int64_t n, const int64_t *wanted, int64_t m, int64_t *at) {
    int64_t i = m ? std::lower_bound(sorted, sorted + n, wanted[0]) - sorted : n;
    for (int64_t j = 0; j < m; ++j) {
        for (int steps = 0; steps < 8 && i < n && sorted[i] < wanted[j]; ++steps)
            ++i;
        if (i < n && sorted[i] < wanted[j]) { // far away
            int64_t reach = 8;
            for (; i + reach < n && sorted[i + reach] < wanted[j]; reach *= 2)
                i += reach;
            i = std::lower_bound(sorted + i, sorted + std::min(i + reach, n), wanted[j]) - sorted;
        }
        at[j] = i < n && sorted[i] == wanted[j] ? i : -1;
    }
}

// Tells two ascending lists apart, a step at a time. Which is lower is chance, so there is no branch on it.
struct Apart {
    const int64_t *a, *b;
    int64_t *only_a, *only_b;
    int64_t n, m, i = 0, j = 0, in_a = 0, in_b = 0;

    // Steps that can be made without a look at the ends.
    int64_t sure() const { return std::min(n - i, m - j); }

    void step() {
        const int64_t x = a[i], y = b[j];
        only_a[in_a] = x, only_b[in_b] = y;
        in_a += x < y, in_b += y < x;
        i += x <= y, j += y <= x;
    }

    void finish() {
        while (i < n && j < m)
            step();
        in_a = std::copy(a + i, a + n, only_a + in_a) - only_a, in_b = std::copy(b + j, b + m, only_b + in_b) - only_b;
    }
};

// A step waits for what the one before has read, so two pairs of lists go side by side.
void side_by_side(Apart &one, Apart &other) {
    Apart p = one, q = other;
    for (int64_t steps; (steps = std::min(p.sure(), q.sure())) > 0;)
        for (; steps > 0; --steps)
            p.step(), q.step();
    p.finish(), q.finish();
    one = p, other = q;
}

// What a thread does of a block of n: whole words of 64.
struct Piece {
    int64_t first, size;
};

Piece piece_of(int64_t n, int part, int team) {
    const int64_t words = (n + 63) / 64, first = words * part / team * 64;
    return {first, std::min(n, words * (part + 1) / team * 64) - first};
}

} // namespace

void find_positions(const int64_t *sorted, int64_t n, const int64_t *wanted, int64_t m, int64_t *at, int threads) {
    const int team = m < FEW ? 1 : std::min(threads, MOST);
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const int64_t first = m * part / team;
        find(sorted, n, wanted + first, m * (part + 1) / team - first, at + first);
    }
}

void part_positions(const int64_t *a, int64_t n, const int64_t *b, int64_t m, int64_t *only_a, int64_t *only_b,
                    int64_t *counts, int threads) {
    const int team = n + m < FEW ? 1 : std::min(threads, MOST), parts = 2 * team;
    int64_t from_a[2 * MOST + 1], from_b[2 * MOST + 1];
    Apart apart[2 * MOST];
    for (int part = 0; part <= parts; ++part) {
        from_a[part] = n * part / parts;
        from_b[part] = part == 0 ? 0 : from_a[part] < n ? std::lower_bound(b, b + m, a[from_a[part]]) - b : m;
    }
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int pair = 0; pair < parts; pair += 2) {
        for (int part = pair; part < pair + 2; ++part) {
            const int64_t i = from_a[part], j = from_b[part];
            apart[part] = {a + i, b + j, only_a + i, only_b + j, from_a[part + 1] - i, from_b[part + 1] - j};
        }
        side_by_side(apart[pair], apart[pair + 1]);
    }
    counts[0] = counts[1] = 0;
    for (int part = 0; part < parts; ++part) {
        std::copy_n(apart[part].only_a, apart[part].in_a, only_a + counts[0]), counts[0] += apart[part].in_a;
        std::copy_n(apart[part].only_b, apart[part].in_b, only_b + counts[1]), counts[1] += apart[part].in_b;
    }
}

int64_t scores_above(const Kernels &kernels, const float *gradient, int64_t n, int64_t start, const int64_t *live,
                     int64_t lives, const int64_t *returning, int64_t returnings, float bar, uint64_t *passed,
                     int threads) {
    const int team = n < FEW ? 1 : std::min(threads, MOST);
    uint64_t *const counts = passed + (n + 63) / 64;
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const Piece piece = piece_of(n, part, team);
        counts[part] = kernels.above(gradient + piece.first, piece.size, start + piece.first, live, lives, returning,
                                     returnings, bar, passed + piece.first / 64);
    }
    return std::accumulate(counts, counts + team, int64_t(0));
}

void list_scores(const Kernels &kernels, const float *gradient, int64_t n, int64_t start, const uint64_t *passed,
                 int64_t *position, float *score, int threads) {
    const int team = n < FEW ? 1 : std::min(threads, MOST);
    const uint64_t *const counts = passed + (n + 63) / 64;
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const Piece piece = piece_of(n, part, team);
        const int64_t before = std::accumulate(counts, counts + part, int64_t(0)), found = counts[part];
        kernels.listed(passed + piece.first / 64, piece.size, start + piece.first, position + before, found);
        for (int64_t i = before; i < before + found; ++i)
            score[i] = std::fabs(gradient[position[i] - start]);
    }
}

void mark_positions(uint8_t *bits, const int64_t *position, int64_t n, int threads) {
    const int team = n < FEW ? 1 : std::min(threads, MOST);
    const auto begin = [=](int part) { // where a byte begins, so that no two threads write to one
        int64_t i = n * part / team;
        while (i > 0 && i < n && position[i] >> 3 == position[i - 1] >> 3)
            ++i;
        return i;
    };
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part)
        for (int64_t i = begin(part), end = begin(part + 1); i < end; ++i)
            bits[position[i] >> 3] |= uint8_t(128 >> (position[i] & 7));
}

void find_marked(const uint8_t *bits, const int64_t *position, int64_t n, uint8_t *marked, int threads) {
#pragma omp parallel for num_threads(n < FEW ? 1 : threads) schedule(static)
    for (int64_t i = 0; i < n; ++i)
        marked[i] = bits[position[i] >> 3] >> (7 - (position[i] & 7)) & 1;
}

} // namespace startsparse
