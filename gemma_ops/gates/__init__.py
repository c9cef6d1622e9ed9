"""Gates: what must hold before a model is promoted, and what a number of rows can show."""
