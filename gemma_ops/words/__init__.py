"""The look of figures for a person: markup, colours and drawings of reports and pages.

markup.py   HTML from template files, every text escaped
figures.py  how a target, a number and an interval are written, and the parts that pages share
palette.py  colours and marks of targets
svg.py      small drawings
"""
