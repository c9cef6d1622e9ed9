"""What runs inside a tool's environment: one module a job, each with `run_job(request, folder)`.

They may import the tool's own libraries, torch and numpy, and of gemma_ops only what needs nothing else
(`errors`, `stats`, `family`).
"""
