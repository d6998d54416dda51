"""Do the measures measure what they say?

Nothing goes in; worlds whose answer is known come out, with what each measure makes of them.
"""
