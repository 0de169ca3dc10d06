/* Sending beside the operations (backend/plugin.h, alloc_host to is_delivered): copies run on a stream of their own, and
 * events order them with the operations' stream, slot by slot; those in the background on another one, for which nothing
 * waits. */
#include "backend/cuda/ops.cuh"

#include <new>

struct pf_copier {
    cudaStream_t stream;
    cudaEvent_t sent[PF_SLOTS]; /* on the copier's stream: a slot's copies are done */
    cudaEvent_t used[PF_SLOTS]; /* on the operations': they no longer need what was sent */
    cudaStream_t background;
    cudaEvent_t delivered[PF_LANES]; /* on the background's: a lane's copies are done */
    cudaEvent_t freed[1];       /* on the operations': they no longer need what deliveries overwrite */
};

/* Waiting for an event leaves the processor to others: a piece takes milliseconds. One that was never recorded has
 * happened. */
template <int N> static cudaError_t open_events(cudaEvent_t (&events)[N]) {
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < N && error == cudaSuccess; ++i) {
        error = cudaEventCreateWithFlags(&events[i], cudaEventDisableTiming | cudaEventBlockingSync);
    }
    return error;
}

template <int N> static void close_events(cudaEvent_t (&events)[N]) {
    for (cudaEvent_t event : events) {
        if (event) cudaEventDestroy(event);
    }
}

static bool open_copier(pf_device *device) {
    if (device->copier) return true;
    pf_copier *copier = device->copier = new (std::nothrow) pf_copier();
    if (!copier) return false;
    int least = 0, greatest = 0;
    cudaError_t error = cudaStreamCreateWithFlags(&copier->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    if (error == cudaSuccess) error = cudaStreamCreateWithPriority(&copier->background, cudaStreamNonBlocking, least);
    if (error == cudaSuccess) error = open_events(copier->sent);
    if (error == cudaSuccess) error = open_events(copier->used);
    if (error == cudaSuccess) error = open_events(copier->delivered);
    if (error == cudaSuccess) error = open_events(copier->freed);
    if (error != cudaSuccess) pf_cuda_close_copier(device);
    return error == cudaSuccess;
}

void pf_cuda_close_copier(pf_device *device) {
    pf_copier *copier = device->copier;
    if (!copier) return;
    for (const cudaStream_t stream : {copier->stream, copier->background}) {
        if (stream) cudaStreamSynchronize(stream);
    }
    close_events(copier->sent);
    close_events(copier->used);
    close_events(copier->delivered);
    close_events(copier->freed);
    for (const cudaStream_t stream : {copier->stream, copier->background}) {
        if (stream) cudaStreamDestroy(stream);
    }
    delete copier;
    device->copier = nullptr;
}

cudaError_t pf_cuda_await_copier(const pf_device *device) {
    return device->copier ? cudaStreamSynchronize(device->copier->stream) : cudaSuccess;
}

static void *alloc_host(pf_device *device, size_t bytes) {
    void *memory = nullptr;
    if (cudaSetDevice(device->ordinal) == cudaSuccess && open_copier(device) &&
        cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) == cudaSuccess) {
        return memory;
    }
    (void)cudaGetLastError(); /* else the next operation would report it */
    return nullptr;
}

static void free_host(pf_device *device, void *memory) {
    cudaSetDevice(device->ordinal);
    cudaFreeHost(memory);
}

static pf_status status_of(cudaError_t error) { return error == cudaSuccess ? PF_OK : PF_ERR_DEVICE; }

static pf_status send(pf_device *device, int32_t slot, void *to, const void *from, size_t bytes) {
    pf_copier *copier = device->copier;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(copier->stream, copier->used[slot], 0);
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, copier->stream);
    return status_of(error);
}

static pf_status await_sent(pf_device *device, int32_t slot) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaEventSynchronize(device->copier->sent[slot]);
    return status_of(error);
}

static pf_status begin_use(pf_device *device, int32_t slot) {
    pf_copier *copier = device->copier;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaEventRecord(copier->sent[slot], copier->stream);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(device->stream, copier->sent[slot], 0);
    return status_of(error);
}

static pf_status end_use(pf_device *device, int32_t slot) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaEventRecord(device->copier->used[slot], device->stream);
    return status_of(error);
}

static pf_status begin_delivery(pf_device *device) {
    pf_copier *copier = device->copier;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaEventRecord(copier->freed[0], device->stream);
    if (error == cudaSuccess) error = cudaStreamWaitEvent(copier->background, copier->freed[0], 0);
    return status_of(error);
}

static pf_status deliver(pf_device *device, int32_t lane, void *to, const void *from, size_t bytes) {
    pf_copier *copier = device->copier;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, copier->background);
    if (error == cudaSuccess) error = cudaEventRecord(copier->delivered[lane], copier->background);
    return status_of(error);
}

static pf_status is_delivered(pf_device *device, int32_t lane, bool *done) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaEventQuery(device->copier->delivered[lane]);
    *done = error == cudaSuccess;
    if (error != cudaErrorNotReady) return status_of(error);
    (void)cudaGetLastError(); /* else the next operation would report it */
    return PF_OK;
}

void pf_cuda_fill_sending(pf_plugin *plugin) {
    plugin->alloc_host = alloc_host;
    plugin->free_host = free_host;
    plugin->send = send;
    plugin->await_sent = await_sent;
    plugin->begin_use = begin_use;
    plugin->end_use = end_use;
    plugin->begin_delivery = begin_delivery;
    plugin->deliver = deliver;
    plugin->is_delivered = is_delivered;
}
