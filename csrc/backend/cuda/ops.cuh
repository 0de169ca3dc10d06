/* The CUDA backend's operations, one function per entry of pf_backend (contracts in backend/backend.h, where the
 * pointers of arguments point to in backend/plugin.h), and what they share.
 *
 * Kernels are compiled without contraction (-fmad=false); where a fused multiply-add is meant it is written fmaf. So a
 * kernel computes the same for a token however many share its launch. */
#ifndef PF_BACKEND_CUDA_OPS_CUH
#define PF_BACKEND_CUDA_OPS_CUH

#include "backend/cuda/device.cuh"
#include "backend/plugin.h"

#define PF_TRY_CUDA(call)                              \
    do {                                               \
        const pf_status status_ = (call);              \
        if (status_ != PF_OK) return status_;          \
    } while (0)

struct pf_copier; /* copier.cu */

struct pf_device {
    pf_backend table;
    const pf_plugin_host *host;
    int ordinal, n_sm;
    int64_t shared_bytes; /* that a block can have */
    cudaStream_t stream;
    const int64_t *base; /* device memory: pf_plugin.set_base */
    int *fault;          /* device memory: non-zero when a kernel met something impossible */
    uint32_t *tickets;   /* device memory [PF_TICKETS], zero between launches */
    pf_copier *copier;   /* NULL before it is needed */
};

enum { PF_TICKETS = 1024 };

static inline pf_device *pf_device_of(const pf_exec *ex) {
    return const_cast<pf_device *>(static_cast<const pf_device *>(ex->backend->kernels));
}

static inline pf_position pf_position_at(const pf_device *device, int64_t offset) { return {device->base, offset}; }

static inline int64_t pf_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static __host__ __device__ inline int64_t pf_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t pf_most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scratch of one operation: gives the arena's mark back when it goes. Later operations of the stream may take the same
 * memory, since they run after this one. */
class pf_scratch {
public:
    explicit pf_scratch(pf_exec *ex) : ex_(ex), host_(pf_device_of(ex)->host), mark_(host_->arena_mark(ex->arena)) {}
    ~pf_scratch() { host_->arena_reset(ex_->arena, mark_); }
    pf_scratch(const pf_scratch &) = delete;
    pf_scratch &operator=(const pf_scratch &) = delete;
    template <typename T> T *take(int64_t count) {
        return static_cast<T *>(host_->arena_alloc(ex_->arena, static_cast<size_t>(count) * sizeof(T)));
    }

private:
    pf_exec *ex_;
    const pf_plugin_host *host_;
    size_t mark_;
};

/* Whether an operation is to launch anything, and makes its device the calling thread's; *status is what it returns
 * when not. */
static inline bool pf_may_launch(const pf_exec *ex, pf_status *status) {
    *status = PF_OK;
    if (ex->dry) return false;
    if (ex->cancel != nullptr && ex->cancel->load(std::memory_order_relaxed) != 0) *status = PF_ERR_CANCELLED;
    else if (cudaSetDevice(pf_device_of(ex)->ordinal) != cudaSuccess) *status = PF_ERR_DEVICE;
    (void)cudaGetLastError(); /* what another call failed with, which has said so: pf_launched() asks about this one */
    return *status == PF_OK;
}
static inline pf_status pf_launched() { return cudaGetLastError() == cudaSuccess ? PF_OK : PF_ERR_DEVICE; }

/* Lets a kernel have that much PF_DYNAMIC. Without it 48 KiB are for both that and its PF_SHARED. It holds for all launches
 * that follow, those of other threads too: so it should not depend on a model's sizes. */
template <typename T> static inline bool pf_allow_shared(T *kernel, int64_t bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) == cudaSuccess;
}

/* Blocks for n items of which a block takes `each` and then goes on with later ones. */
static inline unsigned pf_blocks(const pf_exec *ex, int64_t n, int64_t each) {
    return static_cast<unsigned>(pf_most(1, pf_least(pf_div_up(n, each), 32 * (int64_t)pf_device_of(ex)->n_sm)));
}

/* copier.cu: the plugin's functions for sending, and what the others do about it. */
void pf_cuda_fill_sending(pf_plugin *plugin);
cudaError_t pf_cuda_await_copier(const pf_device *device);
void pf_cuda_close_copier(pf_device *device);

/* elementwise.cu */
pf_status pf_cuda_embed(pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n_token, int64_t n_stream,
                        float *x);
pf_status pf_cuda_add(pf_exec *ex, float *y, const float *x, int64_t n);
pf_status pf_cuda_swiglu(pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h);
pf_status pf_cuda_rope_tail(pf_exec *ex, float *x, int64_t n_token, int64_t n_head, int64_t d,
                            const pf_rope_table *table, bool inverse);

/* rows.cu */
pf_status pf_cuda_rms_norm(pf_exec *ex, const float *x, int64_t n_row, int64_t n, const float *gain, float eps,
                           float *y);
pf_status pf_cuda_hadamard(pf_exec *ex, float *x, int64_t n_row, int64_t n);
pf_status pf_cuda_round_fp4(pf_exec *ex, float *x, int64_t n_row, int64_t n);
pf_status pf_cuda_store_rows(pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x);

/* compress.cu */
pf_status pf_cuda_push_frontier(pf_exec *ex, const pf_frontier_args *args);
pf_status pf_cuda_compress(pf_exec *ex, const pf_compress_args *args);

/* linear.cu */
pf_status pf_cuda_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                         int64_t ldy);

/* experts.cu */
pf_status pf_cuda_experts(pf_exec *ex, const pf_experts_args *args);

/* indexer.cu */
pf_status pf_cuda_index_scores(pf_exec *ex, const pf_index_args *args);

/* topk.cu */
pf_status pf_cuda_topk(pf_exec *ex, const float *scores, int64_t ld, int64_t n_token, int64_t position, int32_t ratio,
                       int64_t k, int32_t *select, int32_t *select_n);

/* attention.cu */
pf_status pf_cuda_sparse_attn(pf_exec *ex, const pf_attn_args *args);

/* mhc.cu */
pf_status pf_cuda_mhc_pre(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n_token, float *x, float *post, float *comb);
pf_status pf_cuda_mhc_post(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post,
                           const float *comb, int64_t n_token, float *streams);
pf_status pf_cuda_mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                           int64_t n_token, float *x);

/* route.cu */
pf_status pf_cuda_route(pf_exec *ex, const pf_route_args *args);

/* graph.cu: the plugin's functions of these names */
pf_status pf_cuda_begin_recording(pf_device *device);
pf_status pf_cuda_end_recording(pf_device *device, pf_recording **out);
pf_status pf_cuda_replay(pf_device *device, pf_recording *recording);
void pf_cuda_drop_recording(pf_device *device, pf_recording *recording);

#endif
