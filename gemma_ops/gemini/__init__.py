"""Gemini through google-genai: the only door to it. Bounded in dollars, guarded by privacy, safe to kill."""
