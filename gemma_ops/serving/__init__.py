"""The serving room: what was evaluated answers real clients.

source.py    what is served: a run, a registered version, a file       canary.py   whether the engine is that
llamacpp.py  the engine: a child process, asked in token ids          reading.py, calls.py  its tokens as text, thoughts, calls
model.py     conversations to prompts and replies, one way for all    slots.py     the bounded queue before it
openai_front.py, gemini_front.py  the two protocols                   app.py       both, with health and metrics
server.py    start, canary, serve, drain                              chatting.py  the same model in a terminal
"""
