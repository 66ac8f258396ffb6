"""A scripted engine: answers chat, completions, embeddings and responses as vLLM does, and remembers what it was asked."""

import base64
import json
import struct
from http.server import BaseHTTPRequestHandler

from typing_extensions import override

TEXT = ["four ", "tokens ", "of ", "text"]
VECTOR = [0.5, -0.25, 0.125]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


class Engine(BaseHTTPRequestHandler):
    """Answers as vLLM does, by script; the server's ``bodies`` hold what was asked."""

    protocol_version = "HTTP/1.1"

    @override
    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            self.send_json({"object": "list", "data": [{"id": "engine", "object": "model"}]})
        else:
            self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        path = self.path.removeprefix("/v1/")
        if body.get("stream"):
            self.send_events({"chat/completions": chat_events, "responses": response_events}[path](body))
        else:
            answers = {
                "chat/completions": chat,
                "completions": completion,
                "embeddings": embeddings,
                "responses": response,
            }
            self.send_json(answers[path](body))

    def send_json(self, document):
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_events(self, events):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in [*events, b""]:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))


def chat(body):
    choices = [{"index": n, "message": message(body), "finish_reason": "stop"} for n in range(body.get("n", 1))]
    if body.get("logprobs"):
        tokens = [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in TEXT]
        choices = [{**choice, "logprobs": {"content": tokens}} for choice in choices]
    return {**head(body, "chat.completion"), "choices": choices, "usage": USAGE}


def message(body):
    if body.get("tools"):
        call = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        calls = [{"id": "call_1", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if "response_format" in body:
        return {"role": "assistant", "content": '{"city": "Paris", "n_people": 2}'}
    return {"role": "assistant", "content": "".join(TEXT)}


def chat_events(body):
    deltas = [{"role": "assistant", "content": ""}, *({"content": token} for token in TEXT)]
    if body.get("tools"):
        deltas = [{"role": "assistant", "tool_calls": [{"index": 0, **message(body)["tool_calls"][0]}]}]
    for number, delta in enumerate(deltas):
        reason = "stop" if number == len(deltas) - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield event({**head(body, "chat.completion.chunk"), "choices": [choice]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event({**head(body, "chat.completion.chunk"), "choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def completion(body):
    choice = {"index": 0, "text": "".join(TEXT), "finish_reason": "stop", "logprobs": None}
    return {**head(body, "text_completion"), "choices": [choice], "usage": USAGE}


def embeddings(body):
    packed = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()
    vector = packed if body.get("encoding_format") == "base64" else VECTOR
    inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(inputs))]
    return {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}


def response(body, status="completed"):
    part = {"type": "output_text", "text": "".join(TEXT), "annotations": []}
    output = {"type": "message", "id": "msg_1", "role": "assistant", "status": status, "content": [part]}
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    facts = {"id": "resp_1", "object": "response", "created_at": 1, "model": body["model"], "status": status}
    more = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {**facts, **more, "output": [output], "usage": {**usage, **details}}


def response_events(body):
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = {**response(body, "in_progress"), "output": [], "usage": None}
    empty = {"type": "output_text", "text": "", "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
    documents = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": empty},
    ]
    documents += [{"type": "response.output_text.delta", **place, "delta": token, "logprobs": []} for token in TEXT]
    documents += [{"type": "response.completed", "response": response(body)}]
    for number, document in enumerate(documents):
        yield b"event: %b\n%b" % (document["type"].encode(), event({**document, "sequence_number": number}))


def head(body, kind):
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": body["model"]}


def event(document):
    return b"data: " + json.dumps(document).encode() + b"\n\n"
