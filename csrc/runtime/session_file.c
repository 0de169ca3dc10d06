/* Saving and loading a session's cache.
 *
 * A file is a header and the live parts of the cache in a fixed order; everything in it follows from the position and
 * the floor, so a file whose size is not what these ask for is damaged. It is tied to one model file and precision. */
#include "runtime/session.h"

#include "base/arith.h"
#include "base/file.h"

#include <string.h>

typedef struct file_header {
    char magic[8];
    uint32_t version;
    int32_t precision;
    uint64_t identity; /* of the model */
    int64_t position, floor;
    int32_t has_mtp, row_format;
    uint64_t payload_bytes;
    uint64_t checksum; /* of the payload */
} file_header;

static const char magic[8] = {'P', 'F', 'S', 'E', 'S', 'S', 'I', 'O'};
enum { VERSION = 1 };

/* FNV-1a over 8-byte words, then over the remaining bytes; pieces must come in the same sizes on both sides. */
static uint64_t checksum_piece(uint64_t sum, const void *data, uint64_t size) {
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
        if (t->data != NULL) sum = checksum_piece(sum, t->data, t->bytes < BYTES ? t->bytes : BYTES);
    }
    return sum;
}

static uint64_t model_identity(const pf_model *model) {
    const uint64_t main = file_identity(model->gguf);
    return model->mtp_gguf == NULL ? main : main * 31 + file_identity(model->mtp_gguf);
}

/* Visits every live piece of the cache in file order; false from the visitor ends the walk. */
typedef bool (*visit_fn)(void *user, void *piece, uint64_t size);

static bool visit_rows(const pf_rows *rows, int64_t first, int64_t end, visit_fn visit, void *user) {
    for (int64_t i = first; i < end; ++i) {
        if (!visit(user, pf_row_at(rows, i), (uint64_t)rows->row_bytes)) return false;
    }
    return true;
}

static bool visit_frontier(const pf_frontier *f, int64_t position, int64_t floor, visit_fn visit, void *user) {
    const uint64_t size = (uint64_t)f->channels * sizeof(float);
    for (int64_t p = pf_max_i64(0, floor - f->need); p < position; ++p) {
        if (!visit(user, pf_frontier_a(f, p), size) || !visit(user, pf_frontier_g(f, p), size)) return false;
    }
    return true;
}

static bool visit_layer(const pf_layer_cache *layer, int32_t ratio, const pf_config *c, int64_t position,
                        int64_t floor, visit_fn visit, void *user) {
    if (!visit_rows(&layer->raw, pf_max_i64(0, floor - c->window), position, visit, user)) return false;
    if (ratio == 0) return true;
    if (!visit_rows(&layer->pool, 0, position / ratio, visit, user)) return false;
    if (!visit_frontier(&layer->frontier, position, floor, visit, user)) return false;
    if (ratio != PF_RATIO_CSA) return true;
    return visit_rows(&layer->index_pool, 0, position / ratio, visit, user) &&
           visit_frontier(&layer->index_frontier, position, floor, visit, user);
}

static bool visit_session(const pf_session *session, int64_t position, int64_t floor, visit_fn visit, void *user) {
    const pf_cache *cache = &session->cache;
    const pf_config *c = &session->model->net.config;
    if (!visit(user, session->tokens, (uint64_t)position * sizeof(int32_t))) return false;
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        const int32_t ratio = l < c->n_layer ? c->ratio[l] : 0;
        if (!visit_layer(&cache->layers[l], ratio, c, position, floor, visit, user)) return false;
    }
    if (cache->streams == NULL) return true;
    for (int64_t p = pf_max_i64(0, floor - 1); p < position; ++p) {
        float *row = cache->streams + p % cache->stream_ring * cache->stream_floats;
        if (!visit(user, row, (uint64_t)cache->stream_floats * sizeof(float))) return false;
    }
    return true;
}

typedef struct tally {
    uint64_t bytes, checksum;
} tally;

static bool measure(void *user, void *piece, uint64_t size) {
    tally *t = user;
    (void)piece;
    t->bytes += size;
    return true;
}

static bool add_checksum(void *user, void *piece, uint64_t size) {
    tally *t = user;
    t->bytes += size;
    t->checksum = checksum_piece(t->checksum, piece, size);
    return true;
}

typedef struct sink {
    pf_writer *writer;
    pf_error *err;
    pf_status status;
} sink;

static bool write_piece(void *user, void *piece, uint64_t size) {
    sink *s = user;
    s->status = pf_writer_write(s->writer, piece, size, s->err);
    return s->status == PF_OK;
}

pf_status pf_session_save(pf_session *session, const char *path, pf_error *err) {
    if (path == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_save: a path is needed");
    const pf_cache *cache = &session->cache;
    file_header header = {.version = VERSION, .precision = session->model->precision,
                          .identity = model_identity(session->model), .position = cache->position,
                          .floor = cache->floor, .has_mtp = cache->streams != NULL,
                          .row_format = (int32_t)cache->layers[0].raw.format};
    tally t = {0, 0};
    memcpy(header.magic, magic, sizeof magic);
    (void)visit_session(session, cache->position, cache->floor, add_checksum, &t);
    header.payload_bytes = t.bytes;
    header.checksum = t.checksum;

    sink s = {NULL, err, PF_OK};
    PF_TRY(pf_writer_open(path, &s.writer, err));
    if (!write_piece(&s, &header, sizeof header) ||
        !visit_session(session, cache->position, cache->floor, write_piece, &s)) {
        pf_writer_abort(s.writer);
        return s.status;
    }
    return pf_writer_commit(s.writer, err);
}

/* Reads pieces out of a mapped file: once to check, once to copy. */
typedef struct source {
    const uint8_t *at;
    uint64_t checksum;
} source;

static bool check_piece(void *user, void *piece, uint64_t size) {
    source *s = user;
    (void)piece;
    s->checksum = checksum_piece(s->checksum, s->at, size);
    s->at += size;
    return true;
}

static bool read_piece(void *user, void *piece, uint64_t size) {
    source *s = user;
    if (size > 0) memcpy(piece, s->at, (size_t)size);
    s->at += size;
    return true;
}

static pf_status check_header(const pf_session *session, const file_header *h, const char *path, uint64_t size,
                              pf_error *err) {
    const pf_cache *cache = &session->cache;
    if (memcmp(h->magic, magic, sizeof magic) != 0) {
        return pf_fail(err, PF_ERR_FORMAT, "%s is not a session file", path);
    }
    if (h->version != VERSION) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "%s was written by another version (format %u, this one reads %d)",
                       path, h->version, VERSION);
    }
    if (h->identity != model_identity(session->model) || h->precision != session->model->precision ||
        (h->has_mtp != 0) != (cache->streams != NULL) || h->row_format != (int32_t)cache->layers[0].raw.format) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "%s belongs to another model, precision, cache type or MTP setting: open a session like the one "
                       "that saved it",
                       path);
    }
    if (h->position < 0 || h->floor < 0 || h->floor > h->position || h->position - h->floor > PF_ROLLBACK) {
        return pf_fail(err, PF_ERR_FORMAT, "%s is damaged: impossible position", path);
    }
    if (h->position > cache->n_ctx) {
        return pf_fail(err, PF_ERR_CONTEXT_FULL, "%s holds %lld tokens, this session %lld: open a larger one", path,
                       (long long)h->position, (long long)cache->n_ctx);
    }
    tally t = {0, 0};
    (void)visit_session(session, h->position, h->floor, measure, &t);
    if (h->payload_bytes != t.bytes || size - sizeof *h != t.bytes) {
        return pf_fail(err, PF_ERR_FORMAT, "%s is damaged: %llu bytes where %llu belong", path,
                       (unsigned long long)size, (unsigned long long)(t.bytes + sizeof *h));
    }
    return PF_OK;
}

static pf_status load_mapped(pf_session *session, const char *path, const pf_map *map, pf_error *err) {
    file_header h;
    if (map->size < sizeof h) return pf_fail(err, PF_ERR_FORMAT, "%s is not a session file", path);
    memcpy(&h, map->data, sizeof h);
    PF_TRY(check_header(session, &h, path, map->size, err));
    source s = {map->data + sizeof h, 0};
    (void)visit_session(session, h.position, h.floor, check_piece, &s);
    if (s.checksum != h.checksum) {
        return pf_fail(err, PF_ERR_FORMAT, "%s is damaged: its checksum does not match", path);
    }
    const int32_t *tokens = (const int32_t *)(const void *)(map->data + sizeof h);
    for (int64_t i = 0; i < h.position; ++i) {
        if (tokens[i] < 0 || tokens[i] >= session->model->net.config.n_vocab) {
            return pf_fail(err, PF_ERR_FORMAT, "%s is damaged: token %d is outside the vocabulary", path, tokens[i]);
        }
    }
    s.at = map->data + sizeof h;
    (void)visit_session(session, h.position, h.floor, read_piece, &s);
    session->cache.position = h.position;
    session->cache.floor = h.floor;
    return PF_OK;
}

pf_status pf_session_load(pf_session *session, const char *path, pf_error *err) {
    if (path == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_load: a path is needed");
    pf_map map;
    PF_TRY(pf_map_open(path, &map, err));
    const pf_status status = load_mapped(session, path, &map, err);
    pf_map_close(&map);
    return status;
}
