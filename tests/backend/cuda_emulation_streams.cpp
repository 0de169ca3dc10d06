/* Streams and events of cuda_emulation.h.
 *
 * Everything happens when it is queued, but for copies from page-locked memory: these happen as late as they may, when
 * something after them on their stream, an event or the host demands it. So a copy that nothing was made to wait for
 * comes too late. Its source cannot be written to, a fault of the page, before the host has waited for it.
 *
 * Clocks tell what is known to have happened before what. These end the program: a copy into memory that a kernel of
 * another stream may still be using; a kernel that uses memory into which another stream's copy is on its way; and, on a
 * stream that has had copies from page-locked memory, one from other memory, for which a device would make the host wait.
 *
 * Copies of a stream in the background (of the least priority) go to parts of blocks whose other parts kernels use. What
 * kernels read of such blocks they say themselves (PF_READS); the same rules hold for that, and what such a copy goes to
 * is garbage until it happens. Whoever asks for an event has to ask PF_EMULATED_QUERIES times (3) after it was recorded. */
#include "cuda_emulation.h"

#include <deque>
#include <map>
#include <sys/mman.h>

namespace emulated {

typedef std::map<int, uint64_t> clock_times; /* stream -> how many of its operations have happened */

struct pending_copy {
    uint64_t turn; /* among the stream's operations */
    void *to;
    const void *from;
    size_t bytes;
};

struct stream_state {
    uint64_t turns = 0; /* operations queued so far */
    std::deque<pending_copy> pending;
    clock_times knows;  /* of other streams: what happens before the stream's next operation */
    bool takes_locked = false; /* there have been copies from page-locked memory */
    bool in_background = false;
};

struct event_state {
    int stream = 0; /* 0: never recorded */
    clock_times at;
    int queries = 0; /* since it was recorded */
};

struct use {
    int stream;
    uint64_t turn;
};

static std::map<int, stream_state> streams;
static std::map<int, event_state> events;
struct locked_block {
    size_t bytes;
    bool is_read; /* by copies, of which the host does not know that they have happened; the last one: */
    use read;
};
static std::map<uint8_t *, locked_block> locked; /* page-locked memory */
static std::map<const void *, use> last_use;     /* of the device's blocks, by kernels */
struct read_part {
    const uint8_t *end;
    use last;
};
static std::map<const uint8_t *, read_part> parts_read; /* of blocks that background copies go to */
static std::map<const void *, bool> is_divided;         /* these */
static int running_stream;
static clock_times host_knows;
static int last_stream, last_event;

static void join(clock_times &into, const clock_times &more) {
    for (const auto &entry : more) {
        uint64_t &turn = into[entry.first];
        if (entry.second > turn) turn = entry.second;
    }
}

/* Does the copies up to a turn. */
static void catch_up(int stream, uint64_t turn) {
    std::deque<pending_copy> &pending = streams[stream].pending;
    while (!pending.empty() && pending.front().turn <= turn) {
        const pending_copy copy = pending.front();
        pending.pop_front();
        device_copy(copy.to, copy.from, copy.bytes);
    }
}

static void catch_up_with(const clock_times &times) {
    for (const auto &entry : times) catch_up(entry.first, entry.second);
}

/* Opens what the host may write to again. */
static void host_learns(const clock_times &times) {
    join(host_knows, times);
    for (auto &entry : locked) {
        locked_block &block = entry.second;
        const auto known = host_knows.find(block.read.stream);
        if (!block.is_read || known == host_knows.end() || known->second < block.read.turn) continue;
        block.is_read = false;
        mprotect(entry.first, block.bytes, PROT_READ | PROT_WRITE);
    }
}

static void catch_up_all() {
    clock_times all;
    for (auto &entry : streams) {
        catch_up(entry.first, entry.second.turns);
        all[entry.first] = entry.second.turns;
    }
    host_learns(all);
}

int stream_create(bool in_background) {
    streams[++last_stream].in_background = in_background;
    return last_stream;
}

void stream_destroy(int stream) {
    catch_up(stream, UINT64_MAX);
    streams.erase(stream);
}

void stream_synchronize(int stream) {
    catch_up(stream, UINT64_MAX);
    clock_times all = streams[stream].knows;
    all[stream] = streams[stream].turns;
    host_learns(all);
}

int event_create() {
    events[++last_event];
    return last_event;
}

void event_destroy(int event) { events.erase(event); }

void event_record(int event, int stream) {
    stream_state &s = streams[stream];
    event_state &e = events[event];
    e.stream = stream;
    e.at = s.knows;
    e.at[stream] = s.turns;
    e.queries = 0;
}

bool event_query(int event) {
    const char *wanted = std::getenv("PF_EMULATED_QUERIES");
    event_state &e = events[event];
    if (e.stream != 0 && ++e.queries < (wanted ? std::atoi(wanted) : 3)) return false;
    event_synchronize(event);
    return true;
}

void event_synchronize(int event) {
    const clock_times at = events[event].at;
    catch_up_with(at);
    host_learns(at);
}

void stream_wait_event(int stream, int event) {
    const clock_times at = events[event].at;
    catch_up_with(at);
    join(streams[stream].knows, at);
}

/* Whether `what` happens before the next operation of the stream. */
static bool is_before(const use &what, int stream) {
    const auto by_stream = streams[stream].knows.find(what.stream);
    const auto by_host = host_knows.find(what.stream);
    return what.stream == stream || (by_stream != streams[stream].knows.end() && by_stream->second >= what.turn) ||
           (by_host != host_knows.end() && by_host->second >= what.turn);
}

/* Notes a copy from page-locked memory; false when it is from elsewhere. */
static bool note_read(int stream, const void *memory, size_t bytes) {
    const uint8_t *at = static_cast<const uint8_t *>(memory);
    auto found = locked.upper_bound(const_cast<uint8_t *>(at));
    if (found == locked.begin() || at + bytes > (--found)->first + found->second.bytes) return false;
    found->second.is_read = true;
    found->second.read = {stream, streams[stream].turns};
    mprotect(found->first, found->second.bytes, PROT_READ);
    return true;
}

static bool overlaps(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    const uint8_t *x = static_cast<const uint8_t *>(a), *y = static_cast<const uint8_t *>(b);
    return x < y + b_bytes && y < x + a_bytes;
}

/* A copy in the background to a part of a block. */
static void divide(int stream, const void *block, void *to, size_t bytes) {
    is_divided[block] = true;
    for (const auto &entry : parts_read) {
        const size_t length = static_cast<size_t>(entry.second.end - entry.first);
        if (!overlaps(entry.first, length, to, bytes) || is_before(entry.second.last, stream)) continue;
        fail("a copy goes to memory that a kernel of another stream may still be reading");
    }
    device_fill(to, 0xff, bytes);
}

void stream_reads(const void *memory, size_t bytes) {
    if (is_divided.find(device_block(memory)) == is_divided.end()) return;
    for (const auto &other : streams) {
        for (const pending_copy &copy : other.second.pending) {
            if (other.first == running_stream || !overlaps(copy.to, copy.bytes, memory, bytes)) continue;
            fail("a kernel reads memory into which another stream is copying");
        }
    }
    const uint8_t *at = static_cast<const uint8_t *>(memory);
    parts_read[at] = {at + bytes, {running_stream, streams[running_stream].turns}};
}

void stream_copy(int stream, void *to, const void *from, size_t bytes) {
    stream_state &s = streams[stream];
    const void *block = device_block(to);
    const auto used = last_use.find(block);
    ++s.turns;
    if (block && s.in_background) {
        divide(stream, block, to, bytes);
    } else if (block && used != last_use.end() && !is_before(used->second, stream)) {
        fail("a copy goes to memory that a kernel of another stream may still be using");
    }
    if (note_read(stream, from, bytes)) {
        s.takes_locked = true;
        s.pending.push_back({s.turns, to, from, bytes});
        return;
    }
    if (s.takes_locked) fail("a copy is not from page-locked memory, as others of the stream were");
    catch_up(stream, UINT64_MAX);
    device_copy(to, from, bytes);
}

void stream_fill(int stream, void *to, int value, size_t bytes) {
    catch_up(stream, ++streams[stream].turns);
    device_fill(to, value, bytes);
}

static void note_use(int stream, const void *block) {
    for (const auto &other : streams) {
        if (other.first == stream || other.second.in_background) continue;
        for (const pending_copy &copy : other.second.pending) {
            if (device_block(copy.to) == block) fail("a kernel uses memory into which another stream is copying");
        }
    }
    last_use[block] = {stream, streams[stream].turns};
}

void stream_launch(int stream) {
    running_stream = stream;
    catch_up(stream, ++streams[stream].turns);
}

void stream_uses(int stream, const void *argument, size_t bytes) {
    for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
        uint64_t word;
        std::memcpy(&word, static_cast<const uint8_t *>(argument) + at, sizeof word);
        const void *block = device_block(reinterpret_cast<const void *>(static_cast<uintptr_t>(word)));
        if (block) note_use(stream, block);
    }
}

void forget_block(const void *block) {
    catch_up_all(); /* freeing waits for the device */
    last_use.erase(block);
    is_divided.erase(block);
    for (auto entry = parts_read.begin(); entry != parts_read.end();) {
        entry = device_block(entry->first) == block ? parts_read.erase(entry) : std::next(entry);
    }
}

void *host_alloc(size_t bytes) {
    if (std::getenv("PF_EMULATED_UNLOCKED")) return nullptr;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    std::memset(memory, 0xff, bytes);
    locked[static_cast<uint8_t *>(memory)] = {bytes, false, {0, 0}};
    return memory;
}

void host_free(void *memory) {
    catch_up_all();
    if (!memory) return;
    const auto found = locked.find(static_cast<uint8_t *>(memory));
    if (found == locked.end()) fail("memory of the host was freed that was never given");
    munmap(memory, found->second.bytes);
    locked.erase(found);
}

} // namespace emulated
