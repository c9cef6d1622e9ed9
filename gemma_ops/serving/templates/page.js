const form = document.querySelector('form');
const [said, thought, counts, where] = ['said', 'thought', 'counts', 'where'].map(id => document.getElementById(id));

form.addEventListener('submit', async event => {
  event.preventDefault();
  said.textContent = '';
  thought.textContent = '';
  counts.textContent = '…';
  const key = form.key ? form.key.value : '';
  const model = form.model ? form.model.value : form.dataset.model;
  const began = performance.now();
  let first = 0;
  const reply = await fetch('v1/chat/completions', {
    method: 'POST',
    headers: {
      'Content-Type': 'application/json',
      ...(key ? {Authorization: 'Bearer ' + key} : {}),
      ...(form.privacy ? {'x-gemma-ops-privacy': form.privacy.value} : {}),
    },
    body: JSON.stringify({
      model,
      stream: true,
      stream_options: {include_usage: true},
      temperature: 0,
      max_tokens: 512,
      messages: [{role: 'user', content: form.prompt.value}],
    }),
  });
  where.textContent = '';
  if (!reply.ok) {
    counts.textContent = (await reply.json()).error.message;
    return;
  }
  const lane = reply.headers.get('x-gemma-ops-lane');
  where.textContent = lane ? lane + ': ' + reply.headers.get('x-gemma-ops-reasons') : '';
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    left += value;
    const events = left.split('\n\n');
    left = events.pop();
    for (const line of events) {
      const data = line.slice('data: '.length);
      if (data === '[DONE]') continue;
      const body = JSON.parse(data);
      if (body.error) {
        counts.textContent = body.error.message;
        continue;
      }
      const delta = body.choices[0]?.delta || {};
      if (delta.content || delta.reasoning_content) first = first || performance.now();
      said.textContent += delta.content || '';
      thought.textContent += delta.reasoning_content || '';
      if (body.usage) counts.textContent = told(body.usage, first - began, performance.now() - began);
    }
  }
});

function told(usage, first, all) {
  const dollars = usage.gemma_ops ? ', $' + usage.gemma_ops.dollars : '';
  return usage.prompt_tokens + ' + ' + usage.completion_tokens + ' tokens, first after ' + Math.round(first)
    + ' ms, all after ' + Math.round(all) + ' ms' + dollars;
}
