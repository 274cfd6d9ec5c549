"""Where a test starts a Python process of its own.

A process started with `-c` or `-m` in a checkout imports the checkout's fastar, which is not the installed one that
the test is about, and lacks its native part.
"""

from pathlib import Path

import fastar

SITE = Path(fastar.__file__).resolve().parent.parent
