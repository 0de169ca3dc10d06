/* Recorded operations as CUDA graphs: what is launched on the stream meanwhile is captured instead of run.
 *
 * Relaxed mode: what other threads do with their devices has no influence, and an arena may grow meanwhile. */
#include "backend/cuda/ops.cuh"

#include <new>

struct pf_recording {
    cudaGraphExec_t graph;
};

/* Takes back the error that a later launch would otherwise report as its own. */
static pf_status unsupported() {
    (void)cudaGetLastError();
    return PF_ERR_UNSUPPORTED;
}

pf_status pf_cuda_begin_recording(pf_device *device) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeRelaxed);
    return error == cudaSuccess ? PF_OK : unsupported();
}

pf_status pf_cuda_end_recording(pf_device *device, pf_recording **out) {
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(device->stream, &captured);
    if (!out) {
        if (captured) cudaGraphDestroy(captured);
        (void)cudaGetLastError();
        return PF_OK;
    }
    if (ended != cudaSuccess || !captured) return unsupported();
    const cudaError_t error = cudaGraphInstantiate(&graph, captured, 0);
    cudaGraphDestroy(captured);
    if (error != cudaSuccess) return unsupported();
    *out = new (std::nothrow) pf_recording{graph};
    if (*out) return PF_OK;
    cudaGraphExecDestroy(graph);
    return unsupported();
}

pf_status pf_cuda_replay(pf_device *device, pf_recording *recording) {
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaGraphLaunch(recording->graph, device->stream);
    return error == cudaSuccess ? PF_OK : PF_ERR_DEVICE;
}

void pf_cuda_drop_recording(pf_device *device, pf_recording *recording) {
    cudaSetDevice(device->ordinal);
    cudaGraphExecDestroy(recording->graph);
    (void)cudaGetLastError(); /* of a device that failed */
    delete recording;
}
