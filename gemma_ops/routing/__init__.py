"""Where a request is answered: on this machine, by Gemini, or not at all. Fails closed.

policy.py      what a person decides, as YAML            probes.py       the policy's own examples, checked
signals.py     what is known of a request                scan.py         the detectors, within a bounded time
evidence.py    what an evaluation showed per slice       estimate.py     what Gemini would cost
decision.py    the decision: a pure function of these    records.py      the log of decisions, without content
replay.py      another policy over a log                 gemini_lane.py  requests carried to Gemini and back
explaining.py  one request, for the command line
"""
