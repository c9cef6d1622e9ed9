"""The inference template in llama.cpp's own Jinja: it must render what Google's template renders there."""

from __future__ import annotations

import http.client
import json
import socket

import pytest

from gemma_ops.data import chat
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.nano import nano_shape
from tests.data.test_chat import CORPUS, GOOGLE, MORE

xllamacpp = pytest.importorskip("xllamacpp", reason="the extra `gguf` is not installed")


class _Socket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    source = MergedCheckpoint(nano_shape.save_nano(nano_shape.build_nano(0), folder / "model"))
    write_gguf(source, plan_tensors(source, "bf16"), folder / "model.gguf", threads=1)
    return folder / "model.gguf"


@pytest.fixture
def rendering(gguf, tmp_path):
    """A function that asks a llama.cpp server holding the given template for a rendering."""

    def start(template):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.chat_template = template
        params.n_ctx, params.n_parallel, params.verbosity, params.warmup, params.ui = 64, 1, -1, False, False
        params.hostnames = [str(tmp_path / f"{abs(hash(template))}.sock")]
        server = xllamacpp.Server(params)

        def ask(messages, tools, **options):
            connection = _Socket(server.listening_address.removeprefix("unix://"))
            body = {"messages": messages, **({"tools": tools} if tools else {}), **options}
            connection.request("POST", "/apply-template", json.dumps(body), {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())

        return ask

    return start


@pytest.mark.slow
def test_llama_cpp_renders_it_as_googles(rendering):
    ours, googles = rendering(chat.inference_template()), rendering(GOOGLE.read_text(encoding="utf-8"))
    rendered = equal = 0
    for name, (messages, tools) in CORPUS.items():
        for asked, prompt in ((messages, False), ([*messages, MORE], True)):
            for thinking in (False, True):
                options = {"add_generation_prompt": prompt, "chat_template_kwargs": {"enable_thinking": thinking}}
                answer = ours(asked, tools, **options)
                assert answer == googles(asked, tools, **options), name
                if "prompt" in answer:  # some of the corpus is no request that the server takes
                    rendered += 1
                    text = chat.render_chat(asked, tools, add_generation_prompt=prompt, thinking=thinking).text
                    equal += answer["prompt"] == text.removeprefix(chat.BOS)
    assert rendered > 200
    # The rest: the server goes on with a last assistant message, and drops what OpenAI's format doesn't know.
    assert equal > 100
