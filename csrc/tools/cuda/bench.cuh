/* What bench_ops.cu and bench_depth.cu share: how an operation is timed, and the memory that it works in. */
#ifndef PF_BACKEND_CUDA_BENCH_CUH
#define PF_BACKEND_CUDA_BENCH_CUH

#include "backend/cuda/ops.cuh"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace bench_cuda {

/* V4-Flash's sizes. */
enum {
    D = 4096, HEADS = 64, HEAD_DIM = 512, ROPE_DIM = 64, INDEX_DIM = 128, TOPK = 512, WINDOW = 128, STREAMS = 4,
    Q_RANK = 1024, N_EXPERT = 256, USED = 6, FF = 2048, VOCAB = 129280, PROMPT = 512, RUNS = 7
};
const size_t POOL = (size_t)1 << 30, SCRATCH = (size_t)512 << 20;

extern const pf_plugin *plugin;
extern pf_device *device;
extern pf_exec ex;
extern uint8_t *pool; /* POOL random bytes of the device */
extern const char *wanted;
/* Bytes that the device copies a second, read and written; multiply-adds a second of mma.m16n8k32 (bytes) and of
 * mma.m16n8k16 (bfloat16). */
extern double copy_rate, byte_rate, bf16_rate;

[[noreturn]] void die(const char *what);

inline void need(pf_status status, const char *what) {
    if (status != PF_OK) die(what);
}

/* Memory of the device that stays. */
template <typename T> T *on_device(size_t n) {
    T *to = static_cast<T *>(plugin->alloc(device, n * sizeof(T)));
    if (!to) die("out of memory on the device");
    return to;
}
template <typename T> T *on_device(const std::vector<T> &from) {
    T *to = on_device<T>(from.size());
    need(plugin->upload(device, to, from.data(), from.size() * sizeof(T)), "upload");
    return to;
}

float *normal_floats(size_t n);

/* Seconds a call. fn gets the number of the call. */
template <typename F> double seconds(F fn) {
    cudaEvent_t begin, end;
    std::vector<double> times;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    int calls = 4, turn = 0;
    while (times.size() < RUNS) {
        cudaEventRecord(begin, device->stream);
        for (int i = 0; i < calls; ++i) fn(turn++);
        cudaEventRecord(end, device->stream);
        if (cudaEventSynchronize(end) != cudaSuccess) die(cudaGetErrorString(cudaGetLastError()));
        float milliseconds = 0.0f;
        cudaEventElapsedTime(&milliseconds, begin, end);
        if (milliseconds < 20.0f && calls < 4096) calls *= 2;
        else times.push_back(milliseconds / 1e3 / calls);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[RUNS / 2];
}

/* bytes: what a call must read and write; products: its multiply-adds, 0 where they do not matter; rate: those that the
 * tensor cores do, where they are what it takes: of every product one. */
template <typename F> void bench(const char *name, double bytes, double products, double rate, F fn) {
    if (std::strncmp(name, wanted, std::strlen(wanted)) != 0) return;
    const double s = seconds([&](int turn) { need(fn(turn), name); });
    std::printf("%-48s %10.1f %10.0f %9.1f %%", name, s * 1e6, bytes / s / 1e9, 100.0 * bytes / s / copy_rate);
    if (products > 0.0) std::printf(" %9.2f", 2.0 * products / s / 1e12);
    if (products > 0.0 && rate > 0.0) std::printf(" %9.1f %%", 100.0 * products / s / rate);
    std::printf("\n");
    std::fflush(stdout);
}

/* The turn's place of n bytes in the pool, on a 256-byte boundary. */
inline uint8_t *place(size_t n, int turn) {
    const size_t step = (n + 255) / 256 * 256, places = std::max<size_t>(1, POOL / step);
    return pool + (size_t)turn % places * step;
}

/* bench_depth.cu: what takes longer the longer the context is, and sending. */
void attention(float *q, float *out);
void sending();
void indexer(); /* takes all of the pool for its rows */

} // namespace bench_cuda

#endif
