"""The page at `/`: what runs since when, and why it may; how it is asked; what it has done."""

from __future__ import annotations

import time
from html import escape

from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.lanes import LaneSummary
from gemma_ops.serving.serving_state import TrafficTally

_STYLE = """
:root{color-scheme:light dark;--ink:#16181d;--soft:#5c6370;--line:#dfe2e8;--card:#fff;--back:#f5f6f8;--good:#1a7f4b;--bad:#b3261e;--blue:#2457c5}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaee;--soft:#9aa1ad;--line:#2c313a;--card:#1a1d23;--back:#111317;--good:#5cc98d;--bad:#ff8a80;--blue:#8ab0ff}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1rem;display:grid;grid-template-columns:minmax(0,1fr);gap:1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1rem;margin:0 0 .6rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.2rem}
.soft{color:var(--soft)}dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.pill{display:inline-block;border-radius:1rem;padding:.05rem .7rem;font-size:.85rem;border:1px solid currentColor}
ul{margin:0;padding-left:1.2rem}.pass{color:var(--good)}.fail,.inconclusive,.ungated{color:var(--bad)}
pre{overflow-x:auto;background:var(--back);padding:.7rem;border-radius:.4rem;margin:.4rem 0 0;font-size:.85rem}
textarea{width:100%;min-height:4.5rem;font:inherit;color:inherit;background:var(--back);border:1px solid var(--line);border-radius:.4rem;padding:.6rem}
select,input{font:inherit;color:inherit;background:var(--back);border:1px solid var(--line);border-radius:.4rem;padding:.4rem;margin:.5rem .5rem 0 0}
button{font:inherit;background:var(--blue);color:var(--card);border:0;border-radius:.4rem;padding:.45rem 1.2rem;margin-top:.5rem;cursor:pointer}
#said,#thought{overflow-wrap:anywhere}#said{white-space:pre-wrap;margin-top:.7rem;min-height:1.5rem}#thought{white-space:pre-wrap;color:var(--soft);font-style:italic}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:400}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(8rem,1fr));gap:1rem}.numbers b{display:block;font-size:1.4rem}
""".strip()
_CHOICE = """
<select name="model" aria-label="Model"><option>{model}</option><option>auto</option></select>
<select name="privacy" aria-label="Class of a request for auto"><option>local_only</option><option>paid</option><option>any</option></select>
""".strip()
_SCRIPT = """
const form=document.querySelector('form'),said=document.getElementById('said'),thought=document.getElementById('thought'),counts=document.getElementById('counts'),where=document.getElementById('where');
form.addEventListener('submit',async e=>{e.preventDefault();said.textContent='';thought.textContent='';counts.textContent='…';
 const key=form.key?form.key.value:'',model=form.model?form.model.value:form.dataset.model,began=performance.now();let first=0;
 const r=await fetch('v1/chat/completions',{method:'POST',headers:{'Content-Type':'application/json',...(key?{Authorization:'Bearer '+key}:{}),...(form.privacy?{'x-gemma-ops-privacy':form.privacy.value}:{})},
  body:JSON.stringify({model,stream:true,stream_options:{include_usage:true},temperature:0,max_tokens:512,messages:[{role:'user',content:form.prompt.value}]})});
 where.textContent='';if(!r.ok){counts.textContent=(await r.json()).error.message;return}
 const lane=r.headers.get('x-gemma-ops-lane');where.textContent=lane?lane+': '+r.headers.get('x-gemma-ops-reasons'):'';
 const reader=r.body.pipeThrough(new TextDecoderStream()).getReader();let left='';
 for(;;){const {done,value}=await reader.read();if(done)break;left+=value;const events=left.split('\\n\\n');left=events.pop();
  for(const line of events){const data=line.slice(6);if(data==='[DONE]')continue;const body=JSON.parse(data);
   if(body.error){counts.textContent=body.error.message;continue}
   const delta=body.choices[0]?.delta||{};if(delta.content||delta.reasoning_content)first=first||performance.now();
   said.textContent+=delta.content||'';thought.textContent+=delta.reasoning_content||'';
   if(body.usage)counts.textContent=body.usage.prompt_tokens+' + '+body.usage.completion_tokens+' tokens, first after '+Math.round(first-began)+' ms, all after '+Math.round(performance.now()-began)+' ms'+(body.usage.gemma_ops?', $'+body.usage.gemma_ops.dollars:'')}}});
""".strip()


def render_page(deployment: Deployment, url: str, *, keys: bool = False, lanes: LaneSummary | None = None) -> str:
    """The page as HTML, with nothing from elsewhere; `url` is where it is served, `keys` whether a key is needed,
    `lanes` what the router did where there is one."""
    service = deployment.current
    facts, tally = service.facts, service.tally
    rows = [
        ("Source", facts.source), ("Version", facts.version or "no registered version"), ("Format", facts.format),
        ("Engine", f"{facts.engine}: {service.model.engine.slots} slots of {service.model.engine.context:,} tokens"),
        ("Thinking", "on" if service.model.thinks else "off"), ("SHA-256", facts.digest),
        ("Since", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(service.began))), ("Canary", facts.canary),
    ]  # fmt: skip
    asked, good, mean = _counts(tally)
    numbers = [
        ("requests", asked), ("answered", good), ("mean time", mean), ("under way", str(service.slots.running)),
        ("waiting", str(service.slots.waiting)), ("tokens written", f"{tally.reply_tokens + tally.thought_tokens:,}"),
    ]  # fmt: skip
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    gates = "".join(f"<li>{escape(one)}</li>" for one in facts.gates)
    verdict = (
        f'<span class="pill {escape(facts.verdict)}">{escape(facts.verdict)}</span>'
        if facts.verdict
        else "not evaluated"
    )
    more = '<input name="key" type="password" placeholder="key" aria-label="Key">' if keys else ""
    more += _CHOICE.format(model=escape(facts.model, quote=True)) if lanes else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(facts.model)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(facts.model)}</h1><div class=soft>served by gemma-ops</div></header>"
        f"<section class=card><h2>What runs</h2><dl>{listed}</dl></section>"
        f"<section class=card><h2>Why it may: its verdict {verdict}</h2><ul>{gates or '<li>no gates</li>'}</ul></section>"
        f"{_versions(deployment)}{_lanes(lanes)}"
        f'<section class=card><h2>Try it</h2><form data-model="{escape(facts.model, quote=True)}">'
        f'<textarea name="prompt" required aria-label="Prompt" placeholder="Ask it something"></textarea>{more}'
        '<button>Ask</button></form><div id="thought"></div><div id="said"></div><div id="where" class="soft"></div><div id="counts" class="soft"></div></section>'
        "<section class=card><h2>So far</h2><div class=numbers>"
        + "".join(f"<div><b>{escape(value)}</b><span class=soft>{name}</span></div>" for name, value in numbers)
        + "</div></section>"
        f"<section class=card><h2>From elsewhere</h2>{_curl(facts.model, url)}</section>"
        f"</main><script>{_SCRIPT}</script></body></html>"
    )


def _counts(tally: TrafficTally) -> tuple[str, str, str]:
    """Requests, those that were answered, and the mean seconds of an answer."""
    good = sum(count for (_, status), count in tally.requests.items() if status == 200)
    mean = f"{tally.seconds_sum / good:.2f} s" if good else "–"
    return f"{sum(tally.requests.values()):,}", f"{good:,}", mean


def _versions(deployment: Deployment) -> str:
    """Versions that serve, end, or have served, and why a version that should serve doesn't; nothing where there is
    only one."""
    if len(deployment.tallies) == 1 and not deployment.trouble:
        return ""
    state = {service.facts.label: "ends" for service in deployment.services}
    if deployment.challenger:
        share = f"{deployment.share:.0%} of the requests" if deployment.share else "a copy of each request"
        state[deployment.challenger.facts.label] = f"challenger: {share}"
    state[deployment.current.facts.label] = "serves"
    rows = []
    for (_, version, form), tally in deployment.tallies.items():
        cells = [version or "–", form, state.get((deployment.current.facts.model, version, form), "ended")]
        rows.append("".join(f"<td>{escape(cell)}" for cell in (*cells, *_counts(tally))))
    trouble = "".join(f'<p class="fail">{escape(why)}</p>' for why in deployment.trouble.values())
    head = "".join(f"<th>{name}" for name in ("version", "format", "state", "requests", "answered", "mean time"))
    table = f"<table><tr>{head}{''.join(f'<tr>{row}' for row in rows)}</table>"
    return f"<section class=card><h2>Versions</h2>{table}{trouble}</section>"


def _lanes(summary: LaneSummary | None) -> str:
    """Where requests for `auto` were answered, by share and dollars; nothing without a router."""
    if summary is None:
        return ""
    head = "".join(f"<th>{name}" for name in ("lane", "requests", "share", "tokens", "dollars"))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in summary.rows)
    table = f"<table><tr>{head}{rows}</table>" if rows else "<p class=soft>nobody has asked for auto yet</p>"
    return f"<section class=card><h2>Lanes</h2><p class=soft>policy {escape(summary.policy)}</p>{table}</section>"


def _curl(model: str, url: str) -> str:
    chat = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "…"}}]}}'
    body = '{"contents": [{"parts": [{"text": "…"}]}]}'
    return (
        f"<pre>curl {escape(url)}/v1/chat/completions -H 'Content-Type: application/json' -d '{escape(chat)}'</pre>"
        f"<pre>curl {escape(url)}/v1beta/models/{escape(model)}:generateContent -H 'Content-Type: application/json' -d '{escape(body)}'</pre>"
    )
