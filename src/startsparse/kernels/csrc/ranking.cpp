// The highest of many values: a sample brackets the lowest of them, one pass lists what lies in the bracket.
#include "ranking.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "columns.h"

namespace startsparse {
namespace {

constexpr int64_t FEW = 1 << 14;  // values that are not worth waking a second thread for
constexpr int64_t SAMPLE = 1024;  // values that stand for all
constexpr float DOUBT = 4;        // standard errors of the sample to either side
constexpr int MOST = 64;          // threads
constexpr float INF = __builtin_inff();

// Where the count-th highest of values lies, how many are higher and how many the same.
struct Place {
    float value;
    int64_t higher, same;
    bool known;
};

struct Bracket {
    float low, high;
};

// What most likely holds the count-th highest value: guessed from a sample.
Bracket guess(const float *value, int64_t n, int64_t count) {
    float sample[SAMPLE];
    const int64_t step = n / SAMPLE;
    for (int64_t i = 0; i < SAMPLE; ++i)
        sample[i] = std::max(-INF, value[i * step]); // a number, whatever it was
    const float share = float(double(count) / double(n)), error = std::sqrt(share * (1 - share) * SAMPLE) + 1;
    const int64_t first = int64_t(share * SAMPLE - DOUBT * error), last = int64_t(share * SAMPLE + DOUBT * error);
    const auto at = [&](int64_t place) {
        std::nth_element(sample, sample + place, sample + SAMPLE, std::greater<float>());
        return sample[place];
    };
    return {last < SAMPLE ? at(last) : -INF, first >= 0 ? at(first) : INF};
}

Place sorted(float *value, int64_t n, int64_t count) {
    std::nth_element(value, value + count - 1, value + n, std::greater<float>());
    Place place{value[count - 1], 0, 0, true};
    for (int64_t i = 0; i < n; ++i)
        place.higher += value[i] > place.value, place.same += value[i] == place.value;
    return place;
}

// Lists the values of a bracket, threads one after the other; how many, or -1 for NaN.
int64_t list(const Kernels &kernels, const float *value, int64_t n, Bracket b, float *found, int64_t *higher, int threads) {
    const int team = n < FEW ? 1 : std::min(threads, MOST);
    int64_t counts[MOST], above[MOST];
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const int64_t first = n * part / team, last = n * (part + 1) / team;
        counts[part] = kernels.within(value + first, last - first, b.low, b.high, found + first, above + part);
    }
    int64_t total = 0;
    *higher = 0;
    for (int part = 0; part < team; ++part) {
        if (counts[part] < 0) return -1;
        std::copy_n(found + n * part / team, counts[part], found + total);
        total += counts[part], *higher += above[part];
    }
    return total;
}

Place place_of(const Kernels &kernels, const float *value, int64_t n, int64_t count, int threads) {
    constexpr Place NOWHERE{0, 0, 0, false};
    const Array<float> room = array<float>(n);
    if (!room) return NOWHERE;
    float *const found = room.get();
    Bracket bracket = n < 4 * SAMPLE ? Bracket{-INF, INF} : guess(value, n, count);
    for (;;) {
        int64_t higher;
        const int64_t size = list(kernels, value, n, bracket, found, &higher, threads);
        if (size < 0) return NOWHERE;
        if (higher >= count) bracket = {bracket.high, INF};
        else if (higher + size < count) bracket = {-INF, bracket.low};
        else {
            Place place{bracket.low, 0, size, true};
            if (bracket.low < bracket.high)
                place = size > n / 2 ? sorted(found, size, count - higher)
                                     : place_of(kernels, found, size, count - higher, threads);
            place.higher += higher;
            return place;
        }
    }
}

} // namespace

bool take_highest(const Kernels &kernels, const float *value, int64_t n, int64_t count, const uint8_t *prefer,
                  uint8_t *taken, int threads) {
    const Place place = place_of(kernels, value, n, count, threads);
    if (!place.known || place.value == -INF) return false;
    int64_t missing = count - place.higher;
    const bool all = place.same == missing;
    const int team = n < FEW ? 1 : std::min(threads, MOST);
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        const int64_t first = n * part / team, last = n * (part + 1) / team;
        kernels.from(value + first, last - first, place.value, all, taken + first);
    }
    if (all) return true;
    for (int round = prefer ? 0 : 1; round < 2; ++round) // those that are preferred, then all
        for (int64_t i = 0; i < n && missing; ++i)
            if (value[i] == place.value && !taken[i] && (round || prefer[i])) taken[i] = 1, --missing;
    return true;
}

namespace {

template <class Item>
void pick(const Item *item, const uint8_t *mask, int64_t n, uint8_t wanted, Item *picked, int64_t count, int threads) {
    const int team = n < FEW ? 1 : std::min(threads, MOST);
    int64_t begin[MOST + 1] = {};
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 1; part < team; ++part) {
        int64_t found = 0;
        for (int64_t i = n * (part - 1) / team; i < n * part / team; ++i)
            found += mask[i] == wanted;
        begin[part] = found;
    }
    for (int part = 1; part < team; ++part)
        begin[part] += begin[part - 1];
    begin[team] = count;
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int part = 0; part < team; ++part) {
        int64_t i = n * part / team, at = begin[part];
        for (const int64_t last = begin[part + 1]; at < last; ++i) // which are wanted is chance: no branch on it
            picked[at] = item[i], at += mask[i] == wanted;
    }
}

} // namespace

Status pick_items(const void *item, int64_t item_bytes, const uint8_t *mask, int64_t n, int32_t wanted, void *picked,
                  int64_t count, int threads) {
    if (item_bytes == 8)
        pick(static_cast<const int64_t *>(item), mask, n, uint8_t(wanted), static_cast<int64_t *>(picked), count, threads);
    else if (item_bytes == 4)
        pick(static_cast<const int32_t *>(item), mask, n, uint8_t(wanted), static_cast<int32_t *>(picked), count, threads);
    else return MISMATCH;
    return OK;
}

} // namespace startsparse
