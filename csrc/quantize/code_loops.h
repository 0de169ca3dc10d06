/* The inner loop of the K formats' quantisers, compiled for each instruction set. */
#ifndef PF_QUANTIZE_CODE_LOOPS_H
#define PF_QUANTIZE_CODE_LOOPS_H

/* What codes q of n values x with weights w add up to. */
typedef struct pf_code_sums {
    float q, qq, qx; /* sum w q, sum w q^2, sum w q x */
} pf_code_sums;

typedef struct pf_code_loops {
    /* Codes q = (x + offset) inverse, rounded and held between low and high; n is a multiple of 8. */
    pf_code_sums (*sums)(const float *x, const float *w, int n, float inverse, float offset, float low, float high);
} pf_code_loops;

const pf_code_loops *pf_code_loops_best(void); /* of this machine */

extern const pf_code_loops pf_code_loops_base;
extern const pf_code_loops pf_code_loops_avx2; /* x86-64 only, and only where the machine has it */

#endif
