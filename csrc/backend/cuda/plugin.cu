/* The plugin's table (backend/plugin.h): devices, memory, and the one exported function. */
#include "backend/cuda/matmul.cuh"
#include "backend/cuda/ops.cuh"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <new>

#if defined(_WIN32)
#  define PF_EXPORT extern "C" __declspec(dllexport)
#else
#  define PF_EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum { LEAST_MAJOR = 8 }; /* the oldest architecture that the library is built for is sm_80 */

static const pf_plugin_host *plugin_host;

static pf_status fail(pf_error *err, pf_status code, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        std::vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        err->code = code;
    }
    return code;
}

static pf_status failed_call(pf_error *err, const char *what, cudaError_t error) {
    return fail(err, error == cudaErrorMemoryAllocation ? PF_ERR_MEMORY : PF_ERR_DEVICE, "CUDA: %s: %s", what,
                cudaGetErrorString(error));
}

/* ---- Devices ---- */

/* PF_W_* are the first places of the table of types. */
static const uint64_t weight_kinds = PF_CUDA_WEIGHT_KINDS;

static pf_status describe(int32_t index, pf_device_info *info, pf_error *err) {
    cudaDeviceProp found;
    size_t free_bytes = 0, total = 0;
    cudaError_t error = cudaGetDeviceProperties(&found, index);
    if (error == cudaSuccess) error = cudaSetDevice(index);
    if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &total);
    if (error != cudaSuccess) return failed_call(err, "cannot ask the device", error);
    const uint32_t size = info->struct_size;
    std::memset(info, 0, sizeof *info);
    info->struct_size = size;
    info->major = found.major;
    info->minor = found.minor;
    info->n_sm = found.multiProcessorCount;
    info->total_bytes = total;
    info->free_bytes = free_bytes;
    info->weight_types = weight_kinds;
    std::snprintf(info->name, sizeof info->name, "%.127s", found.name);
    return PF_OK;
}

static void close_device(pf_device *device) {
    if (!device) return;
    cudaSetDevice(device->ordinal);
    pf_cuda_close_copier(device);
    if (device->stream) cudaStreamSynchronize(device->stream);
    cudaFree(device->fault);
    cudaFree(device->tickets);
    if (device->stream) cudaStreamDestroy(device->stream);
    delete device;
}

static void fill_table(pf_device *device) {
    pf_backend &table = device->table;
    table.name = "cuda";
    table.weight_kinds = weight_kinds;
    table.embed = pf_cuda_embed;
    table.linear = pf_cuda_linear;
    table.rms_norm = pf_cuda_rms_norm;
    table.rope_tail = pf_cuda_rope_tail;
    table.store_rows = pf_cuda_store_rows;
    table.push_frontier = pf_cuda_push_frontier;
    table.compress = pf_cuda_compress;
    table.hadamard = pf_cuda_hadamard;
    table.round_fp4 = pf_cuda_round_fp4;
    table.index_scores = pf_cuda_index_scores;
    table.topk = pf_cuda_topk;
    table.sparse_attn = pf_cuda_sparse_attn;
    table.mhc_pre = pf_cuda_mhc_pre;
    table.mhc_post = pf_cuda_mhc_post;
    table.mhc_head = pf_cuda_mhc_head;
    table.route = pf_cuda_route;
    table.experts = pf_cuda_experts;
    table.add = pf_cuda_add;
    table.swiglu = pf_cuda_swiglu;
    table.kernels = device;
}

static pf_status open_device(int32_t index, pf_device **out, pf_error *err) {
    cudaDeviceProp found;
    cudaError_t error = cudaGetDeviceProperties(&found, index);
    if (error != cudaSuccess) return failed_call(err, "cannot ask the device", error);
    if (found.major < LEAST_MAJOR) {
        return fail(err, PF_ERR_DEVICE, "%s has compute capability %d.%d: 8.0 or newer is needed", found.name,
                    found.major, found.minor);
    }
    pf_device *device = new (std::nothrow) pf_device();
    if (!device) return fail(err, PF_ERR_MEMORY, "out of memory while opening a CUDA device");
    device->host = plugin_host;
    device->ordinal = index;
    device->n_sm = found.multiProcessorCount;
    device->shared_bytes = (int64_t)found.sharedMemPerBlockOptin;
    fill_table(device);
    error = cudaSetDevice(index);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaMalloc(&device->fault, sizeof *device->fault);
    if (error == cudaSuccess) error = cudaMalloc(&device->tickets, PF_TICKETS * sizeof *device->tickets);
    if (error == cudaSuccess) error = cudaMemsetAsync(device->fault, 0, sizeof *device->fault, device->stream);
    if (error == cudaSuccess) {
        error = cudaMemsetAsync(device->tickets, 0, PF_TICKETS * sizeof *device->tickets, device->stream);
    }
    if (error != cudaSuccess) {
        close_device(device);
        return failed_call(err, "cannot open the device", error);
    }
    *out = device;
    return PF_OK;
}

static const pf_backend *backend_of(pf_device *device) { return &device->table; }

/* ---- Memory ---- */

static void *alloc_memory(pf_device *device, size_t bytes) {
    uint8_t *memory = nullptr;
    if (cudaSetDevice(device->ordinal) == cudaSuccess && cudaMalloc(&memory, bytes) == cudaSuccess) return memory;
    (void)cudaGetLastError(); /* else the next operation would report it */
    return nullptr;
}

static void free_memory(pf_device *device, void *memory) {
    cudaSetDevice(device->ordinal);
    cudaFree(memory);
}

static pf_status transfer(pf_device *device, void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, kind, device->stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(device->stream);
    return error == cudaSuccess ? PF_OK : PF_ERR_DEVICE;
}
static pf_status upload(pf_device *device, void *to, const void *from, size_t bytes) {
    return transfer(device, to, from, bytes, cudaMemcpyHostToDevice);
}
static pf_status download(pf_device *device, void *to, const void *from, size_t bytes) {
    return transfer(device, to, from, bytes, cudaMemcpyDeviceToHost);
}

static pf_status copy_within(pf_device *device, void *to, const void *from, size_t bytes) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device->stream);
    return error == cudaSuccess ? PF_OK : PF_ERR_DEVICE;
}

static pf_status synchronize(pf_device *device, pf_error *err) {
    int fault = 0;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) {
        error = cudaMemcpyAsync(&fault, device->fault, sizeof fault, cudaMemcpyDeviceToHost, device->stream);
    }
    if (error == cudaSuccess) error = cudaStreamSynchronize(device->stream);
    if (error == cudaSuccess) error = pf_cuda_await_copier(device);
    if (error == cudaSuccess && fault) {
        error = cudaMemsetAsync(device->fault, 0, sizeof fault, device->stream);
    }
    if (error != cudaSuccess) return failed_call(err, "an operation failed", error);
    return fault ? fail(err, PF_ERR_INTERNAL, "CUDA: an expert that does not exist was chosen") : PF_OK;
}

static void set_base(pf_device *device, const int64_t *position) { device->base = position; }

/* ---- The table ---- */

static const char *why_unusable(cudaError_t error) {
    static char line[160];
    int driver = 0;
    if (error == cudaSuccess) return "no CUDA device";
    if (error != cudaErrorInsufficientDriver) return cudaGetErrorString(error);
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver is installed";
    std::snprintf(line, sizeof line,
                  "the NVIDIA driver is for CUDA %d.%d, this library for CUDA %d.%d: install a newer driver",
                  driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return line;
}

PF_EXPORT const pf_plugin *pf_plugin_query(const pf_plugin_host *host) {
    static pf_plugin plugin;
    int n = 0;
    if (!host || host->abi != PF_PLUGIN_ABI || host->struct_size < sizeof *host) return nullptr;
    plugin_host = host;
    const cudaError_t error = cudaGetDeviceCount(&n);
    (void)cudaGetLastError();
    if (error != cudaSuccess) n = 0;
    plugin.struct_size = sizeof plugin;
    plugin.abi = PF_PLUGIN_ABI;
    plugin.kind = "cuda";
    plugin.problem = n > 0 ? nullptr : why_unusable(error);
    plugin.n_device = n;
    plugin.describe = describe;
    plugin.open = open_device;
    plugin.close = close_device;
    plugin.backend = backend_of;
    plugin.alloc = alloc_memory;
    plugin.free = free_memory;
    plugin.upload = upload;
    plugin.download = download;
    plugin.copy = copy_within;
    plugin.synchronize = synchronize;
    plugin.set_base = set_base;
    plugin.begin_recording = pf_cuda_begin_recording;
    plugin.end_recording = pf_cuda_end_recording;
    plugin.replay = pf_cuda_replay;
    plugin.drop_recording = pf_cuda_drop_recording;
    pf_cuda_fill_sending(&plugin);
    return &plugin;
}
