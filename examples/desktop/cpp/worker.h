// The model on a thread of its own: orders go in by methods that never wait, what comes of them comes back as events.
#ifndef DESKTOP_WORKER_H
#define DESKTOP_WORKER_H

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <variant>

#include "chat.h"

struct Opened { // a model is ready, and the conversation is empty
    std::string path;
};
struct Reading { // tokens of the prompt
    int64_t done, total;
};
struct Text { // a piece of the answer: whole UTF-8 characters
    bool is_reasoning;
    std::string text;
};
struct Finished {
    bool stopped;
    int64_t n_read, n_written; // tokens
    double read_seconds, write_seconds;
};
struct Failed { // what was ordered; the model and the conversation before it go on
    std::string message;
};
using Event = std::variant<Opened, Reading, Text, Finished, Failed>;

class Worker {
public:
    // tell is called on the worker's thread, in order.
    explicit Worker(std::function<void(Event)> tell);
    ~Worker(); // stops what is running, and waits for it: a fraction of a second
    Worker(const Worker &) = delete;
    Worker &operator=(const Worker &) = delete;

    void open(std::string path);                   // comes to Opened or Failed
    void ask(std::string question, int32_t think); // PF_THINK_*; comes to Finished or Failed
    void new_chat();
    void stop(); // the answer that is being made; what there is of it stays

private:
    void run();
    void order(std::function<void()> job);
    void open_model(const std::string &path);
    void answer(const std::string &question, int32_t think);

    std::function<void(Event)> tell_;
    chat chat_{}; // the thread's own, but for what stop() does under the mutex
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> orders_;
    bool closing_ = false;
    bool answering_ = false;
    bool cancelled_ = false;
    std::thread thread_; // last, so that all else is there when it begins
};

#endif
