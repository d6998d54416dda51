"""What do the numbers decide?

Tables of measures go in; effects with intervals, verdicts and judged claims come out.
"""
