/* A model on a device against the processor alone, and how fast it is there:
 *
 *     device_model MODEL.gguf [N_TOKENS]      default: 512 tokens of prompt
 *
 * For each placement: how far exact logits are from the processor's, how far fast ones are, memory taken against memory
 * predicted, and tokens a second of prompt and of decoding, for two of them also without recordings, whose bits must be
 * the same. Exit status 1 when something is not as it must be. Uses nothing but pyflash.h; scripts/cuda_check.sh runs it
 * on a machine with a GPU, test_device.py over the emulation. */
#define _POSIX_C_SOURCE 200809L

#include "pyflash.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_DECODE = 16, N_COMPARED = 48, N_PLACEMENT = 5 };

typedef struct placement {
    const char *name;
    int32_t gpu_layers, cpu_moe; /* parts of the layers in percent, or PF_GPU_AUTO */
    uint64_t hot_experts;
    int unrecorded;              /* whether to decode without recordings, too */
} placement;

static const placement placements[N_PLACEMENT] = {
    {"all that fits", PF_GPU_AUTO, PF_GPU_AUTO, PF_HOT_AUTO, 1}, {"experts on the CPU", 100, 100, PF_HOT_OFF, 1},
    {"some of them held", 100, 100, PF_HOT_AUTO, 0}, {"half of the layers", 50, 0, PF_HOT_AUTO, 0},
    {"output only", 0, 0, PF_HOT_AUTO, 0},
};

typedef struct result {
    float *logits;          /* [N_COMPARED, n_vocab]: of the prompt's first tokens, and of those decoded */
    double prompt, decode;  /* tokens a second */
    double unrecorded;      /* of decoding by single launches */
    int differ;             /* whether that gave other bits */
    int64_t taken, predicted; /* bytes of the device */
} result;

static int failures;
static pf_error error;

static void must(pf_status status, const char *what) {
    if (status == PF_OK) return;
    fprintf(stderr, "%s: %s\n", what, error.message);
    exit(1);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int64_t free_bytes(void) {
    pf_device_info info = {.struct_size = sizeof info};
    must(pf_device_describe("cuda", 0, &info, &error), "device");
    return (int64_t)info.free_bytes;
}

static void eval(pf_session *session, const int32_t *tokens, int64_t n, int32_t mode, float *logits, int64_t room) {
    for (int64_t done = 0, step = 0; done < n; done += step) {
        must(pf_session_eval(session, tokens + done, n - done, mode, logits, room, &step, &error), "evaluating");
    }
}

/* The first N_COMPARED tokens with all logits, then, timed, the whole prompt and N_DECODE more. */
static void run(pf_model *model, int32_t n_vocab, const int32_t *tokens, int64_t n, int timed, uint32_t flags,
                result *out) {
    pf_session_params params;
    pf_session *session = NULL;
    pf_session_params_init(&params);
    params.n_ctx = n + N_DECODE + N_COMPARED;
    params.flags = flags;
    out->logits = malloc((size_t)N_COMPARED * (size_t)n_vocab * sizeof(float));
    if (out->logits == NULL) exit(1);
    must(pf_session_open(model, &params, &session, &error), "session");
    for (int64_t t = 0, step = 0; t < N_COMPARED; t += step) { /* pieces, the last of them single tokens */
        const int64_t piece = t < 32 ? 16 : 1;
        must(pf_session_eval(session, tokens + t, piece, PF_LOGITS_ALL, out->logits + t * n_vocab, piece * n_vocab, &step,
                             &error), "evaluating");
    }
    if (!timed) {
        pf_session_close(session);
        return;
    }
    must(pf_session_rollback(session, N_COMPARED, &error), "rollback");
    float *last = malloc((size_t)n_vocab * sizeof(float));
    if (last == NULL) exit(1);
    if (n > N_COMPARED) { /* warm: weights from the disk, kernels loaded */
        eval(session, tokens, n, PF_LOGITS_LAST, last, n_vocab);
        must(pf_session_rollback(session, n, &error), "rollback");
    }
    double begin = seconds();
    eval(session, tokens, n, PF_LOGITS_LAST, last, n_vocab);
    out->prompt = (double)n / (seconds() - begin);
    begin = seconds();
    for (int i = 0; i < N_DECODE; ++i) eval(session, tokens + i, 1, PF_LOGITS_LAST, last, n_vocab);
    out->decode = N_DECODE / (seconds() - begin);
    free(last);
    pf_session_close(session);
}

/* The same without recordings, which are for a device only. */
static void run_unrecorded(pf_model *model, int32_t n_vocab, const int32_t *tokens, int64_t n, result *out) {
    result plain = {0};
    run(model, n_vocab, tokens, n, 1, PF_SESSION_UNRECORDED, &plain);
    out->unrecorded = plain.decode;
    out->differ = memcmp(plain.logits, out->logits, (size_t)N_COMPARED * (size_t)n_vocab * sizeof(float)) != 0;
    free(plain.logits);
}

static int32_t share(int32_t percent, int32_t n) { return percent == PF_GPU_AUTO ? PF_GPU_AUTO : percent * n / 100; }

static result run_placed(const char *path, int32_t precision, const placement *where, const pf_model_info *info,
                         const int32_t *tokens, int64_t n, pf_placement_info *placed) {
    pf_model_params params;
    pf_model *model = NULL;
    uint64_t sent = 0;
    result out = {0};
    pf_model_params_init(&params);
    params.precision = precision;
    params.device = where != NULL ? "cuda" : "cpu";
    params.gpu_ctx = n + N_DECODE + N_COMPARED;
    if (where != NULL) {
        params.n_gpu_layers = where->gpu_layers == PF_GPU_AUTO ? PF_GPU_AUTO : 1 + share(where->gpu_layers, info->n_layer);
        params.n_cpu_moe = share(where->cpu_moe, info->n_layer);
        params.hot_experts = where->hot_experts;
    }
    const int64_t before = where != NULL ? free_bytes() : 0;
    must(pf_model_open(path, &params, &model, &error), "opening");
    do must(pf_model_upload(model, &sent, NULL, &error), "sending");
    while (sent > 0);
    placed->struct_size = sizeof *placed;
    must(pf_model_get_placement(model, placed, &error), "placement");
    out.predicted = (int64_t)(placed->weight_bytes + placed->cache_bytes + placed->buffer_bytes + placed->stream_bytes);
    if (where != NULL) {
        pf_session_params session_params;
        pf_session *session = NULL;
        pf_session_params_init(&session_params);
        session_params.n_ctx = params.gpu_ctx;
        must(pf_session_open(model, &session_params, &session, &error), "session");
        out.taken = before - free_bytes();
        pf_session_close(session);
    }
    const int timed = precision == PF_PRECISION_FAST;
    run(model, info->n_vocab, tokens, n, timed, 0, &out);
    /* With held experts bits depend on how quickly these came. */
    if (timed && where != NULL && where->unrecorded && placed->hot_bytes == 0) {
        run_unrecorded(model, info->n_vocab, tokens, n, &out);
    }
    pf_model_release(model);
    return out;
}

/* Mean KL divergence of b from a, nats, and the worst relative difference of a token's logits. */
static double divergence(const float *a, const float *b, int64_t n_vocab, double *worst) {
    double sum = 0.0;
    *worst = 0.0;
    for (int t = 0; t < N_COMPARED; ++t, a += n_vocab, b += n_vocab) {
        double top = 0.0, apart = 0.0, total_a = 0.0, total_b = 0.0, kl = 0.0;
        for (int64_t i = 0; i < n_vocab; ++i) {
            top = fmax(top, fabs((double)a[i]));
            apart = fmax(apart, isfinite(b[i]) ? fabs((double)a[i] - (double)b[i]) : INFINITY);
        }
        for (int64_t i = 0; i < n_vocab; ++i) {
            total_a += exp((double)a[i] - top);
            total_b += exp((double)b[i] - top);
        }
        for (int64_t i = 0; i < n_vocab; ++i) {
            const double p = (double)a[i] - top - log(total_a), q = (double)b[i] - top - log(total_b);
            kl += exp(p) * (p - q);
        }
        *worst = fmax(*worst, apart / top);
        sum += kl;
    }
    return sum / N_COMPARED;
}

int main(int argc, char **argv) {
    const int64_t n = argc > 2 ? atoll(argv[2]) : 512;
    pf_model *model = NULL;
    pf_model_info info = {.struct_size = sizeof info};
    pf_placement_info placed;
    if (argc < 2 || n < N_COMPARED) {
        fprintf(stderr, "usage: device_model MODEL.gguf [N_TOKENS], of at least %d\n", N_COMPARED);
        return 2;
    }
    must(pf_model_open(argv[1], NULL, &model, &error), "opening");
    must(pf_model_get_info(model, &info, &error), "info");
    pf_model_release(model);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    if (tokens == NULL) return 1;
    uint32_t state = 1;
    for (int64_t i = 0; i < n; ++i) tokens[i] = (int32_t)((state = state * 1664525u + 1013904223u) >> 8) % info.n_vocab;

    result exact = run_placed(argv[1], PF_PRECISION_EXACT, NULL, &info, tokens, n, &placed);
    result fast = run_placed(argv[1], PF_PRECISION_FAST, NULL, &info, tokens, n, &placed);
    double worst;
    const double own = divergence(exact.logits, fast.logits, info.n_vocab, &worst);
    printf("%-20s %7s %7s %10s %10s %8s %9s %10s %9s %10s\n", "placement", "layers", "experts", "exact KL", "fast KL",
           "memory", "predicted", "prompt/s", "decode/s", "unrecorded");
    printf("%-20s %7d %7d %10s %10.2g %8s %9s %10.1f %9.1f\n", "processor alone", 0, 0, "-", own, "-", "-", fast.prompt,
           fast.decode);
    for (int i = 0; i < N_PLACEMENT; ++i) {
        result on_exact = run_placed(argv[1], PF_PRECISION_EXACT, &placements[i], &info, tokens, n, &placed);
        result on_fast = run_placed(argv[1], PF_PRECISION_FAST, &placements[i], &info, tokens, n, &placed);
        const double exact_kl = divergence(exact.logits, on_exact.logits, info.n_vocab, &worst);
        const double fast_kl = divergence(fast.logits, on_fast.logits, info.n_vocab, &worst);
        const double beside = fabs((double)(on_fast.taken - on_fast.predicted));
        printf("%-20s %7d %7d %10.2g %10.2g %6.1f M %7.1f M %10.1f %9.1f", placements[i].name, placed.n_layer,
               placed.n_expert_layer, exact_kl, fast_kl, (double)on_fast.taken / 1e6, (double)on_fast.predicted / 1e6,
               on_fast.prompt, on_fast.decode);
        if (on_fast.unrecorded > 0.0) printf(" %10.1f", on_fast.unrecorded);
        printf("\n");
        /* Float32 sums in another order, and a near tie that falls otherwise; fast: as tests/backend/on_device.py. */
        const int ok = exact_kl < 1e-6 && fast_kl < fmax(1e-6, 4.0 * own) && !on_fast.differ &&
                       beside < 0.05 * (double)on_fast.predicted + 64e6;
        if (!ok) printf("    FAILED\n");
        failures += !ok;
        free(on_exact.logits);
        free(on_fast.logits);
    }
    free(exact.logits);
    free(fast.logits);
    free(tokens);
    return failures > 0;
}
