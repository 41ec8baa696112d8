"""A worker for each module of tests, and a tenant of its own for each test."""

from __future__ import annotations

from tests.module_cell import cell, module_database, tenant

__all__ = ["cell", "module_database", "tenant"]
