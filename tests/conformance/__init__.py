"""CPython's own asyncio tests, run on our loop and on the stock one.

adapter.py makes the classes, kinds.py the loops, exclusions.py says what is left
out and why; test_cpython_*.py stand for one file of `test.test_asyncio` each.
What the stock loop, the control, passes:

    Python 3.11.7   1111 tests, and 1 that it skips
    Python 3.12.1   1185 tests, and 1 that it skips
    Python 3.13.0   1250 tests, and 1 that it skips
    Python 3.14.10  1444 tests, and 3 that it skips (two want 2.2 GB of memory)

One backend of ours, or the control alone: ``pytest tests/conformance -k _epoll``
or ``-k _asyncio``; one backend and the control: ``--fdmon epoll``. ``-n 2`` halves
the time.
"""
