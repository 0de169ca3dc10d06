/* What bench_kernels.c and bench_ops.c share. */
#ifndef PF_BACKEND_CPU_BENCH_H
#define PF_BACKEND_CPU_BENCH_H

#include "backend/cpu/ops.h"

/* Dimensions of V4-Flash, except that there are fewer experts, whose weights need not all fit. */
enum {
    D = 4096, HEADS = 64, HEAD_DIM = 512, ROPE_DIM = 64, INDEX_DIM = 128, TOPK = 512, WINDOW = 128, STREAMS = 4,
    EXPERTS = 32, USED = 6, FF = 2048, N_EXPERT = 256, MAX_TOKENS = 64
};
enum { BENCH_FLOATS = 1 << 24 };

typedef struct bench {
    pf_exec ex;
    const char *wanted;
    double read_rate, fma_rate; /* bytes, multiply-adds per second */
    uint8_t *data, *scale;      /* 256 MiB: small positive numbers in every format; scales of FP8 weights */
    float *x, *y, *z;           /* BENCH_FLOATS each; x and z within [-1, 1] */
} bench;

typedef void (*bench_op)(bench *b, void *args);

/* Runs and prints one line; macs 0: an operation that is not about them. */
void bench_measure(bench *b, const char *name, const char *what, bench_op op, void *args, double bytes, double macs);

void bench_ops(bench *b);

#endif
