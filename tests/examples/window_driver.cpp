// Uses examples/desktop/cpp as a person does: window_driver MODEL.gguf BROKEN.gguf SCREEN COPY
//
// Built in the place of its main.cpp, and run by test_desktop_cpp.py under a virtual display. Types and clicks, and checks what
// the window shows. Prints a line for each step, and ends with 1 where something is not as it should be. Copies the screen's
// file when there is much to see.
#include <FL/Fl.H>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "window.h"

static void require(bool is_so, const std::string &what) {
    if (is_so) return;
    std::fprintf(stderr, "not so: %s\n", what.c_str());
    std::fflush(stderr);
    std::_Exit(1);
}

class Person {
public:
    explicit Person(ChatWindow &window) : window_(window) {}

    std::string shown() const {
        char *text = window_.transcript->buffer()->text();
        std::string copy = text;
        std::free(text);
        return copy;
    }

    void until(const std::function<bool()> &happened, const std::string &what) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(100);
        while (!happened()) {
            require(std::chrono::steady_clock::now() < end, what + " in time; the window shows " + shown());
            Fl::wait(0.05);
        }
    }

    void until_idle() {
        until([this] { return !window_.busy(); }, "the end of the work");
    }

    void press(int key, const char *text) {
        Fl::focus(window_.entry);
        Fl::e_keysym = key;
        Fl::e_state = 0;
        Fl::e_text = const_cast<char *>(text);
        Fl::e_length = static_cast<int>(std::char_traits<char>::length(text));
        Fl::handle(FL_KEYBOARD, &window_);
    }

    void type(const std::string &text) {
        for (const char letter : text) press(letter, std::string(1, letter).c_str());
    }

    void click(const Fl_Widget *widget) {
        Fl::e_x = widget->x() + widget->w() / 2;
        Fl::e_y = widget->y() + widget->h() / 2;
        Fl::e_keysym = FL_Button + FL_LEFT_MOUSE;
        Fl::e_state = FL_BUTTON1;
        Fl::handle(FL_PUSH, &window_);
        Fl::e_state = 0;
        Fl::handle(FL_RELEASE, &window_);
    }

    // What the window has shown since, when all is done.
    std::string ask(const std::string &question) {
        const size_t before = shown().size();
        type(question);
        press(FL_Enter, "\n");
        require(window_.busy() && std::string(window_.send_button->label()) == "Stop", "Enter sends");
        until_idle();
        return shown().substr(before);
    }

    void ask_at_length() {
        std::string question;
        for (int i = 0; i < 12000; ++i) question += "word ";
        window_.entry->buffer()->text(question.c_str());
        click(window_.send_button);
        until([this] { return window_.progress->visible() != 0 && window_.progress->value() < 100; }, "progress of the prompt");
    }

private:
    ChatWindow &window_;
};

static void step(const char *name) {
    std::puts(name);
    std::fflush(stdout);
}

static void use(ChatWindow &window, Person &person, char **argv) {
    step("empty");
    person.type("too early");
    person.press(FL_Enter, "\n");
    require(person.shown().empty() && !window.send_button->active(), "without a model nothing can be sent");
    window.entry->buffer()->text("");
    step("open");
    window.open(argv[1]);
    person.until_idle();
    const std::string name = std::filesystem::path(argv[1]).filename().string();
    require(window.model_name->label() == name && std::string(window.status->label()) == "Ready", "the model's name");
    step("ask");
    const std::string answer = person.ask("Hello, who are you?");
    require(answer.rfind("Hello, who are you?\n", 0) == 0 && answer.size() > 30, "an answer: " + answer);
    require(std::string(window.status->label()).find("tokens read") != std::string::npos, "speeds");
    step("think");
    person.click(window.think);
    require(window.think->value() == 1, "a click on Think");
    const std::string thought = person.ask("What is 2 + 3?");
    require(thought.find("\nThinking\n") != std::string::npos && thought.find("\n\n") != std::string::npos, "thinking: " + thought);
    Fl::flush();
    Fl::wait(0.2);
    std::filesystem::copy_file(argv[3], argv[4]);
    person.click(window.think);
    step("stop");
    const std::function<void()> ways[] = {[&] { person.click(window.send_button); }, [&] { person.press(FL_Escape, "\033"); }};
    for (const auto &stop : ways) {
        person.ask_at_length();
        stop();
        person.until_idle();
        require(window.visible() != 0, "the window after Escape");
        require(person.shown().rfind("\n(stopped)\n") == person.shown().size() - 11, "stopped: " + person.shown().substr(0, 300));
    }
    step("clear");
    person.click(window.new_button);
    require(person.shown().empty(), "an empty window");
    step("error");
    window.open(argv[2]);
    person.until_idle();
    require(person.shown().find("broken.gguf") != std::string::npos && window.model_name->label() == name, person.shown());
    require(person.ask("Hello").size() > 10, "the model before goes on");
}

int main(int, char **argv) {
    Fl::lock();
    Fl::scheme("gtk+");
    {
        ChatWindow window(760, 560);
        window.show();
        Person person(window);
        person.until([&] { return window.visible_r() != 0; }, "a window");
        use(window, person, argv);
        step("close");
        person.ask_at_length();
        window.do_callback();
        require(Fl::run() == 0 && window.visible() == 0, "no window");
    }
    step("end");
    return 0;
}
