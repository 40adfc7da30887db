"""From a study's records to answers: statistics, findings, reports and exported models.

Entry point: `python -m analysis COMMAND` (`analysis.__main__`). Of sweeps it imports `sweeps.records` and
`sweeps.search.stopping_rules` only.
"""
