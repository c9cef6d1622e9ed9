"""The wire formats of the Gemini and OpenAI protocols as a server reads and writes them: for the emulator and for
serving."""
