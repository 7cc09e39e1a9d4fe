// The exported functions: they check what can be checked in constant time, choose the instruction set, and
// hand over.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "pattern.h"
#include "positions.h"
#include "ranking.h"
#include "statistics.h"

namespace startsparse {

namespace portable { extern const Kernels kernels; }
#if defined(SS_X86)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

namespace {

const Kernels *best() {
    const char *asked = std::getenv("STARTSPARSE_ISA");
    const auto wanted = [asked](const char *name) { return !asked || !*asked || !std::strcmp(asked, name); };
#if defined(SS_X86)
    __builtin_cpu_init();
    if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        return &avx512::kernels;
    if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &avx2::kernels;
#endif
    (void)wanted;
    return &portable::kernels;
}

const Kernels *const chosen = best();

const Kernels &kernels() { return *chosen; }

Status check(const void *buffer, int64_t bytes) {
    const auto *p = static_cast<const Header *>(buffer);
    if (!p || bytes < int64_t(sizeof(Header)) || reinterpret_cast<uintptr_t>(buffer) % alignof(Header))
        return BAD_PATTERN;
    Header expected = *p;
    if (p->magic != MAGIC || p->rows < 0 || p->cols < 0 || p->nnz < 0 || p->groups < 1 || p->block < 1)
        return BAD_PATTERN;
    if (lay_out(expected) != bytes || std::memcmp(&expected, p, sizeof expected)) return BAD_PATTERN;
    return OK;
}

Status check(const Geometry &g, const void *buffer, int64_t bytes) {
    if (const Status status = check(buffer, bytes)) return status;
    const auto *p = static_cast<const Header *>(buffer);
    if (p->groups * p->cols != g.channels * g.kernel) return MISMATCH;
    if ((g.lanes % 16 && !g.out_place) || g.channels * g.plane * g.lanes * 4 > int64_t(UINT32_MAX)) return TOO_LARGE;
    return OK;
}

Status check(const Chain &c) {
    if (c.links_count < 1 || c.batch < 1 || c.lanes < 16 || c.lanes % 16) return MISMATCH;
    int64_t features = -1;
    for (int64_t i = 0; i < c.links_count; ++i) {
        if (const Status status = check(c.links[i].pattern, c.links[i].bytes)) return status;
        const auto *p = static_cast<const Header *>(c.links[i].pattern);
        if (p->groups != 1 || p->rows < 1 || p->cols < 1 || (i && p->cols != features)) return MISMATCH;
        if (p->cols * c.lanes * 4 > int64_t(UINT32_MAX)) return TOO_LARGE;
        features = p->rows;
    }
    return c.links[c.links_count - 1].relu ? MISMATCH : OK;
}

// Each has a tile of its own.
int32_t team(const Chain &c, int32_t threads) {
    const int64_t tiles = (c.batch + c.lanes - 1) / c.lanes;
    return threads < tiles ? threads : int32_t(tiles);
}

} // namespace
} // namespace startsparse

using namespace startsparse;

#if !defined(SS_SOURCE)
#define SS_SOURCE ""
#endif
#define SS_EXPORT extern "C" __attribute__((visibility("default")))

// Changes whenever an exported function or a struct does.
SS_EXPORT int32_t ss_version() { return 7; }

// What it was built from, so that a library that no longer fits its source is found out.
SS_EXPORT const char *ss_source() { return SS_SOURCE; }

SS_EXPORT int32_t ss_width() { return kernels().width; }

SS_EXPORT int64_t ss_pattern_bytes(int64_t rows, int64_t cols, int64_t groups, int64_t nnz, int64_t block) {
    Header p{0, 0, rows, cols, groups, nnz, block, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    return lay_out(p);
}

SS_EXPORT int32_t ss_pattern_build(void *buffer, int64_t rows, int64_t cols, int64_t groups, int64_t nnz,
                                   int64_t block, const void *position, int32_t wide, int32_t threads) {
    auto *p = static_cast<Header *>(buffer);
    *p = Header{0, 0, rows, cols, groups, nnz, block, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    lay_out(*p);
    return build_pattern(*p, position, wide, threads);
}

SS_EXPORT int32_t ss_pattern_change(const void *before, int64_t before_bytes, const int64_t *drop, int64_t drops,
                                    const int64_t *grow, int64_t grows, void *buffer, int64_t block, int32_t *from,
                                    int32_t threads) {
    if (const Status status = check(before, before_bytes)) return status;
    const auto *old = static_cast<const Header *>(before);
    const int64_t nnz = std::max<int64_t>(old->nnz - drops + grows, 0);
    auto *p = static_cast<Header *>(buffer);
    *p = Header{0, 0, old->rows, old->cols, old->groups, nnz, block, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    lay_out(*p);
    return change_pattern(*old, drop, drops, grow, grows, *p, from, threads);
}

SS_EXPORT int32_t ss_pattern_row_major(const void *buffer, int64_t bytes, int64_t *position, int32_t *value,
                                       int32_t threads) {
    if (const Status status = check(buffer, bytes)) return status;
    row_major(*static_cast<const Header *>(buffer), position, value, threads);
    return OK;
}

SS_EXPORT int32_t ss_pattern_sources(const void *before, int64_t before_bytes, const void *now,
                                     int64_t now_bytes, int32_t *from, int32_t threads) {
    if (const Status status = check(before, before_bytes)) return status;
    if (const Status status = check(now, now_bytes)) return status;
    const auto *a = static_cast<const Header *>(before), *b = static_cast<const Header *>(now);
    if (a->rows != b->rows || a->cols != b->cols || a->groups != b->groups) return MISMATCH;
    return find_sources(*a, *b, from, threads);
}

SS_EXPORT int32_t ss_take(int64_t tensors, const void *const *old, void *const *now, const int32_t *from, int64_t n,
                          int64_t item_bytes, int32_t threads) {
    return take_items(tensors, old, now, from, n, item_bytes, threads);
}

SS_EXPORT void ss_find_positions(const int64_t *sorted, int64_t n, const int64_t *wanted, int64_t m,
                                 int64_t *at, int32_t threads) {
    find_positions(sorted, n, wanted, m, at, threads);
}

SS_EXPORT void ss_part_positions(const int64_t *a, int64_t n, const int64_t *b, int64_t m, int64_t *only_a,
                                 int64_t *only_b, int64_t *counts, int32_t threads) {
    part_positions(a, n, b, m, only_a, only_b, counts, threads);
}

SS_EXPORT int64_t ss_scores_above(const float *gradient, int64_t n, int64_t start, const int64_t *live, int64_t lives,
                                  const int64_t *returning, int64_t returnings, float bar, uint64_t *passed,
                                  int32_t threads) {
    return scores_above(kernels(), gradient, n, start, live, lives, returning, returnings, bar, passed, threads);
}

SS_EXPORT void ss_list_scores(const float *gradient, int64_t n, int64_t start, const uint64_t *passed,
                              int64_t *position, float *score, int32_t threads) {
    list_scores(kernels(), gradient, n, start, passed, position, score, threads);
}

SS_EXPORT int32_t ss_take_highest(const float *value, int64_t n, int64_t count, const uint8_t *prefer, uint8_t *taken,
                                  int32_t threads) {
    return take_highest(kernels(), value, n, count, prefer, taken, threads);
}

SS_EXPORT int32_t ss_pick(const void *item, int64_t item_bytes, const uint8_t *mask, int64_t n, int32_t wanted,
                          void *picked, int64_t count, int32_t threads) {
    return pick_items(item, item_bytes, mask, n, wanted, picked, count, threads);
}

// Both passes return 0, a status, or minus the floats of scratch they need where `capacity` is less.
SS_EXPORT int64_t ss_forward(const Geometry *g, const void *pattern, int64_t bytes, const float *x,
                             const float *values, const float *bias, float *y, float *scratch,
                             int64_t capacity, int32_t threads) {
    if (const Status status = check(*g, pattern, bytes)) return status;
    const auto *p = static_cast<const Header *>(pattern);
    const Fusion none{};
    const int64_t need = g->out_place ? kernels().fused_forward_scratch(*g, *p, none, threads)
                                      : kernels().forward_scratch(*g, *p, threads);
    if (need > capacity) return -need;
    if (g->out_place) kernels().fused_forward(*g, *p, none, x, values, bias, y, scratch, threads);
    else kernels().forward(*g, *p, x, values, bias, y, scratch, threads);
    return OK;
}

// dx, dw and db may each be null: then that gradient is not computed.
SS_EXPORT int64_t ss_backward(const Geometry *g, const void *pattern, int64_t bytes, const float *x,
                              const float *dy, const float *values, float *dx, float *dw, float *db,
                              float *scratch, int64_t capacity, int32_t threads) {
    if (const Status status = check(*g, pattern, bytes)) return status;
    if (g->out_place) return MISMATCH;
    const auto *p = static_cast<const Header *>(pattern);
    const int64_t need = kernels().backward_scratch(*g, *p, threads);
    if (need > capacity) return -need;
    kernels().backward(*g, *p, x, dy, values, dx, dw, db, scratch, threads);
    return OK;
}

SS_EXPORT void ss_pack(const Geometry *g, const float *x, float *xb, int32_t threads) {
    kernels().pack(*g, x, xb, threads);
}

SS_EXPORT void ss_unpack(const Geometry *g, const float *xb, float *x, int32_t threads) {
    kernels().unpack(*g, xb, x, threads);
}

// As both passes above; x has the features of the first layer, y and dy those of the last.
SS_EXPORT int64_t ss_chain_forward(const Link *links, int64_t count, int64_t batch, int64_t lanes, const float *x,
                                   float *kept, float *y, float *scratch, int64_t capacity, int32_t threads) {
    const Chain c{links, count, batch, lanes};
    if (const Status status = check(c)) return status;
    return kernels().chain_forward(c, x, kept, y, scratch, capacity, team(c, threads));
}

SS_EXPORT int64_t ss_chain_backward(const Link *links, int64_t count, int64_t batch, int64_t lanes, const float *x,
                                    const float *dy, const float *kept, float *dx, float *scratch, int64_t capacity,
                                    int32_t threads) {
    const Chain c{links, count, batch, lanes};
    if (const Status status = check(c)) return status;
    return kernels().chain_backward(c, x, dy, kept, dx, scratch, capacity, team(c, threads));
}

// Between batch norms (see `Fusion`): as the two passes at first.
SS_EXPORT int64_t ss_fused_forward(const Geometry *g, const void *pattern, int64_t bytes, const Fusion *fusion,
                                  const float *x, const float *values, const float *bias, float *y,
                                  float *scratch, int64_t capacity, int32_t threads) {
    if (const Status status = check(*g, pattern, bytes)) return status;
    if (g->out_place && fusion->moments) return MISMATCH;
    const auto *p = static_cast<const Header *>(pattern);
    const int64_t need = kernels().fused_forward_scratch(*g, *p, *fusion, threads);
    if (need > capacity) return -need;
    kernels().fused_forward(*g, *p, *fusion, x, values, bias, y, scratch, threads);
    return OK;
}

SS_EXPORT int64_t ss_fused_backward(const Geometry *g, const void *pattern, int64_t bytes, const Fusion *fusion,
                                   const float *x, const float *dy, const float *values, float *dx, float *dw,
                                   float *db, float *scratch, int64_t capacity, int32_t threads) {
    if (const Status status = check(*g, pattern, bytes)) return status;
    if (g->out_place) return MISMATCH;
    const auto *p = static_cast<const Header *>(pattern);
    const int64_t need = kernels().fused_backward_scratch(*g, *p, *fusion, threads);
    if (need > capacity) return -need;
    kernels().fused_backward(*g, *p, *fusion, x, dy, values, dx, dw, db, scratch, threads);
    return OK;
}

SS_EXPORT void ss_norm_apply(const Blocked *b, const float *y, const float *pre, const float *add, int32_t relu,
                             float *out, int32_t threads) {
    kernels().norm_apply(*b, y, pre, add, relu, out, threads);
}

SS_EXPORT void ss_norm_gate(const Blocked *b, const float *dy, const float *out, const float *y, const float *mean,
                            float *dz, float *sums, int32_t threads) {
    kernels().norm_gate(*b, dy, out, y, mean, dz, sums, threads);
}

SS_EXPORT void ss_batch_statistics(const Blocked *b, const float *moments, float eps, const float *weight,
                                   const float *bias, float *pre, float *more) {
    batch_statistics(*b, moments, eps, weight, bias, pre, more);
}

SS_EXPORT void ss_running_statistics(int64_t channels, const float *mean, const float *variance, float eps,
                                     const float *weight, const float *bias, float *pre) {
    running_statistics(channels, mean, variance, eps, weight, bias, pre);
}

SS_EXPORT void ss_batch_gradient(const Blocked *b, const float *sums, const float *pre, const float *more,
                                 float *post, float *dweight, float *dbias) {
    batch_gradient(*b, sums, pre, more, post, dweight, dbias);
}

SS_EXPORT void ss_mark_positions(uint8_t *bits, const int64_t *position, int64_t n, int32_t threads) {
    mark_positions(bits, position, n, threads);
}

SS_EXPORT void ss_find_marked(const uint8_t *bits, const int64_t *position, int64_t n, uint8_t *marked,
                              int32_t threads) {
    find_marked(bits, position, n, marked, threads);
}
