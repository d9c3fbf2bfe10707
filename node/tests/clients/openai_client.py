"""Checks a running server with OpenAI's own Python client, strict response validation on.

usage: python openai_client.py BASE_URL [--api-key KEY]

BASE_URL is the server's, such as http://127.0.0.1:8080. Each check is a sentence; those that fail are told with
their reason, and the exit status is 1. Needs the packages of scripts/test-requirements.txt.
"""

import argparse
import concurrent.futures
import json
import sys
import traceback
import urllib.error
import urllib.request

import openai

CHECKS = []
HELLO = [{"role": "user", "content": "Say hello."}]


def check(sentence):
    def register(function):
        CHECKS.append((sentence, function))
        return function

    return register


class World:
    """The clients: `strict` validates every answer; `lax` is for what the client's own types do not know."""

    def __init__(self, base_url, api_key):
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.api_key = api_key
        options = {"base_url": f"{self.root}/v1", "api_key": api_key, "max_retries": 0, "timeout": 120}
        self.strict = openai.OpenAI(**options, _strict_response_validation=True)
        self.lax = openai.OpenAI(**options)
        self.model = self.strict.models.list().data[0].id

    def chat(self, messages=HELLO, **fields):
        fields.setdefault("max_tokens", 16)
        return self.strict.chat.completions.create(model=self.model, messages=messages, **fields)

    def complete(self, prompt="Once upon a time", **fields):
        fields.setdefault("max_tokens", 16)
        return self.strict.completions.create(model=self.model, prompt=prompt, **fields)

    def raw(self, method, path, body=None, content_type="application/json"):
        """Status, headers and JSON of a request that the client library would not send."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data=data, method=method)
        request.add_header("authorization", f"Bearer {self.api_key}")
        if data is not None:
            request.add_header("content-type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.headers, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.headers, json.loads(error.read())


def equal(found, wanted, what=""):
    assert found == wanted, f"{what}: expected {wanted!r}, found {found!r}"


def refused(error_type, call, code=None, param=None):
    """The error of a call that must fail."""
    try:
        call()
    except error_type as error:
        body = error.body
        assert isinstance(body, dict) and {"message", "type", "param", "code"} <= body.keys(), f"no error object: {body!r}"
        assert body["message"], "the error has no message"
        if code is not None:
            equal(error.code, code, "code")
        if param is not None:
            equal(error.param, param, "param")
        assert error.request_id, "the error has no request id"
        return error
    raise AssertionError(f"expected {error_type.__name__}, but the call succeeded")


def text_of(stream):
    """Text, finish reason and usage of a chat stream of one answer."""
    text, reason, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


# Models


@check("the list of models has the model, and each of its names can be retrieved")
def _(world):
    names = [model.id for model in world.strict.models.list()]
    assert names, "no models"
    for name in names:
        equal(world.strict.models.retrieve(name).id, name)


@check("an unknown model is not found, wherever it is named")
def _(world):
    refused(openai.NotFoundError, lambda: world.strict.models.retrieve("no-such-model"), "model_not_found", "model")
    create = world.strict.chat.completions.create
    refused(openai.NotFoundError, lambda: create(model="no-such", messages=HELLO), "model_not_found", "model")
    create = world.strict.completions.create
    refused(openai.NotFoundError, lambda: create(model="no-such", prompt="a"), "model_not_found", "model")


# Chat


@check("a chat answer has id, object, model, one choice and usage that adds up")
def _(world):
    answer = world.chat()
    assert answer.id.startswith("chatcmpl-"), answer.id
    equal((answer.object, answer.model), ("chat.completion", world.model))
    equal([choice.index for choice in answer.choices], [0])
    message = answer.choices[0].message
    equal((message.role, message.refusal, message.tool_calls), ("assistant", None, None))
    assert message.content, "the answer is empty"
    usage = answer.usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")
    assert 0 < usage.completion_tokens <= 16, usage
    assert answer._request_id, "no x-request-id"


@check("max_tokens and max_completion_tokens cut the answer with finish_reason length")
def _(world):
    for field in ["max_tokens", "max_completion_tokens"]:
        answer = world.strict.chat.completions.create(
            model=world.model, messages=[{"role": "user", "content": "Count from 1 to 100."}], temperature=0, **{field: 3}
        )
        equal(answer.choices[0].finish_reason, "length", field)
        equal(answer.usage.completion_tokens, 3, field)


@check("a greedy answer is the same every time")
def _(world):
    answers = {world.chat(temperature=0).choices[0].message.content for _ in range(3)}
    equal(len(answers), 1, "different answers")


@check("a seed draws the same answer again, and another seed may draw another")
def _(world):
    draw = lambda seed: world.chat(seed=seed, temperature=1.5, max_tokens=24).choices[0].message.content
    equal(draw(7), draw(7))
    assert len({draw(seed) for seed in range(6)}) > 1, "six seeds drew the same answer"


@check("n gives so many answers at their indices")
def _(world):
    answer = world.chat(n=3, temperature=1.2, seed=1)
    equal([choice.index for choice in answer.choices], [0, 1, 2])
    assert len({choice.message.content for choice in answer.choices}) > 1, "all three answers are the same"


@check("a stop string ends the answer before it")
def _(world):
    whole = world.chat(temperature=0, max_tokens=24).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = world.chat(temperature=0, max_tokens=24, stop=stop).choices[0]
    equal((cut.message.content, cut.finish_reason), (whole.split(stop)[0], "stop"))
    several = world.chat(temperature=0, max_tokens=24, stop=["\x00", stop, "\x01", "\x02"]).choices[0]
    equal(several.message.content, whole.split(stop)[0])


@check("a chat stream says what the answer in one piece says")
def _(world):
    whole = world.chat(temperature=0)
    text, reason, usage = text_of(world.chat(temperature=0, stream=True))
    equal((text, reason), (whole.choices[0].message.content, whole.choices[0].finish_reason))
    equal(usage, None, "usage without being asked for")


@check("the first chunk has the role, all chunks have one id, and only the last has a finish reason")
def _(world):
    chunks = list(world.chat(stream=True))
    equal(chunks[0].choices[0].delta.role, "assistant")
    equal(len({chunk.id for chunk in chunks}), 1, "ids")
    equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] and not any(reasons[:-1]), reasons


@check("include_usage sends the counts in a last chunk without choices")
def _(world):
    chunks = list(world.chat(temperature=0, stream=True, stream_options={"include_usage": True}))
    equal(chunks[-1].choices, [])
    assert chunks[-1].usage and not any(chunk.usage for chunk in chunks[:-1])
    equal(chunks[-1].usage.completion_tokens, world.chat(temperature=0).usage.completion_tokens)


@check("a stream of several answers interleaves them by index")
def _(world):
    texts = {}
    for chunk in world.chat(stream=True, n=3, seed=1, temperature=1.2):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    answer = world.chat(n=3, seed=1, temperature=1.2)
    equal([texts[index] for index in range(3)], [choice.message.content for choice in answer.choices])


@check("the client's stream helper assembles the same answer")
def _(world):
    # The helper takes finish_reason length for an error, so the answer ends at a stop string.
    whole = world.chat(temperature=0, max_tokens=24).choices[0].message.content
    fields = {"max_tokens": 24, "temperature": 0, "stop": whole[len(whole) // 2 :][:3]}
    with world.strict.chat.completions.stream(model=world.model, messages=HELLO, **fields) as stream:
        final = stream.get_final_completion()
    equal(final.choices[0].message.content, world.chat(**fields).choices[0].message.content)


@check("log-probabilities name the answer's tokens, their bytes and the best alternatives")
def _(world):
    choice = world.chat(temperature=0, logprobs=True, top_logprobs=3, max_tokens=8).choices[0]
    entries = choice.logprobs.content
    joined = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
    equal(joined, choice.message.content)
    for entry in entries:
        assert entry.logprob <= 0
        equal(len(entry.top_logprobs), 3)
        equal(entry.top_logprobs[0].token, entry.token, "greedy takes the best")
        values = [top.logprob for top in entry.top_logprobs]
        equal(values, sorted(values, reverse=True))
    equal(world.chat().choices[0].logprobs, None, "log-probabilities without being asked for")


@check("streamed log-probabilities are those of the answer in one piece")
def _(world):
    fields = {"temperature": 0, "logprobs": True, "top_logprobs": 1, "max_tokens": 8}
    whole = [entry.token for entry in world.chat(**fields).choices[0].logprobs.content]
    streamed = []
    for chunk in world.chat(**fields, stream=True):
        for choice in chunk.choices:
            streamed += [entry.token for entry in (choice.logprobs.content if choice.logprobs else None) or []]
    equal(streamed, whole)


@check("system and developer messages are the same, and text parts are text")
def _(world):
    ask = lambda messages: world.chat(messages, temperature=0).choices[0].message.content
    system, developer = ({"role": role, "content": "Answer in one word."} for role in ["system", "developer"])
    equal(ask([developer, *HELLO]), ask([system, *HELLO]))
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    equal(ask(parts), ask(HELLO))


@check("a conversation with earlier answers goes on")
def _(world):
    answer = world.chat([*HELLO, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Again."}])
    assert answer.usage.prompt_tokens > world.chat().usage.prompt_tokens


@check("every sampling field is accepted, and what has no effect too")
def _(world):
    world.chat(temperature=0.7, top_p=0.9, frequency_penalty=0.5, presence_penalty=-0.5, logit_bias={"5": -100}, seed=3)
    world.chat(user="me", metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=False)
    world.chat(safety_identifier="a", prompt_cache_key="b", response_format={"type": "text"})
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}
    equal(world.chat(extra_body=extra, max_tokens=5).usage.completion_tokens, 5)


@check("a bias of 100 forces a token, and one of -100 bans it")
def _(world):
    token = world.raw("POST", "/tokenize", {"prompt": " the", "add_special_tokens": False})[2]["tokens"][0]
    forced = world.complete(logit_bias={str(token): 100}, max_tokens=3, temperature=0).choices[0].text
    equal(forced, " the the the")
    banned = world.complete(logit_bias={str(token): -100}, max_tokens=30, temperature=0, logprobs=0).choices[0]
    assert " the" not in banned.logprobs.tokens, banned.logprobs.tokens


# Text completions


@check("a text completion has id, object, one choice and usage that adds up")
def _(world):
    answer = world.complete()
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.choices[0].text and answer.choices[0].logprobs is None
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)


@check("prompts may be a text, token ids, or lists of either, with the same answers")
def _(world):
    ids = world.raw("POST", "/tokenize", {"prompt": "Once upon a time"})[2]["tokens"]
    ask = lambda prompt: [choice.text for choice in world.complete(prompt, temperature=0).choices]
    one = ask("Once upon a time")
    equal(ask(ids), one)
    equal(ask([ids, ids]), one * 2)
    equal(ask(["Once upon a time", "The capital of France is"])[0], one[0])


@check("several prompts with n give prompt-major indices")
def _(world):
    answer = world.complete(["a b c", "1 2 3"], n=2, temperature=0, max_tokens=4)
    texts = [choice.text for choice in answer.choices]
    equal([choice.index for choice in answer.choices], [0, 1, 2, 3])
    equal((texts[0], texts[2]), (texts[1], texts[3]))


@check("echo begins with the prompt; with max_tokens 0 it is all there is")
def _(world):
    answer = world.complete("The sky is", echo=True, max_tokens=3, temperature=0)
    plain = world.complete("The sky is", max_tokens=3, temperature=0)
    equal(answer.choices[0].text, "The sky is" + plain.choices[0].text)
    alone = world.complete("The sky is", echo=True, max_tokens=0)
    equal((alone.choices[0].text, alone.usage.completion_tokens), ("The sky is", 0))


@check("echo with logprobs scores the prompt, its first token with null")
def _(world):
    # The client's own types know no null in that list, which OpenAI sends.
    answer = world.lax.completions.create(model=world.model, prompt="The sky is blue", echo=True, max_tokens=0, logprobs=1)
    logprobs = answer.choices[0].logprobs
    equal("".join(logprobs.tokens), "The sky is blue")
    equal((logprobs.token_logprobs[0], logprobs.top_logprobs[0]), (None, None))
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    offsets = [len("".join(logprobs.tokens[:index])) for index in range(len(logprobs.tokens))]
    equal(logprobs.text_offset, offsets)


@check("completion log-probabilities are four lists of one length")
def _(world):
    choice = world.complete(temperature=0, logprobs=5, max_tokens=6).choices[0]
    lists = choice.logprobs
    lengths = {len(lists.tokens), len(lists.token_logprobs), len(lists.top_logprobs), len(lists.text_offset)}
    equal(len(lengths), 1, "lengths")
    equal("".join(lists.tokens), choice.text)
    assert all(token in top and len(top) >= 5 for token, top in zip(lists.tokens, lists.top_logprobs))


@check("tokens are written as ids where that is asked for")
def _(world):
    choice = world.complete(temperature=0, logprobs=1, max_tokens=4, extra_body={"return_tokens_as_token_ids": True}).choices[0]
    ids = [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]
    equal(world.raw("POST", "/detokenize", {"tokens": ids})[2]["prompt"], choice.text)


@check("a text stream says what the answer in one piece says")
def _(world):
    # The client's own types know no null finish_reason in streamed completions, which OpenAI sends.
    stream = world.lax.completions.create(model=world.model, prompt="Once", max_tokens=16, temperature=0, stream=True)
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    whole = world.complete("Once", temperature=0).choices[0]
    equal((text, chunks[-1].choices[0].finish_reason), (whole.text, whole.finish_reason))


@check("characters arrive whole, whatever tokens they are made of")
def _(world):
    prompt = "日本語のテキスト: こんにちは、世界。😀🎉 "
    for chunk in world.lax.completions.create(model=world.model, prompt=prompt, max_tokens=40, temperature=1.5, seed=1, stream=True):
        for choice in chunk.choices:
            choice.text.encode()
    equal(world.complete(prompt, echo=True, max_tokens=0).choices[0].text, prompt)


# Refusals


@check("numbers outside their bounds are refused by name")
def _(world):
    for field, value in [
        ("temperature", 2.1), ("temperature", -0.1), ("top_p", 1.1), ("top_p", -0.1), ("frequency_penalty", 2.1),
        ("frequency_penalty", -2.1), ("presence_penalty", 2.1), ("presence_penalty", -2.1), ("n", 0), ("n", 129),
        ("max_tokens", -1), ("max_completion_tokens", 0), ("logit_bias", {"1": 101}), ("logit_bias", {"x": 1}),
    ]:
        fields = {field: value, **({} if "max" in field else {"max_tokens": 1})}
        create = lambda: world.strict.chat.completions.create(model=world.model, messages=HELLO, **fields)
        error = refused(openai.BadRequestError, create)
        assert error.param.startswith(field), f"{field}={value} was called {error.param}"
    refused(openai.BadRequestError, lambda: world.chat(logprobs=True, top_logprobs=21), param="top_logprobs")
    refused(openai.BadRequestError, lambda: world.chat(top_logprobs=2), param="top_logprobs")
    refused(openai.BadRequestError, lambda: world.complete(logprobs=6), param="logprobs")
    refused(openai.BadRequestError, lambda: world.chat(stop=["a"] * 5), param="stop")


@check("wrong types, unknown fields and missing ones are refused by name")
def _(world):
    refused(openai.BadRequestError, lambda: world.chat(extra_body={"temprature": 1}), "unknown_parameter", "temprature")
    refused(openai.BadRequestError, lambda: world.chat(temperature="warm"), "invalid_type", "temperature")
    refused(openai.BadRequestError, lambda: world.chat([]), "empty_array", "messages")
    refused(openai.BadRequestError, lambda: world.chat([{"role": "user"}]), "missing_required_parameter", "messages[0].content")
    refused(openai.BadRequestError, lambda: world.chat([{"role": "wizard", "content": "a"}]), "invalid_value", "messages[0].role")
    refused(openai.BadRequestError, lambda: world.complete([]), "empty_array", "prompt")
    refused(openai.BadRequestError, lambda: world.complete([10**9]), param="prompt[0]")


@check("tools and structured formats are refused with 'not yet'")
def _(world):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert "not yet" in refused(openai.BadRequestError, lambda: world.chat(tools=[tool]), param="tools").message
    call = lambda: world.chat(response_format={"type": "json_object"})
    assert "not yet" in refused(openai.BadRequestError, call, param="response_format").message


@check("what does not fit into the context is refused as context_length_exceeded")
def _(world):
    refused(openai.BadRequestError, lambda: world.complete("word " * 200_000), "context_length_exceeded", "prompt")
    refused(openai.BadRequestError, lambda: world.chat(max_tokens=2**31 - 1), "context_length_exceeded")


@check("a refusal of a stream is an HTTP status, not an event")
def _(world):
    refused(openai.BadRequestError, lambda: world.chat(stream=True, temperature=3), param="temperature")
    options = {"include_usage": True}
    refused(openai.BadRequestError, lambda: world.chat(stream=False, stream_options=options), param="stream_options")


@check("unknown paths, wrong methods, broken JSON and other types of bodies get error objects")
def _(world):
    for status, request in [
        (404, ("GET", "/v1/nowhere")),
        (405, ("GET", "/v1/chat/completions")),
        (405, ("DELETE", "/v1/models")),
        (400, ("POST", "/v1/chat/completions", b"{")),
        (400, ("POST", "/v1/chat/completions", b"[]")),
        (415, ("POST", "/v1/chat/completions", b"{}", "text/plain")),
        (413, ("POST", "/v1/completions", b'{"prompt": "' + b"a" * (64 << 20) + b'"}')),
    ]:
        try:
            found, headers, body = world.raw(*request)
        except urllib.error.URLError as error:
            # A server may close while a body that is far too large is still being sent.
            assert status == 413, error
            continue
        equal(found, status, request[:2])
        equal(body["error"].keys(), {"message", "type", "param", "code"}, request[:2])
        assert headers["x-request-id"], "no x-request-id"


@check("a client's request id comes back")
def _(world):
    answer = world.strict.models.with_raw_response.list(extra_headers={"x-request-id": "my-id-1"})
    equal(answer.headers["x-request-id"], "my-id-1")


# Around


@check("texts become tokens and tokens texts")
def _(world):
    text = "Hello, world! 你好 😀"
    status, _, tokenized = world.raw("POST", "/tokenize", {"prompt": text, "add_special_tokens": False})
    equal((status, tokenized["count"]), (200, len(tokenized["tokens"])))
    equal(world.raw("POST", "/detokenize", {"tokens": tokenized["tokens"]})[2]["prompt"], text)
    chat = world.raw("POST", "/tokenize", {"messages": HELLO})[2]
    equal(chat["count"], world.chat().usage.prompt_tokens, "tokens of a conversation")


@check("health, readiness, status and the description answer")
def _(world):
    for path in ["/health", "/ready", "/relevo/status", "/openapi.json"]:
        equal(world.raw("GET", path)[0], 200, path)


@check("a stream that is left in the middle harms nobody")
def _(world):
    for _ in range(5):
        with world.chat(stream=True, max_tokens=200, extra_body={"ignore_eos": True}) as stream:
            next(iter(stream))
    assert world.chat().choices[0].message.content


@check("sixteen at a time get the answers that each gets alone")
def _(world):
    ask = lambda number: world.complete(f"The number after {number} is", temperature=0).choices[0].text
    alone = [ask(number) for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, [number % 4 for number in range(16)]))
    equal(together, [alone[number % 4] for number in range(16)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base_url")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of each failure")
    arguments = parser.parse_args()
    world = World(arguments.base_url, arguments.api_key)
    failed = 0
    for sentence, function in CHECKS:
        try:
            function(world)
            print(f"ok    {sentence}", flush=True)
        except Exception as error:  # every failure is told, and the next check goes on
            failed += 1
            print(f"FAIL  {sentence}\n      {type(error).__name__}: {error}", flush=True)
            if arguments.verbose:
                traceback.print_exc()
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
