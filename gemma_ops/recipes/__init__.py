"""Recipes: finding one, what it needs of its inputs, and the mistakes that would end its run later, reported first."""
