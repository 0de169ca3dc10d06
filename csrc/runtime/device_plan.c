/* Which layers a device computes: by the caller's word, or as many as fit. */
#include "runtime/evaluation.h"

#include "base/arith.h"
#include "base/params.h"
#include "runtime/self_test.h"
#include "runtime/session.h"

#include <stdio.h>
#include <string.h>

enum { KIND_BYTES = 16 };

/* Left free on the device: what its runtime and the screen take later. */
static const uint64_t least_reserve = (uint64_t)256 << 20;

/* What a placement takes of the device. */
typedef struct demand {
    uint64_t weights, cache, buffers, stream, hot;
} demand;

/* Without hot experts, which have what the others leave. */
static uint64_t sum_of(const demand *d) { return d->weights + d->cache + d->buffers + d->stream; }

typedef struct planner {
    pf_model *model;
    pf_cache shape;      /* of the session that there shall be room for */
    pf_cache_formats formats;
    uint64_t capacity;   /* bytes that are filled, */
    uint64_t most;       /* and that a caller's numbers may take */
    int32_t n_layer;
    int32_t most_layers; /* that are chosen without the caller's word, the head being the first of them */
    pf_placement allowed; /* what is there at most: of numbers that the caller leaves open, what the device has kernels for */
    pf_error *err;
} planner;

/* "cuda:1" */
static pf_status parse_device(const char *device, char kind[static KIND_BYTES], int32_t *out, pf_error *err) {
    const char *colon = strchr(device, ':');
    const size_t length = colon != NULL ? (size_t)(colon - device) : strlen(device);
    int32_t index = 0;
    if (length >= KIND_BYTES) return pf_fail(err, PF_ERR_DEVICE, "device \"%s\" is unknown: use cpu or cuda", device);
    memcpy(kind, device, length);
    kind[length] = '\0';
    if (strcmp(kind, "cuda") != 0) {
        return pf_fail(err, PF_ERR_DEVICE, "device \"%s\" is unknown: use cpu or cuda", device);
    }
    if (colon != NULL) {
        const char *digit = colon + 1;
        while (*digit >= '0' && *digit <= '9' && digit - colon < 3) index = 10 * index + *digit++ - '0';
        if (digit == colon + 1 || *digit != '\0') {
            return pf_fail(err, PF_ERR_DEVICE, "device \"%s\" is unknown: write a number from 0 to 99 after the colon",
                           device);
        }
    }
    *out = index;
    return PF_OK;
}

/* Opens a device that computes as the processor does. */
static pf_status open_link(const char *device, pf_link **out, pf_error *err) {
    char kind[KIND_BYTES];
    int32_t index = 0;
    pf_link *link;
    PF_TRY(parse_device(device, kind, &index, err));
    PF_TRY(pf_link_open(kind, index, &link, err));
    pf_error why = {0};
    pf_link_lock(link);
    pf_status status = pf_self_test(link, index, &why);
    pf_link_unlock(link);
    if (status == PF_OK) status = pf_link_look_again(link, &why); /* what has run once has its code loaded */
    if (status != PF_OK) {
        pf_link_close(link);
        return pf_fail(err, status, "device \"%s\" cannot be used, do without it: %s", device, why.message);
    }
    *out = link;
    return PF_OK;
}

/* Whether layers on the device have their routed experts on the host. */
static bool has_experts_away(const pf_placement *placement) { return placement->first_experts > placement->first_layer; }

static pf_status find_demand(planner *p, const pf_placement *placement, demand *out) {
    pf_model *model = p->model;
    uint64_t host = 0;
    *out = (demand){.weights = pf_placement_bytes(&model->net.config, &model->net.weights, placement)};
    if (out->weights == 0) return PF_OK;
    for (int32_t l = placement->first_layer; l < p->n_layer; ++l) {
        out->cache += pf_cache_layer_bytes(&model->net.config, l, p->formats, p->shape.n_ctx, p->shape.n_chunk);
    }
    pf_placement_mark(&model->net.config, &model->net.weights, placement);
    if (model->net.upload != NULL && has_experts_away(placement)) {
        out->stream = pf_expert_upload_bytes(model->net.upload);
    }
    if (model->net.hot != NULL) out->hot = pf_hot_experts_bytes(model->net.hot);
    const pf_status status = pf_measure_scratch(model, &p->shape, &host, &out->buffers);
    return status == PF_OK ? status : pf_fail(p->err, status, "out of memory while planning for the device");
}

/* n_gpu_layers counts the head first. n_cpu_moe: see pyflash.h. */
static pf_placement placement_of(const planner *p, int32_t n_gpu_layers, int32_t n_cpu_moe) {
    const int32_t first = pf_max_i32(0, p->n_layer + 1 - n_gpu_layers);
    const int32_t first_layer = pf_max_i32(p->allowed.first_layer, first < p->n_layer ? first : p->n_layer);
    const int32_t least = pf_max_i32(p->allowed.first_experts, n_cpu_moe);
    const int32_t first_experts = pf_min_i32(p->n_layer, pf_max_i32(first_layer, least));
    return (pf_placement){first_layer, first_experts, n_gpu_layers > 0 && p->allowed.head};
}

/* The smallest n from low to high with which `at(n)` fits; high where none does. More of n never takes more memory. */
static pf_status search(planner *p, int32_t low, int32_t high, pf_placement (*at)(const planner *, int32_t, int32_t),
                        int32_t other, int32_t *out) {
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        const pf_placement placement = at(p, middle, other);
        demand d;
        PF_TRY(find_demand(p, &placement, &d));
        if (sum_of(&d) <= p->capacity) high = middle;
        else low = middle + 1;
    }
    *out = low;
    return PF_OK;
}

/* By the number of layers that stay with the host, all experts there. */
static pf_placement with_layers_left(const planner *p, int32_t n_left, int32_t other) {
    (void)other;
    return placement_of(p, p->n_layer + 1 - n_left, p->n_layer);
}

static pf_placement with_experts_left(const planner *p, int32_t n_left, int32_t n_gpu_layers) {
    return placement_of(p, n_gpu_layers, n_left);
}

static pf_status choose(planner *p, const pf_model_params *params, pf_placement *out, demand *taken) {
    const int32_t most = p->n_layer + 1;
    int32_t n_gpu = pf_min_i32(params->n_gpu_layers, most), n_cpu_moe = pf_min_i32(params->n_cpu_moe, p->n_layer), left;
    if (params->n_gpu_layers == PF_GPU_AUTO) {
        PF_TRY(search(p, most - p->most_layers, most, with_layers_left, 0, &left));
        n_gpu = most - left;
    }
    if (params->n_cpu_moe == PF_GPU_AUTO) PF_TRY(search(p, 0, p->n_layer, with_experts_left, n_gpu, &n_cpu_moe));
    *out = placement_of(p, n_gpu, n_cpu_moe);
    PF_TRY(find_demand(p, out, taken));
    if (sum_of(taken) <= p->most) return PF_OK;
    const double mib = 1048576.0;
    return pf_fail(p->err, PF_ERR_MEMORY,
                   "%d layers with the experts of %d take %.0f MiB of the device, %.0f can be used: put fewer there, or "
                   "leave the numbers out",
                   p->n_layer - out->first_layer, p->n_layer - out->first_experts, (double)sum_of(taken) / mib,
                   (double)p->most / mib);
}

static void forget_upload(pf_model *model) {
    pf_expert_upload_delete(model->net.upload);
    model->net.upload = NULL;
    model->stream_bytes = 0;
}

static void tell_no_room(const pf_model *model) {
    pf_log_line(&model->log, PF_LOG_INFO, "no memory on %s, or page-locked, for sending experts: the processor computes "
                "those that it has", pf_link_info(model->link)->name);
}

/* With room for sending experts; where that leaves none for any layer, without. */
static pf_status choose_with_upload(planner *p, const pf_model_params *params, pf_placement *out, demand *taken) {
    pf_model *model = p->model;
    if (model->net.upload == NULL) return choose(p, params, out, taken);
    pf_error *err = p->err, missing;
    p->err = &missing;
    pf_status status = choose(p, params, out, taken);
    p->err = err;
    if (status == PF_OK && taken->stream > 0) return PF_OK;
    if (status == PF_OK && out->first_layer < p->n_layer) { /* there are no experts to be sent */
        forget_upload(model);
        return PF_OK;
    }
    forget_upload(model);
    p->most_layers = 2; /* else a little more memory, which has room for sending and one layer, would mean fewer layers */
    PF_TRY(choose(p, params, out, taken));
    if (has_experts_away(out)) tell_no_room(model);
    return PF_OK;
}

/* Whether the device computes with routed experts of all types that the model has, which else stay where they are. */
static bool takes_experts(const pf_model *model) {
    const pf_backend *backend = pf_link_backend(model->link);
    for (int32_t l = 0; l < model->net.config.n_layer; ++l) {
        const pf_moe_weights *w = &model->net.weights.layers[l].moe;
        if (!pf_backend_takes(backend, w->gate.type) || !pf_backend_takes(backend, w->up.type) ||
            !pf_backend_takes(backend, w->down.type)) {
            return false;
        }
    }
    return true;
}

/* Lets experts be sent, if the parameters allow it and the chunk that is planned for may be long enough. */
static pf_status open_upload(planner *p, const pf_model_params *params) {
    pf_model *model = p->model;
    const bool always = params->stream_experts == PF_STREAM_ON;
    const int32_t least_chunk = always ? PF_UPLOAD_LEAST : PF_UPLOAD_TRY;
    if (params->stream_experts == PF_STREAM_OFF || p->shape.n_chunk < least_chunk) return PF_OK;
    if (model->precision == PF_PRECISION_EXACT) return PF_OK; /* however a sequence is split, the bits are the same */
    if (!takes_experts(model)) return PF_OK;
    if (params->expert_budget > 0) return PF_OK; /* the disk is what takes the time, and the host keeps up with it */
    model->net.upload = pf_expert_upload_new(&model->net.config, &model->net.weights, always);
    if (model->net.upload != NULL) return PF_OK;
    return pf_fail(p->err, PF_ERR_MEMORY, "out of memory while opening the model");
}

/* Takes the memory for sending experts, or does without. */
static pf_status take_upload(planner *p, const pf_placement *placement, demand *taken) {
    pf_model *model = p->model;
    if (model->net.upload == NULL || pf_expert_upload_take(model->net.upload, model->link)) return PF_OK;
    forget_upload(model);
    tell_no_room(model);
    return find_demand(p, placement, taken);
}

static void forget_hot(pf_model *model) {
    pf_hot_experts_delete(model->net.hot);
    model->net.hot = NULL;
}

/* As many slots for hot experts as what is left has room for; without them where that is none. Their scratch counts
 * too. */
static pf_status plan_hot(planner *p, const pf_model_params *params, const pf_placement *placement, demand *taken) {
    pf_model *model = p->model;
    const bool is_off = params->hot_experts == PF_HOT_OFF || model->precision == PF_PRECISION_EXACT;
    const uint64_t most = params->hot_experts == PF_HOT_AUTO ? UINT64_MAX : params->hot_experts;
    if (is_off || params->expert_budget > 0 || !has_experts_away(placement) || !takes_experts(model)) return PF_OK;
    model->net.hot = pf_hot_experts_new(&model->net.config, &model->net.weights);
    if (model->net.hot == NULL) return pf_fail(p->err, PF_ERR_MEMORY, "out of memory while opening the model");
    demand with;
    PF_TRY(find_demand(p, placement, &with));
    const uint64_t others = sum_of(&with), left = others < p->capacity ? p->capacity - others : 0;
    if (pf_hot_experts_fit(model->net.hot, left < most ? left : most)) return find_demand(p, placement, taken);
    forget_hot(model);
    return PF_OK;
}

/* Takes the memory for hot experts, or does without. */
static pf_status take_hot(planner *p, const pf_placement *placement, demand *taken) {
    pf_model *model = p->model;
    if (model->net.hot == NULL || pf_hot_experts_take(model->net.hot, model->link)) return PF_OK;
    forget_hot(model);
    pf_log_line(&model->log, PF_LOG_INFO,
                "no memory on %s, or page-locked, for often used experts: the processor computes those that it has",
                pf_link_info(model->link)->name);
    return find_demand(p, placement, taken);
}

/* "the output, 2 layers, the routed experts of 6: no kernels for Q6_K IQ2_XXS", into model->kept_home. */
static void tell_kept(pf_model *model, const pf_placement *allowed, uint64_t lacking) {
    char *out = model->kept_home;
    const size_t size = sizeof model->kept_home;
    size_t n = 0;
    const char *before = ": no kernels for";
    const pf_dtype_info *info;
#define ADD(...) (n += n < size ? (size_t)snprintf(out + n, size - n, __VA_ARGS__) : 0)
    if (!allowed->head) ADD("the output");
    if (allowed->first_layer > 0) {
        ADD("%s%d layer%s", n > 0 ? ", " : "", allowed->first_layer, allowed->first_layer > 1 ? "s" : "");
    }
    if (allowed->first_experts > 0) ADD("%sthe routed experts of %d", n > 0 ? ", " : "", allowed->first_experts);
    for (int32_t i = 0; n > 0 && (info = pf_dtype_at(i)) != NULL; ++i) {
        const int kind = pf_weight_kind(info->type);
        if (kind < 0 || (lacking >> kind & 1) == 0) continue;
        ADD("%s %s", before, info->name);
        before = "";
    }
#undef ADD
}

/* What the caller has not said goes by what the device has kernels for. */
static void set_allowed(planner *p, const pf_model_params *params) {
    pf_model *model = p->model;
    uint64_t lacking;
    const pf_placement most =
        pf_placement_most(&model->net.config, &model->net.weights, pf_link_backend(model->link), &lacking);
    const bool layers_open = params->n_gpu_layers == PF_GPU_AUTO, experts_open = params->n_cpu_moe == PF_GPU_AUTO;
    p->allowed = (pf_placement){layers_open ? most.first_layer : 0, experts_open ? most.first_experts : 0,
                                layers_open ? most.head : true};
    tell_kept(model, &p->allowed, lacking);
}

static void set_limits(planner *p, const pf_device_info *device, uint64_t budget) {
    const uint64_t reserve = device->total_bytes / 50 > least_reserve ? device->total_bytes / 50 : least_reserve;
    p->most = budget > 0 && budget < device->free_bytes ? budget : device->free_bytes;
    p->capacity = budget > 0 ? p->most : p->most > reserve ? p->most - reserve : 0;
}

static pf_status open_planner(pf_model *model, const pf_model_params *params, planner *out, pf_error *err) {
    pf_session_params wanted, session;
    pf_session_params_init(&wanted);
    wanted.n_ctx = params->gpu_ctx;
    wanted.n_chunk = params->gpu_chunk;
    wanted.cache_type = params->gpu_cache_type;
    PF_TRY(pf_session_take_params(&wanted, model, &session, err));
    *out = (planner){.model = model, .formats = pf_choose_formats(model->precision, session.cache_type),
                     .n_layer = model->net.config.n_layer, .most_layers = model->net.config.n_layer + 1, .err = err};
    set_limits(out, pf_link_info(model->link), params->gpu_budget);
    set_allowed(out, params);
    const pf_draft_shape drafts = pf_weights_draft_shape(&model->net.weights);
    return pf_cache_open(&model->net.config, model->net.weights.range, &drafts, out->formats, session.n_ctx, session.n_chunk,
                         0, NULL, &out->shape, err);
}

/* Decides what goes to the device, and takes its memory. */
static pf_status place_by(planner *p, const pf_model_params *params, pf_placement *placement, demand *taken) {
    pf_model *model = p->model;
    PF_TRY(open_upload(p, params));
    PF_TRY(choose_with_upload(p, params, placement, taken));
    PF_TRY(pf_placement_check(&model->net.config, &model->net.weights, placement, pf_link_backend(model->link), p->err));
    PF_TRY(pf_transfer_new(model->link, &model->net.config, &model->net.weights, placement, &model->transfer, p->err));
    PF_TRY(take_upload(p, placement, taken));
    PF_TRY(plan_hot(p, params, placement, taken));
    return take_hot(p, placement, taken);
}

/* With the device open, and held. */
static pf_status place(pf_model *model, const pf_model_params *params, pf_error *err) {
    planner p;
    demand taken = {0};
    pf_placement placement;
    PF_TRY(open_planner(model, params, &p, err));
    const pf_status status = place_by(&p, params, &placement, &taken);
    pf_cache_close(&p.shape);
    PF_TRY(status);
    if (taken.weights == 0) {
        const bool is_kept = p.allowed.first_layer == p.n_layer && !p.allowed.head;
        pf_log_line(&model->log, PF_LOG_WARNING, "nothing of the model %s on %s: the processor computes all of it",
                    is_kept ? "can be computed" : "fits", pf_link_info(model->link)->name);
    } else {
        pf_log_line(&model->log, PF_LOG_INFO, "on %s: %d of %d layers%s, the routed experts of %d",
                    pf_link_info(model->link)->name, p.n_layer - placement.first_layer, p.n_layer,
                    placement.head ? " and the output" : "", p.n_layer - placement.first_experts);
    }
    if (model->kept_home[0] != '\0') {
        pf_log_line(&model->log, PF_LOG_INFO, "not on %s: %s", pf_link_info(model->link)->name, model->kept_home);
    }
    atomic_store(&model->is_sent, pf_transfer_done(model->transfer)); /* nothing */
    model->placement = placement;
    model->predicted_cache = taken.cache;
    model->predicted_buffers = taken.buffers;
    model->placed_bytes = taken.weights;
    model->stream_bytes = taken.stream;
    model->hot_bytes = taken.hot;
    return PF_OK;
}

static pf_status place_on(pf_model *model, const char *device, const pf_model_params *params, pf_error *err) {
    PF_TRY(open_link(device, &model->link, err));
    pf_link_lock(model->link);
    const pf_status status = place(model, params, err);
    pf_link_unlock(model->link);
    return status;
}

/* Puts a model back that was to be placed on a device, and of which nothing is there yet. */
static void stay_home(pf_model *model) {
    const int32_t n_layer = model->net.config.n_layer;
    if (model->link != NULL) {
        pf_link_lock(model->link);
        forget_upload(model);
        forget_hot(model);
        pf_link_unlock(model->link);
    }
    pf_link_close(model->link);
    model->link = NULL;
    pf_placement_mark(&model->net.config, &model->net.weights, &(pf_placement){n_layer, n_layer, false});
}

/* Without the caller's word: a device that is there, works and has room for something, or else none. */
static pf_status place_somewhere(pf_model *model, const pf_model_params *params, pf_error *err) {
    const pf_plugin *plugin;
    pf_error why = {0};
    if (params->n_gpu_layers == 0) return PF_OK;
    if (pf_plugin_load("cuda", &plugin, &why) != PF_OK || plugin->problem != NULL) return PF_OK;
    const pf_status status = place_on(model, "cuda", params, &why);
    if (status == PF_OK && model->placed_bytes > 0) {
        model->chose_device = true;
        return PF_OK;
    }
    if (status != PF_OK && model->transfer != NULL) return pf_fail(err, status, "%s", why.message);
    pf_transfer_delete(model->transfer);
    model->transfer = NULL;
    stay_home(model);
    if (status != PF_OK) pf_log_line(&model->log, PF_LOG_WARNING, "the processor computes everything: %s", why.message);
    return PF_OK;
}

pf_status pf_model_place(pf_model *model, const pf_model_params *params, pf_error *err) {
    const char *device = params->device;
    const bool is_open = device == NULL || strcmp(device, "auto") == 0;
    if (!is_open && strcmp(device, "cpu") != 0) return place_on(model, device, params, err);
    if (params->n_gpu_layers > 0) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%d layers on a device, and no device is named: use cuda",
                       params->n_gpu_layers);
    }
    return is_open ? place_somewhere(model, params, err) : PF_OK;
}

pf_status pf_model_upload(pf_model *model, uint64_t *n_done, uint64_t *n_total, pf_error *err) {
    if (model == NULL || n_done == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_upload: a model and n_done are needed");
    }
    uint64_t done = 0;
    if (model->link != NULL) {
        pf_link_lock(model->link);
        pf_status status = pf_link_check(model->link, err);
        if (status == PF_OK) status = pf_link_finish(model->link, pf_transfer_step(model->transfer, &done), err);
        if (status == PF_OK && pf_transfer_done(model->transfer)) atomic_store(&model->is_sent, true);
        pf_link_unlock(model->link);
        PF_TRY(status);
    }
    *n_done = done;
    if (n_total != NULL) *n_total = model->transfer != NULL ? pf_transfer_total(model->transfer) : 0;
    return PF_OK;
}

pf_status pf_model_get_placement(const pf_model *model, pf_placement_info *info, pf_error *err) {
    pf_placement_info full = {.struct_size = sizeof full};
    if (model == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_placement: a model is needed");
    memcpy(full.kept, model->kept_home, sizeof full.kept);
    if (model->link != NULL) {
        const pf_device_info *device = pf_link_info(model->link);
        full.n_layer = model->net.config.n_layer - model->placement.first_layer;
        full.n_expert_layer = model->net.config.n_layer - model->placement.first_experts;
        full.head = model->placement.head;
        full.weight_bytes = model->placed_bytes;
        full.cache_bytes = model->predicted_cache;
        full.buffer_bytes = model->predicted_buffers;
        full.stream_bytes = model->stream_bytes;
        full.hot_bytes = model->hot_bytes;
        full.free_bytes = device->free_bytes;
        full.total_bytes = device->total_bytes;
        memcpy(full.name, device->name, sizeof full.name);
    }
    if (!pf_params_give(info, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_model_get_placement: set info->struct_size first");
    }
    return PF_OK;
}
