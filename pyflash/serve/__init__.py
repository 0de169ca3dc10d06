"""`pyflash serve`: the protocols that clients speak, each read into one form of request and written from one form of
event.

request: what is asked. events: what an answer consists of. errors: what is refused, and how. rendering: a request as
the model's prompt. chat_completions, completions, responses, messages, ollama: a protocol each, with

- read(body): a decoded JSON body to a Request; RequestError, and nothing else, for what it refuses.
- Stream(request, response_id, created): events to the bytes of a streamed answer.
- full(request, events, response_id, created): events to the body of an answer in one piece.
- error_body(error): a RequestError as the protocol's JSON.

None of them does input or output, or knows a web framework.
"""
