"""Environments of tools whose versions don't go together with ours, and the jobs that run in them.

A tool is a Python environment that is made from a lock shipped here, and is only spoken to through files: a job's
request and its result are JSON, tensors lie in safetensors and arrays in npz. What runs there stands in `jobs/`, and is
started by `job_start.py`.
"""
