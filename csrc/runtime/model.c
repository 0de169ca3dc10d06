#include "runtime/model.h"

#include "base/cpus.h"
#include "base/memory.h"
#include "base/params.h"
#include "model/draft_head.h"
#include "text/chat.h"

#include <string.h>

void pf_model_params_init(pf_model_params *params) {
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
    params->precision = PF_PRECISION_FAST;
    params->n_gpu_layers = PF_GPU_AUTO;
    params->n_cpu_moe = PF_GPU_AUTO;
}

static pf_status copy_params(const pf_model_params *given, pf_model_params *out, pf_error *err) {
    pf_model_params_init(out);
    if (!pf_params_take(out, sizeof *out, given)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "model parameters without struct_size: call pf_model_params_init first");
    }
    if (out->precision < PF_PRECISION_FAST || out->precision > PF_PRECISION_INT8) {
        return pf_fail(err, PF_ERR_ARGUMENT, "precision %d is unknown: use fast (0), exact (1) or int8 (2)",
                       out->precision);
    }
    if (out->n_threads < 0 || out->n_threads > 1024) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%d threads: use 1 to 1024, or 0 for one per core", out->n_threads);
    }
    if (out->n_gpu_layers < PF_GPU_AUTO || out->n_cpu_moe < PF_GPU_AUTO) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%d layers on the device, experts of %d on the CPU: use 0 or more, or -1 for "
                       "as many as fit", out->n_gpu_layers, out->n_cpu_moe);
    }
    if (out->stream_experts < PF_STREAM_AUTO || out->stream_experts > PF_STREAM_ON) {
        return pf_fail(err, PF_ERR_ARGUMENT, "stream_experts %d is unknown: use auto (0), off (1) or on (2)",
                       out->stream_experts);
    }
    if (out->chat_release < PF_CHAT_RELEASE_OF_FILE || out->chat_release > PF_CHAT_RELEASE_0731) {
        return pf_fail(err, PF_ERR_ARGUMENT, "chat_release %d is unknown: use the file's (0), preview (1) or "
                       "0731 (2)", out->chat_release);
    }
    return PF_OK;
}

static uint64_t weight_bytes(const pf_gguf *gguf) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < pf_gguf_n_tensors(gguf); ++i) sum += pf_gguf_tensor_at(gguf, i)->bytes;
    return sum;
}

/* The layers that the parameters name. */
static pf_status take_range(const pf_config *config, const pf_model_params *params, pf_layer_range *out, pf_error *err) {
    const pf_layer_range range = {params->first_layer, params->end_layer != 0 ? params->end_layer : config->n_layer};
    const char *device = params->device;
    if (range.first < 0 || range.first >= range.end || range.end > config->n_layer) {
        return pf_fail(err, PF_ERR_ARGUMENT, "layers [%d, %d) are no range of this model: give a first one and an end within "
                       "0 and %d", params->first_layer, params->end_layer, config->n_layer);
    }
    if (!pf_range_is_whole(config, range) && device != NULL && strcmp(device, "auto") != 0 && strcmp(device, "cpu") != 0) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "a range of layers is computed by the processor: open it with device \"cpu\"");
    }
    *out = range;
    return PF_OK;
}

/* What pf_gguf_leave_out() asks of a stage. */
typedef struct stage_need {
    const pf_config *config;
    pf_layer_range range;
    bool drafts;
} stage_need;

static bool is_needed(void *user, pf_gguf_string name) {
    const stage_need *need = user;
    return pf_range_has_tensor(need->config, need->range, need->drafts, name);
}

static bool is_of_no_file(void *user, pf_gguf_string name) {
    (void)user;
    (void)name;
    return false;
}

/* From then on other stages' tensors are neither read nor counted. */
static void leave_out_others(pf_model *model, pf_layer_range range) {
    const pf_config *config = &model->net.config;
    stage_need need = {config, range, config->n_nextn > 0 || model->draft_gguf != NULL || pf_dspark_is_in(model->gguf)};
    if (pf_range_is_whole(config, range)) return;
    pf_gguf_leave_out(model->gguf, is_needed, &need);
    if (model->draft_gguf != NULL && !pf_range_has_head(config, range)) {
        pf_gguf_leave_out(model->draft_gguf, is_of_no_file, NULL);
    }
}

/* A file beside the model's that drafts for it. *mtp: the configuration, *is_mtp, of an MTP block, or of nothing where it
 * holds DSpark stages. */
static pf_status open_drafter(pf_model *model, const char *path, pf_config *mtp, bool *is_mtp, pf_error *err) {
    PF_TRY(pf_gguf_open(path, &model->draft_gguf, err));
    *is_mtp = !pf_dspark_is_in(model->draft_gguf);
    return *is_mtp ? pf_config_read(model->draft_gguf, mtp, err) : PF_OK;
}

static pf_status open_network(pf_model *model, const pf_model_params *params, pf_error *err) {
    pf_config *config = &model->net.config, mtp_config = {0};
    const char *draft_path = params->mtp_path;
    bool is_mtp = true;
    pf_layer_range range;
    PF_TRY(pf_config_read(model->gguf, config, err));
    if (draft_path != NULL) PF_TRY(open_drafter(model, draft_path, &mtp_config, &is_mtp, err));
    if (config->n_nextn > 0 && pf_gguf_find_tensor(model->gguf, "blk.0.attn_norm.weight") == NULL) {
        return pf_fail(err, PF_ERR_UNSUPPORTED,
                       "this file holds only the model's MTP block: open the main file and give this one beside it");
    }
    PF_TRY(take_range(config, params, &range, err));
    leave_out_others(model, range);
    PF_TRY(pf_weights_load(model->gguf, config, range, model->draft_gguf, is_mtp ? &mtp_config : NULL, &model->net.weights,
                           err));
    const size_t half = (size_t)config->rope_dim / 2;
    model->net.rope_freq = pf_calloc(half, sizeof(double));
    model->net.rope_freq_compressed = pf_calloc(half, sizeof(double));
    if (model->net.rope_freq == NULL || model->net.rope_freq_compressed == NULL) {
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening the model");
    }
    pf_rope_frequencies(&config->rope, config->rope_dim, model->net.rope_freq);
    const bool compressed = config->rope_compressed.theta > 0.0; /* 0: no layer has compressed rows */
    pf_rope_frequencies(compressed ? &config->rope_compressed : &config->rope, config->rope_dim,
                        model->net.rope_freq_compressed);
    return PF_OK;
}

static pf_status copy_name(pf_model *model, pf_error *err) {
    pf_gguf_string name = {"", 0};
    (void)pf_gguf_get_string(model->gguf, "general.name", &name);
    model->name = pf_calloc(1, (size_t)name.len + 1);
    if (model->name == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening the model");
    memcpy(model->name, name.data, (size_t)name.len);
    return PF_OK;
}

static pf_status open_tokenizer(pf_model *model, pf_error *err) {
    PF_TRY(pf_tokenizer_open(model->gguf, &model->tokenizer, err));
    if (model->tokenizer != NULL && pf_tokenizer_n_tokens(model->tokenizer) > model->net.config.n_vocab) {
        return pf_fail(err, PF_ERR_FORMAT, "the tokenizer has %d tokens, the model %d: convert the checkpoint again",
                       pf_tokenizer_n_tokens(model->tokenizer), model->net.config.n_vocab);
    }
    return PF_OK;
}

static pf_status open_pool(pf_model *model, const pf_model_params *params, pf_error *err) {
    const int threads = params->n_threads > 0 ? params->n_threads : pf_cpu_count();
    model->pool = pf_pool_new(threads);
    if (model->pool == NULL) {
        return pf_fail(err, PF_ERR_MEMORY,
                       "cannot start %d threads: ask for fewer, or allow more memory (ulimit -v) or processes (ulimit -u)",
                       threads);
    }
    if (params->pin_threads && !pf_pool_pin(model->pool)) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "this system does not keep threads on processors: do without pinning");
    }
    return PF_OK;
}

static pf_status open_parts(pf_model *model, const char *path, const pf_model_params *params, pf_error *err) {
    PF_TRY(pf_cpu_backend(params->cpu_isa, &model->backend, err));
    PF_TRY(pf_gguf_open(path, &model->gguf, err));
    model->directory_bytes = pf_gguf_file_bytes(model->gguf) - weight_bytes(model->gguf);
    if (params->overlay_path != NULL) PF_TRY(pf_gguf_overlay(model->gguf, params->overlay_path, err));
    PF_TRY(open_network(model, params, err));
    PF_TRY(open_pool(model, params, err));
    if (pf_range_is_whole(&model->net.config, model->net.weights.range)) PF_TRY(pf_model_place(model, params, err));
    if (params->expert_budget > 0) {
        PF_TRY(pf_expert_stream_new(&model->net.config, &model->net.weights, params->expert_budget,
                                    &model->net.experts, err));
    }
    PF_TRY(open_tokenizer(model, err));
    PF_TRY(copy_name(model, err));
    pf_log_line(&model->log, PF_LOG_INFO, "%s: %d layers, %lld tensors, %d threads, %s kernels", path,
                model->net.config.n_layer, (long long)pf_gguf_n_tensors(model->gguf), pf_pool_threads(model->pool),
                model->backend->name);
    return PF_OK;
}

uint64_t pf_model_draft_bytes(const pf_model *model, int32_t n_rows) {
    return model != NULL ? pf_draft_head_bytes(&model->net, n_rows) : 0;
}

static pf_status make_draft_head(pf_model *model, int32_t n_rows, pf_arena *arena) {
    pf_exec exec = {.backend = model->backend, .pool = model->pool, .arena = arena};
    pf_draft_head *head = NULL;
    const pf_status status = arena != NULL ? pf_draft_head_new(&exec, &model->net, n_rows, &head) : PF_ERR_MEMORY;
    if (status == PF_OK) atomic_store(&model->draft_head, (uintptr_t)head);
    return status;
}

pf_status pf_model_prepare_drafts(pf_model *model, int32_t n_rows, pf_error *err) {
    if (model == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_prepare_drafts: a model is needed");
    if (pf_draft_head_bytes(&model->net, n_rows) == 0) return PF_OK;
    pf_status status = PF_OK;
    pf_mutex_lock(&model->draft_lock);
    if (atomic_load(&model->draft_head) == 0) {
        pf_arena *arena = pf_arena_new();
        status = make_draft_head(model, n_rows, arena);
        pf_arena_delete(arena);
    }
    pf_mutex_unlock(&model->draft_lock);
    return status == PF_OK ? PF_OK : pf_fail(err, status, "no memory for a small copy of the head to draft with: draft "
                                                          "with the head itself, or with n-grams");
}

static void delete_model(pf_model *model) {
    pf_draft_head_delete((pf_draft_head *)atomic_load(&model->draft_head));
    if (model->has_draft_lock) pf_mutex_destroy(&model->draft_lock);
    pf_pool_delete(model->pool);
    pf_tokenizer_close(model->tokenizer);
    pf_expert_stream_delete(model->net.experts);
    if (model->link != NULL) pf_link_lock(model->link);
    pf_transfer_delete(model->transfer);
    pf_expert_upload_delete(model->net.upload);
    pf_hot_experts_delete(model->net.hot);
    if (model->link != NULL) pf_link_unlock(model->link);
    pf_link_close(model->link);
    pf_weights_free(&model->net.weights);
    pf_free(model->net.rope_freq);
    pf_free(model->net.rope_freq_compressed);
    pf_free(model->name);
    pf_gguf_close(model->draft_gguf);
    pf_gguf_close(model->gguf);
    pf_free(model);
}

pf_status pf_model_open(const char *path, const pf_model_params *given, pf_model **out, pf_error *err) {
    pf_model_params params;
    if (path == NULL || out == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_open: path and out are needed");
    PF_TRY(copy_params(given, &params, err));
    pf_model *model = pf_calloc(1, sizeof *model);
    if (model == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening the model");
    atomic_init(&model->references, 1);
    atomic_init(&model->draft_head, 0);
    model->has_draft_lock = pf_mutex_init(&model->draft_lock);
    model->precision = params.precision;
    model->chat_release = params.chat_release;
    model->log = (pf_log){params.log, params.log_user};
    const pf_status status = model->has_draft_lock ? open_parts(model, path, &params, err)
                                                   : pf_fail(err, PF_ERR_MEMORY, "out of memory while opening the model");
    if (status != PF_OK) {
        delete_model(model);
        return status;
    }
    *out = model;
    return PF_OK;
}

pf_model *pf_model_retain(pf_model *model) {
    (void)atomic_fetch_add_explicit(&model->references, 1, memory_order_relaxed);
    return model;
}

void pf_model_release(pf_model *model) {
    if (model != NULL && atomic_fetch_sub_explicit(&model->references, 1, memory_order_acq_rel) == 1) {
        delete_model(model);
    }
}

/* 0 for one that is not there. */
static uint64_t matrix_bytes(const pf_weight *w) {
    if (w->data == NULL) return 0;
    const uint64_t n = (uint64_t)w->count, scale = w->scale_f32 ? sizeof(float) : 1;
    const uint64_t scales = w->scale != NULL ? (uint64_t)(w->scale_rows * w->scale_cols) * scale : 0;
    return n * ((uint64_t)w->rows * (uint64_t)w->row_bytes + scales);
}

/* Of a layer's matrices; the vectors and small tables beside them do not count. */
static uint64_t layer_bytes(const pf_layer_weights *w) {
    const pf_weight *const parts[] = {
        &w->attn.q_a, &w->attn.q_b, &w->attn.kv, &w->attn.out_a, &w->attn.out_b, &w->moe.router, &w->moe.gate, &w->moe.up,
        &w->moe.down, &w->moe.shared_gate, &w->moe.shared_up, &w->moe.shared_down,
    };
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; ++i) sum += matrix_bytes(parts[i]);
    return sum;
}

static uint64_t draft_bytes(const pf_weights *w) {
    const pf_draft_shape shape = pf_weights_draft_shape(w);
    const pf_weight *const parts[] = {&w->mtp.eh_proj, &w->mtp.e_proj, &w->mtp.h_proj, &w->dspark.main_proj,
                                      &w->dspark.markov_w1, &w->dspark.markov_w2};
    uint64_t sum = 0;
    for (int32_t i = 0; i < shape.n_layer; ++i) sum += layer_bytes(pf_weights_draft_layer(w, i));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; ++i) sum += matrix_bytes(parts[i]);
    return sum;
}

static int32_t drafts_of(const pf_weights *w) {
    if (w->dspark.config.n_stage > 0) return PF_DRAFTS_DSPARK;
    return w->mtp.present ? PF_DRAFTS_MTP : PF_DRAFTS_NONE;
}

pf_status pf_model_get_info(const pf_model *model, pf_model_info *info, pf_error *err) {
    if (model == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_info: a model is needed");
    const pf_config *c = &model->net.config;
    const uint64_t of_drafts = draft_bytes(&model->net.weights);
    const pf_model_info full = {
        .precision = model->precision, .n_threads = pf_pool_threads(model->pool),
        .n_vocab = c->n_vocab, .n_embd = c->n_embd, .n_layer = c->n_layer, .n_head = c->n_head,
        .head_dim = c->head_dim, .rope_dim = c->rope_dim, .window = c->window, .n_expert = c->n_expert,
        .n_expert_used = c->n_expert_used, .n_ff_expert = c->n_ff, .n_hash_layer = c->n_hash_layer,
        .index_topk = c->index_topk, .n_stream = c->n_stream, .has_mtp = model->net.weights.mtp.present,
        .bos_token = model->tokenizer != NULL ? pf_tokenizer_bos(model->tokenizer) : -1,
        .eos_token = model->tokenizer != NULL ? pf_tokenizer_eos(model->tokenizer) : -1,
        .n_ctx_train = c->n_ctx_train, .n_tensors = (int64_t)pf_gguf_n_tensors(model->gguf),
        .file_bytes = pf_gguf_file_bytes(model->gguf), .weight_bytes = weight_bytes(model->gguf),
        .name = model->name, .profile = c->native ? "native" : "compat", .cpu_isa = model->backend->name,
        .widened_bytes = model->net.weights.widened.bytes, .drafts = drafts_of(&model->net.weights),
        .draft_bytes = of_drafts, .draft_file_bytes = model->draft_gguf != NULL ? of_drafts : 0,
        .draft_most = model->net.weights.dspark.config.block,
        .first_layer = model->net.weights.range.first, .end_layer = model->net.weights.range.end,
        .directory_bytes = model->directory_bytes,
    };
    if (!pf_params_give(info, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_info: set info->struct_size first");
    }
    return PF_OK;
}

int32_t pf_model_layer_ratio(const pf_model *model, int32_t layer) {
    const bool known = layer >= 0 && layer < model->net.config.n_layer;
    return known ? model->net.config.ratio[layer] : -1;
}

const char *pf_model_meta_string(const pf_model *model, const char *key, size_t *len) {
    pf_gguf_string value;
    if (!pf_gguf_get_string(model->gguf, key, &value)) return NULL;
    *len = (size_t)value.len;
    return value.data;
}

int32_t pf_model_meta_number(const pf_model *model, const char *key, double *out) {
    return pf_gguf_get_number(model->gguf, key, out);
}

static pf_status need_tokenizer(const pf_model *model, pf_error *err) {
    if (model->tokenizer != NULL) return PF_OK;
    return pf_fail(err, PF_ERR_UNSUPPORTED, "the file holds no tokenizer: convert a checkpoint with tokenizer.json");
}

pf_status pf_tokenize(const pf_model *model, const char *text, size_t len, uint32_t flags, int32_t *tokens,
                      int64_t capacity, int64_t *n_tokens, pf_error *err) {
    PF_TRY(need_tokenizer(model, err));
    return pf_tokenizer_encode(model->tokenizer, text, len, flags, tokens, capacity, n_tokens, err);
}

pf_status pf_detokenize(const pf_model *model, const int32_t *tokens, int64_t n_tokens, uint32_t flags, char *out,
                        size_t capacity, size_t *len, pf_error *err) {
    PF_TRY(need_tokenizer(model, err));
    return pf_tokenizer_decode(model->tokenizer, tokens, n_tokens, flags, out, capacity, len, err);
}

pf_status pf_chat_tokenize(const pf_model *model, const pf_chat_message *messages, int64_t n_messages, int32_t think,
                           int32_t *tokens, int64_t capacity, int64_t *n_tokens, pf_error *err) {
    PF_TRY(need_tokenizer(model, err));
    const pf_chat_release release = model->chat_release == PF_CHAT_RELEASE_OF_FILE ? pf_chat_release_of(model->gguf)
                                    : model->chat_release == PF_CHAT_RELEASE_0731  ? PF_RELEASE_0731
                                                                                   : PF_RELEASE_PREVIEW;
    return pf_chat_encode(model->tokenizer, release, messages, n_messages, think, tokens, capacity, n_tokens, err);
}

int32_t pf_token_id(const pf_model *model, const char *text, size_t len) {
    return model->tokenizer != NULL ? pf_tokenizer_token_id(model->tokenizer, text, len) : -1;
}

pf_status pf_model_get_expert_reads(const pf_model *model, pf_expert_reads *reads, pf_error *err) {
    const pf_expert_counts counts =
        model->net.experts != NULL ? pf_expert_stream_counts(model->net.experts) : (pf_expert_counts){0, 0, 0};
    const pf_expert_reads full = {
        .n_wanted = counts.wanted, .n_read = counts.read, .bytes_read = counts.bytes_read,
        .expert_bytes = pf_expert_stream_total(&model->net.config, &model->net.weights),
    };
    if (!pf_params_give(reads, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_expert_reads: set reads->struct_size first");
    }
    return PF_OK;
}

pf_status pf_model_get_expert_uploads(const pf_model *model, pf_expert_uploads *uploads, pf_error *err) {
    const pf_expert_upload *upload = model != NULL ? model->net.upload : NULL;
    const pf_upload_counts counts = upload != NULL ? pf_expert_upload_counts(upload) : (pf_upload_counts){0, 0, 0};
    const pf_expert_uploads full = {
        .n_sent = counts.on_device, .n_kept = counts.on_host, .bytes_sent = counts.bytes,
    };
    if (model == NULL || !pf_params_give(uploads, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_expert_uploads: a model is needed, and uploads->struct_size");
    }
    return PF_OK;
}

pf_status pf_model_get_hot_experts(const pf_model *model, pf_hot_expert_info *info, pf_error *err) {
    const pf_hot_experts *hot = model != NULL ? model->net.hot : NULL;
    const pf_hot_counts counts = hot != NULL ? pf_hot_experts_counts(hot) : (pf_hot_counts){0};
    const pf_hot_expert_info full = {
        .n_slot = counts.slots, .n_hit = counts.hits, .n_missed = counts.misses, .n_brought = counts.brought,
        .n_replaced = counts.replaced, .bytes_sent = counts.bytes,
    };
    if (model == NULL || !pf_params_give(info, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_hot_experts: a model is needed, and info->struct_size");
    }
    return PF_OK;
}
