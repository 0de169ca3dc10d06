/* CUDA as far as csrc/backend/cuda uses it, for the host's compiler (PF_CUDA_EMULATED; C++17, x86-64 or arm64 Linux).
 *
 * Blocks run one after the other and the threads of a block as fibers, which change at barriers and shuffles only.
 * This shows whether indices, arithmetic and barriers' places are right. It shows races between threads that do not
 * wait for each other in part only (the order of warps and lanes is turned round in every second block, which finds
 * some; cuda_watch.cpp looks for the others), and nothing of speed. With PF_EMULATED_STRICT set in the environment,
 * the device's memory can be touched only while a kernel runs, and a kernel that is given an address of anything
 * else ends the program; PF_EMULATED_MB is the memory's size, while PF_EMULATED_LOST is set everything fails, and
 * while PF_EMULATED_UNLOCKED is there is no page-locked memory. Streams are described in cuda_emulation_streams.cpp.
 * What is captured is kept with the values of its arguments; what CUDA forbids meanwhile fails and spoils the
 * capture, and PF_EMULATED_NO_GRAPHS makes one step of it fail: begin, launch or instantiate. What would hang or be
 * undefined on a device ends the program with a message: lanes that part at a shuffle, a thread that leaves before a
 * barrier and, compiled with -fsanitize=alignment, a vector load from an odd address. */
#ifndef PF_TESTS_CUDA_EMULATION_H
#define PF_TESTS_CUDA_EMULATION_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>

/* ---- Language ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((unused))
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) int4 {
    int32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulated {
extern uint3 thread, block;
extern dim3 block_size, grid_size;

/* address: of the kernel, which may have been allowed more shared memory. */
void launch(const void *address, dim3 grid, dim3 threads, size_t shared, const std::function<void()> &kernel);
void allow_shared(const void *kernel, size_t bytes);

/* Something of the stream: now, or, while it is captured, by the graph. */
int enqueue(std::function<void()> work);
bool is_capturing();
/* What CUDA forbids while a stream is captured. */
int forbidden();
/* The last failure, which is forgotten. */
int take_error();
int begin_capture();
struct graph;
int end_capture(graph **out);
int instantiate(graph **out, const graph *captured);
int launch_graph(const graph *g);
void destroy_graph(graph *g, bool is_executable);

/* The device's memory: NULL when there is not enough. */
void *device_alloc(size_t bytes);
void device_free(void *memory);
void device_copy(void *to, const void *from, size_t bytes);
void device_fill(void *to, int value, size_t bytes);
size_t device_bytes(), device_free_bytes();
/* The start of the block of the device's memory that an address lies in; NULL for others. */
const void *device_block(const void *address);

/* Streams and events: cuda_emulation_streams.cpp. */
int stream_create(bool in_background);
void stream_destroy(int stream);
void stream_synchronize(int stream);
void stream_wait_event(int stream, int event);
void stream_copy(int stream, void *to, const void *from, size_t bytes);
void stream_fill(int stream, void *to, int value, size_t bytes);
void stream_launch(int stream);                                       /* of a kernel, */
void stream_uses(int stream, const void *argument, size_t bytes);     /* with this argument; */
void stream_reads(const void *memory, size_t bytes);                  /* the one that is running reads this */
int event_create();
void event_destroy(int event);
void event_record(int event, int stream);
void event_synchronize(int event);
bool event_query(int event);
void *host_alloc(size_t bytes); /* page-locked */
void host_free(void *memory);
void forget_block(const void *block); /* of the device's memory: is freed */

/* Ends the program when a word of an argument is an address, but not of the device's memory. */
void check_words(const void *argument, size_t bytes);
/* The arguments' values are taken now, as a launch does. */
template <typename... P, typename... A>
void launch_kernel(int stream, dim3 grid, dim3 threads, size_t shared, void (*kernel)(P...), const A &...arguments) {
    const std::tuple<P...> values(static_cast<P>(arguments)...);
    std::apply([](const P &...value) { (check_words(&value, sizeof value), ...); }, values);
    enqueue([=]() {
        stream_launch(stream);
        std::apply([stream](const P &...value) { (stream_uses(stream, &value, sizeof value), ...); }, values);
        launch(reinterpret_cast<const void *>(kernel), grid, threads, shared, [&]() { std::apply(kernel, values); });
    });
}
void block_barrier();
void warp_barrier();
/* What lane `from` of this warp gave; all lanes call it. */
uint64_t exchange(uint64_t value, unsigned from);
/* The product of int8 matrices A [16, 32] and B [32, 8], whose values lie over the warp's lanes as PTX's mma.m16n8k32 has
 * them; all lanes call it. */
void mma_m16n8k32(const uint32_t *a, const uint32_t *b, int *sum);
/* sum += A B, bfloat16 matrices A [16, 16] and B [16, 8], which lie as PTX's mma.m16n8k16 has them; all lanes call it.
 * One float after the other is added, columns ascending: a device has an order, and roundings, of its own. */
void mma_m16n8k16_bf16(const uint32_t *a, const uint32_t *b, float *sum);
/* Four matrices of 8 rows of 8 16-bit values, of which each lane names a row, as PTX's ldmatrix.x4 gives them. */
void ldmatrix_x4(const void *row, bool across, uint32_t *out);
/* What a thread has copied is there when it has waited for it, and not before. */
void copy_later(void *to, const void *from, size_t bytes);
void await_copies();
/* This block's memory, filled with garbage at its start. */
void *shared_variable(size_t bytes);
void *dynamic_shared();
/* For cuda_watch.cpp. */
enum access { IS_READ, IS_WRITTEN, IS_ATOMIC };
void note_atomic(const void *memory, size_t bytes);
void fence();
[[noreturn]] void fail(const char *what);
} // namespace emulated

#define threadIdx (emulated::thread)
#define blockIdx (emulated::block)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

#define PF_LAUNCH(kernel, grid, threads, shared, stream, ...)                                            \
    do {                                                                                                 \
        emulated::launch_kernel((stream), (grid), (threads), (size_t)(shared), (kernel), __VA_ARGS__);   \
    } while (0)
#define PF_UNROLL
#define PF_UNROLL_BY(n)
#define PF_SHARED(type, name) type &name = *static_cast<type *>(emulated::shared_variable(sizeof(type)))
#define PF_DYNAMIC(name) uint8_t *name = static_cast<uint8_t *>(emulated::dynamic_shared())
#define PF_READS(memory, bytes) emulated::stream_reads((memory), (size_t)(bytes))

/* ---- Intrinsics ---- */

static inline void __syncthreads() { emulated::block_barrier(); }
static inline void __syncwarp() { emulated::warp_barrier(); }
static inline void __threadfence() { emulated::fence(); }

template <typename T> static inline T __shfl_sync(unsigned, T v, int from) {
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    bits = emulated::exchange(bits, (unsigned)from & 31u);
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T v, int with) {
    return __shfl_sync(mask, v, (int)((emulated::thread.x & 31u) ^ (unsigned)with));
}
/* Lanes below delta keep their own. */
template <typename T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta) {
    const unsigned lane = emulated::thread.x & 31u;
    return __shfl_sync(mask, v, (int)(lane >= delta ? lane - delta : lane));
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned votes = (predicate ? 1u : 0u) << (emulated::thread.x & 31u);
    for (int with = 16; with > 0; with /= 2) votes |= __shfl_xor_sync(mask, votes, with);
    return votes;
}

#define PF_ATOMIC __attribute__((no_sanitize("thread"))) static inline
template <typename T> PF_ATOMIC T atomicAdd(T *at, T v) {
    emulated::note_atomic(at, sizeof *at);
    const T before = *at;
    *at = before + v;
    return before;
}
PF_ATOMIC int atomicExch(int *at, int v) {
    emulated::note_atomic(at, sizeof *at);
    const int before = *at;
    *at = v;
    return before;
}

static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline float __uint_as_float(uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
static inline uint32_t __float_as_uint(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
}
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += (int8_t)((uint32_t)a >> 8 * i) * (int8_t)((uint32_t)b >> 8 * i);
    return c;
}
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t s) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= (uint32_t)(bytes >> 8 * (s >> 4 * i & 7u) & 0xffu) << 8 * i;
    return out;
}
static inline uint32_t __funnelshift_rc(uint32_t low, uint32_t high, uint32_t shift) {
    return (uint32_t)(((uint64_t)high << 32 | low) >> (shift < 32u ? shift : 32u));
}
template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }

/* ---- Runtime ---- */

typedef int cudaError_t;
typedef int cudaStream_t;
typedef int cudaEvent_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35, cudaErrorNotReady = 600,
       cudaErrorLaunchFailure = 719,
       cudaErrorStreamCaptureUnsupported = 900, cudaErrorStreamCaptureInvalidated = 901 };
enum { CUDART_VERSION = 0 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking = 1, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};

static inline cudaError_t cudaGetLastError() { return emulated::take_error(); }
static inline const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "unspecified launch failure";
}
static inline cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
static inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 0, cudaSuccess; }
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int) {
    *out = cudaDeviceProp{"emulation", 9, 0, 3, emulated::device_bytes(), 101376}; /* 99 KiB: sm_86's */
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = emulated::device_free_bytes();
    *total = emulated::device_bytes();
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    return *out = emulated::stream_create(false), cudaSuccess;
}
static inline cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
/* One of the least priority is in the background. */
static inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned, int priority) {
    return *out = emulated::stream_create(priority == 0), cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return emulated::stream_destroy(stream), cudaSuccess; }
static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (emulated::is_capturing()) return emulated::forbidden();
    return emulated::stream_synchronize(stream), cudaGetLastError();
}
/* Events could be captured too, but nobody here means to. */
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (emulated::is_capturing()) return emulated::forbidden();
    return emulated::stream_wait_event(stream, event), cudaGetLastError();
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
    return *out = emulated::event_create(), cudaSuccess;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return emulated::event_destroy(event), cudaSuccess; }
static inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (emulated::is_capturing()) return emulated::forbidden();
    return emulated::event_record(event, stream), cudaGetLastError();
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (emulated::is_capturing()) return emulated::forbidden();
    return emulated::event_synchronize(event), cudaGetLastError();
}
static inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (emulated::is_capturing()) return emulated::forbidden();
    const cudaError_t error = cudaGetLastError();
    return error != cudaSuccess ? error : emulated::event_query(event) ? cudaSuccess : cudaErrorNotReady;
}
static inline cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned) {
    *out = emulated::host_alloc(bytes);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *memory) { return emulated::host_free(memory), cudaSuccess; }
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, int, int bytes) {
    return emulated::allow_shared(reinterpret_cast<const void *>(kernel), (size_t)bytes), cudaSuccess;
}
template <typename T> static inline cudaError_t cudaMalloc(T **out, size_t bytes) {
    void *memory = emulated::device_alloc(bytes);
    if (!memory) return cudaErrorMemoryAllocation;
    *out = static_cast<T *>(memory);
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *memory) { /* waits for the device */
    if (emulated::is_capturing()) return emulated::forbidden();
    return emulated::device_free(memory), cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind,
                                          cudaStream_t stream) {
    if (emulated::is_capturing() && kind != cudaMemcpyDeviceToDevice) return emulated::forbidden(); /* is not pinned */
    return emulated::enqueue([=]() { emulated::stream_copy(stream, to, from, n); });
}
static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream) {
    return emulated::enqueue([=]() { emulated::stream_fill(stream, to, value, n); });
}

typedef emulated::graph *cudaGraph_t;
typedef struct executable *cudaGraphExec_t;
enum { cudaStreamCaptureModeRelaxed = 2 };
static inline cudaError_t cudaStreamBeginCapture(cudaStream_t, int) { return emulated::begin_capture(); }
static inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *out) { return emulated::end_capture(out); }
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    return emulated::instantiate(reinterpret_cast<emulated::graph **>(out), graph);
}
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    return emulated::launch_graph(reinterpret_cast<emulated::graph *>(graph));
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return emulated::destroy_graph(graph, false), cudaSuccess; }
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return emulated::destroy_graph(reinterpret_cast<emulated::graph *>(graph), true), cudaSuccess;
}

#endif
