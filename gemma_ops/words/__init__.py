"""How figures look to a person: markup, colours and drawings of reports and pages."""
