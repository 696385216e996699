"""The kinds of inputs that `fuzz.py` draws: each generator gives a name of one and a case to judge."""
