"""The fault campaign: `make faults` does the worst to the suite and judges what it answers.

`fault` says what a fault and an observation are, `judge` gives the verdict. The families of faults are data
(`campaign.FAMILIES`): one module each, which lists its faults and holds the acts that carry them out. `lane`
runs each fault in a process of its own with a deadline, `runner` deals faults to lanes, `table` writes the
page. `planted` holds failures that the campaign must find (tests/test_faults.py).
"""
