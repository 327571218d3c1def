"""`clipag demo`: a page on this machine.

`app` answers requests, `jobs` works on one at a time, `studio` and `work` say how, `gallery` keeps what was made.
"""
