/* pf_step_eval() and pf_session_keep() as C programs use and misuse them: steps MODEL.gguf PART. Prints nothing and exits with
 * 0 when all is as the header says. */
#include <pyflash.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_SESSION = 4, CONTEXT = 200, CHUNK = 150 };

static pf_model *model;
static int64_t n_vocab;

#define CHECK(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
            exit(1); \
        } \
    } while (0)

static pf_session *open_session(int64_t context) {
    pf_session_params params;
    pf_session *session = NULL;
    pf_error error;
    pf_session_params_init(&params);
    params.n_ctx = context;
    params.n_chunk = CHUNK;
    params.flags = PF_SESSION_POISON;
    CHECK(pf_session_open(model, &params, &session, &error) == PF_OK);
    return session;
}

static int32_t token_at(int which, int64_t position) { return (int32_t)((which * 31 + position * 7 + 1) % n_vocab); }

static pf_step_share share_of(pf_session *session, const int32_t *tokens, int64_t n, int32_t mode, float *logits, int64_t rows) {
    return (pf_step_share){.struct_size = sizeof(pf_step_share), .logits_mode = mode, .session = session, .tokens = tokens,
                           .n_tokens = n, .logits = logits, .logits_capacity = rows * n_vocab};
}

static float *room(int64_t rows) {
    float *logits = malloc((size_t)(rows * n_vocab) * sizeof *logits);
    CHECK(logits != NULL);
    return logits;
}

static void fill(int32_t *tokens, int which, int64_t position, int64_t n) {
    for (int64_t i = 0; i < n; ++i) tokens[i] = token_at(which, position + i);
}

/* ---- use ---- */

/* Sessions that step together, with a tail that is not kept, against one that goes token by token. */
static void compare_with_alone(void) {
    const int64_t n[N_SESSION] = {1, 5, 17, 64};
    int32_t tokens[N_SESSION][CHUNK];
    pf_session *sessions[N_SESSION];
    pf_step_share shares[N_SESSION];
    float *logits[N_SESSION], *expected = room(1);
    pf_error error;
    for (int i = 0; i < N_SESSION; ++i) {
        sessions[i] = open_session(CONTEXT);
        logits[i] = room(CHUNK);
    }
    for (int round = 0; round < 3; ++round) {
        for (int i = 0; i < N_SESSION; ++i) {
            fill(tokens[i], i, pf_session_position(sessions[i]), n[i]);
            shares[i] = share_of(sessions[i], tokens[i], n[i], i == 1 ? PF_LOGITS_NONE : PF_LOGITS_ALL, logits[i], n[i]);
        }
        CHECK(pf_step_eval(shares, N_SESSION, &error) == PF_OK);
        for (int i = 0; i < N_SESSION; ++i) {
            CHECK(shares[i].error.code == PF_OK && shares[i].error.message[0] == '\0');
            CHECK(pf_session_waiting(sessions[i]) == n[i]);
            CHECK(pf_session_keep(sessions[i], n[i] - n[i] / 3, &error) == PF_OK);
        }
    }
    for (int i = 0; i < N_SESSION; ++i) {
        pf_session *alone = open_session(CONTEXT);
        const int64_t end = pf_session_position(sessions[i]), last = end - (n[i] - n[i] / 3);
        CHECK(end == 3 * (n[i] - n[i] / 3));
        for (int64_t p = 0; p < end; ++p) {
            const int32_t token = token_at(i, p);
            int64_t done = 0;
            CHECK(pf_session_tokens(sessions[i])[p] == token);
            CHECK(pf_session_eval(alone, &token, 1, PF_LOGITS_LAST, expected, n_vocab, &done, &error) == PF_OK);
            if (p < last || i == 1) continue;
            CHECK(memcmp(expected, logits[i] + (p - last) * n_vocab, (size_t)n_vocab * sizeof *expected) == 0);
        }
        CHECK(pf_session_rollback_limit(alone) == pf_session_rollback_limit(sessions[i]));
        pf_session_close(alone);
        pf_session_close(sessions[i]);
        free(logits[i]);
    }
    free(expected);
}

/* ---- misuse ---- */

/* The step of two shares of which the first is wrong: that one is told so, and the other is evaluated. */
static void expect(pf_step_share wrong, pf_status status, const char *said) {
    pf_session *good = open_session(CONTEXT);
    int32_t token = 3;
    float *logits = room(1);
    pf_step_share shares[2] = {wrong, share_of(good, &token, 1, PF_LOGITS_LAST, logits, 1)};
    pf_error error;
    shares[1].flags = PF_STEP_KEEP;
    const int64_t before = wrong.session != NULL ? pf_session_position(wrong.session) : 0;
    CHECK(pf_step_eval(shares, 2, &error) == status);
    CHECK(error.code == status && strstr(error.message, said) != NULL);
    CHECK(shares[0].error.code == status && strcmp(shares[0].error.message, error.message) == 0);
    CHECK(shares[1].error.code == PF_OK && pf_session_position(good) == 1);
    CHECK(wrong.session == NULL || pf_session_position(wrong.session) == before);
    CHECK(pf_step_eval(&wrong, 1, NULL) == status && strstr(wrong.error.message, said) != NULL);
    pf_session_close(good);
    free(logits);
}

static void misuse(const char *path) {
    pf_session *session = open_session(CONTEXT), *small = open_session(4);
    int32_t tokens[CHUNK + 1] = {1, 2, 3, 4, 5};
    const int32_t outside[2] = {1, (int32_t)n_vocab};
    float *logits = room(2);
    pf_error error;
    pf_step_share share = share_of(session, tokens, 2, PF_LOGITS_ALL, logits, 2);
    CHECK(pf_step_eval(NULL, 1, &error) == PF_ERR_ARGUMENT);
    CHECK(pf_step_eval(&share, 0, &error) == PF_ERR_ARGUMENT);
    pf_step_share bad = share;
    bad.struct_size = 0;
    CHECK(pf_step_eval(&bad, 1, &error) == PF_ERR_ARGUMENT && strstr(error.message, "struct_size") != NULL);
    bad.struct_size = offsetof(pf_step_share, streams_in) - 8; /* smaller than it ever was */
    CHECK(pf_step_eval(&bad, 1, &error) == PF_ERR_ARGUMENT && strstr(error.message, "struct_size") != NULL);

    expect(share_of(NULL, tokens, 1, 0, NULL, 0), PF_ERR_ARGUMENT, "needs a session");
    expect(share_of(session, NULL, 1, 0, NULL, 0), PF_ERR_ARGUMENT, "needs a session");
    expect(share_of(session, tokens, 0, 0, NULL, 0), PF_ERR_ARGUMENT, "at least one token");
    expect(share_of(session, outside, 2, 0, NULL, 0), PF_ERR_ARGUMENT, "outside the vocabulary");
    expect(share_of(session, tokens, 2, 7, logits, 2), PF_ERR_ARGUMENT, "logits mode 7");
    expect(share_of(session, tokens, 2, PF_LOGITS_ALL, logits, 1), PF_ERR_ARGUMENT, "room for");
    expect(share_of(session, tokens, 2, PF_LOGITS_LAST, NULL, 2), PF_ERR_ARGUMENT, "room for");
    expect(share_of(session, tokens, CHUNK + 1, 0, NULL, 0), PF_ERR_ARGUMENT, "the session's chunk");
    expect(share_of(session, tokens, PF_STEP_WAITING + 1, 0, NULL, 0), PF_ERR_ARGUMENT, "PF_STEP_KEEP");
    expect(share_of(small, tokens, 5, 0, NULL, 0), PF_ERR_ARGUMENT, "the session's chunk"); /* of a context of 4 */
    bad = share_of(session, tokens, 1, 0, NULL, 0);
    bad.flags = 6;
    expect(bad, PF_ERR_ARGUMENT, "flags 0x6");
    int64_t done = 0;
    CHECK(pf_session_eval(small, tokens, 2, PF_LOGITS_NONE, NULL, 0, &done, &error) == PF_OK);
    expect(share_of(small, tokens, 3, 0, NULL, 0), PF_ERR_CONTEXT_FULL, "is full at 2");

    /* twice, and of another model */
    pf_step_share pair[2] = {share_of(session, tokens, 1, 0, NULL, 0), share_of(session, tokens, 2, 0, NULL, 0)};
    CHECK(pf_step_eval(pair, 2, &error) == PF_ERR_ARGUMENT && strstr(error.message, "twice") != NULL);
    CHECK(pair[0].error.code == PF_OK && pf_session_waiting(session) == 1);
    pf_model *mine = model, *other = NULL;
    CHECK(pf_model_open(path, NULL, &other, &error) == PF_OK);
    model = other;
    pf_session *foreign = open_session(CONTEXT);
    model = mine;
    pair[0].session = foreign;
    CHECK(pf_session_keep(session, 0, &error) == PF_OK);
    CHECK(pf_step_eval(pair, 2, &error) == PF_ERR_ARGUMENT && strstr(error.message, "several models") != NULL);
    CHECK(pf_session_waiting(foreign) == 1 && pf_session_waiting(session) == 0);
    pf_session_close(foreign);
    pf_model_release(other);

    /* while tokens wait */
    CHECK(pf_step_eval(&share, 1, &error) == PF_OK && pf_session_waiting(session) == 2);
    expect(share, PF_ERR_ARGUMENT, "pf_session_keep first");
    CHECK(pf_session_eval(session, tokens, 1, 0, NULL, 0, &done, &error) == PF_ERR_ARGUMENT);
    CHECK(pf_session_rollback(session, 0, &error) == PF_ERR_ARGUMENT);
    CHECK(pf_session_reuse(session, tokens, 1, &done, &error) == PF_ERR_ARGUMENT);
    CHECK(pf_session_checkpoint(session, &error) == PF_ERR_ARGUMENT);
    CHECK(pf_session_keep(session, 3, &error) == PF_ERR_ARGUMENT && strstr(error.message, "2 wait") != NULL);
    CHECK(pf_session_keep(session, -1, &error) == PF_ERR_ARGUMENT);
    CHECK(pf_session_waiting(session) == 2 && pf_session_position(session) == 0);
    CHECK(pf_session_keep(session, 2, &error) == PF_OK && pf_session_position(session) == 2);
    CHECK(pf_session_keep(session, 0, &error) == PF_OK && pf_session_keep(session, 1, &error) == PF_ERR_ARGUMENT);

    /* a request to cancel is heard once */
    pf_session_cancel(session);
    expect(share_of(session, outside, 2, 0, NULL, 0), PF_ERR_ARGUMENT, "outside"); /* not by what is refused */
    CHECK(pf_step_eval(&share, 1, &error) == PF_ERR_CANCELLED && share.error.code == PF_ERR_CANCELLED);
    CHECK(pf_step_eval(&share, 1, &error) == PF_OK);
    pf_session_close(session);
    pf_session_close(small);
    free(logits);
}

/* A program that was built with a longer struct than this library knows. */
static void later_program(void) {
    struct later {
        pf_step_share known;
        uint64_t more[3];
    } shares[2];
    pf_session *sessions[2] = {open_session(CONTEXT), open_session(CONTEXT)};
    int32_t tokens[2] = {1, 2};
    pf_error error;
    memset(shares, 0xff, sizeof shares);
    for (int i = 0; i < 2; ++i) {
        shares[i].known = share_of(sessions[i], tokens, 1 + i, PF_LOGITS_NONE, NULL, 0);
        shares[i].known.struct_size = sizeof shares[i];
    }
    CHECK(pf_step_eval(&shares[0].known, 2, &error) == PF_OK);
    CHECK(pf_session_waiting(sessions[0]) == 1 && pf_session_waiting(sessions[1]) == 2);
    CHECK(shares[0].more[0] == UINT64_MAX && shares[1].more[2] == UINT64_MAX);
    for (int i = 0; i < 2; ++i) pf_session_close(sessions[i]);
}

/* ---- threads ---- */

static atomic_int n_finished;

typedef struct stepper {
    int first; /* of its two sessions */
    pf_session *sessions[2];
    float *last[2];
} stepper;

static void *take_steps(void *user) {
    stepper *s = user;
    for (int step = 0; step < 12; ++step) {
        int32_t tokens[2][8];
        pf_step_share shares[2];
        for (int i = 0; i < 2; ++i) {
            fill(tokens[i], s->first + i, pf_session_position(s->sessions[i]), 1 + step % 3 + i);
            shares[i] = share_of(s->sessions[i], tokens[i], 1 + step % 3 + i, PF_LOGITS_LAST, s->last[i], 1);
        }
        (void)pf_step_eval(shares, 2, NULL);
        for (int i = 0; i < 2; ++i) {
            CHECK(shares[i].error.code == PF_OK || shares[i].error.code == PF_ERR_CANCELLED);
            CHECK(pf_session_keep(s->sessions[i], pf_session_waiting(s->sessions[i]), NULL) == PF_OK);
        }
    }
    atomic_fetch_add(&n_finished, 1);
    return NULL;
}

/* Two threads step sessions of their own, while another one cancels now this session and now that. */
static void race(void) {
    stepper steppers[2];
    pthread_t threads[2];
    for (int t = 0; t < 2; ++t) {
        steppers[t].first = 2 * t;
        for (int i = 0; i < 2; ++i) {
            steppers[t].sessions[i] = open_session(CONTEXT);
            steppers[t].last[i] = room(1);
        }
    }
    for (int t = 0; t < 2; ++t) CHECK(pthread_create(&threads[t], NULL, take_steps, &steppers[t]) == 0);
    for (int i = 0; atomic_load(&n_finished) < 2; ++i) {
        struct timespec pause = {0, 3000000};
        pf_session_cancel(steppers[i / 2 % 2].sessions[i % 2]);
        nanosleep(&pause, NULL);
    }
    for (int t = 0; t < 2; ++t) CHECK(pthread_join(threads[t], NULL) == 0);
    for (int t = 0; t < 2; ++t) {
        for (int i = 0; i < 2; ++i) {
            /* What was left out by a cancelled step is evaluated now: the same logits as alone in the end. */
            pf_session *session = steppers[t].sessions[i], *alone = open_session(CONTEXT);
            const int64_t position = pf_session_position(session);
            int32_t tokens[CHUNK];
            float *expected = room(1), *logits = room(1);
            int64_t done = 0;
            fill(tokens, 2 * t + i, 0, position + 1);
            pf_status status = PF_ERR_CANCELLED;
            while (status == PF_ERR_CANCELLED) { /* a late request */
                status = pf_session_eval(session, tokens + position, 1, PF_LOGITS_LAST, logits, n_vocab, &done, NULL);
            }
            CHECK(status == PF_OK);
            CHECK(pf_session_eval(alone, tokens, position + 1, PF_LOGITS_LAST, expected, n_vocab, &done, NULL) == PF_OK);
            CHECK(memcmp(expected, logits, (size_t)n_vocab * sizeof *expected) == 0);
            pf_session_close(alone);
            pf_session_close(session);
            free(expected);
            free(logits);
            free(steppers[t].last[i]);
        }
    }
}

#if defined(STEPS_OUT_OF_MEMORY)
/* ---- out of memory ---- */

/* Linked in the place of pf_arena_alloc() (--wrap). Refuses once the arena gives out no more allocations than these. */
void *__wrap_pf_arena_alloc(void *arena, size_t bytes);
void *__real_pf_arena_alloc(void *arena, size_t bytes);
static int64_t n_until_refusal = -1;

void *__wrap_pf_arena_alloc(void *arena, size_t bytes) {
    if (n_until_refusal == 0) {
        n_until_refusal = -1;
        return NULL;
    }
    if (n_until_refusal > 0) --n_until_refusal;
    return __real_pf_arena_alloc(arena, bytes);
}

/* A step that finds no scratch for all takes its sessions one by one: nobody notices. */
static void out_of_memory(void) {
    float *expected[2] = {room(1), room(1)}, *logits = room(2);
    for (int64_t refused = -1; refused < 400; refused += refused < 5 ? 1 : 37) {
        pf_session *sessions[2] = {open_session(CONTEXT), open_session(CONTEXT)};
        int32_t tokens[2][3];
        pf_step_share shares[2];
        for (int i = 0; i < 2; ++i) {
            fill(tokens[i], i, 0, 3);
            shares[i] = share_of(sessions[i], tokens[i], 3, PF_LOGITS_LAST, refused < 0 ? expected[i] : logits + i * n_vocab, 1);
        }
        n_until_refusal = refused;
        CHECK(pf_step_eval(shares, 2, NULL) == PF_OK);
        for (int i = 0; i < 2; ++i) {
            CHECK(pf_session_waiting(sessions[i]) == 3);
            CHECK(refused < 0 || memcmp(logits + i * n_vocab, expected[i], (size_t)n_vocab * sizeof *logits) == 0);
            pf_session_close(sessions[i]);
        }
        CHECK(refused < 0 || n_until_refusal != refused);
        CHECK(refused > 5 || n_until_refusal == -1); /* it was refused */
        n_until_refusal = -1;
    }
    free(expected[0]);
    free(expected[1]);
    free(logits);
}
#endif

int main(int argc, char **argv) {
    CHECK(argc == 3);
    pf_error error;
    pf_model_params params;
    pf_model_params_init(&params);
    params.n_threads = 2;
    params.device = "cpu";
    CHECK(pf_model_open(argv[1], &params, &model, &error) == PF_OK);
    pf_model_info info = {.struct_size = sizeof info};
    CHECK(pf_model_get_info(model, &info, &error) == PF_OK);
    n_vocab = info.n_vocab;
    if (strcmp(argv[2], "use") == 0) compare_with_alone();
    else if (strcmp(argv[2], "misuse") == 0) misuse(argv[1]);
    else if (strcmp(argv[2], "later") == 0) later_program();
    else if (strcmp(argv[2], "race") == 0) race();
#if defined(STEPS_OUT_OF_MEMORY)
    else if (strcmp(argv[2], "memory") == 0) out_of_memory();
#endif
    else CHECK(!"a part");
    pf_model_release(model);
    return 0;
}
