/* Tools of the backend gate: random data, buffers that end (or begin) at a protected page, checks. */
#ifndef PF_TESTS_BACKEND_GATE_H
#define PF_TESTS_BACKEND_GATE_H

#include "backend/cpu/ops.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#if defined(__GNUC__)
#  define PF_GATE_PRINTF __attribute__((format(printf, 1, 2)))
#else
#  define PF_GATE_PRINTF
#endif

/* ---- Checks: a failure is printed and counted, the run goes on ---- */

void gate_fail(const char *format, ...) PF_GATE_PRINTF;
/* What the following checks are about; shown with a failure. */
void gate_context(const char *format, ...) PF_GATE_PRINTF;
extern long gate_checks, gate_failures;

#define CHECK(condition, ...)                        \
    do {                                             \
        gate_checks++;                               \
        if (!(condition)) gate_fail(__VA_ARGS__);    \
    } while (0)

/* ---- Random data ---- */

uint64_t gate_random(void);
/* Sets the generator's state and returns the one before: for checks that shall not change the data of those after. */
uint64_t gate_reseed(uint64_t state);
int64_t gate_below(int64_t n);
float gate_normal(void); /* roughly standard normal */
void gate_bytes(void *to, int64_t n);
/* Normal values times spread^u for u in [-1, 1], some zeros, some denormals. */
void gate_floats(float *to, int64_t n, float spread);

/* ---- Buffers ---- */

/* Where a buffer lies in its pages, which have a protected page on either side. */
typedef enum place { AT_END, AT_START, ODD, PLACES } place;

typedef struct buffer {
    uint8_t *data;
    int64_t bytes;
    uint8_t *map;
    int64_t map_bytes;
} buffer;

/* AT_END: data + bytes is the protected page. AT_START: data follows one. ODD: an odd address, as near to the end. */
buffer gate_buffer(int64_t bytes, place where);
/* The same, aligned to 64, ending within 63 bytes of the protected page. */
buffer gate_aligned(int64_t bytes);
void gate_free(buffer *b);
/* Bytes that no result consists of. */
void gate_poison(buffer *b);
bool gate_poisoned(const void *at, int64_t bytes);
bool gate_poisoned_by(const void *at, int64_t bytes, uint8_t with);

/* n floats between guard bytes, filled with poison. */
typedef struct output {
    uint8_t *block;
    float *y;
    int64_t n;
} output;
output gate_output(int64_t n);
void gate_output_free(output *o);
/* Guards intact. */
bool gate_output_intact(const output *o);

/* Bit-equal, or NaN both. */
bool gate_same(const float *a, const float *b, int64_t n);
/* Largest |a - b| / (1e-30 + bound) over n values; NaN only where both are. */
double gate_distance(const float *a, const float *b, int64_t n, double bound);

/* ---- Weights ---- */

typedef struct weight {
    pf_weight w;
    buffer data, scale;
} test_weight;

extern const pf_dtype gate_types[PF_W_COUNT];
/* Whether a set has no kernel of its own for a block format: then it decodes rows as scalar does (which
 * tests/quantize/test_blocks.py compares with other programs), and the loop over them is tested with a few shapes. */
bool gate_is_generic(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, int kind);
/* Whether rows of so many columns are whole blocks. */
bool gate_fits(pf_dtype type, int64_t cols);
/* So many columns, or the next whole blocks. */
int64_t gate_whole(pf_dtype type, int64_t cols);
/* Random finite weights of moderate size; extreme: any bytes at all, so NaNs, infinities and denormals too. */
test_weight gate_weight(pf_dtype type, int64_t rows, int64_t cols, int64_t count, bool scale_f32, bool extreme,
                   place where);
/* Makes any bytes into moderate numbers: exponents are pulled near one. */
void gate_moderate(pf_dtype type, uint8_t *data, int64_t bytes);
void gate_weight_free(test_weight *w);

/* ---- Parts ---- */

void gate_kernels(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar);
void gate_linear_ops(const pf_backend *backend, const pf_backend *scalar);
void gate_model_ops(const pf_backend *backend, const pf_backend *scalar);
void gate_fp4(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar);
void gate_tiles(const pf_cpu_kernels *k);

#endif
