// Chats through llama.cpp's own handling of templates, as llama-server does: chat < REQUEST > REPLY
//
// REQUEST, JSON: a list of {template, messages and tools (as in OpenAI's API), enable_thinking, kwargs, answer}, where
// the answer is what a model generated. REPLY, JSON: a list of {capabilities, prompt, message}, the answer read back.

#include "chat.h"
#include "json.h"

#include <iostream>
#include <iterator>
#include <string>

static common_json run(const common_json & request) {
    const auto templates = common_chat_templates_init(nullptr, request.at("template").get<std::string>(), "", "");
    common_chat_templates_inputs inputs;
    inputs.messages            = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools               = common_chat_tools_parse_oaicompat(request.at("tools"));
    inputs.parallel_tool_calls = true;
    inputs.reasoning_format    = COMMON_REASONING_FORMAT_DEEPSEEK;
    inputs.enable_thinking     = request.at("enable_thinking").get<bool>();
    for (const auto & [name, value] : request.at("kwargs").items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    const auto params = common_chat_templates_apply(templates.get(), inputs);
    common_chat_parser_params parser(params);
    parser.parser.load(params.parser);
    const auto message = common_chat_parse(request.at("answer").get<std::string>(), false, parser);

    common_json capabilities = common_json::object();
    for (const auto & [name, value] : common_chat_templates_get_caps(templates.get())) {
        capabilities[name] = value;
    }
    common_json reply = common_json::object();
    reply["capabilities"] = capabilities;
    reply["prompt"]       = params.prompt;
    reply["message"]      = message.to_json_oaicompat();
    return reply;
}

int main() {
    const std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    common_json replies = common_json::array();
    for (const auto & request : common_json::parse(text)) {
        replies.push_back(run(request));
    }
    std::cout << replies.dump() << "\n";
}
