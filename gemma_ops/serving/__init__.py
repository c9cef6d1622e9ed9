"""The serving room: what was evaluated answers real clients.

open_source.py, served_source.py    what is served: a run, a version, a file
serving_canary.py                   whether the engine answers as it was evaluated
engine.py, llamacpp_engine.py       the engine: a child process, asked in token ids and answering in them
engines.py, choosing.py             which engine runs what: transformers_engine.py, vllm_engine.py
child.py                            the engines' processes
token_reader.py, calls.py           an engine's tokens as text, thoughts and function calls
showing.py                          images and sounds in a request
model.py                            conversations to prompts and replies, one way for all
slots.py                            the bounded queue in front of an engine
serving_state.py                    a model behind its queue, and what it counts
keys.py, key_budgets.py             who may ask, and spend
openai_front.py, gemini_front.py    the two protocols
app.py, sending.py, page.py         their routes
routed.py                           the model `auto`: answered by the policy's lane
routed_front.py, routed_request.py  how requests to `auto` are read
gemini_service.py                   Gemini behind the fronts, as a model is
lanes.py, lane_failures.py          dollars by lane, and lanes that fail
copied.py                           a version in a folder, without a registry
pyfunc.py                           the same as MLflow's own tools load it
accounting.py                       what is kept of a request that ended
traffic.py, traffic_writer.py       its way to MLflow
server.py                           start, canary, serve, drain
chatting.py                         the same model in a terminal
"""
