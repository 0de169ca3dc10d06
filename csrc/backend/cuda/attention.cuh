/* What the two forms of attention share (attention.cu, attention_tiles.cu): which rows a token attends to, and how they
 * are cut up. */
#ifndef PF_BACKEND_CUDA_ATTENTION_CUH
#define PF_BACKEND_CUDA_ATTENTION_CUH

#include "backend/cuda/formats.cuh"
#include "backend/cuda/ops.cuh"

enum { PF_ATTN_TILE = 32, PF_ATTN_SPLITS = 64 };

struct pf_attend_args {
    pf_attn_args a;
    pf_rows raw, pool;
    pf_position position;
    int has_pool;
    int most_splits; /* room in `partial` */
    float *partial;  /* [n_token, most_splits, H, d + 2]: sums, then top and sum of the running softmax */
};

/* The rows one token attends to: window rows by position, then compressed rows by index. */
struct pf_row_list {
    int64_t window_first, n_window, n;
    const int32_t *select; /* NULL: pool rows from 0 */
};

PF_DEV pf_row_list pf_attn_rows(const pf_attend_args &args, int64_t t) {
    const int64_t p = pf_position_of(args.position) + t, first = p - args.a.window + 1;
    pf_row_list list = {first > 0 ? first : 0, 0, 0, nullptr};
    list.n_window = list.n = p + 1 - list.window_first;
    if (args.has_pool && args.a.select) {
        list.select = args.a.select + t * args.a.select_ld;
        list.n += args.a.select_n[t];
    } else if (args.has_pool) {
        list.n += (p + 1) / args.a.ratio;
    }
    return list;
}

/* Row i of the list. */
PF_DEV const uint8_t *pf_attn_row(const pf_attend_args &args, const pf_row_list &list, int64_t i) {
    const int64_t j = i - list.n_window;
    if (j < 0) return pf_slot_of(args.raw, list.window_first + i);
    return pf_slot_of(args.pool, list.select ? list.select[j] : j);
}

PF_DEV int pf_attn_tiles(const pf_row_list &list) { return (int)((list.n + PF_ATTN_TILE - 1) / PF_ATTN_TILE); }
PF_DEV int pf_attn_tiles_a_split(int tiles) { return (tiles + PF_ATTN_SPLITS - 1) / PF_ATTN_SPLITS; }

/* attention_tiles.cu: whether tensor cores take this, decided by the run, the format and the sizes alone, since the
 * other kernel would give other bits; and the same of n of a call's n_token tokens. */
bool pf_attn_in_tiles(const pf_exec *ex, const pf_attn_args *a);
pf_status pf_attn_tiles_launch(const pf_exec *ex, const pf_attend_args &args, int64_t n, int64_t n_token);

#endif
