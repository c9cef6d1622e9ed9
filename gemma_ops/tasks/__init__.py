"""Tasks: questions, how answers are scored, stored answers and their grades."""
