// What bounds the kernels on a machine with AVX-512: multiply-adds from registers, and with one load each from a cache.
//
//     g++ -O3 -march=native -fopenmp benchmarks/roofline.cpp -o /tmp/roofline && /tmp/roofline 2
//
// GFLOP/s of all threads together: the best of many short runs, so other work on the machine does not show.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void from_registers(const float *, long, long multiply_adds) {
    for (long i = 0; i < multiply_adds; i += 12)
        asm volatile("vfmadd231ps %%zmm12, %%zmm12, %%zmm0\n vfmadd231ps %%zmm12, %%zmm12, %%zmm1\n"
                     "vfmadd231ps %%zmm12, %%zmm12, %%zmm2\n vfmadd231ps %%zmm12, %%zmm12, %%zmm3\n"
                     "vfmadd231ps %%zmm12, %%zmm12, %%zmm4\n vfmadd231ps %%zmm12, %%zmm12, %%zmm5\n"
                     "vfmadd231ps %%zmm12, %%zmm12, %%zmm6\n vfmadd231ps %%zmm12, %%zmm12, %%zmm7\n"
                     "vfmadd231ps %%zmm12, %%zmm12, %%zmm8\n vfmadd231ps %%zmm12, %%zmm12, %%zmm9\n"
                     "vfmadd231ps %%zmm12, %%zmm12, %%zmm10\n vfmadd231ps %%zmm12, %%zmm12, %%zmm11" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11");
}

static void from_memory(const float *p, long floats, long multiply_adds) { // eight sums, as a row of the kernels
    for (long i = 0; i < multiply_adds; i += floats / 16)
        for (const float *q = p; q < p + floats; q += 128)
            asm volatile("vfmadd231ps (%0), %%zmm8, %%zmm0\n vfmadd231ps 64(%0), %%zmm8, %%zmm1\n"
                         "vfmadd231ps 128(%0), %%zmm8, %%zmm2\n vfmadd231ps 192(%0), %%zmm8, %%zmm3\n"
                         "vfmadd231ps 256(%0), %%zmm8, %%zmm4\n vfmadd231ps 320(%0), %%zmm8, %%zmm5\n"
                         "vfmadd231ps 384(%0), %%zmm8, %%zmm6\n vfmadd231ps 448(%0), %%zmm8, %%zmm7" ::"r"(q)
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
}

template <class Work> static double measured(int threads, long kilobytes, Work work) {
    const long floats = kilobytes * 256, multiply_adds = 12 * 65536;
    double best = 1e9;
#pragma omp parallel num_threads(threads)
    {
        float *own = static_cast<float *>(aligned_alloc(4096, floats * 4));
        std::fill(own, own + floats, 0.0f);
        for (int run = 0; run < 2000; ++run) {
#pragma omp barrier
            const double start = now();
            work(own, floats, multiply_adds);
#pragma omp barrier
#pragma omp master
            best = std::min(best, now() - start);
        }
        free(own);
    }
    return threads * 32.0 * multiply_adds / best / 1e9;
}

int main(int count, char **arguments) {
    const int threads = count > 1 ? atoi(arguments[1]) : 1;
    printf("registers %.0f GFLOP/s\n", measured(threads, 4, from_registers));
    for (long kilobytes : {16, 32, 128, 512, 1024})
        printf("%ld KB a thread %.0f GFLOP/s\n", kilobytes, measured(threads, kilobytes, from_memory));
}
