"""``python -m app.embedded --state DIR [--port N]``: serve a PostgreSQL from DIR until told to stop."""

import sys

from app.embedded.supervisor import main

sys.exit(main())
