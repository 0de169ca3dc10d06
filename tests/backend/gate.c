/* Tools of the backend gate, and its main program:
 *
 *     gate [ISA ...]      each named kernel set, or every usable one, against "scalar"
 *
 * Prints one line a set; exit status 1 on any failure, 77 when a named set cannot run here. */
#if !defined(_DEFAULT_SOURCE)
#  define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#endif

#include "gate.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

long gate_checks, gate_failures;
static char context[256];

void gate_context(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
}

void gate_fail(const char *format, ...) {
    if (++gate_failures > 40) return;
    va_list args;
    va_start(args, format);
    printf("FAILED %s: ", context);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

/* ---- Random data ------------------------------------------------------------------------------------------- */

static uint64_t random_state = 20240617;

uint64_t gate_random(void) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t gate_reseed(uint64_t state) {
    const uint64_t before = random_state;
    random_state = state;
    return before;
}

int64_t gate_below(int64_t n) { return (int64_t)(gate_random() % (uint64_t)n); }

float gate_normal(void) {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) sum += (float)(gate_random() >> 40) * 0x1p-24f;
    return (sum - 2.0f) * 1.7320508f;
}

void gate_bytes(void *to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) ((uint8_t *)to)[i] = (uint8_t)(gate_random() >> 56);
}

void gate_floats(float *to, int64_t n, float spread) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t kind = gate_below(64);
        to[i] = gate_normal() * powf(spread, (float)(gate_random() >> 40) * 0x1p-23f - 1.0f);
        if (kind == 0) to[i] = 0.0f;
        if (kind == 1) to[i] = gate_normal() * 1e-41f;
    }
}

/* ---- Buffers ----------------------------------------------------------------------------------------------- */

static buffer pages(int64_t bytes) {
    const int64_t page = (int64_t)sysconf(_SC_PAGESIZE);
    const int64_t inner = (bytes + 64 + page - 1) / page * page;
    buffer b = {.bytes = bytes, .map_bytes = inner + 2 * page};
    b.map = mmap(NULL, (size_t)b.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.map == MAP_FAILED || mprotect(b.map, (size_t)page, PROT_NONE) != 0 ||
        mprotect(b.map + page + inner, (size_t)page, PROT_NONE) != 0) {
        perror("gate");
        exit(2);
    }
    b.data = b.map + page + inner - bytes;
    return b;
}

buffer gate_buffer(int64_t bytes, place where) {
    buffer b = pages(bytes);
    if (where == AT_START) b.data = b.map + sysconf(_SC_PAGESIZE);
    if (where == ODD) b.data -= (uintptr_t)b.data % 2 == 0 ? 1 : 2;
    return b;
}

buffer gate_aligned(int64_t bytes) {
    buffer b = pages(bytes);
    b.data -= (uintptr_t)b.data % 64;
    return b;
}

void gate_free(buffer *b) {
    if (b->map) munmap(b->map, (size_t)b->map_bytes);
    *b = (buffer){0};
}

enum { POISON = 0xcd, GUARD = 256 };

void gate_poison(buffer *b) { memset(b->data, POISON, (size_t)b->bytes); }

bool gate_poisoned_by(const void *at, int64_t bytes, uint8_t with) {
    for (int64_t i = 0; i < bytes; ++i) {
        if (((const uint8_t *)at)[i] != with) return false;
    }
    return true;
}

bool gate_poisoned(const void *at, int64_t bytes) { return gate_poisoned_by(at, bytes, POISON); }

output gate_output(int64_t n) {
    output o = {.n = n};
    o.block = malloc((size_t)(n * 4 + 2 * GUARD));
    if (!o.block) exit(2);
    memset(o.block, POISON, (size_t)(n * 4 + 2 * GUARD));
    o.y = (float *)(void *)(o.block + GUARD);
    return o;
}

void gate_output_free(output *o) { free(o->block); }

bool gate_output_intact(const output *o) {
    return gate_poisoned(o->block, GUARD) && gate_poisoned(o->block + GUARD + o->n * 4, GUARD);
}

bool gate_same(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) return false;
    }
    return true;
}

double gate_distance(const float *a, const float *b, int64_t n, double bound) {
    double worst = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        if (isnan(a[i]) && isnan(b[i])) continue;
        if (a[i] == b[i]) continue;
        const double d = fabs((double)a[i] - (double)b[i]) / (1e-30 + bound);
        if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
    }
    return worst;
}

/* ---- Weights ----------------------------------------------------------------------------------------------- */

#define OF_TYPE(name, number, values, bytes, uses) PF_##name,
const pf_dtype gate_types[PF_W_COUNT] = {PF_WEIGHT_TYPES(OF_TYPE)};

bool gate_fits(pf_dtype type, int64_t cols) { return gate_whole(type, cols) == cols; }

bool gate_is_generic(const pf_cpu_kernels *k, const pf_cpu_kernels *scalar, int kind) {
    const pf_dtype_info *type = pf_dtype_lookup((uint32_t)gate_types[kind]);
    return type->block_size > 1 && (type->uses & PF_TYPE_INTEGER) == 0 && k->gemm_f32[kind] == scalar->gemm_f32[kind];
}

int64_t gate_whole(pf_dtype type, int64_t cols) {
    const int64_t block = pf_dtype_lookup((uint32_t)type)->block_size;
    return (cols + block - 1) / block * block;
}

/* The half floats that stand `at` so many bytes from the beginning of every block. */
static void moderate_halves(pf_dtype type, uint8_t *data, int64_t bytes, int64_t at) {
    const int64_t block = pf_dtype_lookup((uint32_t)type)->block_bytes;
    for (int64_t i = at + 1; i < bytes; i += block) data[i] = (uint8_t)((data[i] & 0x83) | 0x10);
}

void gate_moderate(pf_dtype type, uint8_t *data, int64_t bytes) {
    switch (type) {
    case PF_F32:
        for (int64_t i = 3; i < bytes; i += 4) data[i] = (uint8_t)((data[i] & 0x80) | 0x3e);
        break;
    case PF_F16:
        for (int64_t i = 1; i < bytes; i += 2) data[i] = (uint8_t)((data[i] & 0x83) | 0x34);
        break;
    case PF_BF16:
        for (int64_t i = 1; i < bytes; i += 2) data[i] = (uint8_t)((data[i] & 0x80) | 0x3e);
        break;
    case PF_MXFP4:
        for (int64_t i = 0; i < bytes; i += PF_MXFP4_BYTES) data[i] = (uint8_t)(120 + data[i] % 8);
        break;
    case PF_FP8:
        for (int64_t i = 0; i < bytes; ++i) data[i] = (data[i] & 0x7f) == 0x7f ? 0 : data[i];
        break;
    case PF_IQ1_M: /* the half's high nibble is the last scale's */
        for (int64_t i = 55; i < bytes; i += PF_IQ1_M_BYTES) data[i] = (uint8_t)((data[i] & 0x8f) | 0x20);
        break;
    case PF_NVFP4: break; /* all scales there are */
    case PF_Q4_1: case PF_Q5_1: case PF_Q4_K: case PF_Q5_K:
        moderate_halves(type, data, bytes, 0);
        moderate_halves(type, data, bytes, 2);
        break;
    case PF_Q2_K:
        moderate_halves(type, data, bytes, 80);
        moderate_halves(type, data, bytes, 82);
        break;
    case PF_Q3_K: moderate_halves(type, data, bytes, 108); break;
    case PF_Q6_K: moderate_halves(type, data, bytes, 208); break;
    case PF_TQ1_0: moderate_halves(type, data, bytes, 52); break;
    case PF_TQ2_0: moderate_halves(type, data, bytes, 64); break;
    case PF_Q4_0: case PF_Q5_0: case PF_Q8_0: case PF_Q1_0: case PF_Q2_0: case PF_IQ4_NL: case PF_IQ4_XS:
    case PF_IQ1_S: case PF_IQ2_XXS: case PF_IQ2_XS: case PF_IQ2_S: case PF_IQ3_XXS: case PF_IQ3_S:
        moderate_halves(type, data, bytes, 0);
        break;
    default: gate_fail("nobody has said how weights of type %d become moderate: gate.c", (int)type); break;
    }
}

test_weight gate_weight(pf_dtype type, int64_t rows, int64_t cols, int64_t count, bool scale_f32, bool extreme,
                   place where) {
    uint64_t row_bytes;
    if (!pf_dtype_row_bytes(type, (uint64_t)cols, &row_bytes)) exit(2);
    test_weight out = {.w = {.type = type, .scale_f32 = scale_f32, .cols = cols, .rows = rows, .count = count,
                        .row_bytes = (int64_t)row_bytes}};
    out.data = gate_buffer(count * rows * out.w.row_bytes, where);
    out.w.data = out.data.data;
    gate_bytes(out.data.data, out.data.bytes);
    if (!extreme) gate_moderate(type, out.data.data, out.data.bytes);
    if (type == PF_FP8) {
        out.w.scale_cols = (cols + 127) / 128;
        out.w.scale_rows = (rows + 127) / 128;
        const int64_t n = count * out.w.scale_rows * out.w.scale_cols;
        out.scale = gate_buffer(n * (scale_f32 ? 4 : 1), where);
        out.w.scale = out.scale.data;
        for (int64_t i = 0; i < n; ++i) {
            const float scale = gate_normal();
            if (scale_f32) memcpy(out.scale.data + 4 * i, &scale, sizeof scale);
            else out.scale.data[i] = (uint8_t)(extreme ? gate_random() >> 56 : 118 + gate_random() % 8);
        }
    }
    return out;
}

void gate_weight_free(test_weight *w) {
    gate_free(&w->data);
    gate_free(&w->scale);
}

/* ---- Main -------------------------------------------------------------------------------------------------- */

#if !defined(PF_GATE_TOOLS_ONLY) /* gate_cuda.c has its own */

static int run(const char *isa) {
    const pf_backend *backend, *scalar;
    pf_error err;
    if (pf_cpu_backend("scalar", &scalar, &err) != PF_OK || pf_cpu_backend(isa, &backend, &err) != PF_OK) {
        printf("%s: cannot run: %s\n", isa, err.message);
        return 77;
    }
    const long failures = gate_failures;
    const pf_cpu_kernels *k = backend->kernels;
    CHECK(strcmp(k->name, isa) == 0, "the table is called %s", k->name);
    gate_kernels(k, scalar->kernels);
    gate_linear_ops(backend, scalar);
    gate_model_ops(backend, scalar);
    gate_fp4(k, scalar->kernels);
    gate_tiles(k);
    printf("%s: %ld checks, %ld failures\n", isa, gate_checks, gate_failures - failures);
    return gate_failures > failures ? 1 : 0;
}

int main(int argc, char **argv) {
    int result = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) {
        for (int i = 1; i < argc; ++i) {
            const int one = run(argv[i]);
            result = result == 1 ? 1 : one ? one : result;
        }
        return result;
    }
    for (int i = 0; pf_cpu_isa_name(i) != NULL; ++i) {
        if (pf_cpu_isa_problem(i) != NULL) {
            printf("%s: skipped: %s\n", pf_cpu_isa_name(i), pf_cpu_isa_problem(i));
        } else if (run(pf_cpu_isa_name(i)) != 0) {
            result = 1;
        }
    }
    return result;
}

#endif
