"""Array functions that decide how fast the network is, with a form for each platform where that pays.

Each has a plain meaning. Which form runs is chosen when a program is lowered, see `forms`.
"""
