#include "arch/dspark.h"

#include "arch/keys.h"

#include <stdio.h>
#include <string.h>

/* A program's words. '#' in a name is the stage, or the last stage where there is only one of them. */
typedef struct pf_dspark_words {
    const char *stage;
    const char *parts[PF_DSPARK_N_PART];
    const char *block, *noise, *targets;  /* keys */
    int32_t first_layer;                  /* what the targets' numbers begin with */
} pf_dspark_words;

/* Ours, which is ds4's; ds4's earlier ones; llama.cpp's. */
static const pf_dspark_words dialects[] = {
    {"dspark.#.",
     {"dspark.main_proj", "dspark.main_norm", "dspark.norm", "dspark.hc_head", "dspark.markov_w1", "dspark.markov_w2",
      "dspark.conf_proj"},
     PF_ARCH ".dspark.block_size", PF_ARCH ".dspark.noise_token_id", PF_ARCH ".dspark.target_layers", 0},
    {"mtp.#.",
     {"mtp.0.main_proj", "mtp.0.main_norm", "mtp.#.norm", "mtp.#.hc_head", "mtp.#.markov_head.markov_w1",
      "mtp.#.markov_head.markov_w2", "mtp.#.confidence_head.proj"},
     "dspark.block_size", "dspark.noise_token_id", "dspark.target_layer_ids", 0},
    {"blk.#.",
     {"fc", "enc.output_norm", "output_norm", "output_hc", "markov_w1", "markov_w2", "conf_proj"},
     "dflash.block_size", "tokenizer.ggml.mask_token_id", "dflash.target_layers", 1},
};

/* name with '#' replaced by a number. */
static const char *numbered(const char *name, int32_t number, char out[PF_DSPARK_NAME_BYTES]) {
    const char *mark = strchr(name, '#');
    if (mark == NULL) (void)snprintf(out, PF_DSPARK_NAME_BYTES, "%s", name);
    else (void)snprintf(out, PF_DSPARK_NAME_BYTES, "%.*s%d%s", (int)(mark - name), name, number, mark + 1);
    return out;
}

const char *pf_dspark_name(const pf_dspark_config *d, pf_dspark_part part, char out[PF_DSPARK_NAME_BYTES]) {
    return numbered(d->words->parts[part], d->n_stage - 1, out);
}

const char *pf_dspark_stage(const pf_dspark_config *d, int32_t stage, char out[PF_DSPARK_NAME_BYTES]) {
    return numbered(d->words->stage, stage, out);
}

static const pf_gguf_tensor *find(const pf_gguf *gguf, const char *begin, const char *end) {
    char full[PF_DSPARK_NAME_BYTES + 32];
    (void)snprintf(full, sizeof full, "%s%s", begin, end);
    return pf_gguf_find_tensor(gguf, full);
}

/* How many stages there are, by these words. Experts of which each is a tensor of its own, as older native files have
 * them, cannot be run. */
static int32_t count_stages(const pf_gguf *gguf, const pf_dspark_words *words) {
    char name[PF_DSPARK_NAME_BYTES];
    int32_t n = 0;
    if (find(gguf, words->parts[PF_DSPARK_MAIN_PROJ], ".weight") == NULL) return 0;
    while (n <= PF_MAX_STAGES && find(gguf, numbered(words->stage, n, name), "ffn_gate_exps.weight") != NULL) ++n;
    return n;
}

static const pf_dspark_words *words_of(const pf_gguf *gguf) {
    for (size_t i = 0; i < sizeof dialects / sizeof *dialects; ++i) {
        if (count_stages(gguf, &dialects[i]) > 0) return &dialects[i];
    }
    return NULL;
}

bool pf_dspark_is_in(const pf_gguf *gguf) { return words_of(gguf) != NULL; }

static pf_status read_number(const pf_gguf *gguf, const char *key, int32_t low, int32_t high, int32_t *out,
                             pf_error *err) {
    double value = 0.0;
    if (!pf_gguf_get_number(gguf, key, &value)) {
        return pf_fail(err, PF_ERR_FORMAT, "the file lacks the key %s of its DSpark stages: take another file, or convert "
                       "the checkpoint again", key);
    }
    if (!(value >= low && value <= high) || value != (double)(int32_t)value) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "%s = %g is outside the supported range %d..%d", key, value, low, high);
    }
    *out = (int32_t)value;
    return PF_OK;
}

static pf_status read_targets(const pf_gguf *gguf, const pf_config *c, pf_dspark_config *d, pf_error *err) {
    const char *key = d->words->targets;
    uint64_t n = 0;
    if (!pf_gguf_array_len(gguf, key, &n) || n < 1 || n > PF_MAX_TARGETS) {
        return pf_fail(err, PF_ERR_FORMAT, "the key %s is no list of 1 to %d layers: take another file, or convert the "
                       "checkpoint again", key, PF_MAX_TARGETS);
    }
    d->n_target = (int32_t)n;
    for (int32_t i = 0; i < d->n_target; ++i) {
        int64_t layer = -1;
        if (!pf_gguf_array_i64(gguf, key, (uint64_t)i, &layer) || layer < d->words->first_layer ||
            layer - d->words->first_layer >= c->n_layer) {
            return pf_fail(err, PF_ERR_FORMAT, "the key %s names layer %lld of a model of %d: the drafter belongs to another "
                           "model", key, (long long)layer, c->n_layer);
        }
        d->target[i] = (int32_t)layer - d->words->first_layer;
    }
    return PF_OK;
}

/* Drafters of the same names that compute something else. */
static pf_status check_kind(const pf_gguf *gguf, const pf_dspark_config *d, pf_error *err) {
    bool from_anchor = true;
    if (pf_gguf_get_bool(gguf, "dflash.sample_from_anchor", &from_anchor) && !from_anchor) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "dflash.sample_from_anchor is false, and only drafters whose first row is the "
                       "anchor's are known: take another draft file");
    }
    if (d->n_stage > PF_MAX_STAGES) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "the drafter has more than %d stages: take another draft file", PF_MAX_STAGES);
    }
    return PF_OK;
}

pf_status pf_dspark_read(const pf_gguf *gguf, const pf_config *c, pf_dspark_config *out, pf_error *err) {
    pf_dspark_config d = {.words = words_of(gguf)};
    char name[PF_DSPARK_NAME_BYTES];
    if (d.words == NULL) {
        *out = d;
        return PF_OK;
    }
    d.n_stage = count_stages(gguf, d.words);
    PF_TRY(check_kind(gguf, &d, err));
    PF_TRY(read_number(gguf, d.words->block, 1, PF_MAX_DRAFT_BLOCK, &d.block, err));
    PF_TRY(read_number(gguf, d.words->noise, 0, c->n_vocab - 1, &d.noise_token, err));
    PF_TRY(read_targets(gguf, c, &d, err));
    const pf_gguf_tensor *w1 = find(gguf, pf_dspark_name(&d, PF_DSPARK_MARKOV_W1, name), ".weight");
    if (w1 == NULL || w1->ne[0] < 1 || w1->ne[0] > (1 << 16)) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "the drafter has no %s.weight, and only DSpark's plain Markov head is known: "
                       "take another draft file", name);
    }
    d.rank = (int32_t)w1->ne[0];
    d.has_confidence = find(gguf, pf_dspark_name(&d, PF_DSPARK_CONFIDENCE, name), ".weight") != NULL;
    *out = d;
    return PF_OK;
}
