"""How are many studies run side by side?

A file that describes a grid goes in; finished runs come out, in series, on local workers or on a cluster.
"""
