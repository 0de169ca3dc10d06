#include "window.h"

#include <FL/Fl.H>
#include <FL/Fl_Native_File_Chooser.H>

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace {

constexpr int gap = 10, button_height = 30, text_size = 15;
constexpr Fl_Color paper = 0xffffff00, grey = 0xf3f4f600, ink = 0x1f232800, dim = 0x727a8400, accent = 0x1a66c200, red = 0xb3261e00;

enum Style : char { answer_style = 'A', user_style, reasoning_style, note_style, error_style };
const Fl_Text_Display::Style_Table_Entry style_table[] = {
    {ink, FL_HELVETICA, text_size, 0},        {accent, FL_HELVETICA_BOLD, text_size, 0}, {dim, FL_HELVETICA_ITALIC, text_size, 0},
    {dim, FL_HELVETICA, text_size - 2, 0}, {red, FL_HELVETICA, text_size, 0},
};
constexpr int n_style = sizeof style_table / sizeof *style_table;

std::string file_name(const std::string &path) {
    const size_t slash = path.find_last_of("/\\");
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string speed(const char *what, int64_t tokens, double seconds) {
    char text[96];
    std::snprintf(text, sizeof text, "%lld %s, %.1f/s", static_cast<long long>(tokens), what,
                  static_cast<double>(tokens) / (seconds > 0 ? seconds : 1e-9));
    return text;
}

std::string without_white_ends(const char *text) {
    const std::string all = text;
    const size_t begin = all.find_first_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : all.substr(begin, all.find_last_not_of(" \t\r\n") - begin + 1);
}

} // namespace

Entry::Entry(int x, int y, int w, int h) : Fl_Text_Editor(x, y, w, h) {
    buffer(text_);
    wrap_mode(WRAP_AT_BOUNDS, 0);
    textsize(text_size);
    box(FL_BORDER_BOX);
}

Entry::~Entry() { buffer(nullptr); }

int Entry::handle(int event) {
    const bool is_enter = event == FL_KEYBOARD && (Fl::event_key() == FL_Enter || Fl::event_key() == FL_KP_Enter);
    if (!is_enter || (Fl::event_state() & FL_SHIFT) != 0) return Fl_Text_Editor::handle(event);
    static_cast<ChatWindow *>(window())->send();
    return 1;
}

ChatWindow::ChatWindow(int width, int height)
    : Fl_Double_Window(width, height, "pyflash chat"), worker_([this](Event event) { receive(std::move(event)); }) {
    color(grey);
    build_toolbar(width);
    build_bottom(width, height);
    const int top = button_height + 2 * gap;
    transcript = new Fl_Text_Display(gap, top, width - 2 * gap, entry->y() - gap - top);
    transcript->box(FL_BORDER_BOX);
    transcript->color(paper);
    transcript->buffer(text_);
    transcript->wrap_mode(Fl_Text_Display::WRAP_AT_BOUNDS, 0);
    transcript->highlight_data(&styles_, style_table, n_style, answer_style, nullptr, nullptr);
    transcript->hide_cursor();
    end();
    resizable(transcript);
    size_range(480, 320);
    callback([](Fl_Widget *window, void *) { // Escape closes no chat
        if (Fl::event() == FL_SHORTCUT && Fl::event_key() == FL_Escape) return static_cast<ChatWindow *>(window)->stop();
        window->hide(); // the program ends with its last window
    });
    set_busy(true, "Open a model to begin");
    open_button->activate();
    entry->take_focus();
}

ChatWindow::~ChatWindow() {
    transcript->buffer(nullptr); // which goes before the widget
}

void ChatWindow::build_toolbar(int width) {
    auto *bar = new Fl_Group(0, 0, width, button_height + 2 * gap);
    new_button = new Fl_Button(width - 90 - gap, gap, 90, button_height, "New chat");
    open_button = new Fl_Button(new_button->x() - 120 - gap, gap, 120, button_height, "Open model...");
    think = new Fl_Check_Button(open_button->x() - 80 - gap, gap, 80, button_height, "Think");
    model_name = new Fl_Box(gap, gap, think->x() - 2 * gap, button_height);
    model_name->align(FL_ALIGN_LEFT | FL_ALIGN_INSIDE | FL_ALIGN_CLIP);
    model_name->labelfont(FL_HELVETICA_BOLD);
    bar->end();
    bar->resizable(model_name);
    open_button->callback([](Fl_Widget *w, void *) { static_cast<ChatWindow *>(w->window())->choose_model(); });
    new_button->callback([](Fl_Widget *w, void *) { static_cast<ChatWindow *>(w->window())->new_chat(); });
}

void ChatWindow::build_bottom(int width, int height) {
    constexpr int line = 22, entry_height = 64, button_width = 80;
    const int y_status = height - line - gap / 2, y_entry = y_status - entry_height - gap / 2;
    auto *low = new Fl_Group(0, y_entry, width, height - y_entry);
    entry = new Entry(gap, y_entry, width - button_width - 3 * gap, entry_height);
    send_button = new Fl_Button(width - button_width - gap, y_entry + entry_height - button_height, button_width, button_height, "Send");
    status = new Fl_Box(gap, y_status, width - 200 - 3 * gap, line);
    status->align(FL_ALIGN_LEFT | FL_ALIGN_INSIDE | FL_ALIGN_CLIP);
    status->labelsize(13);
    progress = new Fl_Progress(width - 200 - gap, y_status, 200, line - 6);
    progress->selection_color(accent);
    progress->hide();
    low->end();
    low->resizable(entry);
    send_button->callback([](Fl_Widget *w, void *) {
        auto *window = static_cast<ChatWindow *>(w->window());
        window->busy() ? window->stop() : window->send();
    });
}

// -- what a person does --

void ChatWindow::choose_model() {
    Fl_Native_File_Chooser chooser;
    chooser.title("Open a model");
    chooser.filter("GGUF models\t*.gguf");
    const int answer = chooser.show();
    if (answer == 0) open(chooser.filename());
    if (answer < 0) tell(Failed{chooser.errmsg()});
}

void ChatWindow::open(const std::string &path) {
    set_busy(true, "Opening " + file_name(path) + "...");
    worker_.open(path);
}

void ChatWindow::new_chat() {
    worker_.new_chat();
    clear_transcript();
}

void ChatWindow::send() {
    char *typed = entry->buffer()->text();
    const std::string question = without_white_ends(typed);
    std::free(typed);
    if (busy_ || question.empty()) return;
    entry->buffer()->text("");
    write((text_.length() > 0 ? "\n" : "") + question + "\n", user_style);
    transcript->insert_position(text_.length());
    transcript->show_insert_position();
    quiet_ = true;
    in_reasoning_ = false;
    set_busy(true, "Reading...");
    send_button->label("Stop");
    send_button->activate();
    worker_.ask(question, think->value() ? PF_THINK_HIGH : PF_THINK_OFF);
}

void ChatWindow::stop() { worker_.stop(); }

// -- what the worker tells --

void ChatWindow::receive(Event event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    events_.push_back(std::move(event));
    if (events_.size() > 1) return; // the main thread has been called already
    Fl::awake([](void *window) { static_cast<ChatWindow *>(window)->show_events(); }, this);
}

void ChatWindow::show_events() {
    std::vector<Event> events;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        events.swap(events_);
    }
    for (const Event &event : events) std::visit([this](const auto &what) { tell(what); }, event);
}

void ChatWindow::tell(const Opened &event) {
    model_name->copy_label(file_name(event.path).c_str());
    clear_transcript();
    set_busy(false, "Ready");
}

void ChatWindow::tell(const Reading &event) {
    const int percent = static_cast<int>(100 * event.done / (event.total > 0 ? event.total : 1));
    status->copy_label(("Reading: " + std::to_string(percent) + " %").c_str());
    progress->value(static_cast<float>(percent));
    progress->show();
}

void ChatWindow::tell(const Text &event) {
    progress->hide();
    write_piece(event.is_reasoning, event.text);
}

void ChatWindow::tell(const Finished &event) {
    write("\n", answer_style);
    if (event.stopped) write("(stopped)\n", note_style);
    set_busy(false, speed("tokens read", event.n_read, event.read_seconds) + "; " +
                        speed("written", event.n_written, event.write_seconds));
}

void ChatWindow::tell(const Failed &event) {
    write((text_.length() > 0 ? "\n" : "") + event.message + "\n", error_style);
    set_busy(false, "Failed");
}

void ChatWindow::set_busy(bool busy, const std::string &text) {
    busy_ = busy;
    send_button->label("Send");
    for (Fl_Button *button : {send_button, open_button, new_button}) busy ? button->deactivate() : button->activate();
    progress->hide();
    status->copy_label(text.c_str());
}

void ChatWindow::write_piece(bool is_reasoning, const std::string &text) {
    if (is_reasoning && quiet_) write("Thinking\n", note_style);
    if (!is_reasoning && in_reasoning_) write("\n\n", answer_style);
    quiet_ = false;
    in_reasoning_ = is_reasoning;
    write(text, is_reasoning ? reasoning_style : answer_style);
}

void ChatWindow::write(const std::string &text, char style) {
    // Where the person has scrolled up to read, the view stays.
    int x = 0, y = 0;
    const bool at_end = transcript->position_to_xy(text_.length(), &x, &y) != 0;
    styles_.append(std::string(text.size(), style).c_str());
    text_.append(text.c_str());
    if (at_end) transcript->scroll(transcript->count_lines(0, text_.length(), true) + 1, 0);
}

void ChatWindow::clear_transcript() {
    text_.text("");
    styles_.text("");
}
