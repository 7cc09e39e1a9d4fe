// The plain C interface of the kernels: what crosses the border to Python, and nothing else.
//
// No torch header, no C++ type and no exception crosses it, so one library serves every torch and every
// Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace startsparse {

// What a function returns; `library.py` turns each into an exception with words.
enum Status : int32_t {
    OK = 0,
    BAD_PATTERN = 1,  // not a pattern blob, or cut short
    MISMATCH = 2,     // the pattern belongs to a layer of another shape
    UNSORTED = 3,     // positions are not strictly ascending
    OUT_OF_RANGE = 4, // a position lies outside the weight
    TOO_LARGE = 5,    // more than 2^31 - 1 live weights, or a tile beyond 4 GiB
    NOT_LIVE = 6,     // a position to drop is not live
    ALREADY_LIVE = 7, // a position to grow is live already
    NO_MEMORY = 8,
};

constexpr int64_t MAGIC = 0x31305350524154; // "TARPS01"

// A pattern is one flat buffer: this header, then six arrays, each starting on a multiple of 64 bytes.
//
// The weight has `rows` x `cols` elements (a convolution's is flattened to out_channels x (in_channels/groups
// * taps)). With groups, row r reads the columns of its own group only; a *global column* is group * cols +
// column.
struct Header {
    int64_t magic;
    int64_t bytes; // of the whole buffer
    int64_t rows, cols, groups, nnz;
    int64_t block;     // columns per block of the forward order
    int64_t blocks;    // ceil(cols / block)
    int64_t row_bytes; // width of one entry of row_index: 2 or 4
    int64_t col_bytes; // width of one entry of forward_col: 2 or 4
    int64_t
        col_ptr; // int32 [groups * cols + 1]: first value of each global column. Byte offset, as all below
    int64_t
        row_index;   // uint16/uint32 [nnz]: row of each value. This is the value order: (global column, row)
    int64_t row_ptr; // int32 [rows + 1]: live weights before each row
    int64_t segment_ptr;   // int32 [blocks * rows + 1]: forward order is (block, row, column)
    int64_t forward_col;   // uint16/uint32 [nnz]: global column of each weight in forward order
    int64_t forward_value; // int32 [nnz]: where the weight's value lies in value order
};

// How activations lie in memory. `lanes` batch items are innermost: tiles x channels x plane x lanes floats.
//
// A linear layer is the case of one pixel: channels = in_features, plane = pixels = lines = kernel = 1.
struct Geometry {
    int64_t batch;        // items
    int64_t lanes;        // items per tile, a multiple of 16
    int64_t tiles;        // ceil(batch / lanes)
    int64_t channels;     // of the input, all groups
    int64_t pixels;       // of one channel of the row-major input image
    int64_t plane;        // of one channel of the blocked input, padding and phases included
    int64_t kernel;       // taps of one channel
    int64_t out_pixels;   // of one channel of the output
    int64_t lines;        // output lines; the pixels of a line are neighbours in both images
    int64_t in_line;      // pixels from one line to the next in the blocked input
    int64_t line;         // output pixels per line
    int64_t blocked;      // 1: x, y and their gradients are blocked already ([tile][channel][pixel][lane])
    const int32_t *shift; // [kernel]: pixel offset of each tap inside a plane
    const int32_t
        *place; // [pixels]: where each input pixel lies in a plane, -1 for never read; null: identity
    // Where an output row is computed with pixels that are no part of the image (`out_pixels` counts them):
    int64_t out_image;        // pixels of the image
    const int32_t *out_place; // [out_image]: where each lies in the row; null: all of them, in order
};

// One weight of the forward pass, ready to use: where its input starts in the tile (bytes), and its value.
struct Entry {
    uint32_t offset;
    float value;
};

// One of a chain of linear layers, each of which takes what the one before gives.
struct Link {
    const void *pattern;
    int64_t bytes;
    const float *values, *bias; // no bias: null
    float *dw, *db;             // null where that gradient is not wanted, and in the forward pass
    int64_t relu;               // 1: the output goes through max(0, .); never that of the last
};

struct Chain {
    const Link *links;
    int64_t links_count, batch, lanes; // each thread takes tiles of `lanes` items, a multiple of 16, through all layers
};

// What a convolution between batch norms does to its operands on their way in and out, so that the norms need
// no passes of their own. Any pointer may be null: then that is not done. Everything is blocked.
struct Fusion {
    const float *pre;  // [3][channels]: scale, shift, mean. It reads relu(scale x + shift); dx is then the
                       // gradient of what the relu sees
    float *moments;    // [tiles][rows][2]: mean of y, and sum of squared distances from it
    const float *y;    // with `post`: what the forward pass has computed
    const float *post; // [4][rows]: a, b, mean, c. The gradient of y is a dy + b (y - mean) + c
    const float *add;  // added to dx (not with `pre`)
    float *sums;       // with `pre`, [tiles][channels][2]: of dx, and of dx (x - mean)
};

// Blocked activations: tiles x channels x pixels x lanes.
struct Blocked {
    int64_t batch, lanes, tiles, channels, pixels;
};

// One instruction set's kernels.
struct Kernels {
    int32_t width; // floats per vector
    void (*forward)(const Geometry &, const Header &, const float *x, const float *values, const float *bias,
                    float *y, float *scratch, int threads);
    void (*backward)(const Geometry &, const Header &, const float *x, const float *dy, const float *values,
                     float *dx, float *dw, float *db, float *scratch, int threads);
    int64_t (*forward_scratch)(const Geometry &, const Header &, int threads);  // floats
    int64_t (*backward_scratch)(const Geometry &, const Header &, int threads); // floats
    void (*pack)(const Geometry &, const float *x, float *xb, int threads);
    void (*unpack)(const Geometry &, const float *xb, float *x, int threads);
    // The entries of a block of gradient, the first of which has position `start`, whose absolute value is
    // above `bar`, but for those at the ascending `live` positions that are not also among the ascending
    // `returning` ones: one bit each, 64 to a word, lowest first. Returns how many.
    int64_t (*above)(const float *gradient, int64_t n, int64_t start, const int64_t *live, int64_t lives,
                     const int64_t *returning, int64_t returnings, float bar, uint64_t *passed);
    // The positions of the set ones of n bits, the first of which has position `start`; there must be `room` for them.
    void (*listed)(const uint64_t *passed, int64_t n, int64_t start, int64_t *position, int64_t room);
    // Copies those of n values that lie in [low, high], counts those that are higher, and returns how many were copied; -1
    // where one is NaN. There must be room for n.
    int64_t (*within)(const float *value, int64_t n, float low, float high, float *found, int64_t *higher);
    // taken[i]: whether a value is above the bar, or the bar `itself`; 0 or 1.
    void (*from)(const float *value, int64_t n, float bar, bool itself, uint8_t *taken);
    // Row-major x -> row-major y through all layers; `kept` receives the outputs of all but the last, blocked, one layer
    // after the other. Both return 0, or minus the floats of scratch they need where `capacity` is less.
    int64_t (*chain_forward)(const Chain &, const float *x, float *kept, float *y, float *scratch, int64_t capacity,
                             int threads);
    int64_t (*chain_backward)(const Chain &, const float *x, const float *dy, const float *kept, float *dx,
                              float *scratch, int64_t capacity, int threads);
    // `forward` and `backward` of a convolution between batch norms, and what its neighbours leave over (`fused.h`, `norm.h`).
    void (*fused_forward)(const Geometry &, const Header &, const Fusion &, const float *x, const float *values,
                         const float *bias, float *y, float *scratch, int threads);
    void (*fused_backward)(const Geometry &, const Header &, const Fusion &, const float *x, const float *dy,
                          const float *values, float *dx, float *dw, float *db, float *scratch, int threads);
    int64_t (*fused_forward_scratch)(const Geometry &, const Header &, const Fusion &, int threads);
    int64_t (*fused_backward_scratch)(const Geometry &, const Header &, const Fusion &, int threads);
    // out = scale y + shift (+ add), and relu of it if wanted; `pre` as in Fusion, but for its mean.
    void (*norm_apply)(const Blocked &, const float *y, const float *pre, const float *add, bool relu, float *out,
                       int threads);
    // dz = dy where out > 0 (dy everywhere, and dz unwritten, where out is null); `sums` as in Fusion.
    void (*norm_gate)(const Blocked &, const float *dy, const float *out, const float *y, const float *mean,
                      float *dz, float *sums, int threads);
};

template <class T> inline const T *section(const Header &pattern, int64_t offset) {
    return reinterpret_cast<const T *>(reinterpret_cast<const char *>(&pattern) + offset);
}

} // namespace startsparse
