"""Whatever can answer: local checkpoints, GGUF files, Gemini, and OpenAI-compatible endpoints, by one protocol."""
