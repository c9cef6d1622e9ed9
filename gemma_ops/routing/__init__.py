"""Routing of requests: answered on this machine, by Gemini, or not at all. Fails closed.

routing_policy.py    what a person decides, as YAML
policy_probes.py     the policy's own examples, checked
signals.py           what is known of a request
scan.py              the detectors, within a bounded time
routing_evidence.py  what an evaluation showed per slice
reply_estimate.py    what Gemini would cost
decision.py          the decision: a pure function of these
decision_log.py      the log of decisions, without content
replay.py            another policy over a log
gemini_lane.py       requests carried to Gemini and back
explain_decision.py  one request, for the command line
"""
