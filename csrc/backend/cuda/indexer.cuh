/* What the two ways to score index rows share (indexer.cu, indexer_tiles.cu). */
#ifndef PF_BACKEND_CUDA_INDEXER_CUH
#define PF_BACKEND_CUDA_INDEXER_CUH

#include "backend/cuda/formats.cuh"
#include "backend/cuda/ops.cuh"

struct pf_score_args {
    pf_index_args a; /* but its rows: */
    pf_rows rows;
    pf_position position;
};

PF_DEV int64_t pf_visible_rows(const pf_score_args &args, int64_t t) {
    return (pf_position_of(args.position) + t + 1) / args.a.ratio;
}

/* A value of a query's group of scale 2^k as the integer of backend/cpu/fp4.h. */
PF_DEV int pf_fp4_code(float v, int k) {
    const float most = 12.0f;
    float code = v * (2.0f * pf_power_of_two(-k));
    code = code < most ? code : most; /* also a NaN */
    return (int)(code > -most ? code : -most);
}

/* indexer_tiles.cu: whether it takes these rows and heads; and scores of at most `rows` rows. */
bool pf_index_in_tiles(const pf_score_args &args);
pf_status pf_index_tiles_launch(const pf_exec *ex, const pf_score_args &args, int64_t rows);

#endif
