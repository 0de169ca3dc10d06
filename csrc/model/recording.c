#include "model/recording.h"

#include <string.h>

/* More than the combinations that follow each other within a few hundred tokens. */
enum { MOST_RECORDINGS = 8 };
enum { N_COUNTER = 3, N_TABLE = 4 };

/* What decides which operations a token takes. */
enum { ROW_OF_CSA = 1, ROW_OF_HCA = 2, INDEXED = 4, LOGITS = 8 };

typedef struct entry {
    uint32_t kind;
    bool used;               /* else there is nothing here */
    uint64_t turn;           /* of its last use */
    pf_recording *recording; /* NULL: a token of this kind has been computed once */
} entry;

/* Where a token's operations find what they work on; another place means other operations. */
typedef struct addresses {
    const void *frame, *streams, *logits;
    size_t scratch; /* bytes of the arena: it grows before it moves */
} addresses;

struct pf_recorder {
    pf_link *link;
    bool refused; /* the device could not record once, and is not asked again */
    uint64_t turn;
    addresses where;
    entry entries[MOST_RECORDINGS];
};

/* One token's part in a frame. */
typedef struct part {
    pf_step side; /* the device's, with the frame */
    pf_frame frame;
    float *streams, *logits; /* on the device; logits NULL when none are wanted */
} part;

pf_recorder *pf_recorder_new(pf_link *link) {
    pf_recorder *recorder = pf_calloc(1, sizeof *recorder);
    if (recorder != NULL) recorder->link = link;
    return recorder;
}

static void drop(pf_recorder *recorder, entry *e) {
    pf_link_drop_recording(recorder->link, e->recording);
    *e = (entry){0};
}

static void drop_all(pf_recorder *recorder) {
    for (int i = 0; i < MOST_RECORDINGS; ++i) drop(recorder, &recorder->entries[i]);
}

void pf_recorder_delete(pf_recorder *recorder) {
    if (recorder == NULL) return;
    drop_all(recorder);
    pf_free(recorder);
}

int32_t pf_recorded_from(const pf_step *s) {
    const pf_weights *w = &s->net->weights;
    int32_t first = s->net->config.n_layer;
    if (s->device == NULL || s->n != 1 || s->tap != NULL || !w->head_on_device) return first;
    while (first > 0 && w->layers[first - 1].on_device && w->layers[first - 1].experts_on_device) --first;
    return first;
}

bool pf_recorded_whole(const pf_step *s) {
    const int32_t first = pf_recorded_from(s);
    return first < s->net->config.n_layer && (first == 0 || !s->net->weights.layers[first - 1].on_device);
}

/* ---- The frame --------------------------------------------------------------------------------------------- */

void pf_frame_count(const pf_step *s, int32_t ratio) {
    if (s->frame == NULL) return;
    pf_link_set_base(s->link, s->frame->counters + (ratio == 0 ? 0 : ratio == PF_RATIO_CSA ? 1 : 2));
}

pf_rope_table pf_frame_row_rope(const pf_step *s, int32_t ratio) {
    return s->frame->rope_rows[ratio == PF_RATIO_CSA ? 0 : 1];
}

int32_t *pf_frame_experts(const pf_step *s, int32_t layer) {
    return s->frame->experts + (int64_t)(layer - s->frame->first) * s->net->config.n_expert_used;
}

/* Byte offsets of a frame's parts. */
typedef struct layout {
    size_t tables, experts, streams, bytes;
} layout;

static size_t align(size_t bytes) { return (bytes + PF_ALIGN - 1) / PF_ALIGN * PF_ALIGN; }

static layout layout_of(const pf_step *s, int32_t first, bool with_streams) {
    const pf_config *c = &s->net->config;
    const size_t n_table = (size_t)(N_TABLE * 2 * (c->rope_dim / 2));
    const size_t n_id = (size_t)((c->n_layer - first) * c->n_expert_used);
    layout at = {.tables = align(N_COUNTER * sizeof(int64_t))};
    at.experts = align(at.tables + n_table * sizeof(float));
    at.streams = align(at.experts + n_id * sizeof(int32_t));
    at.bytes = at.streams + (with_streams ? (size_t)c->n_stream * (size_t)c->n_embd * sizeof(float) : 0);
    return at;
}

static pf_status fill_frame(const pf_step *s, int32_t first, const layout *at, const float *streams, uint8_t *out) {
    const pf_network *net = s->net;
    const int64_t p = s->position, half = net->config.rope_dim / 2;
    const int64_t counters[N_COUNTER] = {p, p / PF_RATIO_CSA, p / PF_RATIO_HCA};
    const double *freq[N_TABLE] = {net->rope_freq, net->rope_freq_compressed, net->rope_freq_compressed,
                                   net->rope_freq_compressed};
    const int64_t position[N_TABLE] = {p, p, counters[1] * PF_RATIO_CSA, counters[2] * PF_RATIO_HCA};
    float *tables = (float *)(void *)(out + at->tables);
    int32_t *experts = (int32_t *)(void *)(out + at->experts);
    memset(out, 0, at->streams);
    memcpy(out, counters, sizeof counters);
    for (int i = 0; i < N_TABLE; ++i, tables += 2 * half) {
        pf_rope_fill(freq[i], half, position[i], 1, 1, tables, tables + half);
    }
    for (int32_t l = first; l < net->config.n_layer; ++l, experts += net->config.n_expert_used) {
        const pf_layer_weights *w = &net->weights.layers[l];
        if (w->hash) PF_TRY(pf_hash_experts(s, l, &w->moe, experts));
    }
    if (at->bytes > at->streams) memcpy(out + at->streams, streams, at->bytes - at->streams);
    return PF_OK;
}

/* Brings a token's frame, and streams that are on the host, to the device in one piece. */
static pf_status send_frame(const pf_step *s, int32_t first, const pf_step *from, float *streams, part *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    const bool with_streams = from->link == NULL;
    const layout at = layout_of(s, first, with_streams);
    PF_SCRATCH(uint8_t, filled, s, at.bytes);
    if (!s->ex->dry) PF_TRY(fill_frame(s, first, &at, streams, filled));
    void *there;
    PF_TRY(pf_step_carry(s, s->device, filled, at.bytes, &there));
    uint8_t *base = there;
    const float *tables = (const float *)(const void *)(base + at.tables);
    pf_rope_table rope[N_TABLE];
    for (int i = 0; i < N_TABLE; ++i, tables += 2 * half) rope[i] = (pf_rope_table){tables, tables + half, half};
    out->frame = (pf_frame){.counters = there, .rope = rope[0], .rope_compressed = rope[1],
                            .rope_rows = {rope[2], rope[3]}, .experts = (int32_t *)(void *)(base + at.experts),
                            .first = first};
    out->streams = with_streams ? (float *)(void *)(base + at.streams) : streams;
    out->side = *s->device;
    out->side.frame = &out->frame;
    out->side.rope = rope[0];
    out->side.rope_compressed = rope[1];
    return PF_OK;
}

/* ---- Operations and recordings ----------------------------------------------------------------------------- */

static pf_status issue(const part *p) {
    const pf_step *s = &p->side;
    const pf_weights *w = &s->net->weights;
    const pf_step_mark mark = pf_step_set_mark(s);
    pf_status status = PF_OK;
    pf_frame_count(s, 0);
    for (int32_t l = p->frame.first; l < s->net->config.n_layer && status == PF_OK; ++l) {
        status = pf_layer(s, l, &w->layers[l], p->streams);
    }
    if (status == PF_OK && p->logits != NULL) {
        status = pf_head_there(s, &w->head_mix, w->norm, p->streams, 1, p->logits);
    }
    pf_link_set_base(s->link, NULL);
    pf_step_reset(s, mark);
    return status;
}

static uint32_t kind_of(const part *p) {
    const int64_t next = p->side.position + 1;
    uint32_t kind = p->logits != NULL ? LOGITS : 0;
    if (next % PF_RATIO_CSA == 0) kind |= ROW_OF_CSA;
    if (next % PF_RATIO_HCA == 0) kind |= ROW_OF_HCA;
    if (next / PF_RATIO_CSA > p->side.net->config.index_topk) kind |= INDEXED;
    return kind;
}

/* The entry of this kind, or a free one, or the one that was not used for the longest time, emptied. */
static entry *find(pf_recorder *recorder, uint32_t kind) {
    entry *oldest = &recorder->entries[0];
    for (int i = 0; i < MOST_RECORDINGS; ++i) {
        entry *e = &recorder->entries[i];
        if (e->used && e->kind == kind) return e;
        if (e->turn < oldest->turn) oldest = e; /* unused ones have turn 0 */
    }
    drop(recorder, oldest);
    return oldest;
}

/* Records the part without running it. Other than OK is only what running it would say, too. */
static pf_status record(pf_recorder *recorder, const part *p, pf_recording **out) {
    if (pf_link_begin_recording(recorder->link) != PF_OK) {
        recorder->refused = true;
        return PF_OK;
    }
    const pf_status status = issue(p);
    const pf_status ended = pf_link_end_recording(recorder->link, status == PF_OK ? out : NULL);
    if (status == PF_ERR_CANCELLED || status == PF_ERR_MEMORY) return status;
    recorder->refused = status != PF_OK || ended != PF_OK; /* a device that failed shows without it */
    return PF_OK;
}

/* The part's operations: from a recording, or one by one. A kind's first token takes the second way, because what a
 * device does once, such as loading a kernel's code, may not be possible while it records. */
static pf_status run(const part *p) {
    pf_recorder *recorder = p->side.recorder;
    if (recorder == NULL || p->side.ex->dry) return issue(p);
    const addresses where = {p->frame.counters, p->streams, p->logits != NULL ? p->logits : recorder->where.logits,
                             pf_arena_capacity(p->side.ex->arena)};
    if (where.frame != recorder->where.frame || where.streams != recorder->where.streams ||
        where.logits != recorder->where.logits || where.scratch != recorder->where.scratch) {
        drop_all(recorder);
    }
    recorder->where = where;
    entry *e = find(recorder, kind_of(p));
    if (e->used && e->recording == NULL && !recorder->refused) PF_TRY(record(recorder, p, &e->recording));
    if (e->recording == NULL) PF_TRY(issue(p));
    else if (pf_cancelled(p->side.ex)) return PF_ERR_CANCELLED;
    else PF_TRY(pf_link_replay(recorder->link, e->recording));
    e->used = true;
    e->kind = kind_of(p);
    e->turn = ++recorder->turn;
    return PF_OK;
}

pf_status pf_forward_recorded(const pf_step *s, int32_t first, const pf_step *at, float *streams, int64_t n_out,
                              float *logits) {
    const size_t bytes = (size_t)s->net->config.n_vocab * sizeof(float);
    part p = {.logits = NULL};
    PF_TRY(send_frame(s, first, at, streams, &p));
    if (n_out > 0) {
        p.logits = pf_arena_alloc(p.side.ex->arena, bytes);
        if (p.logits == NULL) return PF_ERR_MEMORY;
    }
    PF_TRY(run(&p));
    if (s->net->weights.mtp.present) {
        const size_t floats = (size_t)s->net->config.n_stream * (size_t)s->net->config.n_embd;
        void *on_host;
        PF_TRY(pf_step_carry(&p.side, s, p.streams, floats * sizeof(float), &on_host));
        PF_TRY(pf_mtp_follow(s, on_host));
    }
    return n_out > 0 && !s->ex->dry ? pf_link_download(p.side.link, logits, p.logits, bytes) : PF_OK;
}
