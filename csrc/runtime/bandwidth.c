/* How fast the model's threads read memory: the roof over decoding. */
#include "runtime/model.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/pages.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#  include <immintrin.h>
#  define PF_READ_AVX2 1
#  if defined(__GNUC__)
#    define PF_TARGET_AVX2 __attribute__((target("avx2")))
#  else
#    define PF_TARGET_AVX2
#  endif
#endif

/* A block is read at STREAMS places in turn, which keeps more reads in flight than one does: on a Zen 3 core 28 GB/s
 * with AVX2 against 23 at one place and 14 to 18 with plain code. */
enum { BLOCK_BYTES = 1 << 16, STREAMS = 4, PART_BYTES = BLOCK_BYTES / STREAMS, LINE_BYTES = 64 };
enum { GRAIN = 16, PASSES = 3 };

typedef uint64_t (*pf_read_fn)(const uint8_t *data, int64_t n_blocks); /* returns a sum, so that the reads are needed */

typedef struct pf_reading {
    uint8_t *data;
    pf_read_fn read;
    _Atomic uint64_t sum;
} pf_reading;

static uint64_t read_plain(const uint8_t *data, int64_t n_blocks) {
    uint64_t sums[LINE_BYTES / 8] = {0}, all = 0;
    for (const uint8_t *block = data; block < data + n_blocks * BLOCK_BYTES; block += BLOCK_BYTES) {
        for (int at = 0; at < PART_BYTES; at += LINE_BYTES) {
            for (int stream = 0; stream < STREAMS; ++stream) {
                uint64_t line[LINE_BYTES / 8];
                memcpy(line, block + stream * PART_BYTES + at, sizeof line);
                for (int i = 0; i < LINE_BYTES / 8; ++i) sums[i] += line[i];
            }
        }
    }
    for (int i = 0; i < LINE_BYTES / 8; ++i) all += sums[i];
    return all;
}

#if defined(PF_READ_AVX2)
PF_TARGET_AVX2 static uint64_t read_avx2(const uint8_t *data, int64_t n_blocks) {
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (const uint8_t *block = data; block < data + n_blocks * BLOCK_BYTES; block += BLOCK_BYTES) {
        for (int at = 0; at < PART_BYTES; at += LINE_BYTES) {
            for (int stream = 0; stream < STREAMS; ++stream) {
                const __m256i *line = (const __m256i *)(const void *)(block + stream * PART_BYTES + at);
                even = _mm256_add_epi64(even, _mm256_load_si256(line));
                odd = _mm256_add_epi64(odd, _mm256_load_si256(line + 1));
            }
        }
    }
    uint64_t sums[4];
    _mm256_storeu_si256((__m256i *)(void *)sums, _mm256_add_epi64(even, odd));
    return sums[0] + sums[1] + sums[2] + sums[3];
}
#endif

/* Every kernel set of x86 but the scalar one needs AVX2. */
static pf_read_fn choose_read(const pf_backend *backend) {
#if defined(PF_READ_AVX2)
    if (strcmp(backend->name, "scalar") != 0) return read_avx2;
#else
    (void)backend;
#endif
    return read_plain;
}

/* By the threads that will read, so that the memory is near them where nodes have memory of their own. */
static void fill_blocks(void *arg, int64_t begin, int64_t end, int worker) {
    pf_reading *reading = arg;
    (void)worker;
    memset(reading->data + begin * BLOCK_BYTES, 1, (size_t)(end - begin) * BLOCK_BYTES);
}

static void read_blocks(void *arg, int64_t begin, int64_t end, int worker) {
    pf_reading *reading = arg;
    (void)worker;
    (void)atomic_fetch_add(&reading->sum, reading->read(reading->data + begin * BLOCK_BYTES, end - begin));
}

pf_status pf_model_read_bandwidth(const pf_model *model, uint64_t bytes, double *bytes_per_second, pf_error *err) {
    if (model == NULL || bytes_per_second == NULL || bytes < BLOCK_BYTES || bytes > SIZE_MAX / 2) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "pf_model_read_bandwidth: a model, a result and at least %d bytes are needed", BLOCK_BYTES);
    }
    const int64_t n_blocks = (int64_t)(bytes / BLOCK_BYTES);
    const size_t size = (size_t)n_blocks * BLOCK_BYTES;
    pf_reading reading = {.data = pf_region_alloc(size), .read = choose_read(model->backend)};
    if (reading.data == NULL) {
        return pf_fail(err, PF_ERR_MEMORY, "no memory to measure the read bandwidth with: %llu bytes are needed",
                       (unsigned long long)size);
    }
    pf_pages_enlarge(reading.data, size);
    pf_pool_run(model->pool, n_blocks, GRAIN, fill_blocks, &reading);
    double best = 0.0;
    for (int pass = 0; pass < PASSES; ++pass) {
        const double started = pf_clock_seconds();
        pf_pool_run(model->pool, n_blocks, GRAIN, read_blocks, &reading);
        const double seconds = pf_clock_seconds() - started;
        if (seconds > 0.0 && (double)size / seconds > best) best = (double)size / seconds;
    }
    pf_region_free(reading.data, size);
    *bytes_per_second = best;
    return PF_OK;
}
