"""What verbs do with their settings, wherever that is: in a command line or in a server's worker.

A job takes settings, a console to speak to, and an `Opener`, which opens bases for a command
and keeps them for a worker. It returns what was made; who started it shows that.
"""
