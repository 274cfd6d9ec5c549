"""The sampling engine: step programs, and executors that run them from the first position to the last."""

from fastar import _identity

_identity.require()
