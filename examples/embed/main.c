/* Chats with a model, from C alone:
 *
 *   embed MODEL.gguf [--think] [-n TOKENS] [--temp T] [--seed N] [MESSAGE...]
 *
 * Answers MESSAGE, or else every line of the standard input, as one conversation. The answer goes to stdout and, with
 * --think, the reasoning before it to stderr. Ctrl-C stops an answer and keeps what there is of it.
 * Exit codes: 0 done, 1 failed, 2 usage, 130 the answer to MESSAGE was stopped. */
#include "chat.h"
#include "console.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct arguments {
    const char *model;
    chat_options options;
    char **words; /* [n_words] of MESSAGE */
    int n_words;
} arguments;

/* ---- Arguments ---------------------------------------------------------------------------------------------- */

static bool parse_number(const char *text, double least, double most, double *out) {
    char *end = NULL;
    errno = 0;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && errno == 0 && *out >= least && *out <= most;
}

/* Takes the option argv[0] and its value; returns how many of the n_left arguments it took, 0 when it is wrong. */
static int parse_option(int n_left, char **argv, chat_options *options) {
    double value = 0.0;
    if (strcmp(argv[0], "--think") == 0) {
        options->think = PF_THINK_HIGH;
        return 1;
    }
    if (n_left < 2) return 0;
    if (strcmp(argv[0], "-n") == 0 && parse_number(argv[1], 1.0, 1e9, &value)) {
        options->max_tokens = (int64_t)value;
    } else if (strcmp(argv[0], "--temp") == 0 && parse_number(argv[1], 0.0, 100.0, &value)) {
        options->temperature = (float)value;
    } else if (strcmp(argv[0], "--seed") == 0 && parse_number(argv[1], 0.0, 9e15, &value)) {
        options->seed = (uint64_t)value;
    } else {
        return 0;
    }
    return 2;
}

static bool parse(int argc, char **argv, arguments *a) {
    a->options = (chat_options){.think = PF_THINK_OFF, .temperature = 1.0f, .seed = (uint64_t)time(NULL)};
    if (argc < 2 || argv[1][0] == '-') return false;
    a->model = argv[1];
    int i = 2;
    while (i < argc && argv[i][0] == '-' && strcmp(argv[i], "--") != 0) {
        const int taken = parse_option(argc - i, argv + i, &a->options);
        if (taken == 0) return false;
        i += taken;
    }
    if (i < argc && strcmp(argv[i], "--") == 0) ++i;
    a->words = argv + i;
    a->n_words = argc - i;
    return true;
}

/* The words with spaces between, to be freed; NULL when out of memory. */
static char *join(char **words, int n) {
    size_t size = 1;
    for (int i = 0; i < n; ++i) size += strlen(words[i]) + 1;
    char *text = malloc(size);
    size_t len = 0;
    for (int i = 0; text != NULL && i < n; ++i) {
        const size_t word = strlen(words[i]);
        if (i > 0) text[len++] = ' ';
        memcpy(text + len, words[i], word);
        len += word;
    }
    if (text != NULL) text[len] = '\0';
    return text;
}

/* ---- Answers ------------------------------------------------------------------------------------------------ */

typedef struct printer {
    bool dims; /* stderr is a terminal */
    bool is_dim;
} printer;

static void end_reasoning(printer *p) {
    if (!p->is_dim) return;
    fputs(p->dims ? "\033[0m\n\n" : "\n\n", stderr);
    fflush(stderr);
    p->is_dim = false;
}

static void write_piece(void *user, bool is_reasoning, const char *text, size_t len) {
    printer *p = user;
    FILE *file = is_reasoning ? stderr : stdout;
    if (!is_reasoning) {
        end_reasoning(p);
    } else if (!p->is_dim) {
        if (p->dims) fputs("\033[2m", stderr);
        p->is_dim = true;
    }
    fwrite(text, 1, len, file);
    fflush(file);
}

static pf_status answer(chat *c, const char *question) {
    printer p = {.dims = console_is_terminal(stderr)};
    (void)console_cancels(c->session);
    const pf_status status = chat_ask(c, question, write_piece, &p);
    const bool came = console_cancels(NULL);
    c->late_cancel = came && !c->stopped;
    end_reasoning(&p);
    putchar('\n');
    fflush(stdout);
    return status;
}

/* ---- Lines -------------------------------------------------------------------------------------------------- */

/* The next line without its end, to be freed; NULL at the end of the input or out of memory. */
static char *read_line(FILE *file) {
    size_t len = 0;
    size_t capacity = 256;
    char *line = malloc(capacity);
    while (line != NULL && fgets(line + len, (int)(capacity - len), file) != NULL) {
        len += strlen(line + len);
        if (len > 0 && line[len - 1] == '\n') break;
        if (capacity - len > 1) continue; /* the last line, or one with a zero byte */
        char *longer = capacity < (1u << 30) ? realloc(line, 2 * capacity) : NULL;
        if (longer == NULL) len = 0;
        if (longer == NULL) break;
        line = longer;
        capacity *= 2;
    }
    if (line != NULL && len == 0) {
        free(line);
        return NULL;
    }
    if (line != NULL) line[strcspn(line, "\r\n")] = '\0';
    return line;
}

static pf_status answer_lines(chat *c) {
    const bool prompts = console_is_terminal(stdin);
    pf_status status = PF_OK;
    while (status == PF_OK) {
        if (prompts) fputs("> ", stderr);
        char *line = read_line(stdin);
        if (line == NULL) break;
        if (line[0] != '\0') status = answer(c, line);
        free(line);
    }
    if (prompts) fputc('\n', stderr);
    return status;
}

static pf_status answer_words(chat *c, const arguments *a) {
    char *question = join(a->words, a->n_words);
    if (question == NULL) return PF_ERR_MEMORY;
    const pf_status status = answer(c, question);
    free(question);
    return status;
}

int main(int argc, char **argv) {
    arguments a = {0};
    if (!console_start(&argc, &argv)) {
        fputs("embed: out of resources\n", stderr);
        return 1;
    }
    if (!parse(argc, argv, &a)) {
        fputs("usage: embed MODEL.gguf [--think] [-n TOKENS] [--temp T] [--seed N] [MESSAGE...]\n", stderr);
        return 2;
    }
    chat c = {0};
    pf_status status = chat_open(&c, a.model, &a.options);
    if (status == PF_OK) status = a.n_words > 0 ? answer_words(&c, &a) : answer_lines(&c);
    if (status != PF_OK) {
        fprintf(stderr, "embed: %s\n", c.error.message[0] != '\0' ? c.error.message : "out of memory");
    } else if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("embed: cannot write the answer\n", stderr);
        status = PF_ERR_FILE;
    }
    const bool stopped = a.n_words > 0 && c.stopped;
    chat_close(&c);
    if (status != PF_OK) return 1;
    return stopped ? 130 : 0;
}
