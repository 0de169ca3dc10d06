#include "model/draft_head.h"

#include "base/arith.h"
#include "base/memory.h"

#include <math.h>
#include <string.h>

enum {
    BATCH = 256,       /* rows that are copied at once */
    LAST_ROWS = 1280,  /* at most: V4's tokens with a meaning of their own are the ids from 128000 to 129279 */
    BLOCK = PF_MXFP4_VALUES,
};

struct pf_draft_head {
    uint8_t *data;
    pf_weight first, last; /* rows 0 on of the head, and the rows at its end */
};

uint64_t pf_draft_head_bytes(const pf_network *net, int64_t n_rows) {
    const pf_weights *w = &net->weights;
    uint64_t row_bytes = 0;
    if (pf_weights_draft_shape(w).n_layer == 0 || w->head_on_device || n_rows < 1 || net->config.n_vocab < 2 * n_rows) return 0;
    if (!pf_dtype_row_bytes(PF_MXFP4, (uint64_t)net->config.n_embd, &row_bytes)) return 0;
    return row_bytes * (uint64_t)n_rows;
}

/* The nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, by its number, of a number that is not negative. */
static inline int nearest_code(float a) {
    return (a > 0.25f) + (a > 0.75f) + (a > 1.25f) + (a > 1.75f) + (a > 2.5f) + (a > 3.5f) + (a > 5.0f);
}

static const float code_values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

static float squared_error(const float *x, float scale) {
    float sum = 0.0f;
    for (int i = 0; i < BLOCK; ++i) {
        const float a = fabsf(x[i]) / scale, error = (a - code_values[nearest_code(a)]) * scale;
        sum += error * error;
    }
    return sum;
}

/* 32 values to an MXFP4 block: e2m1 codes, value j beside value j + 16, under a power of two. Of the two powers by which the
 * largest value is near the largest code, the one with the smaller error. */
static void encode_block(const float *x, uint8_t *block) {
    float largest = 0.0f;
    for (int i = 0; i < BLOCK; ++i) largest = fmaxf(largest, fabsf(x[i]));
    memset(block, 0, PF_MXFP4_BYTES);
    if (!(largest > 1e-30f && largest < 1e30f)) return;
    int power = 0;
    (void)frexpf(largest, &power);
    power -= 3; /* the largest value is 4 to 8 times it */
    if (squared_error(x, ldexpf(1.0f, power + 1)) < squared_error(x, ldexpf(1.0f, power))) ++power;
    const float scale = ldexpf(1.0f, power);
    block[0] = (uint8_t)(power + 127);
    for (int i = 0; i < BLOCK; ++i) {
        const int code = nearest_code(fabsf(x[i]) / scale) | (x[i] < 0.0f ? 8 : 0);
        block[1 + i % (BLOCK / 2)] |= (uint8_t)(i < BLOCK / 2 ? code : code << 4);
    }
}

typedef struct encoding {
    const float *rows; /* [n, cols] */
    int64_t cols, row_bytes;
    uint8_t *out;
} encoding;

static void encode_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const encoding *e = arg;
    (void)worker;
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t at = 0; at < e->cols / BLOCK; ++at) {
            encode_block(e->rows + row * e->cols + at * BLOCK, e->out + row * e->row_bytes + at * PF_MXFP4_BYTES);
        }
    }
}

/* Rows [row, row + to->rows) of the model's head. */
static pf_status copy_rows(pf_exec *ex, const pf_weight *from, int64_t row, const pf_weight *to, uint8_t *data) {
    const size_t mark = pf_arena_mark(ex->arena);
    float *rows = pf_arena_alloc(ex->arena, (size_t)(BATCH * to->cols) * sizeof *rows);
    int32_t tokens[BATCH];
    if (rows == NULL) return PF_ERR_MEMORY;
    for (int64_t begin = 0; begin < to->rows; begin += BATCH) {
        const int64_t n = pf_min_i64(BATCH, to->rows - begin);
        for (int64_t i = 0; i < n; ++i) tokens[i] = (int32_t)(row + begin + i);
        PF_TRY(ex->backend->embed(ex, from, tokens, n, 1, rows));
        encoding e = {rows, to->cols, to->row_bytes, data + begin * to->row_bytes};
        pf_pool_run(ex->pool, n, 1, encode_rows, &e);
    }
    pf_arena_reset(ex->arena, mark);
    return PF_OK;
}

static pf_weight mxfp4_rows(const uint8_t *data, int64_t rows, int64_t cols, int64_t row_bytes) {
    return (pf_weight){.data = data, .type = PF_MXFP4, .cols = cols, .rows = rows, .count = 1, .row_bytes = row_bytes};
}

pf_status pf_draft_head_new(pf_exec *ex, const pf_network *net, int64_t n_rows, pf_draft_head **out) {
    const uint64_t bytes = pf_draft_head_bytes(net, n_rows);
    const int64_t cols = net->config.n_embd, n_last = pf_min_i64(LAST_ROWS, n_rows / 4), n_first = n_rows - n_last;
    pf_draft_head *head = pf_calloc(1, sizeof *head);
    *out = NULL;
    if (head != NULL) head->data = pf_alloc((size_t)bytes);
    if (head == NULL || head->data == NULL) {
        pf_draft_head_delete(head);
        return PF_ERR_MEMORY;
    }
    const int64_t row_bytes = (int64_t)bytes / n_rows;
    uint8_t *last = head->data + n_first * row_bytes;
    head->first = mxfp4_rows(head->data, n_first, cols, row_bytes);
    head->last = mxfp4_rows(last, n_last, cols, row_bytes);
    pf_status status = copy_rows(ex, &net->weights.head, 0, &head->first, head->data);
    if (status == PF_OK && n_last > 0) {
        status = copy_rows(ex, &net->weights.head, net->config.n_vocab - n_last, &head->last, last);
    }
    if (status == PF_OK) *out = head;
    else pf_draft_head_delete(head);
    return status;
}

void pf_draft_head_delete(pf_draft_head *head) {
    if (head == NULL) return;
    pf_free(head->data);
    pf_free(head);
}

pf_draft_rows pf_draft_head_rows(const pf_draft_head *head, int64_t n_vocab) {
    if (head == NULL) return (pf_draft_rows){n_vocab, n_vocab};
    return (pf_draft_rows){head->first.rows, n_vocab - head->last.rows};
}

pf_status pf_draft_head_logits(const pf_step *s, const pf_draft_head *head, const float *x, int64_t n, float *logits) {
    const int64_t n_vocab = s->net->config.n_vocab, end = n_vocab - head->last.rows;
    const pf_backend *be = s->ex->backend;
    PF_TRY(be->linear(s->ex, &head->first, x, head->first.cols, n, logits, n_vocab));
    if (head->last.rows > 0) PF_TRY(be->linear(s->ex, &head->last, x, head->last.cols, n, logits + end, n_vocab));
    for (int64_t row = 0; row < n && !s->ex->dry; ++row) {
        for (int64_t i = head->first.rows; i < end; ++i) logits[row * n_vocab + i] = -INFINITY;
    }
    return PF_OK;
}
