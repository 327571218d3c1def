"""`clipag demo`: a page on this machine, served by the standard library alone.

One process, a thread a connection and one thread that works: what the job needs is torch, which holds no
event loop, so an asynchronous server would bring packages and no benefit. Nothing is installed for it.
"""
