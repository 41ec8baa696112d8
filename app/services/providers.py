"""The cell's key providers, in the shape that the keyring asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.errors import InvalidRequest
from app.kms.binding import Binding, binding_from_record
from app.kms.provider import KeyProvider, KmsMisconfigured
from app.kms.registry import ProviderRegistry


def stored_binding(provider: str, fields: Mapping[str, Any]) -> Binding:
    """A binding's row, checked again: what somebody wrote into the database leads us nowhere else.

    Raises ``KmsMisconfigured``.
    """
    try:
        return binding_from_record({"provider": provider, **fields})
    except (InvalidRequest, KeyError, TypeError):
        raise KmsMisconfigured("BrokenBinding", "a stored binding isn't one that we wrote", alarm=True) from None


class Providers:
    """Providers of one worker, made by its registry."""

    def __init__(self, registry: ProviderRegistry) -> None:
        self.registry = registry

    @property
    def vendor(self) -> KeyProvider:
        """The cell's own key. May raise a ``KmsError`` where its configuration can't be used."""
        return self.registry.vendor()

    def for_binding(self, provider: str, fields: Mapping[str, Any]) -> KeyProvider:
        """The provider of a stored binding. Raises ``KmsMisconfigured``."""
        return self.registry.provider(stored_binding(provider, fields))
