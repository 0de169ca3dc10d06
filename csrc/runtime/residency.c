/* Where the weights are: brought into memory before they are used, and kept there; and how fast memory can be read. */
#if !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "runtime/model.h"

#include "base/memory.h"
#include "base/pages.h"

#include <string.h>
#include <time.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#endif

/* ---- Weights ----------------------------------------------------------------------------------------------- */

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
        if (!(fetch->lock ? pf_pages_lock(data, bytes) : pf_pages_fetch(data, bytes))) atomic_store(&fetch->failed, true);
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
    if (tensor == NULL) tensor = tensor_of_byte(model->mtp_gguf, &offset);
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
    if (n_total != NULL) *n_total = readable_bytes(model->gguf) + readable_bytes(model->mtp_gguf);
    return PF_OK;
}

/* ---- Read bandwidth ---------------------------------------------------------------------------------------- */

enum { BLOCK_BYTES = 1 << 20, PASSES = 3, SUMS = 8 };

typedef struct pf_reading {
    uint8_t *data;
    _Atomic uint64_t sum; /* of everything read, so that the reads are needed */
} pf_reading;

static double now_seconds(void) {
#if defined(_WIN32)
    LARGE_INTEGER ticks, rate;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&rate);
    return (double)ticks.QuadPart / (double)rate.QuadPart;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}

/* By the threads that will read, so that the memory is near them where nodes have memory of their own. */
static void fill_blocks(void *arg, int64_t begin, int64_t end, int worker) {
    pf_reading *reading = arg;
    (void)worker;
    memset(reading->data + begin * BLOCK_BYTES, 1, (size_t)(end - begin) * BLOCK_BYTES);
}

static void read_blocks(void *arg, int64_t begin, int64_t end, int worker) {
    pf_reading *reading = arg;
    uint64_t sums[SUMS] = {0}, all = 0;
    (void)worker;
    for (int64_t at = begin * BLOCK_BYTES; at < end * BLOCK_BYTES; at += (int64_t)sizeof sums) {
        uint64_t line[SUMS];
        memcpy(line, reading->data + at, sizeof line);
        for (int i = 0; i < SUMS; ++i) sums[i] += line[i];
    }
    for (int i = 0; i < SUMS; ++i) all += sums[i];
    (void)atomic_fetch_add(&reading->sum, all);
}

pf_status pf_model_read_bandwidth(const pf_model *model, uint64_t bytes, double *bytes_per_second, pf_error *err) {
    if (model == NULL || bytes_per_second == NULL || bytes < BLOCK_BYTES || bytes > SIZE_MAX / 2) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "pf_model_read_bandwidth: a model, a result and at least %d bytes are needed", BLOCK_BYTES);
    }
    const int64_t n_blocks = (int64_t)(bytes / BLOCK_BYTES);
    const size_t size = (size_t)n_blocks * BLOCK_BYTES;
    pf_reading reading = {.data = pf_region_alloc(size)};
    if (reading.data == NULL) {
        return pf_fail(err, PF_ERR_MEMORY, "no memory to measure the read bandwidth with: %llu bytes are needed",
                       (unsigned long long)size);
    }
    pf_pool_run(model->pool, n_blocks, 4, fill_blocks, &reading);
    double best = 0.0;
    for (int pass = 0; pass < PASSES; ++pass) {
        const double started = now_seconds();
        pf_pool_run(model->pool, n_blocks, 4, read_blocks, &reading);
        const double seconds = now_seconds() - started;
        if (seconds > 0.0 && (double)size / seconds > best) best = (double)size / seconds;
    }
    pf_region_free(reading.data, size);
    *bytes_per_second = best;
    return PF_OK;
}
