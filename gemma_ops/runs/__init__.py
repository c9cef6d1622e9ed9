"""Runs on disk: steps, artifacts, digests, journals, keyed records, files that appear whole, and processes."""
