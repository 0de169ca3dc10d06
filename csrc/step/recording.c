#include "step/recording.h"

#include <string.h>

/* Of a piece, more than the kinds that follow each other within a few hundred tokens. */
enum { MOST_KINDS = 8 };
enum { N_COUNTER = 3, N_TABLE = 4 };

/* What decides which operations a piece consists of. */
enum { ROW_OF_CSA = 1, ROW_OF_HCA = 2, INDEXED = 4, LOGITS = 8 };

typedef struct entry {
    uint32_t kind;
    size_t mark;             /* of the scratch where it begins: another one would mean other addresses */
    bool used;               /* else there is nothing here */
    uint64_t turn;           /* of its last use */
    pf_recording *recording; /* NULL: the piece has been launched once */
} entry;

/* Where a token's operations find what they work on. */
typedef struct addresses {
    const void *frame;
    size_t scratch; /* bytes of the arena: it grows before it moves */
} addresses;

struct pf_recorder {
    pf_link *link;
    bool refused;      /* the device could not record once, and is not asked again */
    bool failed;       /* in this step: so that some operations have not been run */
    bool is_recording; /* the piece at hand */
    entry *open;       /* its entry; NULL between pieces */
    uint64_t turn;
    addresses where;
    int32_t n_layer;
    entry *entries;    /* [n_layer, PF_N_PIECE, MOST_KINDS] */
};

pf_recorder *pf_recorder_new(pf_link *link, int32_t n_layer) {
    pf_recorder *r = pf_calloc(1, sizeof *r);
    if (r == NULL) return NULL;
    r->link = link;
    r->n_layer = n_layer;
    r->entries = pf_calloc((size_t)n_layer * PF_N_PIECE * MOST_KINDS, sizeof *r->entries);
    if (r->entries != NULL) return r;
    pf_free(r);
    return NULL;
}

static void drop(pf_recorder *r, entry *e) {
    pf_link_drop_recording(r->link, e->recording);
    *e = (entry){0};
}

static void drop_all(pf_recorder *r) {
    for (int64_t i = 0; i < (int64_t)r->n_layer * PF_N_PIECE * MOST_KINDS; ++i) drop(r, &r->entries[i]);
}

void pf_recorder_delete(pf_recorder *r) {
    if (r == NULL) return;
    drop_all(r);
    pf_free(r->entries);
    pf_free(r);
}

/* ---- The frame --------------------------------------------------------------------------------------------- */

bool pf_frame_suits(const pf_step *s) {
    const pf_weights *w = &s->net->weights;
    return s->n == 1 && s->shares->tap == NULL && w->head_on_device && w->layers[s->net->config.n_layer - 1].on_device;
}

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
    size_t tables, experts, bytes;
} layout;

static size_t align(size_t bytes) { return (bytes + PF_ALIGN - 1) / PF_ALIGN * PF_ALIGN; }

static layout layout_of(const pf_step *s, int32_t first) {
    const pf_config *c = &s->net->config;
    const size_t n_table = (size_t)(N_TABLE * 2 * (c->rope_dim / 2));
    const size_t n_id = (size_t)((c->n_layer - first) * c->n_expert_used);
    layout at = {.tables = align(N_COUNTER * sizeof(int64_t))};
    at.experts = align(at.tables + n_table * sizeof(float));
    at.bytes = at.experts + n_id * sizeof(int32_t);
    return at;
}

static void fill_frame(const pf_step *s, int32_t first, const layout *at, uint8_t *out) {
    const pf_network *net = s->net;
    const int64_t p = s->shares->position, half = net->config.rope_dim / 2;
    const int64_t counters[N_COUNTER] = {p, p / PF_RATIO_CSA, p / PF_RATIO_HCA};
    const double *freq[N_TABLE] = {net->rope_freq, net->rope_freq_compressed, net->rope_freq_compressed,
                                   net->rope_freq_compressed};
    const int64_t position[N_TABLE] = {p, p, counters[1] * PF_RATIO_CSA, counters[2] * PF_RATIO_HCA};
    float *tables = (float *)(void *)(out + at->tables);
    int32_t *experts = (int32_t *)(void *)(out + at->experts);
    memset(out, 0, at->bytes);
    memcpy(out, counters, sizeof counters);
    for (int i = 0; i < N_TABLE; ++i, tables += 2 * half) {
        pf_rope_fill(freq[i], half, position[i], 1, 1, tables, tables + half);
    }
    for (int32_t l = first; l < net->config.n_layer; ++l, experts += net->config.n_expert_used) {
        const pf_layer_weights *w = &net->weights.layers[l];
        if (w->hash) pf_step_hash_experts(s, &w->moe, experts);
    }
}

/* Brings a token's frame to the device in one piece. */
static pf_status send_frame(pf_step *s, pf_frame *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    int32_t first = 0;
    while (!s->net->weights.layers[first].on_device) ++first;
    const layout at = layout_of(s, first);
    PF_SCRATCH(uint8_t, filled, s->host, at.bytes);
    if (!s->ex->dry) fill_frame(s, first, &at, filled);
    void *there;
    PF_TRY(pf_step_carry(s->host, s, filled, at.bytes, &there));
    uint8_t *base = there;
    const float *tables = (const float *)(const void *)(base + at.tables);
    pf_rope_table rope[N_TABLE];
    for (int i = 0; i < N_TABLE; ++i, tables += 2 * half) rope[i] = (pf_rope_table){tables, tables + half, half};
    *out = (pf_frame){.counters = there, .rope_rows = {rope[2], rope[3]},
                      .experts = (int32_t *)(void *)(base + at.experts), .first = first, .with_logits = s->shares->n_out > 0};
    s->rope = rope[0];
    s->rope_compressed = rope[1];
    return PF_OK;
}

/* Drops recordings when what they work on has moved. Nothing of them is running: the step only begins. */
static void check_addresses(const pf_step *s, const pf_frame *frame) {
    pf_recorder *r = s->recorder;
    if (r == NULL) return;
    const addresses where = {frame->counters, pf_arena_capacity(s->ex->arena)};
    if (where.frame != r->where.frame || where.scratch != r->where.scratch) drop_all(r);
    r->where = where;
}

/* After the forward pass, which may have ended within a piece. True, once at most: the device cannot record, and the step
 * is to be taken again, without. */
static bool leave_frame(const pf_step *s, pf_status status) {
    pf_recorder *r = s->recorder;
    pf_link_set_base(s->link, NULL);
    if (r == NULL) return false;
    if (r->open != NULL) s->ex->dry = false;
    if (r->is_recording) {
        (void)pf_link_end_recording(r->link, NULL);
        /* Anything else is the recording's fault, or shows again without it. */
        r->refused = r->failed = status != PF_ERR_CANCELLED && status != PF_ERR_MEMORY;
    }
    const bool again = r->failed;
    r->open = NULL;
    r->is_recording = r->failed = false;
    return again;
}

pf_status pf_frame_run(pf_step *s, pf_step *host, pf_forward_fn forward) {
    pf_frame frame;
    PF_TRY(send_frame(s, &frame));
    check_addresses(s, &frame);
    const pf_step_mark mark = pf_step_set_mark(s);
    pf_status status;
    s->frame = &frame;
    do { /* another time writes the same rows */
        pf_step_reset(s, mark);
        pf_frame_count(s, 0);
        status = forward(host);
    } while (leave_frame(s, status));
    s->frame = NULL;
    return status;
}

/* ---- Pieces ------------------------------------------------------------------------------------------------- */

/* Of the piece that goes on with layer `first`. */
static uint32_t kind_of(const pf_step *s, int32_t first) {
    const pf_config *c = &s->net->config;
    const int64_t next = s->shares->position + 1;
    const uint32_t of_csa = (next % PF_RATIO_CSA == 0 ? ROW_OF_CSA : 0u) |
                            (next / PF_RATIO_CSA > c->index_topk ? INDEXED : 0u);
    const uint32_t of_hca = next % PF_RATIO_HCA == 0 ? ROW_OF_HCA : 0u;
    uint32_t kind = 0;
    for (int32_t l = first; l < c->n_layer; ++l) {
        const pf_layer_weights *w = &s->net->weights.layers[l];
        kind |= w->ratio == PF_RATIO_CSA ? of_csa : w->ratio == PF_RATIO_HCA ? of_hca : 0u;
        if (!w->experts_on_device) return kind;
    }
    return s->frame->with_logits ? kind | LOGITS : kind;
}

/* The piece's entry, or a free one, or the one that was not used for the longest time, emptied: not in this step. */
static entry *find(pf_recorder *r, int32_t layer, pf_piece piece, uint32_t kind, size_t mark) {
    entry *entries = r->entries + ((size_t)layer * PF_N_PIECE + (size_t)piece) * MOST_KINDS, *oldest = entries;
    for (entry *e = entries; e < entries + MOST_KINDS; ++e) {
        if (e->used && e->kind == kind && e->mark == mark) return e;
        if (e->turn < oldest->turn) oldest = e; /* unused ones have turn 0 */
    }
    drop(r, oldest);
    oldest->kind = kind;
    oldest->mark = mark;
    return oldest;
}

pf_status pf_piece_begin(const pf_step *s, int32_t layer, pf_piece piece) {
    pf_recorder *r = s->recorder;
    if (s->frame == NULL || r == NULL) return PF_OK;
    if (pf_cancelled(s->ex)) return PF_ERR_CANCELLED;
    const uint32_t kind = piece == PF_PIECE_SHARED ? 0 : kind_of(s, piece == PF_PIECE_LAYER ? layer : layer + 1);
    entry *e = r->open = find(r, layer, piece, kind, pf_arena_mark(s->ex->arena));
    if (e->recording != NULL) { /* at once: the device computes while the code runs dry */
        s->ex->dry = true;
        return pf_link_replay(r->link, e->recording);
    }
    /* Not the first time, since what a device does once, such as loading a kernel's code, may not be possible while it
     * records. */
    if (!e->used || r->refused) return PF_OK;
    r->is_recording = pf_link_begin_recording(r->link) == PF_OK;
    r->refused = !r->is_recording;
    return PF_OK;
}

pf_status pf_piece_end(const pf_step *s) {
    pf_recorder *r = s->recorder;
    if (r == NULL || r->open == NULL) return PF_OK;
    entry *e = r->open;
    e->used = true;
    e->turn = ++r->turn;
    r->open = NULL;
    s->ex->dry = false;
    if (!r->is_recording) return PF_OK;
    r->is_recording = false;
    if (pf_link_end_recording(r->link, &e->recording) == PF_OK) return pf_link_replay(r->link, e->recording);
    r->refused = r->failed = true;
    return PF_ERR_UNSUPPORTED; /* ends the step, which is taken again */
}
