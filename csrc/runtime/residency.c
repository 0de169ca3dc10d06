/* Where the weights are: brought into memory before they are used, and kept there. */
#include "runtime/model.h"

#include "base/pages.h"

enum { STEP_BYTES = 32 << 20, PIECE_BYTES = 4 << 20 };

typedef struct pf_fetch {
    const uint8_t *data;
    uint64_t bytes;
    bool lock;
    atomic_bool failed;
} pf_fetch;

static void fetch_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    pf_fetch *fetch = arg;
    (void)worker;
    for (int64_t piece = begin; piece < end; ++piece) {
        const uint64_t at = (uint64_t)piece * PIECE_BYTES;
        const uint64_t bytes = fetch->bytes - at < PIECE_BYTES ? fetch->bytes - at : PIECE_BYTES;
        const uint8_t *data = fetch->data + at;
        const bool done = fetch->lock ? pf_pages_lock(data, bytes) : pf_pages_fetch(data, bytes);
        if (!done) atomic_store(&fetch->failed, true);
    }
}

/* The tensor that holds byte *offset of a file's weights, which becomes the offset within it; NULL past the end, when
 * what is left of *offset lies in the next file. */
static const pf_gguf_tensor *tensor_of_byte(const pf_gguf *gguf, uint64_t *offset) {
    for (uint64_t i = 0; gguf != NULL && i < pf_gguf_n_tensors(gguf); ++i) {
        const pf_gguf_tensor *tensor = pf_gguf_tensor_at(gguf, i);
        if (tensor->data == NULL) continue;
        if (*offset < tensor->bytes) return tensor;
        *offset -= tensor->bytes;
    }
    return NULL;
}

static uint64_t readable_bytes(const pf_gguf *gguf) {
    uint64_t sum = 0;
    for (uint64_t i = 0; gguf != NULL && i < pf_gguf_n_tensors(gguf); ++i) {
        const pf_gguf_tensor *tensor = pf_gguf_tensor_at(gguf, i);
        sum += tensor->data != NULL ? tensor->bytes : 0;
    }
    return sum;
}

pf_status pf_model_prefault(pf_model *model, uint32_t flags, uint64_t offset, uint64_t *n_done, uint64_t *n_total,
                            pf_error *err) {
    if (model == NULL || n_done == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_prefault: a model and n_done are needed");
    }
    if ((flags & ~PF_PREFAULT_LOCK) != 0) return pf_fail(err, PF_ERR_ARGUMENT, "prefault flags %u are unknown", flags);
    const pf_gguf_tensor *tensor = tensor_of_byte(model->gguf, &offset);
    if (tensor == NULL) tensor = tensor_of_byte(model->draft_gguf, &offset);
    pf_fetch fetch = {.lock = (flags & PF_PREFAULT_LOCK) != 0};
    if (tensor != NULL) {
        fetch.data = tensor->data + offset;
        fetch.bytes = tensor->bytes - offset;
        if (fetch.bytes > STEP_BYTES) {
            const uint64_t next = fetch.bytes - STEP_BYTES;
            fetch.bytes = STEP_BYTES;
            pf_pages_announce(fetch.data + fetch.bytes, next < STEP_BYTES ? next : STEP_BYTES);
        }
        pf_pool_run(model->pool, (int64_t)((fetch.bytes + PIECE_BYTES - 1) / PIECE_BYTES), 1, fetch_pieces, &fetch);
    }
    if (atomic_load(&fetch.failed)) {
        return fetch.lock
                   ? pf_fail(err, PF_ERR_MEMORY, "the system does not allow the weights to be locked in memory: raise "
                                                 "the limit (ulimit -l), free memory, or do without mlock")
                   : pf_fail(err, PF_ERR_FILE, "cannot read the weights: check the disk");
    }
    *n_done = fetch.bytes;
    if (n_total != NULL) *n_total = readable_bytes(model->gguf) + readable_bytes(model->draft_gguf);
    return PF_OK;
}
