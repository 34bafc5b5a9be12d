"""How many replays a stage may be asked for, so that an outage is not made worse by them."""

from __future__ import annotations

# In a lasting outage, replays add at most so much to the load that callers make anyway.
TOKENS_PER_CALL = 0.2
# What a client has before it has made many calls: the calls of one replica that was killed.
RESERVE_TOKENS = 20.0
# What it can save up: a kill that hits very many calls is still absorbed, an outage after days of
# health is not knocked at for long.
MAX_TOKENS = 100.0


class RetryBudget:
    """A bucket of tokens: each call puts a part of one in, each replay takes a whole one out."""

    def __init__(self) -> None:
        self._tokens = RESERVE_TOKENS

    def deposit(self) -> None:
        """Counts a call, its replays not included."""
        self._tokens = min(MAX_TOKENS, self._tokens + TOKENS_PER_CALL)

    def withdraw(self) -> bool:
        """Takes the token for one replay; False, and nothing is taken, if there is none."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
