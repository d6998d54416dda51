"""What does the authors' own protocol measure here, and which of its steps makes what it finds?

Written anew from what their published code does, step by step, so that each step can be switched off.
"""
