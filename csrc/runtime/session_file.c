/* Saving and loading a session's cache.
 *
 * A file is a header; since format 3 what computed it; since format 4 whose layers it has; tokens, pools and rings in a
 * fixed order, whose sizes all follow from the position and the floor; what a drafter keeps; the checkpoints, each with its
 * rings and drafter's part; the caller's note; and a checksum. It is tied to one model file, precision and cache type.
 *
 * A drafter's part says whose it is, and how long: sessions that draft otherwise, or not at all, pass it over, and those
 * that find none of theirs begin with the next token. Before format 4 it was part of the rings. */
#include "runtime/session.h"

#include "base/arith.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/params.h"

#include <stdio.h>
#include <string.h>

typedef struct file_header {
    char magic[8];
    uint32_t version;
    int32_t precision;
    uint64_t identity; /* of the model; before format 4 of an MTP file too */
    int64_t position, floor;
    int32_t has_mtp;   /* before format 4 */
    int32_t row_format;
    uint64_t n_checkpoint, note_bytes;
} file_header;

/* Since format 3. */
typedef struct origin_header {
    char kernels[PF_KERNELS_BYTES]; /* zero-terminated */
    int32_t arithmetic, reserved;
    int64_t n_foreign; /* tokens at the beginning that those have not computed */
} origin_header;

/* Since format 4; before, files were of all layers. */
typedef struct range_header {
    int32_t first_layer, end_layer;
} range_header;

/* Since format 4, before what a drafter keeps. */
typedef struct drafts_header {
    uint64_t identity; /* of the file that drafts; 0: nothing does */
    int64_t begin;     /* the first token that it is there of */
    uint64_t n_bytes;
} drafts_header;

/* Before each checkpoint's copy of the rings. */
typedef struct checkpoint_header {
    int64_t position, floor;
} checkpoint_header;

static const char magic[8] = {'P', 'F', 'S', 'E', 'S', 'S', 'I', 'O'};
enum { VERSION = 4, OLDEST_VERSION = 2, OF_RINGS = 3 /* the last one whose rings have the drafter's part */ };

uint64_t pf_session_checksum(uint64_t sum, const void *data, uint64_t size) {
    const uint8_t *bytes = data;
    const uint64_t prime = 0x100000001b3u;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        sum = (sum ^ word) * prime;
        sum ^= sum >> 32;
    }
    for (; size > 0; --size) sum = (sum ^ *bytes++) * prime;
    return sum;
}

/* Tells models apart: their directories, and a little of some tensors, because a fine-tune has the same directory. */
static uint64_t file_identity(const pf_gguf *gguf) {
    enum { TENSORS = 64, BYTES = 64 };
    uint64_t sum = pf_gguf_fingerprint(gguf);
    const uint64_t n = pf_gguf_n_tensors(gguf), step = n / TENSORS + 1;
    for (uint64_t i = 0; i < n; i += step) {
        const pf_gguf_tensor *t = pf_gguf_tensor_at(gguf, i);
        if (t->data != NULL) sum = pf_session_checksum(sum, t->data, t->bytes < BYTES ? t->bytes : BYTES);
    }
    return sum;
}

static uint64_t model_identity(const pf_model *model, uint32_t version) {
    const uint64_t main = file_identity(model->gguf);
    const bool with_drafts = version <= OF_RINGS && model->draft_gguf != NULL;
    return with_drafts ? main * 31 + file_identity(model->draft_gguf) : main;
}

static uint64_t draft_identity(const pf_model *model) {
    const pf_draft_shape shape = pf_weights_draft_shape(&model->net.weights);
    if (shape.n_layer == 0) return 0;
    return model->draft_gguf != NULL ? file_identity(model->draft_gguf) : model_identity(model, VERSION);
}

/* The parts whose size follows from the position, as a version has them: false from the visitor ends the walk. */
static bool walk_live(const pf_session *session, uint32_t version, int64_t position, int64_t floor, pf_visit_fn visit,
                      void *user) {
    return visit(user, session->tokens, (uint64_t)position * sizeof(int32_t)) &&
           pf_cache_walk_pools(&session->cache, position, visit, user) &&
           pf_cache_walk_rings(&session->cache, position, floor, visit, user) &&
           (version > OF_RINGS || pf_cache_walk_drafts(&session->cache, position, floor, 0, visit, user));
}

/* ---- What computes --------------------------------------------------------------------------------------- */

void pf_session_name_kernels(const pf_model *model, char out[PF_KERNELS_BYTES]) {
    memset(out, 0, PF_KERNELS_BYTES); /* all of it goes into a file */
    (void)snprintf(out, PF_KERNELS_BYTES, "%s%s", model->backend->name, model->link != NULL ? "+cuda" : "");
}

static pf_origin origin_of(const pf_model *model, const file_header *file, const origin_header *found) {
    pf_origin origin = {.arithmetic = found->arithmetic};
    char own[PF_KERNELS_BYTES];
    pf_session_name_kernels(model, own);
    memcpy(origin.kernels, found->kernels, sizeof origin.kernels - 1);
    for (char *at = origin.kernels; *at != '\0'; ++at) {
        if (*at <= ' ' || *at > '~') *at = '?'; /* it will be shown */
    }
    const bool is_known = origin.kernels[0] != '\0';
    const bool is_same = found->arithmetic == PF_ARITHMETIC_VERSION && strcmp(origin.kernels, own) == 0;
    if (is_known) origin.n_foreign = is_same ? found->n_foreign : file->position;
    return origin;
}

static void tell_origin(const pf_session *session, const char *path) {
    const pf_origin *origin = &session->origin;
    char own[PF_KERNELS_BYTES];
    if (origin->n_foreign == 0) return;
    pf_session_name_kernels(session->model, own);
    pf_log_line(&session->model->log, PF_LOG_WARNING,
                "%s: its first %lld tokens were computed by other kernels or another version than here (saved by %s, "
                "arithmetic %d; here %s, %d): what follows may differ in its last bits from a session that was never saved",
                path, (long long)origin->n_foreign, origin->kernels, origin->arithmetic, own, PF_ARITHMETIC_VERSION);
}

pf_status pf_session_get_origin(const pf_session *session, pf_session_origin *origin, pf_error *err) {
    if (session == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_origin: a session is needed");
    pf_session_origin full = {.arithmetic = session->origin.arithmetic, .n_foreign = session->origin.n_foreign};
    memcpy(full.kernels, session->origin.kernels, sizeof full.kernels);
    if (!pf_params_give(origin, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_origin: set origin->struct_size first");
    }
    return PF_OK;
}

/* ---- Files that are known ---------------------------------------------------------------------------------- */

static pf_known_file *find_known(pf_session_files *files, const char *key) {
    for (int i = 0; i < PF_KNOWN_FILES; ++i) {
        if (files->known[i].key != NULL && strcmp(files->known[i].key, key) == 0) return &files->known[i];
    }
    return NULL;
}

static char *copy_key(const char *key) {
    const size_t size = strlen(key) + 1;
    char *copy = pf_alloc(size);
    if (copy != NULL) memcpy(copy, key, size);
    return copy;
}

/* Without memory for it the file is as one that was never seen. */
static void remember(pf_session_files *files, const char *key, pf_stamp stamp) {
    pf_known_file *known = find_known(files, key);
    if (known == NULL) {
        known = &files->known[files->next++ % PF_KNOWN_FILES];
        pf_free(known->key);
        known->key = copy_key(key);
    }
    known->stamp = stamp;
}

static bool is_held(const pf_session_files *files, const char *key) {
    return files->lock != NULL && pf_place_lock_is_own(files->lock) && strcmp(files->held, key) == 0;
}

static void let_go(pf_session_files *files) {
    pf_place_lock_drop(files->lock);
    pf_free(files->held);
    files->lock = NULL;
    files->held = NULL;
}

void pf_session_forget_files(pf_session *session) {
    let_go(&session->files);
    for (int i = 0; i < PF_KNOWN_FILES; ++i) pf_free(session->files.known[i].key);
}

static pf_status hold_place(pf_session_files *files, const pf_place *place, pf_error *err) {
    pf_place_lock *lock;
    pf_stamp stamp;
    if (is_held(files, pf_place_key(place))) return PF_OK;
    PF_TRY(pf_place_lock_take(place, &lock, err));
    pf_status status = pf_place_stamp(place, &stamp, err);
    char *key = status == PF_OK ? copy_key(pf_place_key(place)) : NULL;
    if (status == PF_OK && key == NULL) status = pf_fail(err, PF_ERR_MEMORY, "out of memory while holding a file");
    if (status != PF_OK) {
        pf_place_lock_drop(lock);
        return status;
    }
    if (find_known(files, key) == NULL) remember(files, key, stamp); /* else what was read or written counts */
    let_go(files);
    files->lock = lock;
    files->held = key;
    return PF_OK;
}

pf_status pf_session_hold(pf_session *session, const char *path, pf_error *err) {
    pf_place *place;
    if (path == NULL) {
        let_go(&session->files);
        return PF_OK;
    }
    PF_TRY(pf_place_find(path, &place, err));
    const pf_status status = hold_place(&session->files, place, err);
    pf_place_close(place);
    return status;
}

/* ---- Saving ------------------------------------------------------------------------------------------------ */

typedef struct sink {
    const pf_cache *cache;
    uint8_t *copy; /* [copy_bytes]: of a piece on a device */
    uint64_t copy_bytes;
    pf_output *output;
    uint64_t checksum;
    pf_error *err;
    pf_status status;
} sink;

static bool write_piece(void *user, void *piece, uint64_t size) {
    sink *s = user;
    s->checksum = pf_session_checksum(s->checksum, piece, size);
    s->status = pf_output_write(s->output, piece, size, s->err);
    return s->status == PF_OK;
}

/* A piece of the cache, which may lie on a device. */
static bool write_cache_piece(void *user, void *piece, uint64_t size) {
    sink *s = user;
    if (s->cache->link == NULL) return write_piece(s, piece, size);
    if (size > s->copy_bytes) {
        pf_free(s->copy);
        s->copy = pf_alloc((size_t)size);
        s->copy_bytes = s->copy != NULL ? size : 0;
    }
    if (s->copy == NULL) {
        s->status = pf_fail(s->err, PF_ERR_MEMORY, "out of memory while saving a session");
        return false;
    }
    pf_cache_read(s->cache, s->copy, piece, size);
    return write_piece(s, s->copy, size);
}

/* A drafter's part, [header.n_bytes]. */
static bool write_drafts(sink *s, drafts_header header, void *data) {
    return write_piece(s, &header, sizeof header) && (header.n_bytes == 0 || write_piece(s, data, header.n_bytes));
}

static bool write_checkpoint(sink *s, const pf_cache *cache, const pf_checkpoint *c, uint64_t identity) {
    checkpoint_header h = {c->position, c->floor};
    const uint64_t n_ring = pf_cache_ring_bytes(cache, c->position, c->floor);
    const drafts_header drafts = {identity, c->draft_begin,
                                  pf_cache_draft_bytes(cache, c->position, c->floor, c->draft_begin)};
    return write_piece(s, &h, sizeof h) && write_piece(s, c->data, n_ring) && write_drafts(s, drafts, c->data + n_ring);
}

/* Pieces one after the other. */
static bool gather_piece(void *user, void *piece, uint64_t size) {
    uint8_t **at = user;
    memcpy(*at, piece, (size_t)size); /* what drafts is always on the host */
    *at += size;
    return true;
}

static bool write_live_drafts(sink *s, const pf_cache *cache, uint64_t identity) {
    const drafts_header header = {
        identity, cache->draft_begin, pf_cache_draft_bytes(cache, cache->position, cache->floor, cache->draft_begin)};
    uint8_t *data = pf_alloc((size_t)header.n_bytes + 1), *at = data;
    if (data == NULL) {
        s->status = pf_fail(s->err, PF_ERR_MEMORY, "out of memory while saving a session");
        return false;
    }
    (void)pf_cache_walk_drafts(cache, cache->position, cache->floor, cache->draft_begin, gather_piece, &at);
    const bool written = write_drafts(s, header, data);
    pf_free(data);
    return written;
}

static bool write_all(sink *s, const pf_session *session) {
    const pf_cache *cache = &session->cache;
    const pf_checkpoints *checkpoints = &cache->checkpoints;
    const uint64_t identity = draft_identity(session->model);
    file_header header = {.version = VERSION, .precision = session->model->precision,
                          .identity = model_identity(session->model, VERSION), .position = cache->position,
                          .floor = cache->floor, .row_format = (int32_t)cache->layers[0].raw.format,
                          .n_checkpoint = (uint64_t)checkpoints->n, .note_bytes = session->note_len};
    memcpy(header.magic, magic, sizeof magic);
    origin_header origin = {.arithmetic = PF_ARITHMETIC_VERSION, .n_foreign = session->origin.n_foreign};
    pf_session_name_kernels(session->model, origin.kernels);
    range_header range = {session->model->net.weights.range.first, session->model->net.weights.range.end};
    if (!write_piece(s, &header, sizeof header) || !write_piece(s, &origin, sizeof origin)) return false;
    if (!write_piece(s, &range, sizeof range)) return false;
    if (!walk_live(session, VERSION, cache->position, cache->floor, write_cache_piece, s)) return false;
    if (!write_live_drafts(s, cache, identity)) return false;
    for (int32_t i = 0; i < checkpoints->n; ++i) {
        if (!write_checkpoint(s, cache, &checkpoints->items[i], identity)) return false;
    }
    if (session->note_len > 0 && !write_piece(s, session->note, session->note_len)) return false;
    uint64_t checksum = s->checksum;
    return write_piece(s, &checksum, sizeof checksum);
}

/* With the place's lock. */
static pf_status save_at(pf_session *session, const pf_place *place, pf_error *err) {
    const pf_known_file *known = find_known(&session->files, pf_place_key(place));
    sink s = {.cache = &session->cache, .err = err, .status = PF_OK};
    PF_TRY(pf_output_open(place, known != NULL ? &known->stamp : NULL, &s.output, err));
    pf_status status = pf_session_enter(session, err);
    if (status == PF_OK) {
        const bool written = write_all(&s, session);
        status = pf_session_leave(session, written ? PF_OK : s.status, err);
    }
    pf_free(s.copy);
    if (status != PF_OK) {
        pf_output_abort(s.output);
        return status;
    }
    PF_TRY(pf_output_commit(s.output, err));
    pf_stamp stamp;
    if (pf_place_stamp(place, &stamp, NULL) == PF_OK) remember(&session->files, pf_place_key(place), stamp);
    return PF_OK;
}

pf_status pf_session_save(pf_session *session, const char *path, pf_error *err) {
    if (path == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_save: a path is needed");
    pf_place *place;
    pf_place_lock *lock = NULL;
    PF_TRY(pf_place_find(path, &place, err));
    pf_status status = PF_OK;
    if (!is_held(&session->files, pf_place_key(place))) status = pf_place_lock_take(place, &lock, err);
    if (status == PF_OK) status = save_at(session, place, err);
    pf_place_lock_drop(lock);
    pf_place_close(place);
    return status;
}

/* ---- Loading ----------------------------------------------------------------------------------------------- */

/* The mapped file: read once to check everything, then once more to copy, so that a damaged one changes nothing. */
typedef struct source {
    const pf_cache *cache;
    const uint8_t *at;
    uint64_t left;
    uint64_t checksum;
} source;

/* The next bytes as they lie in the file; NULL when it is too short. */
static const uint8_t *take(source *s, uint64_t size) {
    if (size > s->left) return NULL;
    const uint8_t *piece = s->at;
    s->checksum = pf_session_checksum(s->checksum, piece, size);
    s->at += size;
    s->left -= size;
    return piece;
}

static bool check_piece(void *user, void *piece, uint64_t size) {
    (void)piece;
    return take(user, size) != NULL;
}

static bool read_piece(void *user, void *piece, uint64_t size) {
    source *s = user;
    pf_cache_write(s->cache, piece, s->at, size);
    s->at += size;
    s->left -= size;
    return true;
}

static pf_status check_format(const file_header *h, const char *path, pf_error *err) {
    if (memcmp(h->magic, magic, sizeof magic) != 0) {
        return pf_fail(err, PF_ERR_FORMAT, "%s is not a session file", path);
    }
    if (h->version < OLDEST_VERSION || h->version > VERSION) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "%s was written by another version (format %u, this one reads %d to %d)",
                       path, h->version, OLDEST_VERSION, VERSION);
    }
    return PF_OK;
}

/* found: NULL in files of all layers. */
static pf_status check_range(const pf_model *model, const range_header *found, const char *path, pf_error *err) {
    const pf_layer_range own = model->net.weights.range;
    const int32_t first = found != NULL ? found->first_layer : 0;
    const int32_t end = found != NULL ? found->end_layer : model->net.config.n_layer;
    if (first == own.first && end == own.end) return PF_OK;
    return pf_fail(err, PF_ERR_ARGUMENT, "%s holds layers [%d, %d) of a model, this session [%d, %d): load it where those are",
                   path, first, end, own.first, own.end);
}

static pf_status check_header(const pf_session *session, const file_header *h, const range_header *found, const char *path,
                              pf_error *err) {
    const pf_cache *cache = &session->cache;
    PF_TRY(check_range(session->model, found, path, err));
    if (h->identity != model_identity(session->model, h->version) || h->precision != session->model->precision ||
        h->row_format != (int32_t)cache->layers[0].raw.format) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "%s belongs to another model, precision or cache type: open a session like the one that saved it",
                       path);
    }
    if (h->version <= OF_RINGS && ((h->has_mtp != 0) != (cache->streams != NULL) ||
                                   (cache->streams == NULL && cache->drafts.n_layer > 0))) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "%s was written by an older version, for which the MTP setting must be the one that it was saved with",
                       path);
    }
    if (h->position < 0 || h->floor < 0 || h->floor > h->position || h->position - h->floor > PF_ROLLBACK) {
        return pf_fail(err, PF_ERR_FORMAT, "%s is damaged: impossible position", path);
    }
    if (h->position > cache->n_ctx) {
        return pf_fail(err, PF_ERR_CONTEXT_FULL, "%s holds %lld tokens, this session %lld: open a larger one", path,
                       (long long)h->position, (long long)cache->n_ctx);
    }
    return PF_OK;
}

static bool tokens_valid(const uint8_t *bytes, int64_t n, int32_t n_vocab) {
    for (int64_t i = 0; i < n; ++i) {
        int32_t token;
        memcpy(&token, bytes + i * (int64_t)sizeof token, sizeof token);
        if (token < 0 || token >= n_vocab) return false;
    }
    return true;
}

/* What a file has of this session's drafter. */
typedef struct saved_drafts {
    int64_t begin;       /* the position: nothing */
    const uint8_t *data; /* the pieces of pf_cache_walk_drafts() */
} saved_drafts;

/* The next drafter's part, whosever it is; false when it is not sound. identity: of this session's. */
static bool take_drafts(source *s, const pf_cache *cache, uint64_t identity, int64_t position, int64_t floor,
                        saved_drafts *out) {
    drafts_header h;
    const uint8_t *bytes = take(s, sizeof h);
    if (bytes == NULL) return false;
    memcpy(&h, bytes, sizeof h);
    const bool is_own = h.identity == identity && identity != 0;
    if (h.begin < 0 || h.begin > position) return false;
    if (is_own && h.n_bytes != pf_cache_draft_bytes(cache, position, floor, h.begin)) return false;
    const uint8_t *data = h.n_bytes == 0 ? s->at : take(s, h.n_bytes);
    *out = (saved_drafts){is_own ? h.begin : cache->drafts.n_layer > 0 ? position : 0, data};
    return data != NULL;
}

/* The next checkpoint's header, its copy of the rings and of a drafter's part taken too; false when there is no sound one
 * that comes after `previous`. */
static bool take_checkpoint(source *s, const pf_cache *cache, uint64_t identity, const file_header *file, int64_t previous,
                            checkpoint_header *out, const uint8_t **data, saved_drafts *drafts) {
    const uint8_t *bytes = take(s, sizeof *out);
    if (bytes == NULL) return false;
    memcpy(out, bytes, sizeof *out);
    if (out->position <= previous || out->position > file->position || out->floor < 0 || out->floor > out->position ||
        out->position - out->floor > PF_CHECKPOINT_SLACK) {
        return false;
    }
    const uint64_t n_ring = pf_cache_ring_bytes(cache, out->position, out->floor);
    if (file->version > OF_RINGS) {
        *data = take(s, n_ring);
        return *data != NULL && take_drafts(s, cache, identity, out->position, out->floor, drafts);
    }
    *data = take(s, n_ring + pf_cache_draft_bytes(cache, out->position, out->floor, 0));
    *drafts = (saved_drafts){0, *data != NULL ? *data + n_ring : NULL};
    return *data != NULL;
}

/* Whether everything after the header is there and sound. */
static bool check_body(const pf_session *session, const file_header *h, source *s) {
    if (!tokens_valid(s->at, pf_min_i64(h->position, (int64_t)(s->left / sizeof(int32_t))),
                      session->model->net.config.n_vocab)) {
        return false;
    }
    const uint64_t identity = draft_identity(session->model);
    saved_drafts drafts;
    if (!walk_live(session, h->version, h->position, h->floor, check_piece, s)) return false;
    if (h->version > OF_RINGS && !take_drafts(s, &session->cache, identity, h->position, h->floor, &drafts)) return false;
    int64_t previous = -1;
    for (uint64_t i = 0; i < h->n_checkpoint; ++i) {
        checkpoint_header c;
        const uint8_t *data;
        if (!take_checkpoint(s, &session->cache, identity, h, previous, &c, &data, &drafts)) return false;
        previous = c.position;
    }
    if (take(s, h->note_bytes) == NULL) return false;
    const uint64_t wanted = s->checksum;
    const uint8_t *bytes = take(s, sizeof wanted);
    return bytes != NULL && s->left == 0 && memcmp(bytes, &wanted, sizeof wanted) == 0;
}

static void copy_checkpoint(pf_cache *cache, const checkpoint_header *c, const uint8_t *data, const saved_drafts *drafts) {
    uint8_t *to = pf_checkpoints_add(&cache->checkpoints, c->position, c->floor, drafts->begin)->data;
    const uint64_t n_ring = pf_cache_ring_bytes(cache, c->position, c->floor);
    const uint64_t n_drafts = pf_cache_draft_bytes(cache, c->position, c->floor, drafts->begin);
    memcpy(to, data, (size_t)n_ring);
    if (n_drafts > 0) memcpy(to + n_ring, drafts->data, (size_t)n_drafts);
}

/* Copies what check_body() has found sound. A session with fewer slots keeps the latest checkpoints. */
static void copy_body(pf_session *session, const file_header *h, source *s) {
    pf_cache *cache = &session->cache;
    const uint64_t identity = draft_identity(session->model);
    saved_drafts drafts = {0, NULL};
    (void)walk_live(session, h->version, h->position, h->floor, read_piece, s);
    if (h->version > OF_RINGS) {
        (void)take_drafts(s, cache, identity, h->position, h->floor, &drafts);
        source part = {.cache = cache, .at = drafts.data, .left = s->left};
        (void)pf_cache_walk_drafts(cache, h->position, h->floor, drafts.begin, read_piece, &part);
    }
    cache->position = h->position;
    cache->floor = h->floor;
    cache->imported = 0;
    cache->draft_begin = drafts.begin;
    pf_checkpoints_drop_after(&cache->checkpoints, -1);
    int64_t previous = -1;
    for (uint64_t i = 0; i < h->n_checkpoint; ++i) {
        checkpoint_header c;
        const uint8_t *data;
        (void)take_checkpoint(s, cache, identity, h, previous, &c, &data, &drafts);
        previous = c.position;
        if (cache->checkpoints.capacity > 0) copy_checkpoint(cache, &c, data, &drafts);
    }
}

static bool take_origin(source *s, const file_header *h, origin_header *out) {
    memset(out, 0, sizeof *out);
    if (h->version < 3) return true;
    const uint8_t *bytes = take(s, sizeof *out);
    if (bytes == NULL) return false;
    memcpy(out, bytes, sizeof *out);
    return out->n_foreign >= 0 && out->n_foreign <= h->position;
}

static pf_status refuse_damaged(const char *path, pf_error *err) {
    return pf_fail(err, PF_ERR_FORMAT, "%s is damaged or incomplete: evaluate the conversation again", path);
}

static pf_status load_mapped(pf_session *session, const char *path, const pf_map *map, pf_error *err) {
    file_header h;
    origin_header origin;
    range_header range;
    source s = {&session->cache, map->data, map->size, 0};
    const uint8_t *bytes = take(&s, sizeof h);
    if (bytes == NULL) return pf_fail(err, PF_ERR_FORMAT, "%s is not a session file", path);
    memcpy(&h, bytes, sizeof h);
    PF_TRY(check_format(&h, path, err));
    const bool has_origin = take_origin(&s, &h, &origin);
    bytes = has_origin && h.version >= 4 ? take(&s, sizeof range) : NULL;
    if (bytes != NULL) memcpy(&range, bytes, sizeof range);
    if (!has_origin || (h.version >= 4 && bytes == NULL)) return refuse_damaged(path, err);
    PF_TRY(check_header(session, &h, bytes != NULL ? &range : NULL, path, err));
    const uint8_t *body = s.at;
    if (!check_body(session, &h, &s)) return refuse_damaged(path, err);
    const uint8_t *note = map->data + map->size - sizeof(uint64_t) - h.note_bytes;
    s.left += (uint64_t)(s.at - body);
    s.at = body;
    PF_TRY(pf_session_enter(session, err)); /* before anything changes */
    pf_status status = pf_session_set_note(session, note, (size_t)h.note_bytes, err);
    session->n_ahead = 0;
    if (status == PF_OK) copy_body(session, &h, &s);
    status = pf_session_leave(session, status, err);
    if (status != PF_OK) return status;
    session->origin = origin_of(session->model, &h, &origin);
    tell_origin(session, path);
    return PF_OK;
}

pf_status pf_session_load(pf_session *session, const char *path, pf_error *err) {
    if (path == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_load: a path is needed");
    pf_map map;
    pf_place *place;
    PF_TRY(pf_map_open(path, &map, err));
    const pf_status status = load_mapped(session, path, &map, err);
    if (status == PF_OK && pf_place_find(path, &place, NULL) == PF_OK) {
        remember(&session->files, pf_place_key(place), pf_stamp_of(map.data, map.size));
        pf_place_close(place);
    }
    pf_map_close(&map);
    return status;
}
