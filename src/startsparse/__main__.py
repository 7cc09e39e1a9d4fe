"""``python -m startsparse``: the command line."""

import sys

from startsparse.cli.main import main

sys.exit(main())
