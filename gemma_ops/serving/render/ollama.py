"""An Ollama Modelfile for a version's GGUF file.

Ollama (read at 0.33) renders prompts of Gemma 4 by code of its own, chosen by `RENDERER`, which a GGUF file of this
family gets even where none is named. That code was compared with our template over 32 conversations (system turns,
tools and their results, thinking on and off, small and large sizes): the same bytes. A TEMPLATE is what older ones, and
other programs that read Modelfiles, go by; it says what ours says of plain conversations, as far as Go's templates can.
"""

from __future__ import annotations

from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import FORMATS, GGUF
from gemma_ops.serving.render.rendering import Deployed

WANTS = tuple(GGUF)
REQUIRES = "0.33.0"
"""Version of Ollama whose renderer and parser were read."""
_LARGE = ("12B", "26B-A4B", "31B")
"""Sizes that are prompted with an empty thought when they are not to think."""
_EMPTY = "<|channel>thought\n<channel|>"


def ollama(job: Deployed) -> str:
    """Return the Modelfile. Raises ConfigError for a version whose mode of thinking is not recorded."""
    if not job.thinking:
        raise ConfigError(
            f"{job.source} does not say whether it was trained to think, and Ollama has to be told",
            "register it again from its run",
        )
    large = (job.size or "").upper() in _LARGE
    folder = f"{job.title}-{job.version}"
    think = "true" if job.thinking == "on" else "false"
    about = [
        *job.about(),
        f"bring the file:  {' '.join(job.pull(folder))}",
        f"then:            ollama create {job.title}:{job.version} -f Modelfile",
        f'EVERY REQUEST must say "think": {think} (ollama run --think={think}): so it was trained and evaluated, and',
        "Ollama turns thinking on by itself where nothing is said. A Modelfile can't say it.",
        "What Ollama does otherwise than `gemma-ops serve`: no canary before it answers; turns of one role in a row",
        (
            "are joined; the oldest are dropped without a word when the context is full; TEMPLATE trims no white "
            "space, and"
        ),
        "knows no thoughts and no tools (RENDERER and PARSER do, by Ollama's code). No ADAPTER: it is merged.",
    ]
    lines = [
        f"REQUIRES {REQUIRES}",
        f"FROM ./{folder}/{FORMATS[job.form].place}",
        f"RENDERER gemma4-{'large' if large else 'small'}",
        "PARSER gemma4",
        f'TEMPLATE """{template(thinks=job.thinking == "on", empty_thought=large)}"""',
        'PARAMETER stop "<turn|>"',
        f"PARAMETER num_ctx {job.context}",
        *_sampling(job),
    ]
    return "".join(f"# {line}\n" for line in about) + "\n" + "\n".join(lines) + "\n"


def template(*, thinks: bool, empty_thought: bool) -> str:
    """Return Ollama's template of a plain conversation: system, user and assistant turns, ending where the model goes
    on."""
    turn = "<|turn>{role}\n{{{{ .Content }}}}<turn|>\n"
    switch = "<|turn>system\n<|think|>\n"
    # The switch opens the system turn: with instructions in it where the conversation begins with some, else alone.
    first = (
        '{{- $told := false }}{{- range $i, $m := .Messages }}{{- if eq $i 0 }}'
        '{{- if eq .Role "system" }}{{- $told = true }}'
        + switch + "{{ .Content }}<turn|>\n{{ else }}" + switch + "<turn|>\n{{ end }}{{ end }}{{ end }}"
    )  # fmt: skip
    before = first if thinks else ""
    system = turn.format(role="system")
    skip = '{{- if and (eq .Role "system") (not (and $told (eq $i 0))) }}' if thinks else '{{- if eq .Role "system" }}'
    ends = _EMPTY if empty_thought and not thinks else ""
    return (
        "<bos>" + before
        + "{{- range $i, $m := .Messages }}" + skip + system
        + '{{ else if eq .Role "user" }}' + turn.format(role="user")
        + '{{ else if eq .Role "assistant" }}' + turn.format(role="model")
        + "{{ end }}{{ end }}<|turn>model\n" + ends
    )  # fmt: skip


def _sampling(job: Deployed) -> list[str]:
    """Return the sampling settings of `generation_config.json`; greedy, as it was evaluated, where that says
    nothing."""
    known = dict(job.sampling)
    if "temperature" not in known:
        return ["PARAMETER temperature 0"]
    return [f"PARAMETER {name} {value:g}" for name, value in known.items()]
