/* Continues a text with a model, from C alone: embed MODEL.gguf TEXT [TOKENS] */
#include <pyflash.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct app {
    pf_model *model;
    pf_session *session;
    pf_sampler *sampler;
    float *logits;
    int64_t n_vocab;
    int32_t end_token;
    pf_error error;
} app;

static pf_status open_all(app *a, const char *path) {
    pf_status status = pf_model_open(path, NULL, &a->model, &a->error);
    if (status != PF_OK) return status;
    pf_model_info info = {.struct_size = sizeof info};
    status = pf_model_get_info(a->model, &info, &a->error);
    if (status != PF_OK) return status;
    status = pf_session_open(a->model, NULL, &a->session, &a->error);
    if (status != PF_OK) return status;
    pf_sampler_params sampling;
    pf_sampler_params_init(&sampling);
    sampling.temperature = 0;
    a->n_vocab = info.n_vocab;
    a->end_token = info.eos_token;
    a->logits = malloc((size_t)info.n_vocab * sizeof *a->logits);
    if (a->logits == NULL) return PF_ERR_MEMORY;
    return pf_sampler_open(&sampling, &a->sampler, &a->error);
}

/* Evaluates all tokens, one bounded step after the other. A program with a window to draw would do so between them. */
static pf_status evaluate(app *a, const int32_t *tokens, int64_t n) {
    while (n > 0) {
        int64_t done = 0;
        pf_status status = pf_session_eval(a->session, tokens, n, PF_LOGITS_LAST, a->logits, a->n_vocab, &done,
                                           &a->error);
        if (status != PF_OK) return status;
        tokens += done;
        n -= done;
    }
    return PF_OK;
}

static pf_status evaluate_text(app *a, const char *text) {
    const size_t len = strlen(text);
    int32_t *tokens = malloc((len + 1) * sizeof *tokens); /* a token stands for at least one byte */
    if (tokens == NULL) return PF_ERR_MEMORY;
    int64_t n = 0;
    pf_status status = pf_tokenize(a->model, text, len, 0, tokens, (int64_t)len + 1, &n, &a->error);
    if (status == PF_OK) status = evaluate(a, tokens, n);
    free(tokens);
    return status;
}

static pf_status print_tokens(app *a, int count) {
    for (int i = 0; i < count; ++i) {
        int32_t token = 0;
        char text[256];
        size_t len = 0;
        pf_status status = pf_sampler_pick(a->sampler, a->logits, a->n_vocab, &token, NULL, &a->error);
        if (status == PF_OK && token == a->end_token) break;
        if (status == PF_OK) status = pf_detokenize(a->model, &token, 1, 0, text, sizeof text, &len, &a->error);
        if (status != PF_OK) return status;
        fwrite(text, 1, len < sizeof text ? len : sizeof text, stdout);
        fflush(stdout);
        status = evaluate(a, &token, 1);
        if (status != PF_OK) return status;
    }
    putchar('\n');
    return PF_OK;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL.gguf TEXT [TOKENS]\n", argv[0]);
        return 2;
    }
    app a = {0};
    pf_status status = open_all(&a, argv[1]);
    if (status == PF_OK) status = evaluate_text(&a, argv[2]);
    if (status == PF_OK) status = print_tokens(&a, argc > 3 ? atoi(argv[3]) : 32);
    if (status != PF_OK) {
        const char *message = a.error.message[0] != '\0' ? a.error.message : "out of memory"; /* our own malloc */
        fprintf(stderr, "error %d: %s\n", (int)status, message);
    }
    free(a.logits);
    pf_sampler_close(a.sampler);
    pf_session_close(a.session);
    pf_model_release(a.model);
    return status == PF_OK ? 0 : 1;
}
