"""The part of the model card that says how each artifact is loaded and asked, in a few lines that work as they stand.

The adapter's tensors are named as in the class with towers (`model.language_model.…`). Plain PEFT on the text-only
class finds none of them there, warns, and goes on with the base; a `key_mapping` puts them where that class has them.
The same holds for the published weights of the base.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.family.formats import EDGE, GGUF, PACKED, PROJECTOR_FILE, PROJECTOR_SHELF

_ASK = """prompt = tokenizer.apply_chat_template([{{"role": "user", "content": "…"}}], add_generation_prompt=True, \
enable_thinking={thinking}, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=256)[0]))"""
_MODES = {
    "off": "without thinking",
    "on": "with thinking on: it thinks before it answers",
    "mixed": "in both modes of thinking; it was evaluated without",
}


def loading(subject: dict[str, Any], forms: list[str]) -> str:
    """Return how to load and ask each of `forms` (what the version carries), as Markdown."""
    files = subject["files"]
    parts = [_asked(subject)]
    if subject["adapter"]:
        parts.append(_adapter(subject))
    if any(name.startswith("tuned/") for name in files):
        parts.append(
            "`tuned/` holds the changed tensors only: `gemma-ops merge` puts them into the base with the digests in "
            "`manifest.json`."
        )
    if any(name.startswith("merged/") for name in files):
        parts.append(
            "The merged checkpoint:\n\n```python\n"
            "from transformers import AutoModelForImageTextToText, AutoTokenizer\n"
            'model = AutoModelForImageTextToText.from_pretrained("merged", dtype="bfloat16")\n'
            'tokenizer = AutoTokenizer.from_pretrained("merged")\n'
            f"{_ASK.format(thinking=_thinks(subject))}\n```"
        )
    gguf = [name for name in forms if name in GGUF and GGUF[name].place in files]
    parts += [_llamacpp(subject, name) for name in gguf]
    if gguf:
        parts.append(
            "Say the mode: llama.cpp turns thinking on by itself where the template knows how. In xllamacpp it is "
            f"`params.enable_reasoning = {int(_thinks(subject))}`."
        )
        parts.append(
            "Through MLflow, where gemma-ops is installed: compared with its manifest, and asked as it was evaluated."
            "\n\n```python\nimport mlflow\n"
            f'model = mlflow.pyfunc.load_model("models:/{subject["name"]}@champion")  # or this folder\n'
            'print(model.predict({"messages": [{"role": "user", "content": "…"}]}))\n```'
        )
    parts += [_vllm(name) for name in forms if name in PACKED and PACKED[name].place in files]
    edge = [name for name in forms if name in EDGE and EDGE[name].place in files]
    parts += [_edge(name, files[EDGE[name].place]["bytes"]) for name in edge]
    return "\n\n".join(parts)


def _asked(subject: dict[str, Any]) -> str:
    """Return the mode of thinking and the chat template, which prompts must share with the training rows."""
    known = subject.get("prompting")
    if not known:
        return (
            "Use the base's chat template as it is: the training rows were rendered with it. How it was asked to think "
            "is not recorded."
        )
    template = f"the chat template `{known['template'][:12]}` ({known['template_name']})"
    return f"It was trained {_MODES[known['thinking']]}, on rows rendered with {template}: ask it the same way."


def _thinks(subject: dict[str, Any]) -> bool:
    return (subject.get("prompting") or {}).get("thinking") == "on"


def _adapter(subject: dict[str, Any]) -> str:
    base = subject["base"]
    place = base["id"] if "/" in base["id"] else f"path/to/{base['id']}"
    tokenizer = "tokenizer" if any(name.startswith("tokenizer/") for name in subject["files"]) else place
    small = "Gemma4UnifiedForCausalLM" if base["size"] == "12b" else "Gemma4ForCausalLM"
    return (
        "The adapter, on the base with the digests in `manifest.json`:\n\n```python\n"
        "from peft import PeftModel\nfrom transformers import AutoModelForImageTextToText, AutoTokenizer\n"
        f'base = AutoModelForImageTextToText.from_pretrained("{place}", dtype="bfloat16")\n'
        'model = PeftModel.from_pretrained(base, "adapter")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")\n'
        f"{_ASK.format(thinking=_thinks(subject))}\n```\n\n"
        f"On the text-only class `{small}` the names differ, and plain PEFT loads the adapter as nothing, with a "
        f"warning. These "
        "two lines load it:\n\n```python\n"
        f'base = {small}.from_pretrained("{place}", dtype="bfloat16", '
        'key_mapping={r"^model\\.language_model\\.": "model."})\n'
        'model = PeftModel.from_pretrained(base, "adapter", key_mapping={r"model\\.language_model\\.": "model."})\n```'
    )


def _llamacpp(subject: dict[str, Any], name: str) -> str:
    mode = "on" if _thinks(subject) else "off"
    command = f"llama-server -m {GGUF[name].place} --jinja --reasoning {mode}"
    towers = f"{PROJECTOR_SHELF}/{PROJECTOR_FILE}"
    command += f" --mmproj {towers}" if towers in subject["files"] else ""
    return f"{name} in llama.cpp:\n\n```\n{command}\n```"


def _vllm(name: str) -> str:
    form = PACKED[name]
    told = (
        "its weights alone are rounded, and it was evaluated with them decoded, as vLLM multiplies with them"
        if form.reads_as == "weights"
        else "evaluated by transformers with compressed-tensors, which is no evidence about vLLM's kernels"
    )
    return f"{name} in vLLM ({told}; vLLM has not run here):\n\n```\nvllm serve {form.shelf}\n```"


def _edge(name: str, size: int) -> str:
    return (
        f"{name} in LiteRT-LM, on a phone or a laptop without a network: copy `{EDGE[name].place}` there. It needs "
        f"{size / 1e9:,.2f} GB of storage, and about as much free memory, with keys and values of the whole context on "
        "top. "
        "It holds the language model alone, asks for float32 activations, and was evaluated on a CPU of this kind of "
        "machine; on a phone nobody has measured speed, memory, heat, or what a GPU with float16 activations says. "
        "Scores change with the version of the runtime.\n\n```python\n"
        "import litert_lm\n"
        f'with litert_lm.Engine("{EDGE[name].place}") as engine, engine.create_conversation() as conversation:\n'
        '    print(conversation.send_message("…"))\n```'
    )
