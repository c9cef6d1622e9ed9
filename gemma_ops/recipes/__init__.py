"""Recipes: finding one, what it needs of its inputs, and what would end its run later, said first."""
