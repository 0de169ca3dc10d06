#include "arch/file_kind.h"

#include "arch/keys.h"

#include <string.h>

#define GIVE_MODEL "give the model's own GGUF"

static bool equals(pf_gguf_string text, const char *word) {
    return text.len == strlen(word) && memcmp(text.data, word, strlen(word)) == 0;
}

static bool begins(pf_gguf_string text, const char *word) {
    return text.len >= strlen(word) && memcmp(text.data, word, strlen(word)) == 0;
}

static bool key_is(const pf_gguf *gguf, const char *key, const char *word) {
    pf_gguf_string text;
    return pf_gguf_get_string(gguf, key, &text) && equals(text, word);
}

static bool has_tensor_of(const pf_gguf *gguf, const char *prefix) {
    for (uint64_t i = 0; i < pf_gguf_n_tensors(gguf); ++i) {
        if (begins(pf_gguf_tensor_at(gguf, i)->name, prefix)) return true;
    }
    return false;
}

/* What belongs to models without being one. NULL: something else. */
static const char *name_accessory(const pf_gguf *gguf, pf_gguf_string arch) {
    if (key_is(gguf, "general.type", "imatrix") || pf_gguf_has(gguf, "imatrix.datasets") ||
        pf_gguf_has(gguf, "imatrix.chunk_count")) {
        return "an importance matrix (imatrix), which quantisers take, not a model: " GIVE_MODEL;
    }
    if (key_is(gguf, "general.type", "adapter") || pf_gguf_has(gguf, "adapter.type")) {
        return "an adapter (LoRA), not a model, and pyflash applies none: merge it into the checkpoint, and convert "
               "that";
    }
    if (key_is(gguf, "general.type", "mmproj") || equals(arch, "clip") || pf_gguf_has(gguf, "clip.projector_type")) {
        return "a vision projector (mmproj), not a model, and pyflash reads text only: " GIVE_MODEL;
    }
    if (equals(arch, "controlvector")) return "a control vector, not a model, and pyflash applies none: " GIVE_MODEL;
    return NULL;
}

/* Models that only draft for another one. Files of ours and of others may hold such tensors beside the model's. */
static const char *name_draft(const pf_gguf *gguf, pf_gguf_string arch) {
    static const char dspark[] = "a DSpark draft model, which goes beside a model: " GIVE_MODEL ", and this one beside it";
    if (equals(arch, "dflash") && pf_gguf_has(gguf, "dflash.hyper_connection.count")) return dspark;
    if (equals(arch, "dflash")) return "a DFlash draft model, which goes beside another model: " GIVE_MODEL;
    if (equals(arch, PF_ARCH "-dspark") || equals(arch, PF_ARCH "_dspark")) return dspark;
    if (!equals(arch, PF_ARCH) || pf_gguf_find_tensor(gguf, "blk.0.attn_norm.weight") != NULL) return NULL;
    if (has_tensor_of(gguf, "dspark.") || pf_gguf_has(gguf, PF_ARCH ".dspark.block_size") ||
        pf_gguf_has(gguf, PF_ARCH ".dspark.n_layers")) {
        return dspark;
    }
    if (has_tensor_of(gguf, "mtp.")) {
        return "an MTP draft model in ds4's layout, which goes beside a model and is not usable here: " GIVE_MODEL
               ", which runs without it, or with an MTP file of llama.cpp's layout";
    }
    return NULL;
}

/* Other models that are taken for this one. "" for the rest. */
static const char *other_deepseek(pf_gguf_string arch) {
    static const struct {
        const char *arch, *name;
    } known[] = {{PF_ARCH "1", " (DeepSeek-V4.1)"}, {"deepseek32", " (DeepSeek-V3.2)"},
                 {"deepseek2", " (DeepSeek-V2, V3 or R1)"}, {"deepseek", " (the first DeepSeek MoE)"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
        if (equals(arch, known[i].arch)) return known[i].name;
    }
    return "";
}

pf_status pf_file_kind_check_dspark(const pf_gguf *gguf, pf_error *err) {
    static const char *const known[] = {"dflash", PF_ARCH "-dspark", PF_ARCH "_dspark", PF_ARCH};
    pf_gguf_string arch = {"", 0};
    (void)pf_gguf_get_string(gguf, "general.architecture", &arch);
    for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
        if (equals(arch, known[i])) return PF_OK;
    }
    return pf_fail(err, PF_ERR_UNSUPPORTED, "the draft file is of architecture \"%.*s\", and only DSpark stages of "
                   PF_ARCH " (DeepSeek-V4) are known: take the draft file of this model",
                   (int)(arch.len < 40 ? arch.len : 40), arch.data);
}

pf_status pf_file_kind_check(const pf_gguf *gguf, pf_error *err) {
    pf_gguf_string arch = {"", 0};
    const bool named = pf_gguf_get_string(gguf, "general.architecture", &arch);
    const char *what = name_accessory(gguf, arch);
    if (what == NULL) what = name_draft(gguf, arch);
    if (what != NULL) return pf_fail(err, PF_ERR_UNSUPPORTED, "the file is %s", what);
    if (!named) {
        return pf_fail(err, PF_ERR_FORMAT, "the file lacks the key general.architecture: not a model file");
    }
    if (!equals(arch, PF_ARCH)) {
        const int shown = arch.len < 40 ? (int)arch.len : 40;
        const char *way_out = "run it with llama.cpp, Ollama or LM Studio";
        if (equals(arch, PF_ARCH "1")) way_out = "take a file of V4, or run this one with a program that knows it";
        return pf_fail(err, PF_ERR_UNSUPPORTED,
                       "the file holds a model of architecture \"%.*s\"%s, and pyflash runs " PF_ARCH
                       " (DeepSeek-V4) only: %s", shown, arch.data, other_deepseek(arch), way_out);
    }
    if (pf_gguf_n_tensors(gguf) == 0) {
        return pf_fail(err, PF_ERR_FORMAT,
                       "the file has no tensors, only a model's vocabulary and settings: " GIVE_MODEL);
    }
    return PF_OK;
}
