"""Bounded admission: work waits in a line, is taken by a worker's thread, and reports to asyncio.

Knows nothing of what the work is; the denoising loop and the one-at-a-time worker take from it.

| file | what it holds |
|---|---|
| `happenings.py` | what is told of a piece of work |
| `demand.py` | what a piece of work asks for: cost, rows, priority |
| `line.py` | the line itself: who waits, who is refused, who is next |
| `pace.py` | how fast a worker is, and so how long work has to wait |
| `pulse.py` | whether a worker's thread lives |
| `following.py` | from the line to an asyncio caller, with its deadline |
"""
