// A chat window: desktop [MODEL.gguf]. Without one it asks for a file.
#include <FL/Fl.H>

#include <cstdio>

#include "window.h"

int main(int argc, char **argv) {
    if (argc > 2) {
        std::fputs("usage: desktop [MODEL.gguf]\n", stderr);
        return 2;
    }
    Fl::lock(); // without it other threads could not wake this one
    Fl::scheme("gtk+");
    ChatWindow window(760, 560);
    window.show(1, argv);
    if (argc == 2) window.open(argv[1]);
    return Fl::run();
}
