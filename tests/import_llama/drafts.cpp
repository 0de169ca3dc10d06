// What llama.cpp drafts with DSpark, as llama-server does: drafts [FOLDER OF BACKENDS] < REQUEST > REPLY
//
// REQUEST, JSON: model and drafter, GGUF files; n, tokens of a draft; texts, a list of {tokens, begin}. REPLY, JSON: for each
// text the drafts behind its tokens from begin on, the last one apart, each a list of tokens. Caches are float32.

#include "common.h"
#include "ggml-backend.h"
#include "json.h"
#include "log.h"
#include "speculative.h"

#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

static common_params options(const common_json & request) {
    common_params params;
    params.model.path               = request.at("model").get<std::string>();
    params.n_ctx                    = 512;
    params.n_batch = params.n_ubatch = 512;
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1;
    params.fit_params = params.warmup = false;
    params.cache_type_k = params.cache_type_v = GGML_TYPE_F32;
    params.flash_attn_type          = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    auto & spec = params.speculative;
    spec.types              = { COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK };
    spec.draft.mparams.path = request.at("drafter").get<std::string>();
    spec.draft.n_max        = request.at("n").get<int>();
    spec.draft.backend_sampling = false;
    spec.draft.cache_type_k = spec.draft.cache_type_v = GGML_TYPE_F32;
    spec.draft.cpuparams.n_threads = spec.draft.cpuparams_batch.n_threads = 1;
    const auto limits = common_speculative_get_output_limits(params.n_batch, 1, spec.draft.n_max);
    params.n_outputs_max         = limits.total;
    params.n_outputs_max_per_seq = limits.per_seq;
    return params;
}

static void evaluate(llama_context * context, common_speculative * spec, const llama_tokens & tokens, int begin, int end) {
    llama_batch batch = llama_batch_init(end - begin, 0, 1);
    for (int i = begin; i < end; ++i) {
        common_batch_add(batch, tokens[i], i, { 0 }, i + 1 == end);
    }
    const bool is_done = llama_decode(context, batch) == 0 && common_speculative_process(spec, batch);
    llama_batch_free(batch);
    if (!is_done) {
        throw std::runtime_error("llama.cpp cannot evaluate the tokens");
    }
}

static common_json drafts(llama_context * target, llama_context * drafter, common_speculative * spec, const common_json & text) {
    const auto tokens = text.at("tokens").get<llama_tokens>();
    const int  begin  = text.at("begin").get<int>();
    for (auto * context : { target, drafter }) {
        llama_memory_clear(llama_get_memory(context), true);
    }
    evaluate(target, spec, tokens, 0, begin);
    common_speculative_begin(spec, 0, llama_tokens(tokens.begin(), tokens.begin() + begin));
    common_json found = common_json::array();
    for (int place = begin; place + 1 < (int) tokens.size(); ++place) {
        const llama_tokens before(tokens.begin(), tokens.begin() + place);
        llama_tokens draft;
        auto & asked = common_speculative_get_draft_params(spec, 0);
        asked = {};
        asked.drafting = true;
        asked.pos0     = place;
        asked.id_last  = tokens[place];
        asked.prompt   = &before;
        asked.result   = &draft;
        common_speculative_draft(spec);
        if (!llama_memory_seq_rm(llama_get_memory(drafter), 0, place, -1)) {
            throw std::runtime_error("llama.cpp cannot take a draft back");
        }
        found.push_back(draft);
        evaluate(target, spec, tokens, place, place + 1);
    }
    return found;
}

int main(int argc, char ** argv) {
    common_log_set_verbosity_thold(-1);
    if (argc > 1) {
        ggml_backend_load_all_from_path(argv[1]);
    }
    const std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    const auto request = common_json::parse(text);
    auto params = options(request);
    llama_backend_init();
    auto loaded = common_init_from_params(params);
    auto params_draft = common_base_params_to_speculative(params);
    auto made = common_speculative_init_from_params(params_draft, loaded->model(), loaded->context());
    params.speculative.draft.ctx_tgt = loaded->context();
    params.speculative.draft.ctx_dft = made->context();
    common_speculative_ptr spec(common_speculative_init(params.speculative, 1));
    if (!spec) {
        throw std::runtime_error("llama.cpp cannot draft with this file");
    }
    common_json replies = common_json::array();
    for (const auto & each : request.at("texts")) {
        replies.push_back(drafts(loaded->context(), made->context(), spec.get(), each));
    }
    std::cout << replies.dump() << "\n";
}
