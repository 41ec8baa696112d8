"""Confide: a multi-tenant, sealed and audited store for dialogue context."""

__version__ = "0.1.0"
