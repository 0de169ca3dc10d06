/* Unit tests of csrc/base and csrc/format: `test_format status|memory|pool|files|gguf FOLDER`.
 * tests/format/test_c_units.py builds and runs it. `test_format cpus` prints pf_cpu_count(), `test_format quota ROOT`
 * what control groups under ROOT allow. */
#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE
#endif

#include "units.h"

#include "base/arith.h"
#include "base/cpus.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/output.h"
#include "base/pages.h"
#include "base/pool.h"
#include "base/status.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if !defined(_WIN32)
#  include <pthread.h>
#  include <sched.h>
#  include <signal.h>
#  include <sys/mman.h>
#  include <sys/resource.h>
#  include <sys/stat.h>
#  include <sys/wait.h>
#  include <unistd.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#  include <sanitizer/asan_interface.h>
#endif

int test_failures;

/* ---- Arithmetic and messages ------------------------------------------------------------------------------- */

static void test_arith(void) {
    uint64_t out = 7;
    CHECK(!pf_mul_u64(UINT64_MAX, 2, &out) && out == 7);
    CHECK(!pf_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &out) && out == 7);
    CHECK(!pf_add_u64(UINT64_MAX, 1, &out) && out == 7);
    CHECK(!pf_align_u64(UINT64_MAX - 5, 32, &out) && out == 7);
    CHECK(pf_mul_u64(UINT64_MAX, 1, &out) && out == UINT64_MAX);
    CHECK(pf_mul_u64(0, UINT64_MAX, &out) && out == 0);
    CHECK(pf_add_u64(UINT64_MAX, 0, &out) && out == UINT64_MAX);
    CHECK(pf_align_u64(33, 32, &out) && out == 64);
    CHECK(pf_align_u64(64, 32, &out) && out == 64);
    CHECK(pf_ceil_div(0, 3) == 0 && pf_ceil_div(3, 3) == 1 && pf_ceil_div(4, 3) == 2);
}

static char logged[2048];
static void keep_log(void *user, int32_t level, const char *message) {
    *(int32_t *)user = level;
    snprintf(logged, sizeof logged, "%s", message);
}

void test_status(void) {
    test_arith();
    pf_error err;
    memset(&err, 0x55, sizeof err);
    CHECK(pf_fail(&err, PF_ERR_FORMAT, "tensor %d\nis bad", 3) == PF_ERR_FORMAT);
    CHECK(err.code == PF_ERR_FORMAT && strcmp(err.message, "tensor 3 is bad") == 0);
    CHECK(pf_fail(NULL, PF_ERR_FILE, "%s", "x") == PF_ERR_FILE);
    pf_fail(&err, PF_ERR_FILE, "shard: %s", err.message);
    CHECK(strcmp(err.message, "shard: tensor 3 is bad") == 0);

    /* Too long: cut at a whole UTF-8 character, whatever the phase of the cut. */
    for (int shift = 0; shift < 4; shift++) {
        char text[4 * 300 + 8] = "abc";
        for (int i = 0; i < 300; i++) memcpy(text + shift + 4 * i, "\xF0\x9F\x98\x80", 5);
        pf_fail(&err, PF_ERR_FILE, "%s", text);
        size_t len = strlen(err.message);
        CHECK(len < sizeof err.message && len > sizeof err.message - 8);
        CHECK((len - (size_t)shift) % 4 == 0 && memcmp(err.message, text, len) == 0);
    }

    int32_t level = -1;
    pf_log log = {keep_log, &level}, silent = {0};
    pf_log_line(&log, PF_LOG_WARNING, "loading %s", "model");
    CHECK(level == PF_LOG_WARNING && strcmp(logged, "loading model") == 0);
    pf_log_line(&silent, PF_LOG_INFO, "%d", 1);
    pf_log_line(NULL, PF_LOG_INFO, "%d", 1);
}

/* ---- Memory ------------------------------------------------------------------------------------------------ */

static void test_heap(void) {
    for (size_t size = 0; size < 300; size += 37) {
        void *block = pf_alloc(size);
        CHECK(block && (uintptr_t)block % PF_ALIGN == 0);
        memset(block, 1, size);
        pf_free(block);
    }
    unsigned char *zeros = pf_calloc(1000, 3);
    int sum = 0;
    for (int i = 0; i < 3000; i++) sum += zeros[i];
    CHECK(sum == 0 && (uintptr_t)zeros % PF_ALIGN == 0);
    pf_free(zeros);
    CHECK(pf_calloc(SIZE_MAX / 2, 3) == NULL);
    CHECK(pf_alloc(SIZE_MAX) == NULL);
    pf_free(NULL);

    size_t bytes = (size_t)8 << 30; /* far more than is ever touched */
    unsigned char *region = pf_region_alloc(bytes);
    CHECK(region != NULL);
    if (region) {
        CHECK(region[0] == 0 && region[bytes / 2] == 0 && region[bytes - 1] == 0);
        region[bytes - 1] = 1;
        pf_region_free(region, bytes);
    }
    pf_region_free(NULL, 5);
}

static void test_arena_marks(void) {
    pf_arena *arena = pf_arena_new();
    CHECK(pf_arena_mark(arena) == 0 && pf_arena_capacity(arena) == 0);
    pf_arena_reset(arena, 0);
    char *a = pf_arena_alloc(arena, 10);
    size_t mark = pf_arena_mark(arena);
    char *b = pf_arena_alloc(arena, 100);
    CHECK((uintptr_t)a % PF_ALIGN == 0 && (uintptr_t)b % PF_ALIGN == 0);
    CHECK(a != b && mark > 0 && pf_arena_mark(arena) > mark);
    strcpy(a, "kept");
    pf_arena_reset(arena, mark);
    CHECK(pf_arena_alloc(arena, 100) == b);
    /* Beyond the block: later blocks come and go, the first keeps its contents. */
    char *big = pf_arena_alloc(arena, (size_t)1 << 20);
    memset(big, 7, (size_t)1 << 20);
    CHECK(pf_arena_mark(arena) > mark);
    pf_arena_reset(arena, mark);
    CHECK(pf_arena_alloc(arena, 100) == b && strcmp(a, "kept") == 0);
    CHECK(pf_arena_alloc(arena, (size_t)1 << 20) == big);
    CHECK(pf_arena_alloc(arena, SIZE_MAX - 10) == NULL);
    CHECK(pf_arena_alloc(arena, SIZE_MAX / 2) == NULL);
    CHECK(strcmp(a, "kept") == 0);
    pf_arena_reset(arena, SIZE_MAX); /* a mark of the future changes nothing */
    CHECK(pf_arena_alloc(arena, 1) != big);
    CHECK(pf_arena_alloc(arena, 0) != pf_arena_alloc(arena, 0));
    pf_arena_delete(arena);
    pf_arena_delete(NULL);
    arena = pf_arena_new();
    pf_arena_alloc(arena, 1);
    size_t first = pf_arena_capacity(arena);
    pf_arena_alloc(arena, first - PF_ALIGN);
    CHECK(pf_arena_capacity(arena) == first); /* just full */
    pf_arena_alloc(arena, 0);
    CHECK(pf_arena_capacity(arena) > first); /* even nothing needs an address of its own */
    pf_arena_delete(arena);
}

static void test_arena_merge(void) {
    pf_arena *arena = pf_arena_new();
    size_t capacity = 0;
    for (int round = 0; round < 5; round++) {
        unsigned char *blocks[40];
        for (int i = 0; i < 40; i++) {
            size_t size = (size_t)(i * 7919 + 13);
            blocks[i] = pf_arena_alloc(arena, size);
            memset(blocks[i], i, size);
            if (round > 0 && i > 0) CHECK(blocks[i] > blocks[i - 1]); /* one block, in order */
        }
        for (int i = 0; i < 40; i++) {
            size_t size = (size_t)(i * 7919 + 13);
            CHECK(blocks[i][0] == i && blocks[i][size - 1] == i);
        }
        if (round == 0) capacity = pf_arena_capacity(arena);
        CHECK(pf_arena_capacity(arena) == capacity); /* the steady state allocates nothing */
        pf_arena_reset(arena, 0);
        CHECK(pf_arena_mark(arena) == 0);
    }
#if defined(__SANITIZE_ADDRESS__)
    char *last = pf_arena_alloc(arena, 10);
    CHECK(!__asan_address_is_poisoned(last + 9) && __asan_address_is_poisoned(last + 10));
    pf_arena_reset(arena, 0);
    CHECK(__asan_address_is_poisoned(last));
#endif
    pf_arena_delete(arena);
}

/* Random allocations under nested marks against a plain model: what lies below a mark survives the reset to it. */
static void test_arena_random(void) {
    enum { DEPTH = 200 };
    pf_arena *arena = pf_arena_new();
    unsigned char *blocks[DEPTH];
    size_t sizes[DEPTH], marks[DEPTH];
    int depth = 0;
    uint32_t state = 12345;
    for (int step = 0; step < 20000; step++) {
        state = state * 1664525u + 1013904223u;
        if (depth == DEPTH || (depth > 0 && (state >> 28) < 6)) {
            depth = (int)((state >> 8) % (uint32_t)depth);
            pf_arena_reset(arena, marks[depth]);
        } else {
            sizes[depth] = (state >> 8) % ((state >> 29) ? 500 : 100000) + 1;
            marks[depth] = pf_arena_mark(arena);
            blocks[depth] = pf_arena_alloc(arena, sizes[depth]);
            memset(blocks[depth], depth, sizes[depth]);
            depth++;
        }
        for (int i = 0; step % 50 == 0 && i < depth; i++) {
            CHECK(blocks[i][0] == i && blocks[i][sizes[i] - 1] == i && (uintptr_t)blocks[i] % PF_ALIGN == 0);
        }
    }
    pf_arena_delete(arena);
}

void test_memory(void) {
    test_heap();
    test_arena_marks();
    test_arena_merge();
    test_arena_random();
}

/* ---- Pool -------------------------------------------------------------------------------------------------- */

enum { MAX_ITEMS = 1000, MAX_WORKERS = 16 };

typedef struct loop {
    int64_t n, grain;
    int n_workers;
    int counts[MAX_ITEMS];          /* plain memory: pieces must not overlap, and the caller must see it afterwards */
    atomic_int busy[MAX_WORKERS];   /* plain scratch below is safe only if no worker runs twice at once */
    int64_t scratch[MAX_WORKERS];
    atomic_int bad;
} loop;

static void count_items(void *arg, int64_t begin, int64_t end, int worker) {
    loop *l = arg;
    if (worker < 0 || worker >= l->n_workers || begin < 0 || begin >= end || end > l->n || end - begin > l->grain) {
        atomic_store(&l->bad, 1);
        return;
    }
    if (atomic_exchange(&l->busy[worker], 1)) atomic_store(&l->bad, 1);
    for (int64_t i = begin; i < end; i++) {
        l->counts[i]++;
        l->scratch[worker] += i;
    }
    atomic_store(&l->busy[worker], 0);
}

/* Of pf_pool_share: whole multiples of SHARE_LEAST but for the last piece, and no more than half of an even share of what is
 * left, which is what a thread that comes to a halt can keep the others waiting with. */
enum { SHARE_LEAST = 8 };
static void count_shared(void *arg, int64_t begin, int64_t end, int worker) {
    loop *l = arg;
    const int64_t least = SHARE_LEAST, most = (l->n - begin + least - 1) / (2 * l->n_workers);
    if (begin % least != 0 || (end % least != 0 && end != l->n) || end - begin > (most > least ? most : least)) {
        atomic_store(&l->bad, 1);
    }
    count_items(arg, begin, end, worker);
}

static void run_loop_by(pf_pool *pool, loop *l, int64_t n, int64_t grain, bool shared) {
    memset(l->counts, 0, sizeof l->counts);
    memset(l->scratch, 0, sizeof l->scratch);
    l->n = n;
    l->grain = shared && grain < SHARE_LEAST ? SHARE_LEAST : grain;
    l->n_workers = pf_pool_threads(pool);
    if (shared) pf_pool_share(pool, n, SHARE_LEAST, grain, count_shared, l);
    else pf_pool_run(pool, n, grain, count_items, l);
    int64_t sum = 0, wrong = 0;
    for (int i = 0; i < MAX_WORKERS; i++) sum += l->scratch[i];
    for (int i = 0; i < MAX_ITEMS; i++) wrong += l->counts[i] != (i < n);
    CHECK(wrong == 0 && sum == n * (n - 1) / 2 && !atomic_load(&l->bad));
}
static void run_loop(pf_pool *pool, loop *l, int64_t n, int64_t grain) { run_loop_by(pool, l, n, grain, false); }

static void count_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    (void)begin, (void)end, (void)worker;
    atomic_fetch_add((atomic_int *)arg, 1);
}

static void run_nested(void *arg, int64_t begin, int64_t end, int worker) {
    (void)begin, (void)end, (void)worker;
    pf_pool_run(NULL, 10, 3, count_pieces, arg);
}

#if !defined(_WIN32)
static void *run_many(void *arg) {
    loop *l = calloc(1, sizeof *l);
    for (int i = 0; i < 300; i++) run_loop(arg, l, 100 + i, 7);
    free(l);
    return NULL;
}

static void test_two_callers(void) {
    pf_pool *pool = pf_pool_new(3);
    pthread_t callers[3];
    for (int i = 0; i < 3; i++) pthread_create(&callers[i], NULL, run_many, pool);
    for (int i = 0; i < 3; i++) pthread_join(callers[i], NULL);
    pf_pool_delete(pool);
}

/* Every piece waits for the others: done only if all workers, asleep before, come and take one each. */
static void meet(void *arg, int64_t begin, int64_t end, int worker) {
    atomic_int *arrived = arg;
    (void)begin, (void)end, (void)worker;
    atomic_fetch_add(arrived, 1);
    for (int i = 0; i < 20000 && atomic_load(arrived) < 4; i++) usleep(1000);
}

static void test_all_take_part(void) {
    pf_pool *pool = pf_pool_new(4);
    for (int i = 0; i < 20; i++) {
        atomic_int arrived = 0;
        if (i % 4 == 0) usleep(30000);
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        pf_pool_run(pool, 4, 1, meet, &arrived);
        clock_gettime(CLOCK_MONOTONIC, &after);
        CHECK(arrived == 4 && after.tv_sec - before.tv_sec < 15);
        if (test_failures) break;
    }
    pf_pool_delete(pool);
}

/* Long gaps put the workers to sleep: nobody may miss the next loop, and an idle pool must use no time. */
static void test_sleep(void) {
    pf_pool *pool = pf_pool_new(2);
    loop *l = calloc(1, sizeof *l);
    for (int i = 0; i < 30; i++) {
        run_loop(pool, l, 500, 1);
        usleep(3000);
    }
    struct timespec before, after;
    usleep(20000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    usleep(200000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    double used = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    CHECK(used < 0.1);
    free(l);
    pf_pool_delete(pool);
}
#endif

#if defined(__linux__)
/* Processors that the thread may run on. */
static int cpus_of_thread(int *first) {
    cpu_set_t set;
    CHECK(pthread_getaffinity_np(pthread_self(), sizeof set, &set) == 0);
    for (*first = 0; !CPU_ISSET(*first, &set); ++*first) {}
    return CPU_COUNT(&set);
}

typedef struct places {
    atomic_int arrived;
    int n_cpus[MAX_WORKERS], cpu[MAX_WORKERS];
} places;

static void note_place(void *arg, int64_t begin, int64_t end, int worker) {
    places *p = arg;
    (void)begin, (void)end;
    p->n_cpus[worker] = cpus_of_thread(&p->cpu[worker]);
    atomic_fetch_add(&p->arrived, 1);
    for (int i = 0; i < 20000 && atomic_load(&p->arrived) < 3; i++) usleep(1000); /* so that each worker takes one */
}

/* Workers have one processor each, different ones as far as there are enough; the caller keeps all of its own. */
static void test_pin(void) {
    places p = {0};
    int first = 0;
    const int before = cpus_of_thread(&first);
    pf_pool *pool = pf_pool_new(3);
    CHECK(pf_pool_pin(pool));
    pf_pool_run(pool, 3, 1, note_place, &p);
    CHECK(p.n_cpus[0] == before && p.n_cpus[1] == 1 && p.n_cpus[2] == 1);
    CHECK(before < 3 || p.cpu[1] != p.cpu[2]);
    pf_pool_delete(pool);
    pool = pf_pool_new(1);
    CHECK(pf_pool_pin(pool) && cpus_of_thread(&first) == before);
    pf_pool_delete(pool);
}

static void test_cpu_list(void) {
    static int16_t cpus[PF_MAX_CPUS];
    static bool seen[PF_MAX_CPUS];
    int cores = 0;
    const int n = pf_cpu_list(cpus, &cores);
    CHECK(cores >= 1 && cores <= n && pf_cpu_count() <= cores && pf_logical_cpus() <= n);
    for (int i = 0; i < n; i++) {
        CHECK(cpus[i] >= 0 && cpus[i] < PF_MAX_CPUS && !seen[cpus[i]]);
        CHECK(i == 0 || i == cores || cpus[i] > cpus[i - 1]);
        seen[cpus[i]] = true;
    }
}
#endif

#if !defined(_WIN32)

static atomic_bool loops_begun, loops_end;

/* Runs loops until each thread of the pool was in one. */
static void let_all_join(pf_pool *pool) {
    loop *l = calloc(1, sizeof *l);
    bool joined[MAX_WORKERS] = {false};
    for (int n = 0; n < pf_pool_threads(pool);) {
        run_loop(pool, l, 999, 1);
        n = 0;
        for (int i = 0; i < pf_pool_threads(pool); i++) n += joined[i] = joined[i] || l->scratch[i] != 0;
    }
    free(l);
}

static void *run_loops(void *pool) {
    loop *l = calloc(1, sizeof *l);
    while (!atomic_load(&loops_end)) {
        run_loop(pool, l, 999, 1);
        atomic_store(&loops_begun, true);
    }
    free(l);
    return NULL;
}

/* Children use and delete a pool that another thread is using, and that nobody has used. */
static void test_forked_pool(void) {
    pf_pool *pool = pf_pool_new(4), *idle = pf_pool_new(3);
    pthread_t thread;
#  if defined(__SANITIZE_ADDRESS__) /* threads take memory as they start, and in a child nobody unlocks its allocator */
    let_all_join(idle);
#  endif
    let_all_join(pool);
    pthread_create(&thread, NULL, run_loops, pool);
    while (!atomic_load(&loops_begun)) sched_yield();
    for (int i = 0; i < 40; i++) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60); /* instead of hanging */
            if (i % 2 == 0) {
                static loop l;
                for (int k = 0; k < 20; k++) run_loop(pool, &l, 500, 1);
                run_loop(idle, &l, 500, 1);
            }
            pf_pool_delete(pool);
            pf_pool_delete(idle);
            _exit(test_failures);
        }
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    atomic_store(&loops_end, true);
    pthread_join(thread, NULL);
    pf_pool_delete(pool);
    pf_pool_delete(idle);
}

#endif

void test_pool(void) {
    CHECK(pf_pool_new(0) == NULL && pf_pool_new(-3) == NULL && pf_pool_new(1 << 20) == NULL);
    CHECK(pf_pool_threads(NULL) == 1 && pf_cpu_count() >= 1);
    pf_pool_delete(NULL);
    loop *l = calloc(1, sizeof *l);
    for (int n_threads = 0; n_threads <= 5; n_threads++) {
        pf_pool *pool = n_threads ? pf_pool_new(n_threads) : NULL;
        CHECK(!n_threads || (pool && pf_pool_threads(pool) == n_threads));
        const int64_t sizes[] = {0, 1, 2, 7, 64, 999, MAX_ITEMS}, grains[] = {1, 3, 64, 5000, INT64_MAX};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (size_t j = 0; j < sizeof grains / sizeof *grains; j++) {
                run_loop(pool, l, sizes[i], grains[j]);
                if (pool) run_loop_by(pool, l, sizes[i], grains[j], true);
            }
        }
        for (int i = 0; i < 500; i++) run_loop(pool, l, 40, 1);
        atomic_int pieces = 0;
        pf_pool_run(pool, INT64_MAX, INT64_MAX / 3, count_pieces, &pieces);
        CHECK(pieces == 4); /* three thirds and the one item left over */
        pieces = 0;
        pf_pool_run(pool, 8, 1, run_nested, &pieces);
        CHECK(pieces == 8 * 4);
        pf_pool_delete(pool);
    }
    free(l);
    for (int i = 0; i < 50; i++) pf_pool_delete(pf_pool_new(1 + i % 4));
#if !defined(_WIN32)
    test_two_callers();
    test_all_take_part();
    test_sleep();
#  if !defined(__SANITIZE_THREAD__) /* which starts no threads in the child of a process that has some */
    test_forked_pool();
#  endif
#endif
#if defined(__linux__)
    test_pin();
    test_cpu_list();
#endif
}

/* ---- Files ------------------------------------------------------------------------------------------------- */

static bool file_is(const char *path, const char *text) {
    pf_map map;
    if (pf_map_open(path, &map, NULL) != PF_OK) return false;
    bool same = map.size == strlen(text) && (map.size == 0 || memcmp(map.data, text, map.size) == 0);
    pf_map_close(&map);
    return same;
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void test_maps(const char *folder) {
    char path[4096];
    pf_error err = {0};
    pf_map map = {0};
    pf_map_close(&map);
    snprintf(path, sizeof path, "%s/empty", folder);
    write_file(path, "");
    map.size = 99;
    CHECK(pf_map_open(path, &map, &err) == PF_OK && map.data == NULL && map.size == 0);
    pf_map_close(&map);
    snprintf(path, sizeof path, "%s/%s", folder, "\xC3\xBC\xE4\xBD\xA0.bin");
    write_file(path, "text");
    CHECK(file_is(path, "text"));
    remove(path);

    map.size = 99;
    snprintf(path, sizeof path, "%s/absent", folder);
    CHECK(pf_map_open(path, &map, &err) == PF_ERR_FILE && map.size == 99);
    CHECK(err.code == PF_ERR_FILE && strstr(err.message, path) && strstr(err.message, "no such file"));
    CHECK(pf_map_open(folder, &map, &err) == PF_ERR_FILE && strstr(err.message, "folder"));
#if !defined(_WIN32)
    snprintf(path, sizeof path, "%s/pipe", folder);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(pf_map_open(path, &map, &err) == PF_ERR_FILE && strstr(err.message, "regular"));
    remove(path);
#endif
}

/* Parts that begin and end within a page, as tensors do. */
static void test_pages(const char *folder) {
    char path[4096], text[20001];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    snprintf(path, sizeof path, "%s/pages", folder);
    write_file(path, text);
    pf_map map;
    CHECK(pf_map_open(path, &map, NULL) == PF_OK);
    pf_pages_announce(map.data + 5000, 10000);
    CHECK(pf_pages_fetch(map.data + 5000, 15000) && pf_pages_fetch(map.data, 1) && pf_pages_fetch(map.data, map.size));
    CHECK(pf_pages_lock(map.data + 5000, 10000)); /* less than any system's limit */
#if defined(__linux__)
    unsigned char resident[5] = {0};
    uint8_t *begin = (uint8_t *)(uintptr_t)map.data;
    CHECK(mincore(begin, (size_t)map.size, resident) == 0 && (resident[0] & resident[4] & 1));
    struct rlimit limit = {0, 0};
    if (geteuid() != 0 && setrlimit(RLIMIT_MEMLOCK, &limit) == 0) CHECK(!pf_pages_lock(map.data, 20000));
#endif
    CHECK(map.data[19999] == 'x');
    unsigned char *region = pf_region_alloc((size_t)5 << 20);
    pf_pages_enlarge(region, (uint64_t)5 << 20);
    CHECK(region[0] == 0 && region[((size_t)5 << 20) - 1] == 0);
    pf_region_free(region, (size_t)5 << 20);
    pf_map_close(&map);
    remove(path);
}

static pf_status save(const char *path, const char *text, const pf_stamp *expected, pf_error *err) {
    pf_place *place = NULL;
    pf_place_lock *lock = NULL;
    pf_output *output = NULL;
    pf_status status = pf_place_find(path, &place, err);
    if (status == PF_OK) status = pf_place_lock_take(place, &lock, err);
    if (status == PF_OK) status = pf_output_open(place, expected, &output, err);
    if (status == PF_OK) {
        status = pf_output_write(output, text, strlen(text), err);
        CHECK(status == PF_OK);
        status = pf_output_commit(output, err);
    }
    pf_place_lock_drop(lock);
    pf_place_close(place);
    return status;
}

static void test_output_pieces(const char *path) {
    pf_error err = {0};
    pf_place *place = NULL, *again = NULL;
    pf_place_lock *lock = NULL, *second = NULL;
    pf_output *output = NULL;
    CHECK(pf_place_find(path, &place, &err) == PF_OK && pf_place_find(path, &again, &err) == PF_OK);
    CHECK(strcmp(pf_place_key(place), pf_place_key(again)) == 0);
    CHECK(pf_place_lock_take(place, &lock, &err) == PF_OK && pf_place_lock_is_own(lock));
    CHECK(pf_place_lock_take(again, &second, &err) == PF_ERR_FILE && strstr(err.message, "keeps it") && !second);
    CHECK(pf_output_open(place, NULL, &output, &err) == PF_OK);
    CHECK(pf_output_write(output, "one ", 4, &err) == PF_OK && pf_output_write(output, "two", 3, &err) == PF_OK);
    CHECK(pf_output_write(output, NULL, 0, &err) == PF_OK);
    CHECK(!file_is(path, "one two")); /* not there before the commit */
    CHECK(pf_output_commit(output, &err) == PF_OK && file_is(path, "one two"));
    CHECK(pf_output_open(place, NULL, &output, &err) == PF_OK && pf_output_write(output, "lost", 4, &err) == PF_OK);
    pf_output_abort(output);
    pf_output_abort(NULL);
    CHECK(file_is(path, "one two"));
    pf_place_lock_drop(lock);
    pf_place_lock_drop(NULL);
    CHECK(pf_place_lock_take(again, &lock, &err) == PF_OK);
    pf_place_lock_drop(lock);
    pf_place_close(place);
    pf_place_close(again);
    pf_place_close(NULL);
}

static void test_output_expected(const char *path) {
    pf_error err = {0};
    const pf_stamp nothing = {0}, first = pf_stamp_of((const uint8_t *)"version 1", 9);
    CHECK(save(path, "version 1", &nothing, &err) == PF_ERR_FILE && strstr(err.message, "changed it"));
    remove(path);
    CHECK(save(path, "version 1", &nothing, &err) == PF_OK && save(path, "version 2", &first, &err) == PF_OK);
    CHECK(save(path, "version 3", &first, &err) == PF_ERR_FILE && file_is(path, "version 2"));
    CHECK(save(path, "three", NULL, &err) == PF_OK && file_is(path, "three"));
}

/* What tests of the Python side cannot reach; tests/pyflash/engine has the table of what may stand at a path. The folder
 * holds nothing but `path`'s files afterwards: tests/format checks that. */
void test_files(const char *folder) {
    char path[4096], other[4096];
    pf_error err = {0};
    test_maps(folder);
    test_pages(folder);
    snprintf(path, sizeof path, "%s/out", folder);
    test_output_pieces(path);
    test_output_expected(path);
    snprintf(other, sizeof other, "%s/absent/out", folder);
    CHECK(save(other, "x", NULL, &err) == PF_ERR_FILE && strstr(err.message, other));
#if !defined(_WIN32)
    pf_place *place = NULL;
    pf_place_lock *lock = NULL;
    pf_output *output = NULL;
    struct rlimit full = {1 << 20, RLIM_INFINITY}, before; /* a disk that is full after 1 MiB */
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    full.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_FSIZE, &full);
    char *block = calloc(1, 3 << 20);
    CHECK(pf_place_find(path, &place, &err) == PF_OK && pf_place_lock_take(place, &lock, &err) == PF_OK);
    CHECK(pf_output_open(place, NULL, &output, &err) == PF_OK);
    CHECK(pf_output_write(output, block, 3 << 20, &err) == PF_ERR_FILE && strstr(err.message, path));
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK(pf_output_write(output, "x", 1, &err) == PF_ERR_FILE); /* a gap must not be papered over */
    CHECK(pf_output_commit(output, &err) == PF_ERR_FILE && file_is(path, "three"));
    pid_t child = fork(); /* which has neither the lock nor the right to take it away */
    if (child == 0) {
        const bool inherited = !pf_place_lock_is_own(lock);
        pf_place_lock_drop(lock);
        _exit(inherited && save(path, "child", NULL, NULL) == PF_ERR_FILE ? 0 : 1);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0 && file_is(path, "three"));
    pf_place_lock_drop(lock);
    pf_place_close(place);
    free(block);
#endif
}

int main(int argc, char **argv) {
    const char *part = argc > 1 ? argv[1] : "", *folder = argc > 2 ? argv[2] : ".";
    if (strcmp(part, "status") == 0) {
        test_status();
    } else if (strcmp(part, "memory") == 0) {
        test_memory();
    } else if (strcmp(part, "pool") == 0) {
        test_pool();
    } else if (strcmp(part, "files") == 0) {
        test_files(folder);
    } else if (strcmp(part, "gguf") == 0) {
        test_gguf(folder);
    } else if (strcmp(part, "cpus") == 0) {
        printf("%d\n", pf_cpu_count());
    } else if (strcmp(part, "quota") == 0) {
        printf("%d\n", pf_cpu_quota(folder));
    } else {
        fprintf(stderr, "usage: test_format status|memory|pool|files|gguf FOLDER, test_format cpus, "
                        "test_format quota ROOT\n");
        return 2;
    }
    return test_failures != 0;
}
