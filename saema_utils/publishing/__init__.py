"""How do results become pages?

A run goes in; executed notebooks, cleaned of what no page may show, and the built book come out.
"""
