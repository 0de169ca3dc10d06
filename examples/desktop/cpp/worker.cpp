#include "worker.h"

#include <chrono>
#include <ctime>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

// What chat_ask() calls back with.
struct Listener {
    const std::function<void(Event)> &tell;
    Clock::time_point begun = Clock::now();
    Clock::time_point read = begun;
};

void on_progress(void *user, int64_t done, int64_t total) {
    auto *listener = static_cast<Listener *>(user);
    listener->read = Clock::now();
    listener->tell(Reading{done, total});
}

void on_text(void *user, bool is_reasoning, const char *text, size_t len) {
    static_cast<Listener *>(user)->tell(Text{is_reasoning, std::string(text, len)});
}

std::string message_of(const chat &c) { return c.error.message[0] != '\0' ? c.error.message : "out of memory"; }

} // namespace

Worker::Worker(std::function<void(Event)> tell) : tell_(std::move(tell)), thread_(&Worker::run, this) {}

Worker::~Worker() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        closing_ = true;
        orders_.clear();
    }
    stop();
    changed_.notify_one();
    thread_.join();
    chat_close(&chat_);
}

void Worker::open(std::string path) {
    order([this, path = std::move(path)] { open_model(path); });
}

void Worker::ask(std::string question, int32_t think) {
    order([this, question = std::move(question), think] { answer(question, think); });
}

void Worker::new_chat() {
    order([this] { chat_clear(&chat_); });
}

void Worker::stop() {
    const std::lock_guard<std::mutex> lock(mutex_); // held over the cancel, so that the session is not closed meanwhile
    if (!answering_ || cancelled_) return;
    cancelled_ = true;
    pf_session_cancel(chat_.session);
}

void Worker::order(std::function<void()> job) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        orders_.push_back(std::move(job));
    }
    changed_.notify_one();
}

void Worker::run() {
    for (;;) {
        std::function<void()> job;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [this] { return closing_ || !orders_.empty(); });
            if (closing_) return;
            job = std::move(orders_.front());
            orders_.pop_front();
        }
        job();
    }
}

void Worker::open_model(const std::string &path) {
    chat_options options{};
    options.temperature = 1.0f;
    options.seed = static_cast<uint64_t>(std::time(nullptr));
    options.progress = on_progress;
    chat opened{};
    if (chat_open(&opened, path.c_str(), &options) != PF_OK) {
        const std::string message = message_of(opened);
        chat_close(&opened);
        return tell_(Failed{message}); // the model before stays
    }
    std::swap(chat_, opened); // between orders nobody cancels
    chat_close(&opened);
    tell_(Opened{path});
}

void Worker::answer(const std::string &question, int32_t think) {
    if (chat_.session == nullptr) return tell_(Failed{"open a model first"});
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (closing_) return;
        answering_ = true;
        cancelled_ = false;
    }
    chat_.options.think = think;
    Listener listener{tell_};
    const pf_status status = chat_ask(&chat_, question.c_str(), on_text, &listener);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        answering_ = false;
        if (cancelled_ && !chat_.stopped) chat_.late_cancel = true; // it came after the last step: not for the next answer
    }
    if (status != PF_OK) return tell_(Failed{message_of(chat_)});
    tell_(Finished{chat_.stopped, chat_.n_prompt - chat_.n_reused, chat_.n_written, seconds(listener.begun, listener.read),
                   seconds(listener.read, Clock::now())});
}
