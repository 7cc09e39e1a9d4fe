// The kernels of one instruction set. This file is compiled once for each, with its own SS_WIDTH and SS_ISA.
#include "chain.h"
#include "fused.h"
#include "select.h"

namespace startsparse {
namespace SS_ISA {

// Row-major x -> blocked xb, whole.
static void pack(const Geometry &g, const float *x, float *xb, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Range channels = even_share(g.channels, omp_get_num_threads(), omp_get_thread_num());
        for (int64_t t = 0; t < g.tiles; ++t)
            pack_part(g, input_of(g), x, xb + (t * g.channels + channels.first) * g.plane * g.lanes, t,
                      channels);
    }
}

static void unpack(const Geometry &g, const float *xb, float *x, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Range channels = even_share(g.channels, omp_get_num_threads(), omp_get_thread_num());
        for (int64_t t = 0; t < g.tiles; ++t)
            unpack_part(g, input_of(g), xb + (t * g.channels + channels.first) * g.plane * g.lanes, x, t,
                        channels);
    }
}

static int64_t forward_scratch(const Geometry &g, const Header &p, int threads) {
    return ForwardPlan(g, p, threads).total;
}

static int64_t backward_scratch(const Geometry &g, const Header &p, int threads) {
    return BackwardPlan(g, p, threads).total;
}

extern const Kernels kernels;
const Kernels kernels = {W, forward, backward, forward_scratch, backward_scratch, pack, unpack, above,
                         listed, within, from, chain_forward, chain_backward, fused_forward, fused_backward, fused_forward_scratch,
                         fused_backward_scratch, norm_apply, norm_gate};

} // namespace SS_ISA
} // namespace startsparse
