"""
LiteWhisper inside of other programs.

Nothing is imported here: each module needs the program that it is for.
"""
