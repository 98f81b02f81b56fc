"""A stand-in for `vllm serve` whose answers have all of vLLM's structure, so that what gets lost on the way shows.

It does not generate: token i of choice c is " c.i", and ends, logprobs, calls of tools and reasoning follow from the fields
of the request. As with vLLM, whole answers carry fields that its streams lack and the other way round, and what only
the engine core refuses is HTTP 400 for a whole answer and an error event in a stream. It adds words that no server has
(`*_of_tomorrow`). Run as a program it takes vLLM's command line.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from aiohttp import web

Json = dict[str, Any]
NOT_STREAMED = ("prompt_logprobs", "use_beam_search")


def refusal(body: Json, *, chat: bool) -> str:
    """What the server's front says against a request, "" if nothing."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(limit, str):
        return "1 validation error: max_tokens is no whole number"
    if limit is not None and limit < (0 if body.get("echo") else 1):
        return f"max_tokens must be at least 1, got {limit}."
    if body.get("temperature", 0) > 2:
        return f"temperature must be in [0, 2], got {body['temperature']}."
    if (
        body.get("top_p", 1) > 1
        or body.get("n", 1) < 1
        or not isinstance(body.get("stop", ""), str | list)
    ):
        return "top_p, n or stop: out of range"
    if (body.get("response_format") or {}).get("type") == "xml":
        return "response_format: Input tag 'xml' found"
    options = body.get("stream_options")
    if options is not None and (
        not body.get("stream") or options.get("include_usage") == "perhaps"
    ):
        return "stream_options: not allowed"
    if body.get("stream") and any(body.get(key) for key in NOT_STREAMED):
        return "not available when `stream=True`."
    return _refusal_of_chat(body) if chat else _refusal_of_prompt(body)


def _refusal_of_prompt(body: Json) -> str:
    prompt = body.get("prompt")
    if not prompt:
        return "Either prompt or prompt_embeds must be provided and non-empty."
    return "The model's maximum context length is 2048 tokens." if len(str(prompt)) > 20_000 else ""


def _refusal_of_chat(body: Json) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return "1 validation error: messages"
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else []
        if message["role"] == "stranger" or any(part["type"] != "text" for part in parts):
            return "Unknown role or part"
        if len(str(content)) > 20_000:
            return "The model's maximum context length is 2048 tokens."
    choice = body.get("tool_choice", "auto")
    named = choice["function"]["name"] if isinstance(choice, dict) else ""
    if choice == "sometimes" or named == "nobody":
        return f"Invalid value for `tool_choice`: {choice}!"
    return "Cannot set both" if messages[-1]["role"] == "assistant" and _contradicts(body) else ""


def _contradicts(body: Json) -> bool:
    return bool(body.get("continue_final_message") and body.get("add_generation_prompt", True))


def late_refusal(body: Json) -> str:
    """What the engine core says against a request that the front has let in."""
    logprobs = body.get("top_logprobs") or body.get("logprobs")
    if not isinstance(logprobs, bool) and (logprobs or 0) > 20:
        return f"Requested sample logprobs of {logprobs}, which is greater than max allowed: 20"
    if 999_999 in (body.get("allowed_token_ids") or []) or "999999" in (
        body.get("logit_bias") or {}
    ):
        return "token ids out of vocabulary"
    if "999999" in str(body.get("prompt", "")):
        return "Token id 999999 is out of vocabulary"
    if (body.get("structured_outputs") or {}).get("regex") == "[a-z":
        return "Grammar error: invalid regex"
    return ""


def error_of(message: str) -> Json:
    """A refusal, as a body or an event."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return {"error": error}


class Script:
    """What is answered to one request."""

    def __init__(self, body: Json, model: str, *, chat: bool, number: int) -> None:
        self.body, self.model, self.chat = body, model, chat
        self.thinks = chat and "thinker" in model
        self.ids = bool(body.get("return_token_ids"))
        prompts = body.get("prompt")
        several = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
        self.prompts = [1] if chat or not several else list(range(len(prompts)))  # type: ignore[arg-type]
        self.choices = len(self.prompts) * body.get("n", 1)
        limit = body.get("max_completion_tokens") or body.get("max_tokens", 16)
        self.tokens = min(limit, 40)
        self.stops = bool(body.get("stop") or body.get("stop_token_ids")) and self.tokens > 5
        self.tokens = 5 if self.stops else self.tokens
        self.call = bool(body.get("tools")) and body.get("tool_choice", "auto") != "none"
        kind = "chat.completion" if chat else "text_completion"
        self.head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{number}", "object": kind}
        self.head |= {"created": 1_700_000_000 + number, "model": model}

    def end(self) -> Json:
        """How a choice ends."""
        if self.stops:
            stop = self.body.get("stop") or self.body["stop_token_ids"]
            return {
                "finish_reason": "stop",
                "stop_reason": stop if isinstance(stop, str) else stop[0],
            }
        if self.call:
            return {"finish_reason": "tool_calls", "stop_reason": None}
        return {"finish_reason": "length", "stop_reason": None}

    def text(self, choice: int, token: int) -> str:
        return f" {choice}.{token}é👩‍👧"[: 20 if token % 3 else 5] if self.tokens else ""

    def logprobs(self, choice: int, tokens: range) -> Json | None:
        """Logprobs of some tokens of a choice."""
        wanted = self.body.get("logprobs")
        if wanted is None or wanted is False:
            return None
        words = [self.text(choice, token) for token in tokens]
        if self.chat:
            tops = self.body.get("top_logprobs", 0)
            said = [(word, -0.1 * token) for word, token in zip(words, tokens, strict=True)]
            entries = [{"token": w, "logprob": p, "bytes": list(w.encode())} for w, p in said]
            return {"content": [entry | {"top_logprobs": [entry] * tops} for entry in entries]}
        return {
            "text_offset": [8 * token for token in tokens],
            "token_logprobs": [-1e-9 * (token + 1) for token in tokens],
            "tokens": words,
            "top_logprobs": [{word: -0.5, "z": -1.5} for word in words] if wanted else [None] * len(words),
        }  # fmt: skip

    def usage(self, tokens: int, *, whole: bool) -> Json:
        """Usage after so many tokens."""
        prompt = 7 * len(self.prompts)
        usage: Json = {"prompt_tokens": prompt, "total_tokens": prompt + tokens}
        details: Json = {"cached_tokens": 3}
        usage |= {"completion_tokens": tokens, "details_of_tomorrow": {"a": 1}}
        if whole:
            return usage | {
                "prompt_tokens_details": details | {"multimodal_tokens": None},
                "completion_tokens_details": {"reasoning_tokens": 2} if self.thinks else None,
            }
        return usage | {"prompt_tokens_details": details}

    # ------------------------------------------------------------------- whole

    def whole(self) -> Json:
        """The answer as one object, with vLLM's many nulls."""
        answer = self.head | {"choices": [self._whole_choice(c) for c in range(self.choices)]}
        answer |= {"service_tier": None, "system_fingerprint": "stand-in-1"}
        answer["usage"] = self.usage(self.choices * self.tokens, whole=True)
        if self.chat:
            asked = self.body.get("prompt_logprobs") is not None
            answer["prompt_logprobs"] = [None, {"9": {"logprob": -1.0}}] if asked else None
            answer["prompt_token_ids"] = [1, 2, 3] if self.ids else None
            answer["prompt_text"] = "rendered" if self.body.get("return_prompt_text") else None
        return answer | {
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None if self.choices > 1 else {"queue_time_ms": 0.1},
            "word_of_tomorrow": [self.body.get("a_field_of_tomorrow")],
        }

    def _whole_choice(self, index: int) -> Json:
        text = "".join(self.text(index, token) for token in range(self.tokens))
        choice: Json = {"index": index, "logprobs": self.logprobs(index, range(self.tokens))}
        choice |= self.end() | {"token_ids": list(range(self.tokens)) if self.ids else None}
        choice["routed_experts"] = None
        choice["choice_of_tomorrow"] = self.tokens - 1
        if not self.chat:
            lead = "echoed" if self.body.get("echo") else ""
            asked = self.body.get("prompt_logprobs") is not None
            logprobs = [None, {"9": {"logprob": -1.0}}] if asked else None
            ids = [1, 2, 3] if self.ids else None
            return choice | {
                "text": lead + text,
                "prompt_logprobs": logprobs,
                "prompt_token_ids": ids,
            }
        message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": None}
        message |= {"audio": None, "function_call": None, "tool_calls": [], "reasoning": None}
        if self.thinks:
            message |= {"reasoning": text, "content": None}
        if self.call:
            function = {"name": "weather", "arguments": json.dumps({"city": text})}
            call = {"id": "call-1", "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
        return choice | {"message": message}

    # ------------------------------------------------------------------- streamed

    def stream(self) -> list[Json]:
        """The chunks, choice by choice, token by token."""
        options = self.body.get("stream_options") or {}
        running = bool(options.get("continuous_usage_stats") and options.get("include_usage"))
        head = self.head | ({"object": "chat.completion.chunk"} if self.chat else {})
        chunks: list[Json] = []
        for index in range(self.choices):
            for number, choice in enumerate(self._deltas(index)):
                chunk = head | {"choices": [choice]}
                if self.chat and not number:
                    ids = [1, 2, 3] if self.ids else None
                    rendered = "rendered" if self.body.get("return_prompt_text") else None
                    chunk |= {"prompt_token_ids": ids, "prompt_text": rendered}
                if running:
                    chunk["usage"] = self.usage(number + (not self.chat), whole=False)
                if choice["finish_reason"] and not options.get("include_usage"):
                    # With usage this is said in the chunk that follows.
                    chunk["system_fingerprint"] = "stand-in-1"
                chunks.append(chunk)
        if options.get("include_usage"):
            last = head | {
                "choices": [],
                "usage": self.usage(self.choices * self.tokens, whole=False),
            }
            word = {"word_of_tomorrow": [self.body.get("a_field_of_tomorrow")]}
            chunks.append(
                last | {"system_fingerprint": "stand-in-1", "metrics": {"queue_time_ms": 1}} | word
            )
        return chunks

    def _deltas(self, index: int) -> list[Json]:
        deltas: list[Json] = []
        if self.chat:
            role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
            deltas.append({"index": index, **role, "finish_reason": None})
        # An echo alone is one chunk too.
        for token in range(max(1, self.tokens)):
            choice: Json = {
                "index": index,
                "logprobs": self.logprobs(index, range(token, token + 1)),
            }
            last = token >= self.tokens - 1
            choice |= self.end() if last else {"finish_reason": None, "stop_reason": None}
            if self.chat and not last:
                del choice["stop_reason"]
            choice["token_ids"] = [token] if self.ids else None
            choice["choice_of_tomorrow"] = token
            if self.chat:
                choice["delta"] = self._delta(index, token)
            else:
                echo = self.body.get("echo") and not token
                choice["text"] = ("echoed" if echo else "") + self.text(index, token)
                choice["prompt_token_ids"] = [1, 2, 3] if (self.ids or echo) and not token else None
            deltas.append(choice)
        return deltas

    def _delta(self, index: int, token: int) -> Json:
        if self.call:
            part: Json = {"index": 0, "function": {"arguments": self.text(index, token)}}
            if not token:
                begun = {"name": "weather", "arguments": ""}
                part = {"index": 0, "id": "call-1", "type": "function", "function": begun}
            return {"content": None, "tool_calls": [part]}
        return {"reasoning" if self.thinks else "content": self.text(index, token)}


class StandIn:
    """The server's state and handlers, for one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.asked = 0
        self.app = web.Application(client_max_size=2**24)
        routes = self.app.router
        routes.add_get("/health", self.health)
        routes.add_get("/v1/models", self.list_models)
        routes.add_post("/v1/completions", self.answer)
        routes.add_post("/v1/chat/completions", self.answer)

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def list_models(self, _: web.Request) -> web.Response:
        model = {"id": self.model, "owned_by": "vllm"}
        return web.json_response({"object": "list", "data": [model]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        chat = request.path.endswith("chat/completions")
        self.asked += 1
        early, late = refusal(body, chat=chat), late_refusal(body)
        if early or (late and not body.get("stream")):
            return web.json_response(error_of(early or late), status=400)
        if late:
            return await self.stream(request, [error_of(late)])
        script = Script(body, body["model"], chat=chat, number=self.asked)
        if not body.get("stream"):
            return web.json_response(script.whole())
        return await self.stream(request, script.stream())

    async def stream(self, request: web.Request, events: list[Json]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("serve", choices=["serve"])
    parser.add_argument("path")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    options, _ = parser.parse_known_args()
    server = StandIn(options.served_model_name)
    web.run_app(server.app, host=options.host, port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
