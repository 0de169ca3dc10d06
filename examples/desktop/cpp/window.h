// The window: shows a conversation, and gives orders to a Worker. All of it is the main thread's.
#ifndef DESKTOP_WINDOW_H
#define DESKTOP_WINDOW_H

#include <FL/Fl_Box.H>
#include <FL/Fl_Button.H>
#include <FL/Fl_Check_Button.H>
#include <FL/Fl_Double_Window.H>
#include <FL/Fl_Progress.H>
#include <FL/Fl_Text_Display.H>
#include <FL/Fl_Text_Editor.H>

#include <mutex>
#include <string>
#include <vector>

#include "worker.h"

// A field of several lines in which Enter sends; Shift+Enter begins a line.
class Entry : public Fl_Text_Editor {
public:
    Entry(int x, int y, int w, int h);
    ~Entry() override;
    int handle(int event) override;

private:
    Fl_Text_Buffer text_;
};

class ChatWindow : public Fl_Double_Window {
public:
    ChatWindow(int width, int height);
    ~ChatWindow() override;

    void open(const std::string &path);
    void send(); // what the entry holds
    void stop();
    bool busy() const { return busy_; }

    // Of these a test needs some.
    Fl_Box *model_name;
    Fl_Check_Button *think;
    Fl_Button *open_button, *new_button;
    Fl_Text_Display *transcript;
    Entry *entry;
    Fl_Button *send_button; // Stop, while an answer is written
    Fl_Progress *progress;
    Fl_Box *status;

private:
    void build_toolbar(int width);
    void build_bottom(int width, int height);
    void choose_model();
    void new_chat();
    void set_busy(bool busy, const std::string &text);
    void write(const std::string &text, char style);
    void write_piece(bool is_reasoning, const std::string &text);
    void clear_transcript();

    void receive(Event event); // on the worker's thread
    void show_events();
    void tell(const Opened &event);
    void tell(const Reading &event);
    void tell(const Text &event);
    void tell(const Finished &event);
    void tell(const Failed &event);

    Fl_Text_Buffer text_, styles_; // the second has a letter for each byte of the first
    bool busy_ = false;
    bool quiet_ = true;        // nothing of the answer has come
    bool in_reasoning_ = false;
    std::mutex mutex_;         // of the events
    std::vector<Event> events_;
    Worker worker_; // last: ends before what its events go to
};

#endif
