// Sorted positions of weights: merged, found, marked; and those of a gradient that are worth a look.
#include "positions.h"

#include <omp.h>

#include <algorithm>

namespace startsparse {
namespace {

constexpr int64_t FEW = 1 << 14; // positions that are not worth waking a second thread for
constexpr int MOST = 64;         // threads

Status merge(const int64_t *old, int64_t n, const int64_t *drop, int64_t drops, const int64_t *grow, int64_t grows,
             int64_t *now) {
    // Which of the three comes next is chance, so there is no branch on it.
    const int64_t end = n - drops + grows; // another thread's part begins there
    int64_t i = 0, d = 0, g = 0, out = 0, aside;
    bool twice = false;
    while (i < n && d < drops && g < grows) {
        const int64_t live = old[i], fresh = grow[g];
        const int64_t grown = fresh < live, dropped = (fresh >= live) & (drop[d] == live);
        twice |= (fresh == live) & !dropped;
        now[out] = fresh < live ? fresh : live;
        out += 1 - dropped, i += 1 - grown, g += grown, d += dropped;
    }
    while (i < n && d < drops) {
        const bool dropped = drop[d] == old[i];
        *(out < end ? now + out : &aside) = old[i++];
        out += !dropped, d += dropped;
    }
    while (i < n && g < grows) {
        const int64_t live = old[i], fresh = grow[g], grown = fresh < live;
        twice |= fresh == live;
        now[out++] = fresh < live ? fresh : live;
        i += 1 - grown, g += grown;
    }
    if (d < drops) return NOT_LIVE;
    if (twice) return ALREADY_LIVE;
    std::copy(old + i, old + n, now + out);
    std::copy(grow + g, grow + grows, now + out + (n - i));
    return OK;
}

} // namespace

Status merge_positions(const int64_t *old, int64_t n, const int64_t *drop, int64_t drops, const int64_t *grow,
                       int64_t grows, int64_t *now, int threads) {
    const int team = n + grows < FEW ? 1 : std::min(threads, MOST);
    int64_t live[MOST + 1] = {}, dropped[MOST + 1] = {}, grown[MOST + 1] = {};
    for (int part = 1; part < team; ++part) { // parts begin at a live position
        live[part] = n * part / team;
        const int64_t first = live[part] < n ? old[live[part]] : INT64_MAX;
        dropped[part] = std::lower_bound(drop, drop + drops, first) - drop;
        grown[part] = std::lower_bound(grow, grow + grows, first) - grow;
    }
    live[team] = n, dropped[team] = drops, grown[team] = grows;
    Status status[MOST] = {};
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const int64_t i = live[part], d = dropped[part], g = grown[part];
        status[part] = merge(old + i, live[part + 1] - i, drop + d, dropped[part + 1] - d, grow + g,
                             grown[part + 1] - g, now + (i - d + g));
    }
    return *std::max_element(status, status + team);
}

void find_positions(const int64_t *sorted, int64_t n, const int64_t *wanted, int64_t m, int64_t *at) {
    int64_t i = 0;
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

void part_positions(const int64_t *a, int64_t n, const int64_t *b, int64_t m, int64_t *only_a, int64_t *only_b,
                    int64_t *counts, int threads) {
    const int team = n + m < FEW ? 1 : std::min(threads, MOST);
    int64_t in_a[MOST + 1] = {}, in_b[MOST + 1] = {}, found_a[MOST], found_b[MOST];
    for (int part = 1; part < team; ++part) {
        in_a[part] = n * part / team;
        in_b[part] = in_a[part] < n ? std::lower_bound(b, b + m, a[in_a[part]]) - b : m;
    }
    in_a[team] = n, in_b[team] = m;
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        int64_t i = in_a[part], j = in_b[part], of_a = i, of_b = j;
        while (i < in_a[part + 1] && j < in_b[part + 1]) { // which is lower is chance, so there is no branch on it
            const int64_t x = a[i], y = b[j];
            only_a[of_a] = x, only_b[of_b] = y;
            of_a += x < y, of_b += y < x;
            i += x <= y, j += y <= x;
        }
        found_a[part] = std::copy(a + i, a + in_a[part + 1], only_a + of_a) - only_a - in_a[part];
        found_b[part] = std::copy(b + j, b + in_b[part + 1], only_b + of_b) - only_b - in_b[part];
    }
    counts[0] = counts[1] = 0;
    for (int part = 0; part < team; counts[0] += found_a[part], counts[1] += found_b[part], ++part) {
        std::copy(only_a + in_a[part], only_a + in_a[part] + found_a[part], only_a + counts[0]);
        std::copy(only_b + in_b[part], only_b + in_b[part] + found_b[part], only_b + counts[1]);
    }
}

int64_t scores_above(decltype(Kernels::above) above, float *gradient, int64_t n, int64_t start, const int64_t *live,
                     int64_t lives, const int64_t *returning, int64_t returnings, float bar, int64_t *position,
                     float *score, int threads) {
    const int team = n < FEW ? 1 : std::min(threads, MOST);
    int64_t found[MOST] = {};
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const int64_t first = n * part / team, last = n * (part + 1) / team;
        found[part] = above(gradient + first, last - first, start + first, live, lives, returning, returnings, bar,
                            position + first, score + first);
    }
    int64_t total = found[0];
    for (int part = 1; part < team; total += found[part++]) {
        const int64_t first = n * part / team;
        std::copy(position + first, position + first + found[part], position + total);
        std::copy(score + first, score + first + found[part], score + total);
    }
    return total;
}

void mark_positions(uint8_t *bits, const int64_t *position, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        bits[position[i] >> 3] |= uint8_t(128 >> (position[i] & 7));
}

void find_marked(const uint8_t *bits, const int64_t *position, int64_t n, uint8_t *marked, int threads) {
#pragma omp parallel for num_threads(n < FEW ? 1 : threads) schedule(static)
    for (int64_t i = 0; i < n; ++i)
        marked[i] = bits[position[i] >> 3] >> (7 - (position[i] & 7)) & 1;
}

} // namespace startsparse
