"""`python -m coterie`: the `coterie` command by a Python that is named, wherever scripts are.

Knows nothing about what it does.
"""

from __future__ import annotations

from coterie.cli.main import main

if __name__ == "__main__":
    main()
