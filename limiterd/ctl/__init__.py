"""The verbs of limiterctl, one small module a group: each offers `VERB_arguments(parser)` and `VERB(ns) -> exit code`.

format.py and the `render` functions are pure (data in, text out); terminal.py and connect.py hold the I/O.
"""
